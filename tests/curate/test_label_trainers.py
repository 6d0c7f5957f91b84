"""Trainers read labels: Hugging Face datasets loads them, and TRL preprocesses them for reward models and SFT."""

from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.model.chat import Chat
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically

# TRL's own default
pytestmark = [
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_synthetically(tmp_path_factory.mktemp("trainers") / "scores", SAMPLE)


def load(scores: Path, folder: Path, *arguments: str) -> Any:
    datasets = pytest.importorskip("datasets")
    output = folder / "labels"
    assert main(["label", str(scores), "--output", str(output), "--temperature", "0.1", *arguments]) == 0
    files = str(output / "data" / "train" / "*.parquet")
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))


def tiny_sizes(tokenizer: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        **sizes,
    }


def test_labels_of_candidates_load(scores: Path, tmp_path: Path) -> None:
    rows = load(scores, tmp_path, "--scale", "standardized")
    assert len(rows) == 260
    assert len(rows[0]["labels"]) == 20
    assert [m["role"] for m in rows[0]["prompt"] + rows[0]["response"]] == ["user", "assistant"]


def test_trl_tokenizes_the_pairs_for_a_reward_model(scores: Path, tiny_model: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    rows = load(scores, tmp_path, "--shape", "pairs")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(**{"num_labels": 1, **tiny_sizes(tokenizer)})
    trainer = trl.RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=trl.RewardConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    chat = Chat.load(tiny_model)
    assert len(trainer.train_dataset) == len(rows) == 130
    for tokenized, row in zip(trainer.train_dataset, rows, strict=True):
        for side in ("chosen", "rejected"):
            whole = chat.encode(
                chat.render_prompt(row["prompt"]) + chat.render_response(row[side][0]["content"])
            )
            assert tokenized[f"{side}_ids"][: len(whole)] == whole


def test_trl_tokenizes_the_best_responses_for_sft(scores: Path, tiny_model: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    rows = load(scores, tmp_path, "--shape", "sft")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM(LlamaConfig(**tiny_sizes(tokenizer))),
        args=trl.SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    chat = Chat.load(tiny_model)
    for tokenized, row in zip(trainer.train_dataset, rows, strict=True):
        whole = chat.encode(
            chat.render_prompt(row["prompt"]) + chat.render_response(row["completion"][0]["content"])
        )
        assert tokenized["input_ids"][: len(whole)] == whole
