"""An encoder scores as transformers' own class does, whatever the batches; other encoders are refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, DebertaV2ForSequenceClassification

from armo_ray.engine import RewardModel
from armo_ray.engine.batches import STEP, make_batches
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import inspect
from armo_ray.model.families import FAMILIES
from armo_ray.model.steps import read_pattern
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder
from armo_ray.text.tokenized import Tokenized
from armo_ray.tiny.families import write_family
from armo_ray.verify.model import verify_model
from tests.engine.test_engine import conversations


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deberta")
    write_family(path, "deberta")
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> RewardModel:
    return RewardModel.load(str(path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str]]:
    """Real questions with their answers, of up to 512 tokens."""
    short = [(p, a) for p, a in conversations() if len(p) == 1 and len(str(p)) + len(a) < 650]
    return [(p[0]["content"], a) for p, a in short[:14]]


def encoded(path: Path, said: list[tuple[str, str]], **options: Any) -> Tokenized:
    encoder = Encoder(Chat.load(path, FAMILIES["deberta"]), **{"max_length": 512} | options)
    texts = [([{"role": "user", "content": question}], answer) for question, answer in said]
    return encoder.encode([Candidate(i, "response", p, a) for i, (p, a) in enumerate(texts)])


@pytest.fixture(scope="module")
def expected(path: Path, said: list[tuple[str, str]]) -> Any:
    """The logits of transformers' own class for the pair of texts, one at a time, as in the model card."""
    tokenizer: Any = AutoTokenizer
    tokenizer, kind = tokenizer.from_pretrained(path), DebertaV2ForSequenceClassification
    reference = kind.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [reference(**tokenizer(q, a, return_tensors="pt")).logits[0, 0].item() for q, a in said]


@pytest.mark.parametrize(("budget", "fixed"), [(100, False), (1500, False), (700, True)])
def test_scores_are_those_of_transformers_whatever_the_batch(
    budget: int, fixed: bool, path: Path, model: RewardModel, said: list[tuple[str, str]], expected: Any
) -> None:
    done = encoded(path, said)
    assert done.rejects == []
    actual = model.with_options(token_budget=budget, fixed_packs=fixed).score(done.sequences())
    assert np.abs(actual.score - expected).max() < 1e-5
    assert np.array_equal(actual.score, actual.rewards[:, 0])
    assert np.ptp(actual.score) > 0.1
    lengths = [len(p) + len(a) for p, (a,) in done.sequences()]
    assert (actual.num_tokens, actual.packed_tokens) == (sum(lengths), sum(lengths))  # nothing is shared
    assert sum(lengths) <= actual.computed_tokens
    assert fixed or actual.computed_tokens < 1.3 * sum(lengths)  # of similar length


def test_neither_the_order_nor_the_others_change_a_score(
    path: Path, model: RewardModel, said: list[tuple[str, str]]
) -> None:
    groups = encoded(path, said).sequences()
    whole = model.score(groups).score
    others = [model.score(groups[::-1]).score[::-1], np.concatenate([model.score([g]).score for g in groups])]
    assert max(np.abs(other - whole).max() for other in others) < 2e-6
    fixed = model.with_options(fixed_packs=True)
    bits = fixed.score(groups).score
    assert np.array_equal(fixed.score(groups[::-1]).score[::-1], bits)
    assert np.array_equal(fixed.score(groups[3:9]).score, bits[3:9])
    assert len(model.score([]).score) == 0


