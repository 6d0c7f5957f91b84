"""Preference pairs: every strategy against plain Python, and properties of every dataset of pairs."""

import hashlib
import json
import math
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armo_ray.cli.main import main
from armo_ray.curate.mine import run
from armo_ray.curate.options import MineOptions
from armo_ray.errors import ConfigError
from armo_ray.storage import commits
from tests.support.local import rows_of, score_locally
from tests.support.synthetic_outputs import score_synthetically, with_columns

Prompts = dict[str, list[dict[str, Any]]]  # the candidates of every prompt

STRATEGIES = ("best-worst", "best-vs-sigma", "top-k-bottom-k", "all-above-margin", "best-random")


@pytest.fixture(scope="session")
def scores(rollouts: Path) -> Path:
    return score_synthetically(rollouts.parent / "rollouts-scores", rollouts)


@pytest.fixture(scope="session")
def texts(rollouts: Path) -> Path:
    """The same scores, with text."""
    return score_synthetically(rollouts.parent / "rollouts-texts", rollouts, keep_text=True)


@pytest.fixture(scope="module")
def real_prompts(real_rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return prompts_of(
        score_synthetically(tmp_path_factory.mktemp("real") / "texts", real_rollouts, keep_text=True)
    )


def mine(scores: Path | list[Path], output: Path, **options: Any) -> list[dict[str, Any]]:
    """The pairs of all splits, in the order of the files."""
    shutil.rmtree(output, ignore_errors=True)
    listed = [str(path) for path in (scores if isinstance(scores, list) else [scores])]
    run(MineOptions.model_validate({"scores": listed, "output": str(output), **options}))
    files = sorted((output / "data").rglob("*.parquet"))
    return [
        row | {"split": f.parent.name}
        for f in files
        for row in pq.read_table(f, partitioning=None).to_pylist()
    ]


def prompts_of(scores: Path) -> Prompts:
    groups = defaultdict(list)
    for row in rows_of(scores):
        groups[row["prompt_id"]].append(row)
    return dict(sorted(groups.items()))


def plain(rows: list[dict[str, Any]], strategy: str, k: int = 2, seed: int = 0) -> Iterator[tuple[str, str]]:
    """The pairs that a strategy selects from one prompt's candidates, as row ids."""
    falling = sorted(rows, key=lambda r: -r["score"])  # stable: among equal scores, the first comes first
    rising = sorted(rows, key=lambda r: r["score"])
    best = falling[0]
    lower = [row for row in rows if row["score"] < best["score"]]
    if strategy == "top-k-bottom-k":
        pairs = [(c, r) for c in falling[:k] for r in rising[:k]]
    elif strategy == "all-above-margin":
        pairs = [(c, r) for c in rows for r in rows]
    elif strategy == "best-worst":
        pairs = [(best, rising[0])]
    elif strategy == "best-random":
        drawn = sorted(lower, key=lambda r: hashlib.md5(f"{r['row_id']}/{seed}".encode()).hexdigest())
        pairs = [(best, r) for r in drawn[:1]]
    else:
        values = [row["score"] for row in rows]
        target = statistics.fmean(values) - 2 * statistics.pstdev(values)
        near = sorted(lower, key=lambda r: (abs(r["score"] - target), r["score"]))
        pairs = [(best, r) for r in near[:1]]
    yield from ((c["row_id"], r["row_id"]) for c, r in pairs if c["score"] > r["score"])


def ids(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(pair["row_id_chosen"], pair["row_id_rejected"]) for pair in pairs]


def text_pairs(pairs: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(p["prompt_id"], p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]


def check_strategy(scores: Path, prompts: Prompts, output: Path, strategy: str) -> None:
    """`prompts` are those of the same scores with text."""
    pairs = mine(scores, output, strategy=strategy)
    text = {row["row_id"]: row["response"][0]["content"] for rows in prompts.values() for row in rows}
    expected: set[tuple[str, str, str]] = set()
    for prompt, rows in prompts.items():
        expected |= {(prompt, text[c], text[r]) for c, r in plain(rows, strategy) if text[c] != text[r]}
    assert set(text_pairs(pairs)) == expected
    assert len(pairs) == len(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_selects_the_pairs_that_plain_python_selects(
    strategy: str, scores: Path, texts: Path, tmp_path: Path
) -> None:
    check_strategy(scores, prompts_of(texts), tmp_path / "pairs", strategy)


@pytest.mark.parametrize(
    "strategy",
    STRATEGIES,
)
@pytest.mark.nightly  # the test above has them all on fewer rows
def test_strategies_select_the_same_pairs_of_real_rollouts_as_plain_python(
    strategy: str, real_scores: Path, real_prompts: Prompts, tmp_path: Path
) -> None:
    check_strategy(real_scores, real_prompts, tmp_path / "pairs", strategy)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    strategy=st.sampled_from(STRATEGIES),
    k=st.integers(1, 4),
    margin=st.sampled_from([0, 0.01, 0.1]),
    reward=st.sampled_from(["helpsteer_helpfulness", "code_style"]),
    ratio=st.sampled_from([None, 1.5, 3]),
    most=st.sampled_from([None, 1, 3]),
    fraction=st.sampled_from([0, 0.3]),
    residual=st.booleans(),
)
def test_every_dataset_of_pairs_meets_its_options(
    scores: Path,
    tmp_path: Path,
    strategy: str,
    k: int,
    margin: float,
    reward: str,
    ratio: float | None,
    most: int | None,
    fraction: float,
    residual: bool,
) -> None:
    pairs = mine(
        scores,
        tmp_path / "pairs",
        strategy=strategy,
        k=k,
        min_margin={"value": margin, reward: 0.0},
        max_length_ratio=ratio,
        max_pairs=most,
        test_fraction=fraction,
        length_control="residual" if residual else "none",
        constraint=["chosen.beavertails_is_safe >= 0.4", "rejected.num_response_tokens < 200"],
    )
    rows = {row["row_id"]: row for row in rows_of(scores)}
    for pair in pairs:
        chosen, rejected = (rows[pair[f"row_id_{side}"]] for side in ("chosen", "rejected"))
        assert chosen["prompt_id"] == rejected["prompt_id"] == pair["prompt_id"]
        assert pair["margin"] > 0
        assert pair["margin"] >= margin
        if not residual:
            assert pair["margin"] == chosen["score"] - rejected["score"]
        assert pair["margins"][reward] >= 0
        assert chosen["rewards"]["beavertails_is_safe"] >= 0.4
        assert rejected["num_response_tokens"] < 200
        lengths = sorted((chosen["num_response_tokens"], rejected["num_response_tokens"]))
        assert ratio is None or lengths[1] <= ratio * lengths[0]
        assert pair["score_chosen"] == chosen["score"]
        assert pair["rewards_rejected"] == rejected["rewards"]
    assert len(set(text_pairs(pairs))) == len(pairs)
    of_prompt = defaultdict(list)
    for pair in pairs:
        of_prompt[pair["prompt_id"]].append(pair)
    assert all(len({pair["split"] for pair in group}) == 1 for group in of_prompt.values())
    assert most is None or all(len(group) <= most for group in of_prompt.values())
    for split in ("train", "test"):
        keys = [(p["prompt_id"], -p["margin"]) for p in pairs if p["split"] == split]
        assert all(a <= b for a, b in pairwise(keys))


def test_a_prompt_in_two_shards_is_one_prompt(scores: Path, tmp_path: Path) -> None:
    pairs = mine(scores, tmp_path / "pairs", strategy="all-above-margin")
    assert any(c.split(":")[0] != r.split(":")[0] for c, r in ids(pairs))


def test_text_equals_the_source_whether_kept_or_read_again(scores: Path, texts: Path, tmp_path: Path) -> None:
    joined = mine(scores, tmp_path / "a", strategy="all-above-margin")
    assert joined == mine(texts, tmp_path / "b", strategy="all-above-margin")
    rows = {row["row_id"]: row for row in rows_of(texts)}
    for pair in joined:
        assert pair["prompt"] == rows[pair["row_id_chosen"]]["prompt"]
        assert pair["chosen"] == rows[pair["row_id_chosen"]]["response"]
        assert pair["rejected"] == rows[pair["row_id_rejected"]]["response"]


def test_candidates_of_equal_score_give_no_pair(scores: Path, tmp_path: Path) -> None:
    assert mine(scores, tmp_path / "a", strategy="all-above-margin", rank_by="0 * score") == []


def test_candidates_rank_by_a_weighted_sum(scores: Path, tmp_path: Path) -> None:
    pairs = mine(scores, tmp_path / "a", rank_by="0.7 * helpsteer_helpfulness - 0.1 * code_style")
    for pair in pairs:
        chosen, rejected = pair["rewards_chosen"], pair["rewards_rejected"]
        value = [0.7 * r["helpsteer_helpfulness"] - 0.1 * r["code_style"] for r in (chosen, rejected)]
        assert pair["margin"] == pytest.approx(value[0] - value[1])
    assert len(pairs) == 40


def test_the_chosen_of_a_pareto_pair_dominates(scores: Path, tmp_path: Path) -> None:
    names = ["helpsteer_helpfulness", "helpsteer_correctness", "beavertails_is_safe"]
    pairs = mine(scores, tmp_path / "a", strategy="all-above-margin", pareto=names)
    everything = mine(scores, tmp_path / "b", strategy="all-above-margin")
    dominated = [
        p
        for p in everything
        if all(p["margins"][n] >= 0 for n in names) and any(p["margins"][n] > 0 for n in names)
    ]
    assert 0 < len(pairs) < len(everything)
    assert pairs == dominated


def test_string_literals_in_a_constraint_are_compared_unchanged(scores: Path, tmp_path: Path) -> None:
    text = 'the "chosen". one'
    named = with_columns(scores, tmp_path / "scores", **{"chosen": "x", "note": text})
    constraint = [f"chosen.note = '{text}' and chosen.chosen = 'x'", "rejected.rewards.code_style > -9"]
    pairs = mine(named, tmp_path / "a", constraint=constraint)
    assert ids(pairs) == ids(mine(scores, tmp_path / "b"))


def test_residual_length_control_makes_scores_depend_less_on_length(scores: Path, tmp_path: Path) -> None:
    by_length = "score + 0.01 * num_response_tokens"
    plain_pairs = mine(scores, tmp_path / "a", rank_by=by_length)
    residual = mine(scores, tmp_path / "b", rank_by=by_length, length_control="residual")

    def longer(pairs: list[dict[str, Any]]) -> float:
        return statistics.fmean(p["num_tokens_chosen"] > p["num_tokens_rejected"] for p in pairs)

    counts = json.loads((tmp_path / "b" / "_SUCCESS").read_text())["counts"]
    xs, ys = [], []
    for rows in prompts_of(scores).values():
        lengths = [row["num_response_tokens"] for row in rows]
        values = [row["score"] + 0.01 * row["num_response_tokens"] for row in rows]
        xs += [x - statistics.fmean(lengths) for x in lengths]
        ys += [y - statistics.fmean(values) for y in values]
    slope = math.fsum(x * y for x, y in zip(xs, ys, strict=True)) / math.fsum(x * x for x in xs)
    assert counts["value added by a token"] == pytest.approx(slope)
    assert longer(residual) < longer(plain_pairs)


def test_prompts_with_too_few_candidates_give_no_pair(scores: Path, tmp_path: Path) -> None:
    pairs = mine(scores, tmp_path / "a", min_candidates=5)
    sizes = {prompt: len(rows) for prompt, rows in prompts_of(scores).items()}
    assert {pair["prompt_id"] for pair in pairs} == {p for p, size in sizes.items() if size >= 5}
    assert len(pairs) == 30


def near_duplicates(folder: Path) -> tuple[Path, list[str]]:
    """Scores and texts of prompts of 30 words; every third prompt changes one word of the one before it."""
    words = [f"w{i}" for i in range(400)]
    prompts = []
    for i in range(12):
        text = words[30 * i : 30 * i + 30]
        prompts += [" ".join(text), " ".join([*text[:-1], "changed"])] if i % 3 == 0 else [" ".join(text)]
    rows = [{"prompt": prompt, "responses": [f"one {prompt}", "two"]} for prompt in prompts]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return score_synthetically(folder / "scores", folder / "in.jsonl"), prompts


def test_one_of_several_near_duplicate_prompts_is_kept(tmp_path: Path) -> None:
    scores, prompts = near_duplicates(tmp_path)
    kept = {pair["prompt"][0]["content"] for pair in mine(scores, tmp_path / "a", near_duplicates=0.8)}
    everything = {pair["prompt"][0]["content"] for pair in mine(scores, tmp_path / "b")}
    assert everything == set(prompts)
    assert len(kept) == 12
    assert {" ".join(prompt.split()[:-1]) for prompt in kept} == {" ".join(p.split()[:-1]) for p in prompts}


def test_prompts_of_signs_only_are_near_duplicates_only_if_the_signs_are_equal(tmp_path: Path) -> None:
    prompts = ["2 + 2 = ?", "2 - 2 = ?", "2 +2=?", "+++", "-->", "?!", ":)", "😀", " ", "\n"]
    rows = [{"prompt": prompt, "responses": ["one", "two"]} for prompt in prompts]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    scores = score_synthetically(tmp_path / "scores", tmp_path / "in.jsonl")
    everything = {pair["prompt"][0]["content"] for pair in mine(scores, tmp_path / "a")}
    kept = {pair["prompt"][0]["content"] for pair in mine(scores, tmp_path / "b", near_duplicates=0.8)}
    (gone,) = everything - kept
    assert gone in ("2 + 2 = ?", "2 +2=?")
    assert len(everything) >= 8


DATASETS = {
    "pairs": ["mine"],
    "pairs-of-another-layout": ["mine", "--layout", "llama3-ultrafeedback-armorm"],
    "pairs-as-lines": ["mine", "--format", "jsonl", "--test-fraction", "0.5"],
    "labels": ["label", "--temperature", "1"],
    "conversations": ["label", "--shape", "sft", "--no-text", "--format", "jsonl"],
    "scores": ["reweigh", "--mask", "code_style"],
    "filtered-as-lines": ["filter", "--where", "score < 1e9", "--format", "jsonl"],
}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(value, id=name, marks=() if name == "pairs-as-lines" else pytest.mark.nightly)
        for name, value in DATASETS.items()
    ],
)
def test_pairs_without_excluded_prompts_are_those_of_scores_without_them(
    arguments: list[str], scores: Path, tmp_path: Path
) -> None:
    name, *options = arguments
    few, many, dataset = tmp_path / "few", tmp_path / "many", tmp_path / "[dataset]"
    prompts = [*prompts_of(scores)]
    some = prompts[::3]
    split = {few: "prompt_id in", many: "not prompt_id in"}
    for output, condition in split.items():
        where = f"{condition} ({', '.join(repr(prompt) for prompt in some)})"
        assert main(["filter", str(scores), "--output", str(output), "--where", where]) == 0
    assert main([name, str(few), "--output", str(dataset), *options]) == 0
    mining = {"strategy": "top-k-bottom-k", "length_control": "residual", "near_duplicates": 0.9}
    expected = mine(many, tmp_path / "a", **mining)
    assert mine(scores, tmp_path / "b", exclude=[str(dataset)], **mining) == expected
    assert mine(scores, tmp_path / "c", exclude=[str(dataset)], task_rows=30, **mining) == expected
    assert 0 < len({pair["prompt_id"] for pair in expected}) <= len(prompts) - len(some)
    counts = json.loads((tmp_path / "b" / "_SUCCESS").read_text())["counts"]
    assert counts["prompts of excluded datasets"] == len(some)
    assert counts["prompts"] == len(prompts) - len(some)
    assert f"| prompts of excluded datasets | {len(some)} |" in (tmp_path / "b" / "README.md").read_text()


