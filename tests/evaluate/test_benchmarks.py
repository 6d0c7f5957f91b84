"""`armo-ray evaluate` on files as the benchmarks publish them, scored by a tiny model."""

import gzip
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmark_files import to_json_lines
from armo_ray.evaluate.subsets import DOMAINS, REWARDBENCH
from armo_ray.storage.store import Store
from tests.support.local import rows_of, score_locally
from tests.support.paths import ROOT, SAMPLE

SHARED = ROOT.parent / "shared" / "data"
SUBSETS = [name for counts in REWARDBENCH.values() for name in counts]
FIGURES = {"accuracy.svg", "length.svg", "objectives.svg", "agreement.svg"}


def texts(seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    while True:
        yield " ".join(rng.choice(["think", "about", "people", "because", "answer"], rng.integers(1, 12)))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(text: Iterator[str], **columns: Any) -> dict[str, Any]:
    return {"prompt": next(text), "chosen": next(text), "rejected": next(text), **columns}


def evaluated(output: Path, *options: str) -> dict[str, Any]:
    at = output.parent / f"{output.name}-evaluated"
    assert main(["evaluate", str(output), "--output", str(at), "--bootstrap", "200", *options]) == 0
    for figure in at.glob("*.svg"):
        assert ElementTree.parse(figure).getroot().tag.endswith("svg")
    assert {figure.name for figure in at.glob("*.svg")} >= FIGURES
    numbers: dict[str, Any] = json.loads((at / "evaluation.json").read_text())
    return numbers


def right(output: Path, column: str = "subset") -> dict[str, list[bool]]:
    """By the value of a column, for every row whether the chosen response scored more than the rejected one."""
    rows = rows_of(output)
    won: dict[str, list[bool]] = {}
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        assert (chosen["role"], rejected["role"]) == ("chosen", "rejected")
        won.setdefault(chosen[column], []).append(chosen["score"] > rejected["score"])
    return won


def test_rewardbench(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = texts(0)
    rows = [pair(text, subset=s, id=i, chosen_model="a") for i, s in enumerate(SUBSETS * 2)]
    score_locally(
        tiny_model, write(tmp_path / "filtered.parquet", rows), tmp_path / "o", keep=["subset", "id"]
    )
    found = evaluated(
        tmp_path / "o", "--benchmark", "rewardbench", "--published", "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    )
    won = right(tmp_path / "o")
    expected = {
        section: sum(np.mean(won[s]) * n for s, n in counts.items()) / sum(counts.values())
        for section, counts in REWARDBENCH.items()
    }
    sections = {name: row["accuracy"] for name, row in found["sections"].items()}
    assert {name: sections[name] for name in expected} == pytest.approx(expected)
    assert sections["Overall"] == pytest.approx(np.mean(list(expected.values())))
    assert not found["published"]["reproduced"]
    assert "does not reproduce what was published" in capsys.readouterr().out


def test_rewardbench_2(tiny_model: Path, tmp_path: Path) -> None:
    text = texts(1)
    rows = []
    for i, domain in enumerate(DOMAINS[:-1] * 2):
        rows.append({"id": str(i), "prompt": next(text), "subset": domain, "num_correct": 1}
                    | {"chosen": [next(text)], "rejected": [next(text) for _ in range(3)]})  # fmt: skip
    for kind, right_ones in (("ref", 1), ("tied", 4)):
        rows += [{"id": f"{kind}:{n}", "prompt": next(text), "subset": "Ties", "num_correct": right_ones}
                 | {"chosen": [next(text) for _ in range(right_ones)], "rejected": [next(text) for _ in range(5)]}
                 for n in range(3)]  # fmt: skip
    score_locally(tiny_model, write(tmp_path / "test.parquet", rows), tmp_path / "o", keep=["subset", "id"])
    found = evaluated(tmp_path / "o", "--benchmark", "rewardbench-2")
    accuracy = {name: row["accuracy"] for name, row in found["subsets"].items()}
    best: dict[str, list[bool]] = {}
    scored = rows_of(tmp_path / "o")
    for i, row in enumerate(rows[:10]):
        scores = [r["score"] for r in scored if r["source_row"] == i]
        best.setdefault(str(row["subset"]), []).append(scores[0] == max(scores))  # random scores have no ties
    assert {d: accuracy[d] for d in DOMAINS[:-1]} == pytest.approx({d: np.mean(v) for d, v in best.items()})
    assert found["subsets"]["Ties"]["items"] == 3  # prompts, each of two rows
    assert found["sections"]["Overall"]["accuracy"] == pytest.approx(np.mean(list(accuracy.values())))


def test_rm_bench(tiny_model: Path, tmp_path: Path) -> None:
    text = texts(2)
    domains = ["chat", "code", "math", "safety-refuse", "safety-response"]
    rows = [
        {"id": i, "prompt": next(text), "domain": domain}
        | {kind: [next(text) for _ in range(3)] for kind in ("chosen", "rejected")}
        for i, domain in enumerate(domains)
    ]
    (tmp_path / "total.json").write_text(json.dumps(rows))  # as it is published
    (lines,) = to_json_lines([str(tmp_path / "total.json")], Store(str(tmp_path / "rows")))
    score_locally(tiny_model, Path(lines), tmp_path / "o", keep=["domain"])
    found = evaluated(tmp_path / "o", "--benchmark", "rm-bench")
    scores = np.array([row["score"] for row in rows_of(tmp_path / "o")]).reshape(5, 6)
    won = scores[:, :3, None] > scores[:, None, 3:]
    assert found["sections"]["chat"]["accuracy"] == pytest.approx(won[0].mean())
    assert found["sections"]["safety"]["accuracy"] == pytest.approx(won[3:].mean())
    assert found["subsets"]["math hard"]["accuracy"] == pytest.approx(won[2][np.triu_indices(3, 1)].mean())
    mean = np.mean([won[0].mean(), won[1].mean(), won[2].mean(), won[3:].mean()])
    assert found["sections"]["Overall"]["accuracy"] == pytest.approx(mean)


def test_rm_bench_by_the_names_of_its_files(tiny_model: Path, tmp_path: Path) -> None:
    """RM-Bench also publishes a file per domain, without a column for the domain."""
    text = texts(7)
    names = ["chat_filtered.json", "code_filtered.jsonl", "math.parquet", "safety-refuse_filtered.json"]
    for name in names:
        row: dict[str, Any] = {"prompt": next(text)} | {
            kind: [next(text) for _ in range(3)] for kind in ("chosen", "rejected")
        }
        if name.endswith(".json"):
            (tmp_path / name).write_text(json.dumps([row]))
        else:
            write(tmp_path / name, [row])
    files = to_json_lines([str(tmp_path / name) for name in names], Store(str(tmp_path / "rows")))
    score_locally(tiny_model, [Path(file) for file in files], tmp_path / "o")
    found = evaluated(tmp_path / "o", "--benchmark", "rm-bench")
    scores: dict[str, list[float]] = {}
    for candidate in rows_of(tmp_path / "o"):
        scores.setdefault(Path(candidate["source"]).name, []).append(candidate["score"])
    for name, domain in zip(sorted(scores), ("chat", "code", "math", "safety"), strict=True):
        won = np.array(scores[name])[:3, None] > np.array(scores[name])[None, 3:]
        assert found["sections"][domain]["accuracy"] == pytest.approx(won.mean())


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf[{"a": 1}, {"a": "\xe2\x80\xa8"}]',
        b'{"a": 1}\n{"a": "\xe2\x80\xa8"}\n',
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xe2\x80\xa8"}',
        b'[\n {"a": 1},\n {"a": "\\u2028"}\n]',
    ],
    ids=["array-with-bom", "lines", "lines-with-bom", "array-over-lines"],
)
@pytest.mark.parametrize("name", ["a.json", "a.JSON"])
def test_a_json_file_may_be_an_array_or_lines_with_or_without_a_byte_order_mark(
    content: bytes, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (file,) = to_json_lines([str(tmp_path / name)], Store(str(tmp_path / "rows")))
    assert [json.loads(line) for line in Path(file).read_text().split("\n")[:-1]] == [
        {"a": 1},
        {"a": "\u2028"},
    ]
    (tmp_path / name).write_bytes(content.rstrip()[:-1])
    with pytest.raises(ConfigError, match=f"{name}: not valid JSON"):
        to_json_lines([str(tmp_path / name)], Store(str(tmp_path / "rows")))


def test_m_rewardbench_by_the_folders_of_its_languages(tiny_model: Path, tmp_path: Path) -> None:
    text = texts(3)
    for language in ("arb_Arab", "deu_Latn"):
        write(tmp_path / "in" / language / "test.jsonl", [pair(text, subset=s) for s in SUBSETS])
    score_locally(tiny_model, tmp_path / "in", tmp_path / "o", keep=["subset"])
    found = evaluated(tmp_path / "o", "--benchmark", "m-rewardbench")
    own = [found["sections"][name]["accuracy"] for name in ("arb_Arab", "deu_Latn")]
    assert found["sections"]["Overall"]["accuracy"] == pytest.approx(np.mean(own))
    assert found["subsets"]["deu_Latn math-prm"]["items"] == 1


def test_rag_rewardbench_by_the_names_of_its_files(tiny_model: Path, tmp_path: Path) -> None:
    text = texts(4)
    for name in ("helpful", "citation"):
        write(tmp_path / "in" / f"{name}.jsonl", [pair(text) for _ in range(4)])
    score_locally(tiny_model, tmp_path / "in", tmp_path / "o")
    found = evaluated(tmp_path / "o", "--benchmark", "rag-rewardbench")
    won = right(tmp_path / "o", "source")
    expected = {Path(uri).stem: np.mean(value) for uri, value in won.items()}
    assert {name: row["accuracy"] for name, row in found["subsets"].items()} == pytest.approx(expected)


def test_llmbar_and_any_set_of_labelled_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """The pairs that ship with the project: 130 of LLMBar's 419."""
    score_locally(tiny_model, SAMPLE, tmp_path / "o", keep=["subset"])
    found = evaluated(tmp_path / "o", "--benchmark", "llmbar")
    won = {name: float(np.mean(value)) for name, value in right(tmp_path / "o").items()}
    assert {name: row["accuracy"] for name, row in found["subsets"].items()} == pytest.approx(won)
    adversarial = [value for name, value in won.items() if name != "natural"]
    assert found["sections"]["Adversarial"]["accuracy"] == pytest.approx(np.mean(adversarial))
    assert main(["evaluate", str(tmp_path / "o"), "--by", "subset", "candidate"]) == 0


def test_published_llmbar_files_become_labelled_pairs_and_are_written_once(tmp_path: Path) -> None:
    row = {"input": "a", "output_1": "b", "output_2": "c"}
    for folder, label in (("Natural", 1), ("Adversarial/GPTInst", 2)):
        path = tmp_path / "LLMBar" / folder / "dataset.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([row | {"label": label}]))
    inputs, store = [str(tmp_path / "LLMBar" / "**" / "*.json"), "other.jsonl"], Store(str(tmp_path / "rows"))
    *files, other = to_json_lines(inputs, store)
    assert other == "other.jsonl"
    assert [json.loads(Path(file).read_text()) for file in files] == [
        {"subset": "adversarial-gptinst", "prompt": "a", "chosen": "c", "rejected": "b"},
        {"subset": "natural", "prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    written = [Path(file).stat().st_mtime_ns for file in files]
    assert list(to_json_lines(inputs, store))[:2] == files
    assert [Path(file).stat().st_mtime_ns for file in files] == written
    path.write_text(json.dumps([row | {"label": 3}]))
    with pytest.raises(ConfigError, match="row 0: expected input, output_1, output_2 and a label of 1 or 2"):
        to_json_lines(inputs, store)


def test_rejected_candidates_count_as_wrong(tiny_model: Path, tmp_path: Path) -> None:
    long = "because " * 200
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": long, "subset": "x"},
        {"prompt": long, "chosen": "b", "rejected": "c", "subset": "y"},
        {"prompt": "a", "chosen": "answer", "rejected": "think", "subset": "x"},
    ]
    shard = write(tmp_path / "kind=z" / "a.jsonl", rows)
    score_locally(tiny_model, shard, tmp_path / "o", keep=["s=subset"], max_length=99)
    found = evaluated(tmp_path / "o", "--by", "s", "kind")
    assert (found["items"], found["unscored"]) == (3, 2)
    assert found["subsets"]["y z"]["accuracy"] == 0
    assert found["subsets"]["x z"]["accuracy"] == right_of_two(tmp_path / "o") / 2


def test_rows_that_lost_a_side_to_a_filter_are_logged_and_left_out(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score_locally(tiny_model, SAMPLE, tmp_path / "o", keep=["subset"])
    command = ["filter", str(tmp_path / "o"), "--output", str(tmp_path / "f"), "--where", "score > q0.5"]
    assert main(command) == 0
    rows: dict[int, list[float]] = {}
    for row in rows_of(tmp_path / "f"):
        rows.setdefault(row["source_row"], []).append(row["score"])
    whole = [scores[0] > scores[1] for scores in rows.values() if len(scores) == 2]
    found = evaluated(tmp_path / "f")
    assert (found["items"], found["unscored"]) == (len(whole), 0)
    assert found["sections"]["Overall"]["accuracy"] == pytest.approx(np.mean(whole))
    assert (
        f"{len(rows) - len(whole)} of {len(rows)} rows that lack a chosen or a rejected response"
        in caplog.text
    )
    alone = ["filter", str(tmp_path / "o"), "--output", str(tmp_path / "c"), "--where", "role = 'chosen'"]
    assert main(alone) == 0
    assert main(["evaluate", str(tmp_path / "c")]) == 2
    assert main(["evaluate", str(tmp_path / "f"), "--benchmark", "rag-rewardbench"]) == 2


def right_of_two(output: Path) -> int:
    whole = [row["score"] for row in rows_of(output) if row["source_row"] == 2]
    return int(whole[0] > whole[1])


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "a", "responses": ["b", "c"]}], [], "only rows with chosen and rejected responses"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], ["--benchmark", "llmbar"], "--keep subset"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], ["--by", "kind"], "no column kind"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], ["--by", "rol"], "no column rol; did you mean role?"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], ["--benchmark", "llmbar", "--by", "x"], "its own subsets"),
        (
            [{"prompt": 3, "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}],
            ["--benchmark", "rag-rewardbench"],
            "a.jsonl row 0: malformed_row",
        ),
    ],
    ids=["rollouts", "no-subset", "no-column", "misspelled", "by", "malformed"],
)  # fmt: skip
def test_scores_that_cannot_be_evaluated_are_refused(
    rows: list[dict[str, Any]],
    options: list[str],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score_locally(tiny_model, write(tmp_path / "a.jsonl", rows), tmp_path / "o")
    at = tmp_path / "evaluated"
    assert main(["evaluate", str(tmp_path / "o"), "--output", str(at), *options]) == 2
    assert message in capsys.readouterr().err
    assert not at.exists()


@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data")
def test_real_transcripts(tiny_model: Path, tmp_path: Path) -> None:
    with gzip.open(SHARED / "hh_harmless" / "test-half.jsonl.gz", "rt") as stream:
        lines = [next(stream) for _ in range(100)]
    (tmp_path / "hh.jsonl").write_text("".join(lines))
    score_locally(tiny_model, tmp_path / "hh.jsonl", tmp_path / "o")
    found = evaluated(tmp_path / "o")
    assert found["items"] == 100
    assert sum(row["pairs"] for row in found["length"]) == 100 - found["unscored"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["out", "--model", "m"], "out: give outputs of armo-ray score, or --input and --model"),
        ([], "give outputs of armo-ray score; or --input, --model and --output"),
        (["--model", "m"], "--output: required"),
        (["--model", "m", "--output", "x"], "input"),
        (["--input", str(SAMPLE), "--output", "x"], "model"),
        (["--input", str(SAMPLE), "--model", "m", "--output", "x", "--benchmark", "rm-bench"], "no column domain"),
        (["--input", str(SAMPLE), "--model", "m", "--output", "x", "--benchmark", "rewardbench"], "not a subset"),
        (["--input", "none.json", "--model", "m", "--output", "x"], "none.json: no file there"),
        (["--input", str(SAMPLE), "--model", "m", "--output", "x", "--published", "y"], "published y: no results"),
    ],
    ids=["both", "nothing", "no-output", "no-input", "no-model", "no-column", "benchmark", "no-file", "published"],
)  # fmt: skip
def test_options_that_cannot_be_scored_from_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x" / "scored").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n', "a.jsonl: its rows are rollouts: only rows with chosen"),
        ("a.json", "[]", "a.json: no rows"),
        ("b.json", '{"prompt": "a", "response": "b"}', "/b.json: its rows are rollouts: only rows with chosen"),
    ],
    ids=["rollouts", "empty-array", "converted"],
)  # fmt: skip
def test_files_without_labels_are_refused_before_they_are_scored(
    name: str,
    content: str,
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_text(content)
    command = ["evaluate", "--input", str(tmp_path / name), "--model", str(tiny_model)]
    assert main([*command, "--output", str(tmp_path / "x"), "--gpus-per-replica", "0"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x" / "scored").exists()
