"""The report of an output: its numbers against plain numpy, outputs of every kind, and its page as text."""

import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray import coefficients, vectors
from armo_ray.cli.main import main
from armo_ray.report.speed import speed
from armo_ray.score.passes import Committed
from armo_ray.score.progress import Counts
from armo_ray.storage import commits
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.store import Store
from armo_ray.tiny.families import write_family
from tests.support.local import read_table, rows_as_written, rows_of, score_locally
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import commit_again, score_synthetically, with_columns

pytest_plugins = ("tests.support.s3_server",)

GENERATORS = ("alpha", "beta", "gamma")


def report(output: Path, place: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The numbers of a report that is written elsewhere."""
    assert main(["report", str(output), "--output", str(place), *arguments]) == status
    return numbers_of(place)


@pytest.fixture(scope="module")
def pairs(scored_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """Rows of scored pairs, and their report."""
    numbers = report(scored_pairs, tmp_path_factory.mktemp("report"), "--price", "2")
    return rows_as_written(scored_pairs), numbers


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with 1 to 6 answers, in several parts; some answers come twice and so are tied."""
    folder = tmp_path_factory.mktemp("rollouts")
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    answers = [row["chosen"] for row in rows]
    made = [
        {"prompt": row["prompt"], "responses": [answers[(7 * i + k // 2) % 130] for k in range(1 + i % 6)]}
        for i, row in enumerate(rows)
    ]
    for i in range(4):
        lines = "".join(json.dumps(row) + "\n" for row in made[i::4])
        (folder / f"{i}.jsonl").write_text(lines, "utf-8")
    plain = score_synthetically(folder.parent / "plain", folder, keep_text=True)
    return with_columns(plain, folder.parent / "outputs", generator=lambda i: GENERATORS[i % 3])


@pytest.fixture(scope="module")
def told(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report of the rollouts lies, drift from themselves included."""
    place = tmp_path_factory.mktemp("told")
    report(rollouts, place, "--against", str(rollouts))
    return place


def numbers_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "report.json").read_bytes())
    return found


def test_distributions_are_those_of_the_rows(pairs: tuple[Any, dict[str, Any]]) -> None:
    rows, numbers = pairs
    for name, column in numbers["scored"]["columns"].items():
        kind, _, field = name.partition(".")
        values = np.sort([row[kind][field] if field else row[kind] for row in rows]).astype(np.float64)
        assert column["mean"] == pytest.approx(values.mean(), rel=1e-9)
        assert column["sd"] is None or column["sd"] == pytest.approx(values.std(), rel=1e-6)
        assert (column["min"], column["max"]) == (values[0], values[-1])
        for share, value in column["quantiles"].items():
            low, high = np.searchsorted(values, value, "left"), np.searchsorted(values, value, "right")
            assert low / len(values) - 0.02 <= float(share) <= high / len(values) + 0.02
        edges, counts = column["histogram"]["edges"], column["histogram"]["counts"]
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            assert count == ((values > low) & (values <= high)).sum()
        beside = column["histogram"]["below"] + column["histogram"]["above"]
        assert sum(counts) + beside == len(values)


def test_correlations_and_slopes_are_those_of_numpy(pairs: tuple[Any, dict[str, Any]]) -> None:
    rows, numbers = pairs
    found = numbers["scored"]["correlation"]
    columns = [
        [row["rewards"][n.removeprefix("rewards.")] if "." in n else row[n] for row in rows]
        for n in found["names"]
    ]
    assert np.allclose(found["matrix"], np.corrcoef(columns), atol=1e-9)
    lengths = columns[found["names"].index("num_response_tokens")]
    for name, values in zip(found["names"], columns, strict=True):
        if name != "num_response_tokens":
            slope, intercept = np.polyfit(lengths, values, 1)
            told = numbers["scored"]["length"]["columns"][name]
            assert told["slope"] == pytest.approx(100 * slope, rel=1e-6)
            assert told["intercept"] == pytest.approx(intercept, rel=1e-6)
            assert told["slope_in_sd"] == pytest.approx(100 * slope / np.std(values), rel=1e-6)
    bins = numbers["scored"]["length"]["bins"]
    assert sum(b["candidates"] for b in bins) == len(rows)
    for b in bins:
        own = [r["score"] for r in rows if b["from"] <= r["num_response_tokens"] <= b["to"]]
        assert b["mean_score"] == pytest.approx(np.mean(own))


def test_what_drives_the_score_adds_up_to_all_of_its_variance(
    scored_pairs: Path, pairs: tuple[Any, dict[str, Any]]
) -> None:
    table = read_table(scored_pairs)
    made = vectors(table).astype(np.float64) * coefficients(table)
    score = table["score"].to_numpy().astype(np.float64)
    influence = pairs[1]["scored"]["influence"]
    assert sum(row["share_of_variance"] for row in influence.values()) == pytest.approx(1, abs=1e-4)
    for i, row in enumerate(influence.values()):
        share = np.cov(made[:, i], score, bias=True)[0, 1] / score.var()
        assert row["share_of_variance"] == pytest.approx(share, abs=1e-5)
        assert row["mean"] == pytest.approx(made[:, i].mean(), abs=1e-7)
        assert row["mean_absolute"] == pytest.approx(np.abs(made[:, i]).mean(), abs=1e-7)


def test_groups_are_kept_columns_and_directories_with_few_values(pairs: tuple[Any, dict[str, Any]]) -> None:
    rows, numbers = pairs
    groups = numbers["scored"]["groups"]
    assert set(groups) == {"role", "subset", "day"}  # not id, which every row has for itself
    for name, values in groups.items():
        assert {v["value"] for v in values} == {row[name] for row in rows}
        for value in values:
            own = [row for row in rows if row[name] == value["value"]]
            assert value["candidates"] == len(own)
            assert value["mean_score"] == pytest.approx(np.mean([row["score"] for row in own]))
            assert value["sd_score"] == pytest.approx(np.std([row["score"] for row in own]), rel=1e-5)
            for kind in ("rewards", "gating"):
                for field, mean in value[kind].items():
                    assert mean == pytest.approx(np.mean([row[kind][field] for row in own]))


def test_pairs_are_those_of_one_row(pairs: tuple[Any, dict[str, Any]]) -> None:
    rows, numbers = pairs
    found = numbers["scored"]["pairs"]
    by_row: dict[Any, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        by_row[row["source"], row["source_row"]][row["role"]] = row
    both = [(p["chosen"], p["rejected"]) for p in by_row.values()]
    margins = np.array([c["score"] - r["score"] for c, r in both])
    assert found["pairs"] == len(both)
    assert found["accuracy"] == (margins > 0).mean()
    assert found["mean_margin"] == pytest.approx(margins.mean(), abs=1e-7)
    for name in both[0][0]["rewards"]:
        expected = np.mean([c["rewards"][name] > r["rewards"][name] for c, r in both])
        assert found["columns"][name]["accuracy"] == expected
    ratio = np.array([c["num_response_tokens"] / r["num_response_tokens"] for c, r in both])
    for b in found["length"]:
        own = margins[(ratio >= b["from"]) & (ratio < (b["to"] or np.inf))]
        assert b["pairs"] == len(own)
        assert b["accuracy"] == ((own > 0).mean() if len(own) else None)
    for value in found["groups"]["subset"]:
        own = np.array([c["score"] - r["score"] for c, r in both if c["subset"] == value["value"]])
        assert (value["pairs"], value["accuracy"]) == (len(own), (own > 0).mean())
    middle = found["margins"]["quantiles"]["0.5"]
    assert abs((margins <= middle).mean() - 0.5) < 0.05


def test_the_best_of_n_is_the_mean_over_all_draws(rollouts: Path, told: Path) -> None:
    found = numbers_of(told)["scored"]["prompts"]
    scores = defaultdict(list)
    for row in rows_of(rollouts):
        scores[row["prompt_id"]].append(row["score"])
    several = [s for s in scores.values() if len(s) > 1]
    assert (found["prompts"], found["with_several"]) == (len(scores), len(several))
    assert found["tied_for_best"] == sum(sorted(s)[-1] == sorted(s)[-2] for s in several) > 0
    assert found["all_equal"] == sum(len(set(s)) == 1 for s in several) > 0
    best = found["best_of_n"]
    most = best["n"][-1]
    enough = [s for s in several if len(s) >= most]
    assert best["prompts"] == len(enough) >= len(several) / 2
    for n, mean in zip(best["n"], best["mean_score"], strict=True):
        plain = np.mean([np.mean([max(drawn) for drawn in combinations(s, n)]) for s in enough])
        assert mean == pytest.approx(plain, abs=1e-6)
    within = sum(np.var(s) * len(s) for s in several) / sum(map(len, several))
    assert found["sd_within"] == pytest.approx(within**0.5, rel=1e-5)
    inside, everything = [np.var(s) * len(s) for s in scores.values()], np.concatenate([*scores.values()])
    expected = sum(inside) / len(everything) / np.var(everything)
    assert found["share_of_variance"] == pytest.approx(expected, rel=1e-5)


def test_a_generator_is_best_where_none_scores_as_high(rollouts: Path, told: Path) -> None:
    numbers = numbers_of(told)
    prompts = defaultdict(list)
    for row in rows_of(rollouts):
        prompts[row["prompt_id"]].append((row["score"], row["generator"]))
    won: Counter[str] = Counter()
    for rows in prompts.values():
        ranked = sorted(rows)
        if len(ranked) > 1 and ranked[-1][0] > ranked[-2][0]:
            won[ranked[-1][1]] += 1
    values = numbers["scored"]["groups"]["generator"]
    assert {value["value"] for value in values} == set(GENERATORS)
    assert Counter({value["value"]: value["best_of_prompt"] for value in values}) == won != Counter()


def test_nobody_wins_what_a_candidate_without_a_value_is_best_in(rollouts: Path, tmp_path: Path) -> None:
    output = with_columns(rollouts, tmp_path / "some", team=lambda i: [None, "None", "b"][i % 3])
    values = report(output, tmp_path / "report")["scored"]["groups"]
    teams = {"alpha": None, "beta": "None", "gamma": "b"}
    won = {teams[v["value"]]: v["best_of_prompt"] for v in values["generator"]}
    assert {v["value"]: v["best_of_prompt"] for v in values["team"]} == won


def test_a_list_that_a_row_carries_has_an_entry_for_each_of_its_candidates(
    rollouts: Path, tmp_path: Path
) -> None:
    output = with_columns(rollouts, tmp_path / "lists", generators=lambda i: ["a", "b", "c", "d", "e", "f"])
    values = report(output, tmp_path / "report")["scored"]["groups"]["generators"]
    expected = Counter("abcdef"[row["candidate"]] for row in rows_of(output))
    assert {value["value"]: value["candidates"] for value in values} == expected


def test_a_list_that_is_the_rows_own_is_no_group(rollouts: Path, scored_pairs: Path, tmp_path: Path) -> None:
    output = with_columns(rollouts, tmp_path / "tags", tags=lambda i: ["a", "b"][: 1 + i % 2])
    assert "tags" not in report(output, tmp_path / "report")["scored"]["groups"]
    output = with_columns(scored_pairs, tmp_path / "pairs", tags=lambda i: ["a", "b"])
    assert "tags" not in report(output, tmp_path / "of-pairs")["scored"]["groups"]


def test_a_column_to_group_by_may_have_any_name_and_size(rollouts: Path, tmp_path: Path) -> None:
    values = ["model-410-0", "model-410-1"]  # which approx_count_distinct takes for one
    names = ("group", "order", "end", "SELECT", 'a "b".c', "output")
    output = with_columns(rollouts, tmp_path / "named", **dict.fromkeys(names, lambda i: values[i % 2]))
    groups = report(output, tmp_path / "report")["scored"]["groups"]
    assert all({row["value"] for row in groups[name]} == {*values} for name in names)
    output = with_columns(rollouts, tmp_path / "bytes", label=lambda i: np.uint8(i % 2))
    assert len(report(output, tmp_path / "of-bytes")["scored"]["groups"]["label"]) == 2


def test_examples_are_the_highest_and_the_lowest_with_their_text(rollouts: Path, told: Path) -> None:
    found = numbers_of(told)["scored"]["examples"]
    rows = sorted(rows_of(rollouts), key=lambda row: row["score"])
    assert [e["score"] for e in found["lowest"]] == [row["score"] for row in rows[:5]]
    assert [e["score"] for e in found["highest"]] == [row["score"] for row in rows[:-6:-1]]
    by_id = {row["row_id"]: row for row in rows}
    for example in (*found["lowest"], *found["highest"]):
        assert example["response"][:700] == by_id[example["row_id"]]["response"][-1]["content"][:700]
        sizes = [abs(value) for value in example["parts"].values()]
        assert len(sizes) == 4


def test_rejects_and_times_are_told(pairs: tuple[Any, dict[str, Any]], scored_pairs: Path) -> None:
    numbers = pairs[1]
    (reason,) = numbers["rejects"]
    assert (reason["reason"], reason["rejects"]) == ("malformed_row", 1)
    assert "broken" in reason["examples"][0]["raw"]
    store = Store(str(scored_pairs))
    records = commits.read_commits(store)
    times = numbers["speed"]
    timings = [record.timing for record in records if record.timing is not None]
    assert times["tokens"] == sum(record.num_tokens for record in records)
    replica = sum(timing.seconds[step] for timing in timings for step in ("wait", "pack", "model"))
    loads = sum({timing.load_seconds for timing in timings})
    assert times["replica_hours"] == pytest.approx((replica + loads) / 3600)
    assert times["cost_usd"] == pytest.approx(2 * times["paid_hours"])
    assert len(times["slowest_units"]) == min(5, len(records))


def test_the_use_of_the_devices_is_the_one_that_the_run_told(scored_pairs: Path) -> None:
    store = Store(str(scored_pairs))
    records = [with_flops(record) for record in commits.read_commits(store)]
    counts = Counts(0)
    for record in records:
        counts = counts.plus(Committed(record, 1, "here"), 0.0)
    files = [record.to_dict() for record in records]
    measured = speed(files, [{}], None)
    assert measured is not None
    assert measured.mfu == pytest.approx(counts.mfu)
    assert measured.mfu
    unknown = speed([{**files[0], "peak_flops": None}], [{}], None)
    assert unknown is not None
    assert unknown.mfu is None


def with_flops(record: CommitRecord) -> CommitRecord:
    """The record as of a device whose peak is known."""
    assert record.passes is not None
    return replace(record, passes=replace(record.passes, flops=10**9, peak_flops=1e12))


def shifted(output: Path, copy: Path, by: float) -> Path:
    """A copy whose scores are larger."""
    shutil.copytree(output, copy)
    for part in (copy / "scores").rglob("*.parquet"):
        table = pq.read_table(part, partitioning=None)
        place = table.schema.get_field_index("score")
        more = pa.array(table["score"].to_numpy() + np.float32(by))
        pq.write_table(table.set_column(place, table.schema.field(place), more), part)
    return commit_again(copy)


def test_an_output_has_not_drifted_from_itself(told: Path) -> None:
    drift = numbers_of(told)["drift"]
    assert drift["drifted"] == []
    assert {row["psi"] for row in drift["columns"].values()} == {0.0}
    assert {row["ks"] for row in drift["columns"].values()} == {0.0}


def test_what_moved_gives_status_4_and_is_named(
    rollouts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = np.array([row["score"] for row in rows_of(rollouts)], np.float64)
    moved = shifted(rollouts, tmp_path / "moved", float(old.std()))
    drift = report(moved, tmp_path / "report", "--against", str(rollouts), status=4)["drift"]
    assert drift["drifted"] == ["score"]
    assert "drifted" in caplog.text
    assert "score" in caplog.text
    new = np.array([row["score"] for row in rows_of(moved)], np.float64)
    points = np.unique(np.r_[old, new])
    distance = np.abs(
        np.searchsorted(np.sort(old), points, "right") - np.searchsorted(np.sort(new), points, "right")
    )
    assert drift["columns"]["score"]["ks"] == pytest.approx(distance.max() / len(old), abs=0.01)
    edges = np.quantile(old, np.arange(1, 10) / 10)
    p, q = ((np.bincount(np.searchsorted(edges, v), minlength=10) + 0.5) / (len(v) + 5) for v in (new, old))
    assert drift["columns"]["score"]["psi"] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=0.05)
    middle = drift["columns"]["score"]["quantiles"]["0.5"]
    assert middle["shift"] == pytest.approx(old.std(), rel=0.05)
    report(moved, tmp_path / "report", "--against", str(rollouts), "--max-psi", "9", "--max-ks", "1")


def test_an_older_output_may_carry_other_columns(rollouts: Path, tmp_path: Path) -> None:
    older = with_columns(rollouts, tmp_path / "older", team=lambda i: "a")
    drift = report(rollouts, tmp_path / "report", "--against", str(older))["drift"]
    assert drift["drifted"] == []
    assert set(report(older, tmp_path / "report", "--against", str(rollouts))["drift"]) == set(drift)


def test_a_few_prompts_do_not_drift_by_chance(rollouts: Path, tmp_path: Path) -> None:
    """Two halves of one output: the index of so few is over its usual limit."""
    halves = []
    for i in range(2):
        half = tmp_path / str(i)
        shutil.copytree(rollouts, half)
        for record in sorted((half / "_commits").iterdir())[i::2]:
            record.unlink()
        halves.append(half)
    drift = report(halves[0], tmp_path / "report", "--against", str(halves[1]))["drift"]
    assert drift["chance_psi"] > drift["max_psi"]


def test_of_a_partial_output_what_is_committed_is_told(rollouts: Path, tmp_path: Path) -> None:
    output = tmp_path / "partial"
    shutil.copytree(rollouts, output)
    (output / "_SUCCESS").unlink()
    lost = sorted((output / "_commits").iterdir())[0]
    rows = json.loads(lost.read_bytes())["scored"]
    lost.unlink()  # its part stays, as a stopped task leaves it
    numbers = report(output, tmp_path / "report")
    assert not numbers["complete"]
    candidates = len(rows_of(rollouts)) - rows
    assert numbers["totals"]["scored"] == candidates
    told = numbers["scored"]["columns"]["score"]["histogram"]
    assert sum(told["counts"]) + told["below"] + told["above"] == candidates
    assert "not complete" in (tmp_path / "report" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("kept", ["rejects", "nothing"])
def test_an_output_without_scores_has_a_report_and_drifted_from_any(
    kept: str, tiny_model: Path, rollouts: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + '{"prompt": 1}\n'
    )
    score_locally(
        tiny_model, tmp_path / "in.jsonl", tmp_path / "out", max_length=4, column={}, layout="preference"
    )
    if kept == "nothing":
        shutil.rmtree(tmp_path / "out" / "_commits")
    numbers = report(tmp_path / "out", tmp_path / "report")
    assert numbers["scored"] is None
    told = {row["reason"]: row["rejects"] for row in numbers["rejects"]}
    assert told == ({} if kept == "nothing" else {"too_long": 2, "malformed_row": 1})
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert ("No candidate was scored yet." if kept == "nothing" else "Every candidate was rejected.") in page
    assert str(tiny_model) in page
    for reject in (example for row in numbers["rejects"] for example in row["examples"]):
        assert main(["explain", str(tmp_path / "out"), reject["row_id"]]) == 0
    assert main(["explain", str(tmp_path / "out"), "rejected"]) == (2 if kept == "nothing" else 0)
    against = ("--against", str(rollouts))
    assert report(tmp_path / "out", tmp_path / "report", *against, status=4)["drift"]["columns"] == {}
    assert main(["report", str(rollouts), "--against", str(tmp_path / "out")]) == 2


def test_a_single_row_has_a_report(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "out")
    numbers = report(tmp_path / "out", tmp_path / "report", "--against", str(tmp_path / "out"))
    score = rows_of(tmp_path / "out")[0]["score"]
    column = numbers["scored"]["columns"]["score"]
    assert column["mean"] == pytest.approx(score)
    assert set(column["quantiles"].values()) == {score}
    assert numbers["scored"]["prompts"]["best_of_n"] is None
    assert "Correlation" not in (tmp_path / "report" / "report.html").read_text("utf-8")
    assert numbers["scored"]["pairs"] is None


def test_scores_that_are_all_zero_have_a_report(rollouts: Path, tmp_path: Path) -> None:
    output = with_columns(rollouts, tmp_path / "zero", score=np.float32(0))
    found = report(output, tmp_path / "report", "--against", str(output))["scored"]
    assert (found["columns"]["score"]["mean"], found["prompts"]["share_of_variance"]) == (0, None)
    told = found["columns"]["score"]["histogram"]
    assert max(told["counts"]) == len(rows_of(output))
    assert told["edges"][0] < 0 < told["edges"][-1]


def test_pairs_are_told_however_many_columns_there_are_to_group_by(
    scored_pairs: Path, tmp_path: Path
) -> None:
    more = {f"c{k}": lambda i: str(i % 2) for k in range(8)}
    output = with_columns(scored_pairs, tmp_path / "more", **more)
    found = report(output, tmp_path / "report")["scored"]
    assert "role" not in found["groups"]
    assert found["pairs"]["pairs"] > 0


@pytest.mark.parametrize("family", ["classifier", "urm", "prm-mistral", "pairwise"])
def test_every_family_has_a_report(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "model", family)
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)[:6]
    (tmp_path / "in.jsonl").write_text("".join(lines), "utf-8")
    options = {"family": family} if family in ("prm-mistral", "pairwise") else {}
    score_locally(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out", **options)
    found = report(tmp_path / "out", tmp_path / "report")["scored"]
    rows = rows_of(tmp_path / "out")
    rewards = [name for name in found["columns"] if name.startswith("rewards.")]
    assert rewards == [f"rewards.{name}" for name in rows[0]["rewards"]]
    assert any(name.startswith("gating.") for name in found["columns"]) == (family == "urm")
    means = sum(row["mean"] for row in found["influence"].values())
    assert means == pytest.approx(found["columns"]["score"]["mean"], abs=1e-5)
    assert found["pairs"]["pairs"] == 6
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "depends on the prompt alone" not in page  # as ArmoRM's does
    assert ("Each reward" not in page) == (len(rewards) == 1) == (family in ("classifier", "pairwise"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--length-penalty", "0.001", "--mask", "code_style"],
        ["--weight", "code_style=1"],
        ["--ensemble", "min"],
    ],
    ids=["penalty", "weights", "ensemble"],
)
def test_scores_that_were_made_anew_have_a_report(
    arguments: list[str], rollouts: Path, tmp_path: Path
) -> None:
    given = [str(rollouts)]
    if arguments[0] == "--ensemble":
        other = tmp_path / "other"
        shutil.copytree(rollouts, other)
        given.append(str(other))
    assert main(["reweigh", *given, "--output", str(tmp_path / "made"), *arguments]) == 0
    made = report(tmp_path / "made", tmp_path / "report")
    assert made["speed"] is None  # that of the model is told of the output that it made
    found = made["scored"]
    influence = found["influence"]
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert ("What drives the score" in page) == bool(influence)
    assert "tokens, each conversation counted whole" not in page
    if arguments[0] == "--ensemble":
        assert influence == {}
    else:
        assert sum(row["mean"] for row in influence.values()) == pytest.approx(
            found["columns"]["score"]["mean"], abs=1e-5
        )
        assert ("num_response_tokens" in influence) == (arguments[0] == "--length-penalty")


def test_several_outputs_are_read_as_one(scored_pairs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(scored_pairs, other)
    words = ["report", str(scored_pairs), str(other), "--output", f"{tmp_path}/both.html"]
    assert main(words) == 0
    found = json.loads((tmp_path / "both.json").read_bytes())
    assert found["totals"]["scored"] == 2 * len(rows_of(scored_pairs))
    assert main(words[:3]) == 2


def test_by_default_it_lies_in_the_output_which_stays_whole(rollouts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(rollouts, output)
    before = {path for path in output.rglob("*") if path.is_file()}
    assert main(["report", str(output)]) == 0
    after = {path for path in output.rglob("*") if path.is_file()}
    assert {path.name for path in after - before} == {"report.html", "report.json"}
    assert main(["mine", str(output), "--output", str(tmp_path / "pairs")]) == 0


def test_bad_usage_is_refused(rollouts: Path, scored_pairs: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(*words: str) -> str:
        assert main(["report", *words]) == 2
        told: str = capsys.readouterr().err
        return told

    assert "against" in refused(str(rollouts), "--max-psi", "0.1")
    assert "not an output" in refused(str(tmp_path))
    assert "two models" in refused(str(rollouts), "--against", str(scored_pairs))
    assert "max_ks" in refused(str(rollouts), "--against", str(rollouts), "--max-ks", "2").replace("-", "_")


class Tags(HTMLParser):
    """What a browser would see: tags, their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = "<script>alert('x')</script>"


def test_html_in_data_is_shown_as_text(tiny_model: Path, tmp_path: Path) -> None:
    """In prompts, answers, column names, values of groups, shard names, rejects, and the model's name."""
    model = tmp_path / "<b>model"
    shutil.copytree(tiny_model, model)
    rows = [
        {
            "prompt": f"{EVIL} {i}",
            "responses": [f"{EVIL} a", f'"{EVIL} b'],
            f"{EVIL}": f'{EVIL}{i % 2}" onload="y',
        }
        for i in range(6)
    ]
    rows.append({"prompt": f"{EVIL}", "responses": [], f"{EVIL}": ""})
    (tmp_path / "<i>in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep = {EVIL: EVIL}
    score_locally(model, tmp_path / "<i>in.jsonl", tmp_path / "<u>out", keep=keep, keep_text=True)
    report(tmp_path / "<u>out", tmp_path / "report", "--against", str(tmp_path / "<u>out"))
    text = (tmp_path / "report" / "report.html").read_text("utf-8")
    seen = Tags(text)
    assert not {"script", "b2", "i", "u", "iframe", "img", "link2"} & seen.tags
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert f"{EVIL} a" in seen.text
    assert f"{EVIL}1" in seen.text
    assert f"By {EVIL}" in seen.text


def test_the_page_needs_nothing_but_itself(told: Path) -> None:
    text = (told / "report.html").read_text("utf-8")
    links = re.findall(r'(?:href|src|url\()\s*=?\s*"?([^">)]*)', text)
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert "@import" not in text
    ids = re.findall(r'<section id="([^"]+)"', text)
    assert [link for link in links if link.startswith("#")] == [f"#{name}" for name in ids]
    assert len(re.findall(r"<svg class=\"(?:chart|wide)\"", text)) == text.count('role="img"') > 20


def test_the_page_stays_small_whatever_is_in_it(rollouts: Path, tmp_path: Path) -> None:
    long = "word " * 2_000
    output = with_columns(
        rollouts,
        tmp_path / "long",
        a=lambda i: f"{i % 40} {long[:300]}",
        b=lambda i: str(i % 45),
        prompt=lambda i: [{"role": "user", "content": long}],
    )
    report(output, tmp_path / "report", "--examples", "50")
    assert (tmp_path / "report" / "report.html").stat().st_size < 2_000_000


def test_a_report_of_an_output_in_an_object_store_lies_there(s3: str, tmp_path: Path) -> None:
    score_synthetically(f"{s3}/scores", SAMPLE)
    local = score_synthetically(tmp_path / "scores", SAMPLE)
    assert main(["report", f"{s3}/scores"]) == 0
    store = Store(f"{s3}/scores")
    assert store.read("report.html").startswith(b"<!DOCTYPE html>")
    remote = store.read_json("report.json") or {}
    columns = report(local, tmp_path / "report")["scored"]["columns"]
    for name, column in remote["scored"]["columns"].items():
        assert column["histogram"] == columns[name]["histogram"]
        assert column["mean"] == pytest.approx(columns[name]["mean"])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_HARNESS = """<!DOCTYPE html><title>widths</title><body><script>
for (const width of [1280, 390]) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    const seen = frame.contentDocument, root = seen.documentElement;
    const small = [...seen.querySelectorAll("svg text")].filter(
      (text) => text.getBoundingClientRect().height < 8 && text.getClientRects().length);
    const told = document.createElement("p");
    told.textContent = `${width}: ${root.scrollWidth - root.clientWidth} too wide, ${small.length} too small, ` +
      `${seen.querySelectorAll("section").length} sections`;
    document.body.append(told);
  };
  frame.src = "report.html";
  document.body.append(frame);
}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_without_errors_and_within_its_width(told: Path, tmp_path: Path) -> None:
    shutil.copy(told / "report.html", tmp_path)
    (tmp_path / "harness.html").write_text(_HARNESS, "utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "harness.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = dict(re.findall(r"<p>(\d+): (.*?)</p>", done.stdout))
    count = (told / "report.html").read_text("utf-8").count("<section")
    assert seen == {str(w): f"0 too wide, 0 too small, {count} sections" for w in (1280, 390)}
    assert "CONSOLE" not in done.stderr


def test_two_outputs_are_told_apart_and_pairs_stay_within_each(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "?"} for i in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output, count in zip(outputs, (3, 100), strict=True):
        score_locally(tiny_model, tmp_path / "in.jsonl", output, unit_rows=count)
    assert main(["report", *map(str, outputs), "--output", str(tmp_path / "report")]) == 0
    scored = json.loads((tmp_path / "report" / "report.json").read_text())["scored"]
    assert scored["pairs"]["pairs"] == 20
    found = {row["value"]: row["candidates"] for row in scored["groups"]["output"]}
    assert found == {str(output): 20 for output in outputs}
    of_data = [with_columns(output, tmp_path / f"{output.name}-2", output="x") for output in outputs]
    assert main(["report", *map(str, of_data), "--output", str(tmp_path / "again")]) == 0
    scored = json.loads((tmp_path / "again" / "report.json").read_text())["scored"]
    assert {row["value"] for row in scored["groups"]["output"]} == set(map(str, of_data))