def test_scores_whose_manifest_lists_its_parts_elsewhere_can_be_excluded(
    scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "MOST_PARTS", 0)
    some = tmp_path / "some"
    assert main(["filter", str(scores), "--output", str(some), "--where", "prompt_id < '8'"]) == 0
    assert json.loads((some / "_SUCCESS").read_text())["parts"] is None
    left = {pair["prompt_id"] for pair in mine(scores, tmp_path / "pairs", exclude=[str(some)])}
    assert left
    assert min(left) >= "8"


def test_excluding_all_prompts_leaves_an_empty_dataset(
    scores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = mine(scores, tmp_path / "a")
    caplog.set_level("INFO")
    options = {"exclude": [str(tmp_path / "a"), str(scores)], "length_control": "residual"}
    assert mine(scores, tmp_path / "b", **options) == []
    assert f"{len(prompts_of(scores))} prompts of excluded datasets" in caplog.text
    files = [tmp_path / name / "data" / "train" / "part-00000.parquet" for name in ("a", "b")]
    assert first
    assert pq.read_schema(files[1]).names == pq.read_schema(files[0]).names


def test_only_complete_datasets_with_rows_are_excluded(
    scores: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mine(scores, tmp_path / "a")
    manifest = tmp_path / "a" / "_SUCCESS"
    manifest.write_text(manifest.read_text().replace("best-worst", "best-random"))
    assert "does not match its checksum" in refused(scores, tmp_path, exclude=[str(tmp_path / "a")])
    manifest.unlink()
    assert "not complete" in refused(scores, tmp_path, exclude=[str(tmp_path / "a")])
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "response": ""}\n')
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "none")
    assert "holds no rows" in refused(scores, tmp_path, exclude=[str(tmp_path / "none")])


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_prompts_of_a_benchmark_are_removed_and_reported(suffix: str, tmp_path: Path) -> None:
    scores, prompts = near_duplicates(tmp_path)
    file = tmp_path / f"benchmark.{suffix}"
    text = "before W35, " + " ".join(f"w{i}" for i in range(36, 48)) + "! after"  # 13 of its words in order
    if suffix == "txt":
        file.write_text(f"other text\n{text}\n")
    elif suffix == "jsonl":
        file.write_text(json.dumps({"turns": [{"content": text}]}) + "\n")
    else:
        pq.write_table(pa.table({"question": ["other", text]}), file)
    pairs = mine(scores, tmp_path / "pairs", decontaminate=[str(file)])
    reported = [
        json.loads(line) for line in (tmp_path / "pairs" / "contaminated.jsonl").read_text().splitlines()
    ]
    assert "only a template" in (tmp_path / "pairs" / "README.md").read_text()
    gone = {p for p in prompts if "w40" in p.split()}
    assert {pair["prompt"][0]["content"] for pair in pairs} == set(prompts) - gone
    assert [(t["file"], t["ngram"].split()[0]) for t in reported] == [(str(file), "w35")] * len(gone)


