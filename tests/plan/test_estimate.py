"""armo-ray plan: what it tells is what a run then does, and it changes nothing."""

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.formatting.numbers import abbreviated
from armo_ray.model.chat import Chat
from armo_ray.plan import show
from armo_ray.plan.describe import lengths
from armo_ray.plan.estimate import estimate
from armo_ray.plan.intervals import Counted, Figure, share, total
from armo_ray.plan.options import PlanOptions
from armo_ray.plan.show import lines
from armo_ray.score.config import load_config
from armo_ray.text.tokenization import Encoder
from armo_ray.tiny.families import write_family
from jobs.measure.synthetic import write_shards
from tests.support.by_day import by_day
from tests.support.families import KINDS, asked
from tests.support.local import score_locally
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically
from tests.test_architecture import modules_after

Told = dict[str, Any]


def planned(model: Path, inputs: Any, output: Path, plan: Any = None, **options: Any) -> Told:
    given = {
        "input": [str(inputs)],
        "output": str(output),
        "model": str(model),
        "dtype": "float32",
        **options,
    }
    return estimate(load_config(None, given), PlanOptions.model_validate(plan or {}))


def holds(figure: Figure, truth: float) -> bool:
    return figure.low <= truth <= figure.high


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(text.encode())
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8")


def rows_of_words(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose answers differ in length as real ones do."""
    rng, words = np.random.default_rng(seed), np.array(SAMPLE.read_text("utf-8").split())
    sizes = rng.lognormal(3.5, 0.8, (count, 3)).astype(int) + 1
    return [
        {
            "prompt": f"{i} " + " ".join(rng.choice(words, n)),
            "responses": [" ".join(rng.choice(words, k)) for k in ks],
        }
        for i, (n, *ks) in enumerate(sizes.tolist())
    ]


def tokens_of(rows: list[dict[str, Any]], model: Path) -> int:
    """The tokens of all conversations, each counted whole."""
    encoder = Encoder(Chat.load(model), 8192)
    found = 0
    for row in rows:
        prompt, answers = encoder.group([{"role": "user", "content": row["prompt"]}], row["responses"])
        found += sum(len(prompt) + len(ids) for ids in answers)
    return found


@pytest.fixture(scope="module")
def words(tiny_model: Path) -> tuple[list[dict[str, Any]], int]:
    """1,200 rows of two answers each, and their tokens."""
    rows = rows_of_words(1200)
    return rows, tokens_of(rows, tiny_model)


def test_a_plan_of_a_small_input_is_what_the_run_then_does(tiny_model: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "a.jsonl", rows[:30])
    write_lines(
        tmp_path / "in" / "b.jsonl.gz", [*rows[30:60], {"prompt": "a", "chosen": "", "rejected": "b"}]
    )
    write_lines(tmp_path / "in" / "c.jsonl.zst", rows[60:90])
    pq.write_table(pa.Table.from_pylist(rows[90:]), tmp_path / "in" / "d.parquet", row_group_size=10)
    options = {"unit_rows": 32, "max_length": 1500, "gpus_per_replica": 0}
    told = planned(tiny_model, tmp_path / "in", tmp_path / "out", **options)
    manifest = score_locally(tiny_model, tmp_path / "in", tmp_path / "out", **options)
    totals, todo = manifest["totals"], told["to_do"]
    assert told["sample"]["complete"]
    assert todo["counted"] == "all"
    assert todo["rows"] == (131,) * 3
    assert todo["candidates"] == (totals["candidates"],) * 3 == (262,) * 3
    assert todo["tokens"] == (totals["num_tokens"],) * 3
    assert todo["computed"].value == pytest.approx(totals["computed_tokens"], rel=0.02)
    assert told["deduplication_ratio"].value == pytest.approx(totals["num_tokens"] / todo["computed"].value)
    assert todo["units"].value == pytest.approx(totals["units"], abs=1)
    rejects = {name: 262 * figure.value for name, figure in told["rejects"].items() if figure.value}
    assert rejects == pytest.approx(totals["rejected"])
    assert totals["rejected"].keys() == {"too_long", "empty_response"}
    again = planned(tiny_model, tmp_path / "in", tmp_path / "out", **options)
    assert again["to_do"]["shards"] == again["to_do"]["units"].value == again["to_do"]["tokens"].value == 0
    assert again["committed"]["units"] == totals["units"]


@pytest.mark.parametrize(
    "kind", by_day(["parquet", "jsonl", "jsonl.gz", "jsonl.zst"], {"parquet", "jsonl.gz"})
)
def test_the_intervals_of_a_sample_hold_what_is_true_of_the_whole(
    kind: str, words: tuple[list[dict[str, Any]], int], tiny_model: Path, tmp_path: Path
) -> None:
    rows, truth = words
    (tmp_path / "in").mkdir()
    for k in range(40):
        some, name = rows[30 * k : 30 * k + 30], f"{k:02}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(some), tmp_path / "in" / name, row_group_size=20)
        else:
            write_lines(tmp_path / "in" / name, some)
    told = planned(tiny_model, tmp_path / "in", tmp_path / "out", {"sample": 10})
    todo = told["to_do"]
    assert told["sample"]["candidates"] < 1200  # of 2400
    assert holds(todo["tokens"], truth)
    assert todo["tokens"].high < 1.5 * todo["tokens"].low
    assert holds(todo["rows"], 1200)
    assert holds(todo["candidates"], 2400)
    assert todo["counted"] == ("footers" if kind == "parquet" else "sample")
    if kind == "parquet":
        assert todo["candidates"] == (2400,) * 3
    else:
        assert todo["candidates"].low < todo["candidates"].high
    if kind != "jsonl.zst":  # of compressed lines, one kind tells enough
        assert planned(tiny_model, tmp_path / "in", tmp_path / "out", {"sample": 10})["to_do"] == todo


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(20, 60, 300)
        counts = np.array([rng.poisson(rng.lognormal(3, 0.3), n).sum() for n in sizes], float)  # runs differ
        drawn = rng.choice(300, 40, replace=False)
        stratum = Counted(
            ".parquet", float(sizes.sum()), False, sizes[drawn].astype(float), {"n": counts[drawn]}
        )
        inside += holds(total([stratum], "n"), counts.sum())
    assert 0.92 <= inside / 400 <= 0.98


def test_what_never_occurred_in_a_sample_may_still_occur() -> None:
    ones = np.ones(10)
    counts = {"none": 0 * ones, "all": 100 * ones, "half": 50 * ones}
    part = Counted(".jsonl", 1000.0, False, 10 * ones, counts)
    none = share([part], "none", "all")
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.0038, abs=1e-3)
    low, high = share([part], "half", "all")[1:]
    assert 0.45 < low < 0.5 < high < 0.55
    whole = Counted(".jsonl", 100.0, True, 10 * ones, counts)
    assert share([whole], "none", "all") == (0, 0, 0)


def test_what_is_too_long_is_told_with_its_lengths(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "word " * n, "response": "yes"} for n in (5, 5, 5, 40, 90, 700)]
    write_lines(tmp_path / "in.jsonl", rows)
    lengths_ = [tokens_of([{"prompt": r["prompt"], "responses": ["yes"]}], tiny_model) for r in rows]
    options = {"max_length": lengths_[3] + 1}
    told = planned(tiny_model, tmp_path / "in.jsonl", tmp_path / "out", **options)
    assert told["rejects"]["too_long"].value == 2 / 6
    assert told["lengths"]["longest"] == lengths_[5]
    assert told["lengths"]["mean"] == pytest.approx(np.mean(lengths_))
    tail = [one for one in told["lengths"]["histogram"] if one["from"] > options["max_length"]]
    assert sum(one["share"] for one in tail) == pytest.approx(2 / 6)
    assert sum(one["share"] for one in told["lengths"]["histogram"]) == pytest.approx(1)
    cut = planned(tiny_model, tmp_path / "in.jsonl", tmp_path / "out", truncate="left", **options)
    assert (cut["rejects"]["too_long"].value, cut["rejects"]["truncated"].value) == (0, 2 / 6)
    assert cut["lengths"] == told["lengths"]
    said = list(lines(cut))
    assert any(line.startswith("rejects     none; 33 % truncated and scored") for line in said)
    assert any("truncated, or rejected if nothing can be cut" in line for line in said)
    assert cut["to_do"]["tokens"].value == sum(min(n, options["max_length"]) for n in lengths_)


def test_quantiles_and_bins_are_those_of_the_lengths() -> None:
    told = lengths([10, 20, 30, 40, 5000], [1, 1, 1, 1, 1], 1000, 16_000)
    assert not told["is_bound"]
    assert told["quantiles"] == {0.5: 30, 0.9: 5000, 0.99: 5000}
    filled = {(b["from"], b["to"]): b["share"] for b in told["histogram"] if b["share"]}
    assert filled == pytest.approx({(1, 15): 0.2, (16, 31): 0.4, (32, 63): 0.2, (4001, 8000): 0.2})
    assert all(
        a["to"] + 1 == b["from"] for a, b in zip(told["histogram"], told["histogram"][1:], strict=False)
    )


def test_of_comparisons_that_fit_into_no_pack_no_length_is_made_up(tmp_path: Path) -> None:
    write_family(tmp_path / "model", "pairwise")
    rows = [{"prompt": "word " * n, "responses": ["yes", "no"]} for n in (5, 5, 700)]
    write_lines(tmp_path / "in.jsonl", rows)
    options = {"max_length": 100, "family": "pairwise"}
    told = planned(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out", **options)
    assert told["rejects"]["too_long"].value == 2 / 6
    said = "\n".join(lines(told))
    assert re.search(
        r"mean at least \d+ tokens, 50 % up to \d+, 90 % beyond 100, .*longest at least 101", said
    )
    assert re.search(r"101 -    more  \d+\.\d\d %  #+  longer than 100: rejected", said)


def test_numbers_are_told_in_three_digits_up_to_the_next_unit() -> None:
    told = [
        abbreviated(x)
        for x in (0.0, 0.25, 99.97, 999.7, 12_345, 99_999.7, 123_456, 999_900, 999_999_999, 2.5e12)
    ]
    assert told == ["0", "0.25", "100", "1,000", "12,345", "100 k", "123 k", "1 M", "1 G", "2.5 T"]


def test_a_share_near_the_whole_is_told_without_an_exponent() -> None:
    shares = [(0.001234, 0, 0.5), (0.994, 0.9, 1), (0.9951, 0.99, 0.9999), (1, 1, 1)]
    assert [show.share(Figure(*one)) for one in shares] == [
        "0.12 % (0 - 50)",
        "99 % (90 - 100)",
        "99.5 % (99 - 100)",
        "100 %",
    ]


def test_prompts_that_recur_are_counted_and_estimated(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i % 300}?", "response": f"answer {i}"} for i in range(1200)
    ]  # each in four rows
    (tmp_path / "in").mkdir()
    for k in range(24):
        table = pa.Table.from_pylist(rows[50 * k : 50 * k + 50])
        pq.write_table(table, tmp_path / "in" / f"{k:02}.parquet", row_group_size=5)
    some = planned(tiny_model, tmp_path / "in", tmp_path / "out", {"sample": 40}, unit_rows=5)
    assert not some["sample"]["complete"]
    assert holds(some["prompts"]["others"], 3)
    assert 0 < some["prompts"]["repeated"] < 1
    whole = planned(tiny_model, tmp_path / "in", tmp_path / "out", {"sample": 4000}, unit_rows=5)
    assert whole["prompts"] == {"repeated": 1, "others": (3, 3, 3)}


def commit_records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((output / "_commits").iterdir())]


def rate_of(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Tokens a second, and how much that differs between units, from what the records say, written out."""
    seconds = [sum(r["seconds"][name] for name in ("wait", "pack", "model")) for r in records]
    rate = sum(r["computed_tokens"] for r in records) / sum(seconds)
    logs = [math.log(r["computed_tokens"] / s) for r, s in zip(records, seconds, strict=True)]
    mean = sum(log * s for log, s in zip(logs, seconds, strict=True)) / sum(seconds)
    variance = sum(s * (log - mean) ** 2 for log, s in zip(logs, seconds, strict=True)) / sum(seconds)
    return rate, math.sqrt(variance)


def test_a_run_that_is_partly_done_tells_how_long_the_rest_takes(tiny_model: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", 800, 4)
    held = tmp_path / "later"
    held.mkdir()
    for name in ("rollouts-00002-of-00004.parquet", "rollouts-00003-of-00004.parquet"):
        (tmp_path / "in" / name).rename(held / name)
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", unit_rows=100)
    for shard in held.iterdir():
        shard.rename(tmp_path / "in" / shard.name)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    options = {"unit_rows": 100, "gpus_per_replica": 2, "replicas": "1:3"}
    told = planned(tiny_model, tmp_path / "in", tmp_path / "out", {"price": 5}, **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    records = commit_records(tmp_path / "out")
    assert told["committed"]["units"] == len(records) == 4
    assert (told["to_do"]["shards"], told["to_do"]["units"].value) == (2, 4)
    assert told["to_do"]["candidates"] == (400,) * 3
    rate, spread = rate_of(records)
    assert told["throughput"]["computed_tokens_per_second"] == pytest.approx(rate)
    assert told["throughput"]["spread"] == pytest.approx(spread)
    load = np.mean([r["load_seconds"] for r in records]) / 3600
    hours = told["to_do"]["computed"].value / rate / 3600
    cost = told["cost"]
    assert cost["gpu_hours"].value == pytest.approx(2 * hours + 2 * 3 * load)
    assert cost["usd"].value == pytest.approx(5 * cost["gpu_hours"].value)
    assert cost["wall_hours"][1].value == pytest.approx(hours + load)
    assert cost["wall_hours"][3].value == pytest.approx(
        hours * 2 / 4 + load
    )  # 4 units take 3 replicas 2 rounds
    wide = math.exp(1.96 * math.hypot(told["to_do"]["computed"].relative, spread))
    assert cost["wall_hours"][1].high == pytest.approx(hours * wide + load)
    assert cost["wall_hours"][1].low == pytest.approx(hours / wide + load)


def test_what_is_committed_of_a_jsonl_shard_is_not_planned_again(tiny_model: Path, tmp_path: Path) -> None:
    rows = rows_of_words(60)
    write_lines(tmp_path / "in.jsonl", rows)
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "out", unit_rows=30)
    records = sorted(commit_records(tmp_path / "out"), key=lambda r: r["ordinal"])
    for lost in records[3:]:
        (tmp_path / "out" / "_commits" / f"{lost['unit']}.json").unlink()
    told = planned(tiny_model, tmp_path / "in.jsonl", tmp_path / "out", unit_rows=30)["to_do"]
    assert told["units"].value == len(records) - 3
    for name, key in (("rows", "num_rows"), ("candidates", "candidates"), ("tokens", "num_tokens")):
        assert told[name].value == pytest.approx(sum(r[key] for r in records[3:])), name


def test_how_fast_replicas_are_is_measured_stated_or_asked_for(
    tiny_model: Path, scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--input", str(SAMPLE), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    command += ["--dtype", "float32"]
    found = []
    for more in (
        ["--previous", str(scored_pairs)],
        ["--computed-tokens-per-second", "1000", "--price", "2"],
        [],
    ):
        assert main([*command, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    previous, stated, unknown = found
    rate, _ = rate_of(commit_records(scored_pairs))
    assert previous["throughput"]["computed_tokens_per_second"] == pytest.approx(rate)
    assert previous["throughput"]["source"] == str(scored_pairs)
    hours = stated["to_do"]["computed"][0] / 1000 / 3600
    assert stated["cost"]["gpu_hours"] == pytest.approx(
        [hours] * 3
    )  # all was read, and the figure is a given one
    assert stated["cost"]["usd"] == pytest.approx([2 * hours] * 3)
    assert unknown["throughput"] is unknown["cost"] is None
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "the speed of a replica has not been measured. Give --previous OUT" in text
    assert "260 candidates" in text
    assert not (tmp_path / "out").exists()


def test_scores_that_no_model_made_tell_nothing_of_how_fast_replicas_are(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    previous = score_synthetically(tmp_path / "previous", SAMPLE)
    command = ["plan", "--input", str(SAMPLE), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    assert main([*command, "--dtype", "float32", "--previous", str(previous)]) == 2
    assert "none of its units computed anything" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--previous", "{sample}"], "not an output of armo-ray score"),
        (["--previous", "x", "--computed-tokens-per-second", "1"], "give one"),
        (["--computed-tokens-per-second", "0"], "computed-tokens-per-second: "),
        (["--sample", "1"], "sample: "),
        (["--input", "/none"], "no .parquet, .jsonl"),
        (["--output", "{scored}", "--dtype", "bfloat16"], "dtype was 'float32', now 'bfloat16'"),
        (["--keep", "nothing"], "no column nothing"),
        (["--keep", "chosn"], "; did you mean chosen?"),
    ],
)
def test_what_a_run_would_refuse_or_a_plan_cannot_use_is_refused(
    more: list[str],
    message: str,
    tiny_model: Path,
    scored_pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [text.format(sample=tmp_path, scored=scored_pairs) for text in more]
    command = ["plan", "--input", str(SAMPLE), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    assert main([*command, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "family", by_day(KINDS, {"armorm", "prm-mistral", "pairwise", "prm-qwen", "prm-shepherd"})
)
def test_every_kind_of_family_is_planned_as_it_is_then_scored(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "model", family)
    (tmp_path / "in.jsonl").write_text(
        "".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[:6]), "utf-8"
    )
    options = {"family": family} if asked(family) else {}
    told = planned(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out", **options)
    totals = score_locally(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out", **options)["totals"]
    assert told["to_do"]["candidates"].value == totals["candidates"] == 12
    assert told["to_do"]["tokens"].value == totals["num_tokens"]
    assert 12 * told["rejects"]["too_long"].value == pytest.approx(totals["rejected"].get("too_long", 0))


def test_planning_loads_neither_torch_nor_ray(tiny_model: Path, tmp_path: Path) -> None:
    command = f"plan --input {SAMPLE} --output {tmp_path / 'out'} --model {tiny_model}".split()
    loaded = modules_after(f"from armo_ray.cli.main import main\nassert main({command!r}) == 0")
    assert not {"torch", "ray"} & loaded


def test_shards_that_cannot_be_read_are_told(tiny_model: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, 400, 2)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no footer")
    told = planned(tiny_model, tmp_path, tmp_path.parent / "out")
    assert told["input"]["unreadable_shards"] == 1
    assert told["to_do"]["candidates"].value == 400