@pytest.mark.parametrize("fixed", [False, True])
def test_batches_hold_every_sequence_once_within_the_budget(fixed: bool) -> None:
    sequences = [np.full(n, i + 1, np.int32) for i, n in enumerate([5, 200, 64, 65, 1, 300, 64, 63])]
    batches = list(make_batches(sequences, [[0, len(ids) - 1] for ids in sequences], 256, fixed))
    assert sorted(i for batch in batches for i in batch.sequences) == list(range(8))
    for batch in batches:
        rows = batch.input_ids.reshape(-1, batch.width)
        assert batch.input_ids.size <= 256 or len(batch.sequences) == 1
        assert not fixed or (batch.width % STEP, len(rows)) == (0, max(1, 256 // batch.width))
        for k, (i, row) in enumerate(zip(batch.sequences, rows, strict=False)):
            assert np.array_equal(row[row > 0], sequences[i])
            assert batch.read_index[batch.cu_read[k] : batch.cu_read[k + 1]].tolist() == [
                k * batch.width,
                k * batch.width + len(sequences[i]) - 1,
            ]
        assert batch.num_tokens == np.count_nonzero(batch.input_ids) == batch.lengths.sum()


def test_a_conversation_of_more_than_512_tokens_is_rejected_or_cut_if_asked(
    path: Path, model: RewardModel
) -> None:
    long = "A question of many words, once more. " * 60
    done = encoded(path, [(long, "No."), ("Why?", long), ("Why?", "So.")])
    assert [(i, reason) for i, reason, _ in done.rejects] == [(0, "too_long"), (1, "too_long")]
    cut = encoded(path, [(long, "No."), ("Why?", long), ("Why?", "So.")], truncate="left")
    assert [(i, reason) for i, reason, _ in cut.rejects] == [(1, "too_long")]
    assert cut.flags == [["truncated"], []]
    assert len(cut.prompts[0]) + len(cut.responses[0]) == 512
    assert cut.prompts[0][[0, -1]].tolist() == cut.prompts[1][[0, -1]].tolist()  # [CLS] and [SEP]
    assert np.isfinite(model.score(cut.sequences()).score).all()


@pytest.mark.parametrize("roles", [["system", "user"], ["user", "assistant", "user"], ["assistant"]])
def test_a_conversation_that_is_not_one_question_is_rejected(roles: list[str], path: Path) -> None:
    encoder = Encoder(Chat.load(path, FAMILIES["deberta"]), 512)
    done = encoder.encode([Candidate(0, "response", [{"role": r, "content": "x"} for r in roles], "y")])
    assert [reason for _, reason, _ in done.rejects] == ["malformed_row"]


@pytest.mark.parametrize(
    "text", ["It [SEP] is[CLS] [MASK].", "A [UNK] or \uff3bSEP\uff3d, which NFKC changes."]
)
def test_a_text_cannot_spell_what_separates_it_from_another(text: str, path: Path, tmp_path: Path) -> None:
    changed(path, tmp_path, {}, dict)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text("utf-8"))
    state["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})  # as the released one does
    file.write_text(json.dumps(state), "utf-8")
    numbers = {
        token["id"]: token["content"] for token in state["added_tokens"] if token["content"] != "[UNK]"
    }
    assert {piece for piece, _ in state["model"]["vocab"]} >= {"[CLS]", "[SEP]"}  # as likely as any word
    done = encoded(tmp_path, [(text, text)])
    ids = np.concatenate((done.prompts[0], done.responses[0])).tolist()
    assert [numbers[i] for i in ids if i in numbers] == ["[CLS]", "[SEP]", "[SEP]"]
    assert done.flags == [["special_token_text"]]


def changed(path: Path, to: Path, fields: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    """A copy of a checkpoint with other config fields and tensors."""
    for file in path.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps(config))
    save_file(change(load_file(path / "model.safetensors")), to / "model.safetensors")


def two_labels(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"classifier.weight": torch.ones(2, 64), "classifier.bias": torch.ones(2)}


def pair_ranker(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n.replace("deberta.", "pretrained_model."): t for n, t in tensors.items()} | {
        "head_layer.1.weight": torch.ones(64, 128)
    }


TWINS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Any], str]] = {
    "two-labels": ({}, two_labels, "classifier.weight has 2 labels"),
    "multiple-choice": (
        {"architectures": ["DebertaV2ForMultipleChoice"]},
        dict,
        "architecture DebertaV2ForMultipleChoice: expected DebertaV2ForSequenceClassification",
    ),
    "deberta-v1": (
        {"model_type": "deberta"},
        dict,
        "model_type deberta: of encoders, only DeBERTa v2 and v3",
    ),
    "kinds-of-text": ({"type_vocab_size": 2}, dict, "config.json: type_vocab_size is 2, expected 0"),
    "activation": ({"pooler_hidden_act": "tanh"}, dict, "pooler_hidden_act is tanh, expected gelu"),
    "pair-ranker": (
        {"architectures": ["DebertaV2PairRM"]},
        pair_ranker,
        "not a complete head of the family deberta: unexpected head_layer.1.weight",
    ),
    "pair-ranker-of-its-package": ({"ranker_type": "pairranker"}, dict, "use llm-blender/PairRM-hf"),
    "no-pooler-bias": (
        {},
        lambda tensors: {n: t for n, t in tensors.items() if n != "pooler.dense.bias"},
        "not a complete head of the family deberta: missing pooler.dense.bias",
    ),
    "half-a-backbone": (
        {},
        lambda tensors: {n: t for n, t in tensors.items() if n != "deberta.encoder.rel_embeddings.weight"},
        "the backbone does not match its config: missing: .*rel_embeddings",
    ),
}