def test_a_benchmark_text_shorter_than_an_ngram_is_found_within_a_prompt(tmp_path: Path) -> None:
    scores, prompts = near_duplicates(tmp_path)
    file = tmp_path / "benchmark.txt"
    file.write_text("W40, w41 w42 w43 w44?\nw70 w71 w72 w73\n\n")  # 5 words, and 4: too few
    pairs = mine(scores, tmp_path / "a", decontaminate=[str(file)])
    gone = {p for p in prompts if "w42" in p.split()}
    assert {pair["prompt"][0]["content"] for pair in pairs} == set(prompts) - gone
    reported = [json.loads(line)["ngram"] for line in (tmp_path / "a" / "contaminated.jsonl").open()]
    assert reported == ["w40 w41 w42 w43 w44"] * len(gone)
    file.write_text(prompts[0] + "\nw70 w71\n")
    pairs = mine(scores, tmp_path / "b", decontaminate=[str(file)], ngram=2)  # as small as it is asked for
    gone = {p for p in prompts if "w0" in p.split() or "w70" in p.split()}
    assert {pair["prompt"][0]["content"] for pair in pairs} == set(prompts) - gone


def test_the_ultrafeedback_layout_has_its_columns(scores: Path, texts: Path, tmp_path: Path) -> None:
    pairs = mine(scores, tmp_path / "a", layout="llama3-ultrafeedback-armorm")
    rows = prompts_of(texts)
    for pair in pairs:
        candidates = rows[pair["prompt_id"]]
        assert pair["all_generated_responses"] == [r["response"][0]["content"] for r in candidates]
        assert pair["all_rm_scores"] == [r["score"] for r in candidates]
        assert [m["role"] for m in pair["chosen"]] == ["user", "assistant"]
        best = max(candidates, key=lambda r: r["score"])
        assert pair["chosen"][-1]["content"] == best["response"][0]["content"]
        assert pair["prompt"] == pair["chosen"][0]["content"] == pair["rejected"][0]["content"]
    names = {"prompt_id", "prompt", "all_generated_responses", "all_rm_scores", "chosen", "rejected", "split"}
    assert set(pairs[0]) == names


