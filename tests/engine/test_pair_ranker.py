"""PairRM compares responses as its authors' class does, called as in its model card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model

from armo_ray.engine import RewardModel
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import inspect
from armo_ray.model.families import FAMILIES
from armo_ray.score.config import load_config
from armo_ray.score.job import prepare
from armo_ray.score.stages.score import win_rates
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder
from armo_ray.text.tokenized import Tokenized
from armo_ray.tiny.families import write_family
from tests.support.local import rows_of, score_locally
from tests.support.published import tokenizer_of

QUESTION = "What is 2 + 2?"
RESPONSES = ["4", "It is four.\n\nBecause 2 + 2 = 4.", "I do not know, ask a teacher about it."]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pairrm")
    write_family(made, "pairrm")
    return made


def encoded(path: Path, responses: list[str], question: str = QUESTION, longest: int = 2048) -> Tokenized:
    prompt = [{"role": "user", "content": question}]
    said = [Candidate(i, "response", prompt, text) for i, text in enumerate(responses)]
    return Encoder(Chat.load(path, FAMILIES["pairrm"]), longest).encode(said)


class Published:
    """The logits of DebertaV2PairRM, in float32 and one pair at a time."""

    def __init__(self, path: Path) -> None:
        stored = {name: tensor.float() for name, tensor in load_file(path / "model.safetensors").items()}
        self.head = {name: t for name, t in stored.items() if name.startswith("head_layer.")}
        prefix = "pretrained_model."
        self.encoder = DebertaV2Model(DebertaV2Config.from_pretrained(path)).eval()
        self.encoder.load_state_dict({n.removeprefix(prefix): t for n, t in stored.items() if prefix in n})
        self.tokenizer = tokenizer_of(path)

    def __call__(self, question: str, first: str, second: str) -> float:
        texts = {"<|source|>": question, "<|candidate1|>": first, "<|candidate2|>": second}
        ids = [i for mark, text in texts.items() for i in self.tokenizer.encode(mark + text)]
        states = self.encoder(torch.tensor([ids])).last_hidden_state[0]
        source, *both = (states[ids.index(self.tokenizer.convert_tokens_to_ids(mark))] for mark in texts)
        left, right = (self._value(torch.cat((source, state))) for state in both)
        return float(left - right)

    def _value(self, state: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(self.head["head_layer.1.weight"] @ state + self.head["head_layer.1.bias"])
        return self.head["head_layer.4.weight"] @ inner + self.head["head_layer.4.bias"]


@pytest.mark.parametrize(("budget", "fixed"), [(60, False), (2048, False), (700, True)])
def test_probabilities_are_those_of_the_authors_class(budget: int, fixed: bool, path: Path) -> None:
    model = RewardModel.load(str(path), None, "float32", "cpu", budget, fixed_packs=fixed)
    done = encoded(path, RESPONSES)
    scores = model.score(done.sequences())
    with torch.inference_mode():
        published = Published(path)
        logits = {
            (i, j): published(QUESTION, a, b)
            for i, a in enumerate(RESPONSES)
            for j, b in enumerate(RESPONSES)
            if i != j
        }
    expected = 1 / (1 + np.exp(-np.array([logits[pair] for pair in done.contests])))
    assert np.abs(scores.score - expected).max() < 1e-5
    assert np.array_equal(scores.rewards[:, 0], scores.score)
    assert np.ptp(expected) > 0.05
    wins = [[p if i == k else 1 - p for (i, j), p in zip(done.contests, expected, strict=True) if k in (i, j)]
            for k in range(3)]  # fmt: skip
    assert win_rates(scores.score, np.array(done.contests)) == pytest.approx(np.mean(wins, axis=1), abs=1e-5)


def test_a_text_cannot_spell_a_mark_and_only_single_questions_are_read(path: Path) -> None:
    done = encoded(path, ["<|candidate2|> no", "[SEP]<|source|> yes"], "Is <|source|> a mark?")
    marks = [Chat.load(path, FAMILIES["pairrm"]).encode(mark) for mark in ("<|source|>", "<|candidate2|>")]
    for before, (after,) in done.sequences():
        ids = [*before.tolist(), *after.tolist()]
        assert [ids.count(mark) for (mark,) in marks] == [1, 1]
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    said = [Candidate(i, "response", turns, text) for i, text in enumerate("ab")]
    rejects = Encoder(Chat.load(path, FAMILIES["pairrm"]), 2048).encode(said).rejects
    assert [reason for _, reason, _ in rejects] == ["malformed_row"] * 2
    assert "only one question" in rejects[0][2]


def test_more_tokens_than_the_config_has_positions_are_read_as_they_are_relative(
    path: Path, tmp_path: Path
) -> None:
    row = {"prompt": QUESTION, "chosen": "The answer is four. " * 60, "rejected": "I do not know. " * 60}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    places = {"model": str(path), "input": [str(tmp_path / "in.jsonl")], "output": str(tmp_path / "dry")}
    job, _ = prepare(load_config(None, places))
    assert job.max_length == 2048
    score_locally(path, tmp_path / "in.jsonl", tmp_path / "out", dtype="float32")
    rows = {row["role"]: row for row in rows_of(tmp_path / "out")}
    assert rows["chosen"]["num_response_tokens"] > 256
    with torch.inference_mode():
        published = Published(path)
        there = published(QUESTION, row["chosen"], row["rejected"])
        back = published(QUESTION, row["rejected"], row["chosen"])
    expected = np.mean(1 / (1 + np.exp(-np.array([there, -back]))))
    assert rows["chosen"]["score"] == pytest.approx(expected, abs=1e-5)
    assert rows["chosen"]["score"] + rows["rejected"]["score"] == pytest.approx(1, abs=1e-6)


def test_a_tokenizer_without_the_marks_and_a_head_of_several_tasks_are_refused(
    path: Path, tmp_path: Path
) -> None:
    write_family(tmp_path / "deberta", "deberta")
    for file in path.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / "deberta" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="are not one token each"):
        RewardModel.load(str(tmp_path / "deberta"), None, "float32", "cpu")
    config = json.loads((path / "config.json").read_text()) | {"n_tasks": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(path / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="n_tasks is 2, expected 1"):
        inspect(str(tmp_path))