@pytest.mark.parametrize(("fields", "change", "why"), TWINS.values(), ids=TWINS.keys())
def test_an_encoder_that_is_no_such_reward_model_is_refused(
    fields: dict[str, Any], change: Callable[[dict[str, Any]], Any], why: str, path: Path, tmp_path: Path
) -> None:
    changed(path, tmp_path, fields, change)
    with pytest.raises(ConfigError, match=why):
        RewardModel.load(str(tmp_path), dtype="float32", device="cpu")


def test_a_decoder_and_an_encoder_are_not_taken_for_each_other(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"family classifier: missing score\.weight"):
        inspect(str(path), family="classifier")
    write_family(tmp_path, "classifier")
    with pytest.raises(
        ConfigError, match=r"family deberta: missing classifier.bias.*unexpected score.weight"
    ):
        inspect(str(tmp_path), family="deberta")
    assert (inspect(str(path)).family.name, inspect(str(tmp_path)).family.name) == ("deberta", "classifier")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("fp8", "cpu"), "dtype fp8: not for the encoder of the family deberta"),
        (("float32", "cpu,cpu"), "an encoder cannot be split over 2 devices"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(options: tuple[str, str], why: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        RewardModel.load(str(path), None, *options)


def test_a_tokenizer_that_joins_texts_in_another_way_is_refused(path: Path, tmp_path: Path) -> None:
    changed(path, tmp_path, {}, dict)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text("utf-8"))
    state["post_processor"]["pair"].insert(2, {"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    file.write_text(json.dumps(state), "utf-8")
    with pytest.raises(ConfigError, match=r"this tokenizer does not encode a question and its response as"):
        read_pattern(Chat.load(tmp_path, FAMILIES["deberta"]))


def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(path, tmp_path, {}, dict)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(
        tensors | {"deberta.embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "pytorch_model.bin"
    )
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no \*\.safetensors file; other weight formats") as refused:
        inspect(str(tmp_path))
    (code,) = re.findall('run: python -c "(.*)"$', str(refused.value))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    groups = encoded(path, [("Why?", "So.")]).sequences()
    first, second = (
        RewardModel.load(str(p), dtype="float32", device="cpu").score(groups) for p in (path, tmp_path)
    )
    assert np.array_equal(first.score, second.score)


def test_an_encoder_passes_the_checks_of_a_model(path: Path) -> None:
    checks, record = verify_model(str(path), None, "float32", "cpu")
    assert [check for check in checks if not check.passed] == []
    assert len(record["values"]) > 8
