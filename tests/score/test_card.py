"""The dataset card of an output tells what is there, and what loads by it is what was written."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from armo_ray.cli.main import main
from armo_ray.outputs.cards import size_category
from armo_ray.outputs.schema import REJECTS, RESERVED
from armo_ray.score.card import _MEANING, MARK, Card, Facts, render
from armo_ray.score.job import prepare
from armo_ray.storage import commits
from armo_ray.storage.json_files import to_json
from armo_ray.storage.records import Totals
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.support.local import config_for, rows_as_written, rows_of, score_locally
from tests.support.paths import SAMPLE

OPTIONS: dict[str, Any] = {"max_length": 700, "keep": {"id": "id", "text": "prompt"}, "unit_rows": 60}
NOTHING = Totals()


@pytest.fixture(scope="module")
def output(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete output of a partitioned input, some of it rejected, with its card."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "in" / "date=2026-11-20").mkdir(parents=True)
    (folder / "in" / "date=2026-11-20" / "a.jsonl").write_bytes(SAMPLE.read_bytes())
    score_locally(tiny_model, folder / "in", folder / "out", **OPTIONS)
    log = commits.read_log(Store(str(folder / "out")))
    card_of(tiny_model, folder / "in", folder / "out").complete(log)
    return folder / "out"


def card_of(model: Path, inputs: Path, out: Path, **changes: Any) -> Card:
    job, _ = prepare(config_for(model, inputs, out, **OPTIONS))
    return Card(Store(job.output), job, [str(inputs)], **changes)


def text_of(output: Path) -> str:
    return (output / "README.md").read_text("utf-8")


def front_of(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_a_card_tells_source_model_policy_and_counts(output: Path, tiny_model: Path) -> None:
    text, totals = text_of(output), json.loads((output / "_SUCCESS").read_text())["totals"]
    assert f"- `{output.parent / 'in'}`" in text
    assert f"| model | `{tiny_model}` |" in text
    assert "| dtype of the backbone | float32 |" in text
    assert "700 tokens; longer conversations are rejected as `too_long`" in text
    assert f"| scored | {totals['scored']} |" in text
    assert f"| rejected: `too_long` | {totals['rejected']['too_long']} |" in text
    assert "| `text` | string | `prompt` of the input |" in text
    assert "| `rewards` | struct of 19 float32 |" in text
    assert "- model: not known to armo-ray" in text
    assert front_of(text)["size_categories"] == ["n<1K"]


def test_what_datasets_loads_by_the_card_is_what_was_written(output: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "cache")
    scores = datasets.load_dataset(str(output), split="train", cache_dir=cache)
    assert sorted(scores["row_id"]) == sorted(row["row_id"] for row in rows_of(output))
    rejects = datasets.load_dataset(str(output), "rejects", split="train", cache_dir=cache)
    assert len(rejects) == len(rows_of(output, "rejects"))
    assert rejects.column_names == REJECTS.names


def test_the_python_of_the_card_runs(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (example,) = re.findall(r"```python\n(.*?)```", text_of(output), re.DOTALL)
    before_ray, of_ray = example.split("import ray.data")
    names: dict[str, Any] = {}
    exec(before_ray, names)
    best = names["best"].fetchall()
    highest = max(row["score"] for row in rows_of(output))
    columns = [entry[0] for entry in names["best"].description]
    assert best[0][columns.index("score")] == highest == max(names["scores"]["score"])
    assert str(best[0][columns.index("date")]) == "2026-11-20"
    assert of_ray == '\nds = ray.data.read_parquet(f"{OUT}/scores")\n'  # test_pipeline reads so


def test_a_card_says_how_far_a_run_is_and_counts_what_was_there_before(
    output: Path, tiny_model: Path
) -> None:
    store = Store(str(output))
    earlier = commits.list_commits(store)
    card = card_of(tiny_model, output.parent / "in", output, earlier=earlier, planned=7)
    own = Totals(units=2, candidates=30, scored=20, rejected={"too_long": 4, "poison": 6})
    totals = Totals.of(commits.read_commits(store, earlier))
    before = text_of(output)
    try:
        card.in_progress(own, 0.254)
        text = text_of(output)
    finally:
        (output / "README.md").write_text(before, "utf-8")
    assert f"In progress: 25% of the input, {len(earlier) + 2} of {len(earlier) + 7} units committed." in text
    assert f"| scored | {totals.scored + 20} |" in text
    assert f"| rejected: `too_long` | {totals.rejected['too_long'] + 4} |" in text
    assert "| rejected: `poison` | 6 |" in text


def test_a_card_that_somebody_edited_stays(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    card = card_of(tiny_model, SAMPLE, out)
    card.in_progress(NOTHING, 0.0)
    mine = text_of(out).replace(MARK, "Mine, and no UTF-8: \u00e9.").encode("latin-1")
    (out / "README.md").write_bytes(mine)
    card.complete(commits.read_log(Store(str(out))))
    assert (out / "README.md").read_bytes() == mine


def test_an_output_without_rows_has_a_card_that_names_no_files(tiny_model: Path, tmp_path: Path) -> None:
    card_of(tiny_model, SAMPLE, tmp_path / "out").in_progress(NOTHING, 0.0)
    assert front_of(text_of(tmp_path / "out")) == {
        "tags": ["armo-ray", "reward-model"],
        "size_categories": ["n<1K"],
    }


@pytest.mark.parametrize("family", ["classifier", "prm-mistral", "pairwise"])
def test_every_family_has_a_card(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "model", family, "llama")
    given = {"family": family, "keep_text": True, "partition_by": ["role"]}
    job, _ = prepare(config_for(tmp_path / "model", SAMPLE, tmp_path / "out", **given))
    text = render(job, Facts("s3://bucket/out", ["s3://bucket/in"], Totals(scored=5), "Complete."))
    assert f"| family | {family} |" in text
    for name in job.scores.names:
        assert f"| `{name}` |" in text
    assert 'load_dataset("parquet", data_files=f"{OUT}/scores/**/*.parquet"' in text


def test_every_column_that_the_job_writes_has_a_meaning() -> None:
    assert {*RESERVED, *REJECTS.names} <= _MEANING.keys()


def test_the_license_of_a_model_is_shown_where_its_model_card_names_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    job, _ = prepare(config_for(tiny_model, SAMPLE, tmp_path / "out"))
    metadata = json.loads(job.scores.metadata[b"armo_ray"])
    known = json.dumps({**metadata, "model": "RLHFlow/ArmoRM-Llama3-8B-v0.1"})
    object.__setattr__(job, "scores", job.scores.with_metadata({"armo_ray": known}))
    assert "[Meta Llama 3 Community License]" in render(job, Facts("out", ["in"], NOTHING, "Complete."))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (10**6 - 1, "100K<n<1M"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_a_size_has_the_name_that_the_hub_gives_it(rows: int, told: str) -> None:
    assert size_category(rows) == told


def test_an_output_with_a_card_is_whole_and_no_card_is_read_as_input(output: Path) -> None:
    assert verify_output(str(output))[1] == []
    found = find_shards([str(output)])
    assert {Path(shard.uri).suffix for shard in found} == {".parquet"}
    assert (
        len(find_shards([f"{output}/**/*.parquet"]))
        == len(found)
        == len(list(output.rglob("part-*.parquet")))
    )


def test_records_of_a_version_before_are_counted(output: Path, tiny_model: Path, tmp_path: Path) -> None:
    new = {"packed_tokens", "pack_capacity", "flops", "peak_flops", "checksum"}
    store, old = Store(str(output)), Store(str(tmp_path / "old"))
    for unit in commits.list_commits(store):
        record = store.read_json(f"_commits/{unit}.json") or {}
        assert new <= record.keys()
        kept = {name: value for name, value in record.items() if name not in new}
        old.write(f"_commits/{unit}.json", to_json(kept))
    job, _ = prepare(config_for(tiny_model, output.parent / "in", output, **OPTIONS))
    Card(old, job, ["in"], commits.list_commits(old)).in_progress(NOTHING, 0.5)
    totals = commits.finish(old).totals()
    assert totals == commits.finish(store).totals()
    assert f"| scored | {totals.scored} |" in text_of(tmp_path / "old")


def rows_for(start: int, count: int) -> str:
    rows = [
        {"prompt": f"Name lake {i}.", "responses": ["Titicaca.", f"Bread and {i}."]}
        for i in range(start, start + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def complete(model: Path, inputs: Path, out: Path, **options: Any) -> None:
    """Score what is new and write the card, as a run does."""
    score_locally(model, inputs, out, **options)
    job, _ = prepare(config_for(model, inputs, out, **options))
    Card(Store(job.output), job, [str(inputs)]).complete(commits.read_log(Store(str(out))))


def test_what_is_loaded_by_a_card_is_there_whatever_was_loaded_before(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache of datasets knows a dataset by the name of its folder and its card alone."""
    datasets = pytest.importorskip("datasets")

    def load(path: Path, *config: str) -> list[str]:
        splits = datasets.load_dataset(str(path), *config, cache_dir=str(tmp_path / "cache"))
        column = "prompt_id" if "prompt_id" in splits["train"].column_names else "row_id"
        return sorted(value for split in splits.values() for value in split[column])

    def files(path: Path, folder: str = "scores") -> list[str]:
        return sorted(row["prompt_id"] for row in rows_of(path, folder))

    for night, (start, count) in {"night1": (0, 2), "night2": (10, 4)}.items():
        (tmp_path / night / "in").mkdir(parents=True)
        (tmp_path / night / "in" / "a.jsonl").write_text(rows_for(start, count))
        complete(tiny_model, tmp_path / night / "in", tmp_path / night / "out", keep_text=True)
        assert load(tmp_path / night / "out") == files(tmp_path / night / "out")
    grown = tmp_path / "night1"
    (grown / "in" / "b.jsonl").write_text(rows_for(20, 3) + '{"prompt": ""}\n')
    complete(tiny_model, grown / "in", grown / "out", keep_text=True)
    assert load(grown / "out") == files(grown / "out")
    assert len(load(grown / "out")) == 10
    assert len(rows_of(grown / "out", "rejects")) == 1
    rejects = datasets.load_dataset(str(grown / "out"), "rejects", cache_dir=str(tmp_path / "cache"))
    assert rejects["train"].num_rows == 1
    for kind in ("parquet", "jsonl"):
        for night, rows in (("night1", 5), ("night2", 4)):
            out, made = str(tmp_path / night / "out"), tmp_path / night / kind
            commands: dict[str, tuple[list[str], int]] = {
                "mine": (["--strategy", "best-worst", "--test-fraction", "0.3", "--seed", "1"], rows),
                "label": ([], 2 * rows),
                "filter": (["--where", "score <= q0.5"], rows),
            }
            for command, (options, expected) in commands.items():
                given = [command, out, "--output", str(made / command), "--format", kind, *options]
                assert main(given) == 0, capsys.readouterr().err
                assert (command, night, len(load(made / command))) == (command, night, expected)
            main(["reweigh", out, "--output", str(made / "reweigh"), "--length-penalty", "0.1"])
            assert len(load(made / "reweigh")) == 2 * rows
    (info, _) = front_of(text_of(grown / "out"))["dataset_info"]
    size = sum(path.stat().st_size for path in (grown / "out" / "scores").rglob("*.parquet"))
    assert info["splits"] == [{"name": "train", "num_bytes": size, "num_examples": 10}]


