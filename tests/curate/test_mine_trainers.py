"""Trainers read mined pairs: Hugging Face datasets loads them, and TRL preprocesses them for DPO."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.model.chat import Chat
from tests.support.judge_outputs import write_rows
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically

# TRL's own default
pytestmark = [
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing\\w*. is deprecated:FutureWarning"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainers")
    scores = score_synthetically(folder / "scores", SAMPLE)
    command = ["mine", str(scores), "--output", str(folder / "pairs"), "--test-fraction", "0.2"]
    assert main(command) == 0
    return folder / "pairs"


def load(pairs: Path, cache: Path, **options: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(**options, cache_dir=str(cache))


def test_pairs_load_by_their_files_and_by_their_card(pairs: Path, tmp_path: Path) -> None:
    files = {split: str(pairs / "data" / split / "*.parquet") for split in ("train", "test")}
    by_files = load(pairs, tmp_path / "a", path="parquet", data_files=files)
    by_card = load(pairs, tmp_path / "b", path=str(pairs))
    assert {split: len(rows) for split, rows in by_card.items()} == {s: len(r) for s, r in by_files.items()}
    assert sum(len(rows) for rows in by_card.values()) == 130
    row = by_card["train"][0]
    assert [m["role"] for m in row["prompt"] + row["chosen"]] == ["user", "assistant"]
    assert row["score_chosen"] > row["score_rejected"]
    assert row["margins"]["code_style"] == pytest.approx(
        row["rewards_chosen"]["code_style"] - row["rewards_rejected"]["code_style"]
    )


def test_trl_tokenizes_the_pairs_and_takes_a_step_of_dpo(
    pairs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=2, **sizes)
    rows = load(pairs, tmp_path / "a", path=str(pairs))["test"]
    policy = LlamaForCausalLM(config)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=deepcopy(policy),
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            bf16=False,
            max_length=None,
            max_steps=1,
            per_device_train_batch_size=2,
            save_strategy="no",
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    chat = Chat.load(tiny_model)
    assert len(trainer.train_dataset) == len(rows) > 10
    for tokenized, row in zip(trainer.train_dataset, rows, strict=True):
        assert tokenized["prompt_ids"] == chat.encode(chat.render_prompt(row["prompt"]))
        for side in ("chosen", "rejected"):
            answer = chat.encode(chat.render_response(row[side][0]["content"]))
            assert tokenized[f"{side}_ids"][: len(answer)] == answer
    done = trainer.train()
    assert done.global_step == 1
    assert done.training_loss == pytest.approx(
        math.log(2), abs=1e-4
    )  # policy and reference are alike at first


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("grows", [False, True])
def test_splits_and_parts_without_rows_are_in_nobodys_way(grows: bool, kind: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    options = ["--test-fraction", "0.03", "--format", kind, "--output", str(tmp_path / "pairs")]
    scores: list[str] = []
    for some in (
        [rows[:20], rows[20:]] if grows else [rows[:20]]
    ):  # of the first 20 prompts, none is in the test split
        shard = write_rows(tmp_path / f"{len(scores)}.jsonl", some)
        scores.append(str(score_synthetically(tmp_path / f"scores{len(scores)}", shard)))
        assert main(["mine", *scores, *options, *(["--append"] if grows else [])]) == 0
    loaded = load(tmp_path / "pairs", tmp_path / "cache", path=str(tmp_path / "pairs"))
    sizes = {split: len(rows) for split, rows in loaded.items()}
    assert sum(sizes.values()) == (130 if grows else 20)
    assert list(sizes) == (["train", "test"] if grows else ["train"])