def test_the_size_of_tasks_does_not_change_pairs(scores: Path, tmp_path: Path) -> None:
    pairs = mine(scores, tmp_path / "a", strategy="top-k-bottom-k")
    assert mine(scores, tmp_path / "b", strategy="top-k-bottom-k", task_rows=30) == pairs
    assert len(list((tmp_path / "b" / "data" / "train").iterdir())) > 5


def test_jsonl_holds_the_same_pairs(scores: Path, tmp_path: Path) -> None:
    pairs = mine(scores, tmp_path / "a")
    mine(scores, tmp_path / "b", format="jsonl")
    lines = (tmp_path / "b" / "data" / "train" / "part-00000.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) | {"split": "train"} for line in lines] == pairs


def test_columns_are_kept_from_both_sides(scores: Path, tmp_path: Path) -> None:
    rows = {row["row_id"]: row for row in rows_of(scores)}
    for pair in mine(scores, tmp_path / "a", keep=["role", "source_row", "gating"]):
        for side in ("chosen", "rejected"):
            row = rows[pair[f"row_id_{side}"]]
            assert [pair[f"{side}_{name}"] for name in ("role", "source_row", "gating")] == [
                row["role"],
                row["source_row"],
                row["gating"],
            ]


def test_a_column_of_two_types_is_kept_without_loss(rollouts: Path, tmp_path: Path) -> None:
    (tmp_path / "grade=y").mkdir()
    outputs = []
    for name, grade in (("a.parquet", 1), ("b.jsonl", 1.5)):
        scores = score_synthetically(tmp_path / name, rollouts / name)
        outputs.append(with_columns(scores, tmp_path / f"copy-{name}", grade=grade))
    grades = {row["row_id"]: row["grade"] for output in outputs for row in rows_of(output)}
    options = {"strategy": "all-above-margin", "keep": ["grade"], "task_rows": 100}
    pairs = mine(outputs, tmp_path / "pairs", spill=str(tmp_path / "grade=y"), **options)
    carried = {p[f"row_id_{side}"]: p[f"{side}_grade"] for p in pairs for side in ("chosen", "rejected")}
    assert set(carried.values()) == {1, 1.5}
    assert all(grades[row] == grade for row, grade in carried.items())


def refused(scores: list[Path] | Path, tmp_path: Path, **options: Any) -> str:
    """The message of a refused command, which leaves nothing behind."""
    output = tmp_path / "pairs"
    listed = [str(path) for path in (scores if isinstance(scores, list) else [scores])]
    with pytest.raises(ConfigError) as error:
        run(MineOptions.model_validate({"scores": listed, "output": str(output), **options}))
    assert not output.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_margin": {"helpsteer_helpfullness": 0.1}}, "did you mean"),
        ({"rank_by": "scores"}, "unknown column scores"),
        ({"rank_by": "score +"}, "expected a column or a value"),
        ({"rank_by": "role"}, "expected a number"),
        ({"pareto": ["nothing"]}, "unknown column nothing"),
        ({"constraint": ["chosen.beavertails_is_saef > 1"]}, "did you mean"),
        ({"constraint": ["score > 1"]}, "unknown column score"),
        ({"constraint": ["chosen.score > rejected.score"]}, "columns of either chosen or rejected"),
        ({"constraint": ["chosen.score > q0.5"]}, "quantiles are not supported here"),
        ({"keep": ["generator"]}, "no column generator"),
        ({"keep": ["sorce"]}, "no column sorce in the scores; did you mean source"),
        ({"spill": "/nowhere"}, "no such directory"),
        ({"decontaminate": ["/nowhere/gsm8k.jsonl"]}, "/nowhere/gsm8k.jsonl"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_option_is_refused_before_any_work(
    options: dict[str, Any], message: str, scores: Path, tmp_path: Path
) -> None:
    assert message in refused(scores, tmp_path, **options)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("option", ["min-margin", "max-length-ratio", "near-duplicates", "test-fraction"])
def test_numbers_that_are_not_finite_are_refused(
    option: str, value: str, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argument = f"value={value}" if option == "min-margin" else value
    assert main(["mine", str(scores), "--output", str(tmp_path / "pairs"), f"--{option}={argument}"]) == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


def test_incomplete_outputs_are_refused(scores: Path, tmp_path: Path) -> None:
    assert "not an output of armo-ray score" in refused(tmp_path, tmp_path)
    shutil.copytree(scores, tmp_path / "half")
    (tmp_path / "half" / "_SUCCESS").unlink()
    assert "not complete" in refused(tmp_path / "half", tmp_path)


def test_outputs_of_two_models_are_not_mixed(scores: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "other")
    message = refused([scores, tmp_path / "other"], tmp_path)
    assert "two models" in message
    assert "synthetic" in message
    assert str(tiny_model) in message


def test_a_shard_that_changed_or_is_gone_is_refused(rollouts: Path, tmp_path: Path) -> None:
    shutil.copytree(rollouts, tmp_path / "in")
    scores = score_synthetically(tmp_path / "scores", tmp_path / "in")
    shard = tmp_path / "in" / "b.jsonl"
    shard.write_text(shard.read_text("utf-8") + "\n", "utf-8")
    assert f"{shard}: the text of its candidates is needed, but the shard changed" in refused(
        scores, tmp_path
    )
    shard.unlink()
    assert "is gone" in refused(scores, tmp_path)


@pytest.mark.parametrize("change", ["state", "layout"])
def test_a_shard_scored_in_two_states_or_layouts_is_refused(
    change: str, rollouts: Path, tmp_path: Path
) -> None:
    shard = tmp_path / "shard.jsonl"
    lines = (rollouts / "b.jsonl").read_text("utf-8").splitlines(keepends=True)
    shard.write_text("".join(lines[:10]), "utf-8")
    first = score_synthetically(tmp_path / "first", shard)
    if change == "state":
        shard.write_text("".join(lines), "utf-8")
    columns = {"responses": "other"} if change == "layout" else {}
    second = score_synthetically(tmp_path / "second", shard, columns=columns)
    for outputs in ([first, second], [second, first]):
        assert "from another state or layout" in refused(outputs, tmp_path)


def test_the_same_shard_in_two_outputs_stops_the_command_and_leaves_nothing(
    scores: Path, rollouts: Path, tmp_path: Path
) -> None:
    again = score_synthetically(tmp_path / "again", rollouts)
    output = tmp_path / "pairs"
    with pytest.raises(RuntimeError, match="scored twice"):
        run(MineOptions.model_validate({"scores": [str(scores), str(again)], "output": str(output)}))
    assert not output.exists()


def test_a_dataset_is_not_written_over_another(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mine", str(scores), "--output", str(tmp_path / "a")]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert main(["mine", str(scores), "--output", str(tmp_path / "a")]) == 2
    assert "holds a dataset: delete it" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}


def test_options_are_read_from_a_file_and_listed_in_the_card(scores: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'scores = "{scores}"\nstrategy = "best-random"\nmin-margin = {{score = 0.01}}\n')
    output = tmp_path / "a"
    assert main(["mine", str(file), "--output", str(output), "--seed", "3"]) == 0
    manifest = json.loads((output / "_SUCCESS").read_text())
    options = manifest["options"]
    assert (options["strategy"], options["min_margin"], options["seed"]) == (
        "best-random",
        {"score": 0.01},
        3,
    )
    assert manifest["counts"]["pairs in train"] == sum(part["rows"] for part in manifest["parts"])
    card = (output / "README.md").read_text("utf-8")
    for text in ("best-random", str(scores), "model: `synthetic`", "data/train/*.parquet"):
        assert text in card