def test_the_card_of_a_run_that_goes_on_tells_no_sizes_and_another_state_each_time(
    tiny_model: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(rows_for(0, 2))
    for rows in (4, 8):
        totals = score_locally(tiny_model, tmp_path / "in", tmp_path / "out")["totals"]
        (tmp_path / "out" / "_SUCCESS").unlink()
        job, _ = prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "out"))
        store = Store(job.output)
        Card(store, job, ["in"]).stopped(Totals.of(commits.read_commits(store)))
        (info,) = front_of(text_of(tmp_path / "out"))["dataset_info"]
        assert info.keys() == {"config_name", "description"}
        loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
        assert loaded["train"].num_rows == rows == totals["scored"]
        (tmp_path / "in" / "b.jsonl").write_text(rows_for(5, 2))
        time.sleep(1.1)  # the state is told by the second


VALUES = ["a", "", None, "001", "../x", "%2F", "__HIVE_DEFAULT_PARTITION__", "æ/ø"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_directories_are_columns_of_what_the_card_loads(
    suffix: str, tiny_model: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "response": f"b{i}", "cat": value} for i, value in enumerate(VALUES)]
    path = tmp_path / f"in.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    complete(tiny_model, path, tmp_path / "out", partition_by=["cat"])
    (example,) = re.findall(r"```python\n(.*?)import duckdb", text_of(tmp_path / "out"), re.DOTALL)
    names: dict[str, Any] = {"datasets": datasets}
    exec(example, names)
    assert names["scores"].num_rows == len(VALUES)
    found = names["scores"]["cat"]
    nulls = ("__HIVE_DEFAULT_PARTITION__",)  # pyarrow decodes a name before it looks for null
    assert sorted(map(str, found)) == sorted(str(None if v in nulls else v) for v in VALUES)
    assert (
        main(
            [
                "filter",
                str(tmp_path / "out"),
                "--output",
                str(tmp_path / "f"),
                "--where",
                f"cat = '{nulls[0]}'",
            ]
        )
        == 0
    )
    assert len(rows_of(tmp_path / "f")) == 1
    read = [row["cat"] for row in rows_as_written(tmp_path / "out")]
    assert sorted(map(str, read)) == sorted(map(str, VALUES))
