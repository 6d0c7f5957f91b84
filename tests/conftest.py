"""Fixtures that more than one module needs. Nothing here stands in for the real thing but the weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more only wait for each other on a busy machine

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from armo_ray.chat import Chat
from armo_ray.engine.tiny import LLAMA3_SPLIT, SPECIAL_TOKENS, write_tiny_model

SAMPLE = Path(__file__).parents[1] / "jobs" / "samples" / "llmbar.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-faults", type=int, default=6, help="faults that test_soak injects (default: 6)")
    parser.addoption("--soak-seed", type=int, default=0, help="of their kinds and times (default: 0)")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random ArmoRM with its own small vocabulary."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(path)
    return path


@pytest.fixture(scope="session")
def tiny_chat(tiny_model: Path) -> Chat:
    return Chat.load(tiny_model)


@pytest.fixture(scope="session")
def llama3_tokenizer() -> Tokenizer:
    """The real Llama-3 vocabulary with ArmoRM's [PAD], from the package llama-models."""
    models = pytest.importorskip("llama_models", reason="needs the package llama-models (no dependencies)")
    from transformers.convert_slow_tokenizer import TikTokenConverter

    vocabulary = Path(models.__path__[0]) / "llama3" / "tokenizer.model"
    converter = TikTokenConverter(
        vocab_file=str(vocabulary), pattern=LLAMA3_SPLIT, extra_special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer: Tokenizer = converter.converted()
    return tokenizer


@pytest.fixture(scope="session")
def llama3_model(llama3_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random ArmoRM with the real Llama-3 vocabulary: 128,257 tokens."""
    path = tmp_path_factory.mktemp("models") / "llama3"
    write_tiny_model(path, tokenizer=llama3_tokenizer)
    return path


@pytest.fixture(scope="session")
def llama3_chat(llama3_model: Path) -> Chat:
    return Chat.load(llama3_model)


@pytest.fixture(scope="session")
def scored_pairs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's pairs, scored, in several parts of two partitions; one row is rejected."""
    folder = tmp_path_factory.mktemp("pairs")
    from tests.local import score_locally  # takes torch, which not every test wants

    lines = SAMPLE.read_text("utf-8").splitlines()
    for day, some in (("2026-11-01", lines[::2]), ("2026-11-02", [*lines[1::2], '{"id": "broken"}'])):
        shard = folder / "in" / f"day={day}" / "shard.jsonl"
        shard.parent.mkdir(parents=True)
        shard.write_text("\n".join(some) + "\n", "utf-8")
    score_locally(tiny_model, folder / "in", folder / "scores", keep=["id", "subset"], unit_rows=40)
    return folder / "scores"
