"""EurusPRM's reward of a step is beta times the log ratio of the response up to there, as its model card has it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from armo_ray.engine import RewardModel, Scores
from armo_ray.engine.step_sums import accumulated
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.families import FAMILIES
from armo_ray.model.positions import STEP_END, without_ends
from armo_ray.model.reference import Reference
from armo_ray.text.conversations import Candidate
from armo_ray.text.judges import steps_of
from armo_ray.text.tokenization import Encoder
from armo_ray.tiny.families import write_family
from tests.engine.test_families import texts
from tests.support.by_day import by_day
from tests.support.local import read_table, score_locally
from tests.support.published import load, tokenizer_of

EURUS = FAMILIES["prm-eurus"]
SAID = [
    *[(prompt[0]["content"], answer) for prompt, answer in texts("prm-eurus")[:6]],
    ("What is 2 + 2?", "Add them: $2 + 2$\n\n4"),  # a last step that is one token
    ("What is 2 + 2?", "$$4$$\n\n\\boxed{4}\n\n(a) 的\n\n4\n\n5\n\nSo 9!\n\n)"),
    ("What is 2 + 2?", "4"),
]


def write_pair(path: Path) -> tuple[str, str]:
    for seed, name in enumerate(("policy", "reference")):
        write_family(path / name, "prm-eurus", seed=seed)
    return str(path / "policy"), str(path / "reference")


def loaded(policy: str, reference: str, beta: float | None = None) -> RewardModel:
    given = Reference(reference, beta=beta)
    return RewardModel.load(policy, None, "float32", "cpu", 900, family="prm-eurus", reference=given)


def scores_of(model: RewardModel, policy: str, share: bool = True) -> Scores:
    candidates = [
        Candidate(i, "response", [{"role": "user", "content": q}], a) for i, (q, a) in enumerate(SAID)
    ]
    done = Encoder(Chat.load(Path(policy), EURUS), 8192).encode(candidates)
    assert done.rejects == []
    return model.with_options(share_prompts=share).score(done.sequences())


class Sums(NamedTuple):
    """The rewards of the steps of one answer, and the sum of the sizes of all their terms."""

    steps: list[float]
    size: float


class Published:
    """The sums of the model card, one conversation at a time, from the log-softmax of all tokens."""

    def __init__(self, policy: str, reference: str, beta: float) -> None:
        self.tokenizer, self.beta = tokenizer_of(Path(policy)), beta
        self.models = [load(AutoModelForCausalLM, Path(path)) for path in (policy, reference)]

    def __call__(self, question: str, steps: Sequence[str]) -> Sums:
        ids = self._encoded(self._rendered(question, steps))
        lengths = [self._length(question, steps, count) for count in range(len(steps) + 1)]
        logs = [self._logs(model, ids) for model in self.models]  # of every token but the first
        ratios = self.beta * (logs[0] - logs[1])
        ratios[: lengths[0] - 3] = 0
        sums = [float(ratios[: length - 1].sum()) for length in lengths[1:]]
        return Sums(sums, float(ratios.abs().sum()))

    def _length(self, question: str, steps: Sequence[str], count: int) -> int:
        """The number of tokens of the conversation up to a step, with the end of its turn and a blank line."""
        text = self._rendered(question, steps[:count]).strip()
        return len(self._encoded(text + "\n\n" * (0 < count < len(steps))))

    def _rendered(self, question: str, steps: Sequence[str]) -> str:
        turns = [("user", question), ("assistant", "\n\n".join(steps))]
        messages = [{"role": role, "content": text} for role, text in turns]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @staticmethod
    def _logs(model: Any, ids: list[int]) -> torch.Tensor:
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
        return logs[range(len(ids) - 1), ids[1:]]


def expected(policy: str, reference: str, beta: float) -> list[Sums]:
    with torch.inference_mode():
        published = Published(policy, reference, beta)
        return [published(question, steps_of(answer, EURUS)[0]) for question, answer in SAID]


def test_rewards_of_steps_are_the_sums_of_the_model_card(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    model, sums = loaded(policy, reference, 1.0), expected(policy, reference, 1.0)
    shared, unshared = (scores_of(model, policy, share) for share in (True, False))
    assert shared.computed_tokens < unshared.computed_tokens
    for actual in (shared, unshared):
        for i, (own, size) in enumerate(sums):
            assert np.abs(actual.steps[i] - own).max() < 1e-5 * max(1, size)  # each term is rounded
            reduced = [np.mean(own), min(own), np.prod(own), own[-1]]
            assert np.abs(actual.rewards[i] / reduced - 1).max() < 1e-3
        assert np.array_equal(actual.score, actual.rewards[:, 0])
    assert max(len(own.steps) for own in sums) > 4
    assert np.ptp([own.steps[-1] for own in sums]) > 1


def test_equal_models_give_nothing_and_swapped_models_the_negative(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    assert not any(steps.any() for steps in scores_of(loaded(policy, policy), policy).steps)
    there, back = (
        scores_of(loaded(*pair), policy).steps for pair in ((policy, reference), (reference, policy))
    )
    assert all(np.array_equal(a, -b) for a, b in zip(there, back, strict=True))


@pytest.mark.parametrize("kind", by_day(["parquet", "jsonl"], ["parquet"]))
def test_a_run_writes_a_reward_for_every_step_given_as_text_or_as_a_list(kind: str, tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    as_text = [{"prompt": question, "response": answer} for question, answer in SAID]
    lists = [(question, steps_of(answer, EURUS)[0]) for question, answer in SAID]
    as_list = [{"prompt": q, "completions": steps, "labels": [True] * len(steps)} for q, steps in lists]
    for name, rows in (("text", as_text), ("list", as_list)):
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        else:
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"family": "prm-eurus", "reference_model": reference, "dtype": "float32"}
        manifest = score_locally(policy, tmp_path / f"{name}.{kind}", tmp_path / name, **options)
        assert manifest["totals"]["scored"] == len(SAID)
    sums = expected(policy, reference, 0.001)
    for name in ("text", "list"):
        table = read_table(tmp_path / name).sort_by("source_row")
        for actual, own in zip(table["step_scores"].to_pylist(), sums, strict=True):
            assert np.abs(np.array(actual) - own.steps).max() < 1e-5
    assert json.loads((tmp_path / "text" / "_run.json").read_text())["identity"]["beta"] == 0.001


def test_ends_of_steps_are_not_among_the_tokens() -> None:
    ids, ends = without_ends(np.array([7, 8, 9, STEP_END, 5, STEP_END, STEP_END, 4], np.int32), 1)
    assert ids.tolist() == [7, 8, 9, 5, 4]
    assert ends == [2, 3, 3]
    score, rewards, steps = accumulated([np.array([1, 2, 4, 8], np.float32)], [[1, 3, 3]])
    assert [x.tolist() for x in (score, rewards[0], *steps)] == [
        [5.0],
        [5.0, 1.0, 49.0, 7.0],
        [1.0, 7.0, 7.0],
    ]


def test_ids_without_ends_of_steps_and_a_division_by_length_are_refused(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    with pytest.raises(ValueError, match="candidate 0: 0 ends of steps"):
        loaded(policy, reference).score([([1, 2], [[3, 4]])])
    given = Reference(reference, length_normalized=True)
    with pytest.raises(ConfigError, match="length-normalized: the family prm-eurus sums log ratios"):
        RewardModel.load(policy, None, "float32", "cpu", family="prm-eurus", reference=given)
