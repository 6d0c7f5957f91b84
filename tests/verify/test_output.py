"""What is read from an output is checked: damage is found and named, mended where it can be, and leads nowhere else."""

import gzip
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.storage import commits, json_files, lock
from armo_ray.storage.checkpoint import CHECKPOINT
from armo_ray.storage.commits import COMMITS, RUN, SUCCESS
from armo_ray.storage.json_files import sealed, to_json
from armo_ray.storage.records import CommitRecord, RunFile
from armo_ray.storage.store import Store
from armo_ray.text.labels import columns_read
from armo_ray.verify.output import verify_output
from armo_ray.verify.repair import repair_output
from armo_ray.verify.sources import describe, find_states
from tests.support.by_day import by_day
from tests.support.commit_records import commit_record
from tests.support.local import rows_of, score_locally, scores_of

pytest_plugins = ["tests.support.s3_server"]

ROWS = 9
UNIT_ROWS = 6  # candidates: three rows
OPTIONS: dict[str, Any] = {"unit_rows": UNIT_ROWS, "max_reject_fraction": 1.0}


def row(i: int) -> dict[str, Any]:
    return {
        "id": i,
        "prompt": f"What is {i} + {i}?",
        "chosen": f"It is {2 * i}.",
        "rejected": "No." if i % 4 else "",
    }


def write_shards(uri: str) -> None:
    """The rows as Parquet, JSONL, gz and zst; every fourth has an answer that is rejected."""
    store, rows = Store(uri), [row(i) for i in range(ROWS)]
    lines = "".join(json.dumps(one) + "\n" for one in rows).replace("\n", "\n\n", 1).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    store.write("a.parquet", sink.getvalue().to_pybytes())
    store.write("date=1/b.jsonl", lines)
    store.write("date=1/c.jsonl.gz", gzip.compress(lines))
    store.write("date=2/d.jsonl.zst", pa.compress(lines, codec="zstd", asbytes=True))


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards, `in`, and a complete output of them, `out`."""
    folder = tmp_path_factory.mktemp("integrity")
    write_shards(str(folder / "in"))
    score_locally(tiny_model, folder / "in", folder / "out", **OPTIONS)
    return folder


@pytest.fixture
def output(place: Path, tmp_path: Path) -> Path:
    """A copy of the output, to be damaged."""
    shutil.copytree(place / "out", tmp_path / "out")
    return tmp_path / "out"


def faults_of(output: Path) -> list[str]:
    return verify_output(str(output))[1]


def record_paths(output: Path, suffix: str = ".parquet") -> list[Path]:
    """The commit records of a shard, in the order of its rows."""
    found = {path: json.loads(path.read_text()) for path in (output / COMMITS).iterdir()}
    of_shard = [path for path, record in found.items() if record["source"].endswith(suffix)]
    return sorted(of_shard, key=lambda path: found[path]["ordinal"])


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file and give it the checksum of its new content, as who forges it would."""
    content = json.loads(path.read_text())
    change(content)
    path.write_bytes(sealed(content))


# verify


def test_verify_finds_every_flipped_bit_that_changes_a_value(tiny_model: Path, tmp_path: Path) -> None:
    write_shards(str(tmp_path / "in"))
    output = tmp_path / "out"
    score_locally(
        tiny_model, [tmp_path / "in" / "a.parquet", tmp_path / "in" / "date=1" / "c.jsonl.gz"], output
    )
    files = sorted(path for path in output.rglob("*") if path.is_file())
    assert {path.relative_to(output).parts[0] for path in files} == {
        COMMITS,
        "scores",
        "rejects",
        RUN,
        SUCCESS,
        CHECKPOINT,
    }
    rng = random.Random(0)
    missed, same = [], 0
    for _ in range(150):
        path = rng.choice(files)
        content = path.read_bytes()
        flipped = flip(content, rng.randrange(len(content)), rng.randrange(8))
        path.write_bytes(flipped)
        if not faults_of(output):
            unchanged = path.suffix != ".parquet" and json.loads(flipped) == json.loads(content)
            same += unchanged
            missed += [] if unchanged else [path.name]
        path.write_bytes(content)
    assert missed == []
    assert same < 5
    assert faults_of(output) == []


def flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


@pytest.mark.parametrize("file", [RUN, SUCCESS, COMMITS])
def test_a_flip_in_any_name_of_a_file_is_found(file: str, output: Path) -> None:
    path = record_paths(output)[0] if file == COMMITS else output / file
    kind = {RUN: json_files.RUN, SUCCESS: json_files.MANIFEST, COMMITS: json_files.RECORD}[file]
    content = path.read_bytes()
    names = [found for found in re.finditer(rb'"(\w+)":', content) if found.start() < 3000]
    assert len(names) > 10
    for at in (at for found in names for at in range(found.start(), found.end())):
        for bit in range(8):
            with pytest.raises(ValueError, match=r"checksum|not valid JSON|lacks"):
                json_files.parse(flip(content, at, bit), kind)


def test_every_page_of_what_is_written_has_a_checksum_and_every_part_a_digest(output: Path) -> None:
    manifest = json.loads((output / SUCCESS).read_text())
    for part in manifest["parts"]:
        path = output / part["path"]
        assert part["digest"] == json_files.digest_of(path.read_bytes())
        content, column = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0)
        at = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
        path.write_bytes(flip(content, at, 0))
        with pytest.raises(OSError, match="CRC"):
            pq.ParquetFile(path, page_checksum_verification=True).read()
    committed = [part for record in commits.read_commits(Store(str(output))) for part in record.parts]
    listed = {part.path: part.to_dict() for part in committed}
    assert listed == {part["path"]: part for part in manifest["parts"]}


def test_an_output_of_before_digests_and_checksums_is_read_and_checked_by_the_rest(
    output: Path, tmp_path: Path
) -> None:
    for path in [*(output / COMMITS).iterdir(), output / RUN, output / SUCCESS]:
        content = json.loads(path.read_text())
        del content["checksum"]
        for part in content.get("parts", ()):
            del part["digest"]
        path.write_bytes(to_json(content))
    assert faults_of(output) == []
    assert main(["reweigh", str(output), "--output", str(tmp_path / "new"), "--mask", "code_style"]) == 0
    part = next((output / "scores").rglob("*.parquet"))
    table = pq.read_table(part, partitioning=None)
    place = table.schema.get_field_index("score")
    changed = pa.array(table["score"].to_numpy() + 1)
    pq.write_table(table.set_column(place, table.schema.field(place), changed), part)
    assert any(part.name in fault for fault in faults_of(output))


@pytest.mark.parametrize(
    ("suffix", "told"), [(".parquet", "no unit holds its rows 3 to 5"), (".gz", "not all of its")]
)
def test_a_unit_that_is_gone_with_its_parts_leaves_a_gap_that_is_found(
    output: Path, suffix: str, told: str
) -> None:
    (output / SUCCESS).unlink()
    middle = record_paths(output, suffix)[1]
    for part in json.loads(middle.read_text())["parts"]:
        (output / part["path"]).unlink()
    middle.unlink()
    assert any(told in fault for fault in faults_of(output))
    assert not any("no commit names it" in fault for fault in faults_of(output))


def test_a_unit_that_begins_before_the_one_before_it_ends_is_found(output: Path) -> None:
    for suffix in (".parquet", ".jsonl"):
        rewrite(record_paths(output, suffix)[1], lambda record: record.update(first_row=2))
        assert any(f"{suffix}: units" in fault and "both hold row 2" in fault for fault in faults_of(output))


# every command


def commands(output: Path, place: Path, model: Path, new: Path) -> dict[str, list[str]]:
    """A line of every command that reads an output."""
    score = [
        "--input",
        str(place / "in"),
        "--output",
        str(output),
        "--model",
        str(model),
        "--dtype",
        "float32",
    ]
    score += ["--unit-rows", str(UNIT_ROWS)]
    to = ["--output", str(new)]
    return {
        "score": ["score", *score],
        "plan": ["plan", *score],
        "mine": ["mine", str(output), *to],
        "label": ["label", str(output), *to],
        "filter": ["filter", str(output), *to, "--where", "score > -9"],
        "reweigh": ["reweigh", str(output), *to, "--mask", "code_style"],
        "ensemble": ["reweigh", str(output), str(place / "out"), *to, "--ensemble", "mean"],
        "evaluate": ["evaluate", str(output)],
        "compare": ["compare", str(place / "out"), str(output)],
        "report": ["report", str(output), *to],
        "explain": ["explain", str(output), "highest"],
        "previous": ["plan", *score[:2], "--output", str(new), *score[4:], "--previous", str(output)],
    }


NAMES = list(commands(Path(), Path(), Path(), Path()))
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "object": lambda content: b"{}",
    "list": lambda content: b"[]",
    "edited": lambda content: content.replace(b"1", b"2", 1),
    "not-text": lambda content: b"\xff\xfe\x00",
    "deep": lambda content: b"[" * 100_000,
    "another-run": lambda content: _of_another_run(content),
}


def _of_another_run(content: bytes) -> bytes:
    found = json.loads(content)
    if "identity" in found and isinstance(found["identity"], dict):
        found["identity"]["max_length"] = 7
    else:
        found["run_fingerprint"] = "0" * 32
    return sealed(found)


@pytest.mark.parametrize("kind", by_day(DAMAGE, {"truncated", "edited", "not-text", "another-run"}))
@pytest.mark.parametrize("file", [RUN, COMMITS, SUCCESS])
def test_a_damaged_file_is_named_with_its_repair_by_every_command_that_reads_it(
    file: str, kind: str, output: Path, place: Path, tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    path = record_paths(output)[1] if file == COMMITS else output / file
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    reading = set(NAMES) - ({"score", "plan", "explain", "previous"} if file == SUCCESS else set())
    for name in sorted(reading):
        line = commands(output, place, tiny_model, tmp_path / "new")[name]
        assert main(line) == 2, name
        told = capsys.readouterr().err
        assert f"armo-ray {line[0]}: error: " in told
        if file == RUN and kind == "another-run" and name in ("score", "plan"):
            assert "max_length was 7" in told
        else:
            named = [f"{COMMITS}/", SUCCESS] if file == RUN and kind == "another-run" else [path.name]
            assert any(one in told for one in named), (name, told)
            assert ("--repair" in told) == (f"{RUN}: damaged" not in told)
        assert not (tmp_path / "new").exists()
    assert main(["verify", str(output)]) == 1
    told = capsys.readouterr().out
    assert path.stem in told
    assert "--repair" in told


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"run": "x", "pid": "one"}', b'{"run": '])
def test_a_damaged_lock_is_named_and_repair_frees_the_output(content: bytes, output: Path) -> None:
    (output / lock.LOCK).write_bytes(content)
    with (
        pytest.raises(ConfigError, match=rf"{lock.LOCK}: damaged: .* --repair"),
        lock.held(Store(str(output))),
    ):
        pass
    assert [fault for fault in faults_of(output) if lock.LOCK in fault]
    assert repair_output(str(output), columns_read).left == []
    assert faults_of(output) == []
    with lock.held(Store(str(output))):
        pass


# outputs of somebody else


ELSEWHERE = [
    "../.bashrc",
    "scores/../../.bashrc",
    "/etc/part-{unit}.parquet",
    "scores/..\\..\\part-{unit}.parquet",
    "scores/../../part-{unit}.parquet",
    "scores/date=1/../../../part-{unit}.parquet",
    "scores/a\0b=c/part-{unit}.parquet",
    "rejects/date=1/part-{unit}.parquet",
    "other/part-{unit}.parquet",
    "scores/part-0123456789abcdef0123456789abcdef.parquet",
    "scores/part-{unit}.exe",
    "",
]


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("name", ["filter", "reweigh", "ensemble"])
def test_a_part_that_lies_elsewhere_is_refused_and_nothing_is_written(
    path: str, name: str, output: Path, place: Path, tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    record = record_paths(output)[0]
    unit, before = record.stem, sorted(tmp_path.rglob("*"))
    old = json.loads(record.read_text())["parts"][0]["path"]

    def change(content: dict[str, Any]) -> None:
        for part in content["parts"]:
            if part["path"] == old:
                part["path"] = path.format(unit=unit)

    rewrite(record, change)
    rewrite(output / SUCCESS, change)
    assert main(commands(output, place, tiny_model, tmp_path / "new")[name]) == 2
    assert "parts cannot be" in capsys.readouterr().err or path.startswith("scores/part-0123")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unit", "../../x"),
        ("unit", "0" * 31),
        ("unit", 7),
        ("source", "http://127.0.0.1:1/a.jsonl"),
        ("source", "relative.jsonl"),
        ("source", "/etc/passwd"),
        ("source", "simplecache::s3://a/b.jsonl"),
        ("first_row", -1),
        ("num_rows", True),
        ("last", 1),
        ("rejected", [1]),
        ("rejected", {"too_long": "many"}),
        ("parts", {}),
        ("parts", [{"path": "scores/x"}]),
        ("scored", None),
        ("seconds", {"read": "long"}),
        ("committed_at", "yesterday"),
    ],
)
def test_a_record_whose_values_are_of_other_kinds_is_damaged(key: str, value: Any, output: Path) -> None:
    path = record_paths(output)[0]
    rewrite(path, lambda record: record.update({key: value}))
    with pytest.raises(ConfigError, match=rf"{path.name}: damaged: its {key} cannot be .*--repair"):
        commits.read_commits(Store(str(output)))


@pytest.mark.parametrize("root", ["local", "s3"])
def test_no_name_leads_out_of_a_store(root: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = Store(f"{tmp_path if root == 'local' else request.getfixturevalue('s3')}/deep/out")
    for name in ("../x", "a/../../x", "/etc/x", "a/..", "..", "a\0b"):
        for operation in (
            store.read,
            store.delete,
            store.find,
            store.list_names,
            store.read_json,
            store.path,
        ):
            with pytest.raises(ConfigError, match="is not the name of a file in it"):
                operation(name)
        for write in (store.write, store.create):
            with pytest.raises(ConfigError, match="is not the name of a file in it"):
                write(name, b"x")
    store.write("a..b/..c", b"x")
    assert store.read("a..b/..c") == b"x"


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a web server, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_a_record_names_is_opened_only_where_input_may_be(
    asked: tuple[str, list[str]], output: Path, place: Path, tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    address, paths = asked
    for path in (output / COMMITS).iterdir():
        rewrite(path, lambda record: record.update(source=f"{address}/{record['source'].rpartition('/')[2]}"))
    lines = commands(output, place, tiny_model, tmp_path / "new")
    for name in NAMES:
        assert main(lines[name]) == 2
        assert "its source cannot be" in capsys.readouterr().err
    assert main(["verify", str(output)]) == 1
    for command in ("score", "plan"):
        assert main([command, "--input", f"{address}/a.jsonl", *lines["score"][3:]]) == 2
        assert "input comes from a local path, s3://" in capsys.readouterr().err
    assert paths == []


# outputs made from outputs


@pytest.mark.parametrize("name", ["filter", "reweigh", "ensemble"])
def test_an_output_made_from_an_output_is_whole_and_its_records_are_its_own(
    name: str, output: Path, place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(output, tmp_path / "second")
    if name == "ensemble":
        line = ["reweigh", str(output), str(tmp_path / "second"), "--ensemble", "mean"]
    else:
        line = (
            commands(output, place, tiny_model, tmp_path)[name][:2]
            + {
                "filter": ["--where", "score >= q0.2"],
                "reweigh": ["--mask", "code_style"],
            }[name]
        )
    assert main([*line, "--output", str(tmp_path / "new")]) == 0
    assert faults_of(tmp_path / "new") == []
    run = RunFile.from_json((tmp_path / "new" / RUN).read_bytes())
    records = commits.read_commits(Store(str(tmp_path / "new")))
    assert {record.run_fingerprint for record in records} == {run.fingerprint}
    shutil.copy(next((output / COMMITS).iterdir()), tmp_path / "new" / COMMITS)
    if name != "filter":  # whose scores are still those of the run
        assert any("another run" in fault for fault in faults_of(tmp_path / "new"))
        assert (
            main(["filter", str(tmp_path / "new"), "--output", str(tmp_path / "x"), "--where", "score > -9"])
            == 2
        )


def test_a_part_that_is_not_what_was_committed_is_neither_copied_nor_changed(
    output: Path, tmp_path: Path
) -> None:
    for folder, column in (("scores", "prompt_id"), ("rejects", "detail")):
        part = next((output / folder).rglob("*.parquet"))
        content = part.read_bytes()
        table = pq.read_table(part, partitioning=None)
        place = table.schema.get_field_index(column)
        other = pa.array(["x" * len(str(value)) for value in table[column].to_pylist()])
        pq.write_table(table.set_column(place, table.schema.field(place), other), part)
        assert main(["reweigh", str(output), "--output", str(tmp_path / "new"), "--mask", "code_style"]) == 1
        assert not (tmp_path / "new").exists()
        part.write_bytes(content)


# repair


def _flip(output: Store, name: str) -> None:
    content = output.read(name)
    output.write(name, flip(content, 200, 0))


def _records(store: Store, suffix: str) -> list[CommitRecord]:
    return [record for record in commits.read_commits(store) if record.source.endswith(suffix)]


def _harm(store: Store, how: str, suffix: str) -> None:
    """Damage a unit of a shard in the middle of it."""
    _damage(store, how, _records(store, suffix)[1])


def _damage(store: Store, how: str, record: CommitRecord) -> None:
    name, part = f"{COMMITS}/{record.unit}.json", record.parts[0].path
    if how == "part":
        _flip(store, part)
    elif how == "part-gone":
        store.delete(part)
    elif how == "record":
        store.write(name, store.read(name)[:300])
    elif how == "record-of-another-run":
        store.write(name, replace(record, run_fingerprint="0" * 32).to_json())
    elif how == "record-gone":
        store.delete(name)
    else:
        store.write(name, replace(record, scored=record.scored + 1).to_json())


HARMS = ["part", "part-gone", "record", "record-of-another-run", "record-gone", "counts"]


SUFFIXES = [".parquet", ".jsonl", ".gz", ".zst"]


@pytest.mark.parametrize("how", HARMS)
def test_what_repair_takes_away_is_scored_again_and_nothing_else(
    how: str, output: Path, place: Path, tiny_model: Path
) -> None:
    store, whole = Store(str(output)), before_units(place)
    harmed = [_records(store, suffix)[1] for suffix in SUFFIXES]  # a unit in the middle of every shard
    for record in harmed:
        _damage(store, how, record)
    kept = whole - {record.unit for record in harmed}
    before = {unit: store.read(f"{COMMITS}/{unit}.json") for unit in kept}
    assert len(verify_output(store.uri)[1]) >= len(SUFFIXES)
    assert main(["verify", store.uri, "--repair"]) == 0
    assert not (output / SUCCESS).exists()
    assert commits.list_commits(store) == kept
    score_locally(tiny_model, place / "in", output, **OPTIONS)
    assert faults_of(output) == []
    assert commits.list_commits(store) == whole
    assert {unit: store.read(f"{COMMITS}/{unit}.json") for unit in kept} == before
    assert scores_of(output) == pytest.approx(scores_of(place / "out"), abs=1e-5)


def before_units(place: Path) -> set[str]:
    return commits.list_commits(Store(str(place / "out")))


def test_repair_on_s3(s3: str, tiny_model: Path) -> None:
    write_shards(f"{s3}/in")
    score_locally(tiny_model, f"{s3}/in", f"{s3}/out", **OPTIONS)
    store = Store(f"{s3}/out")
    whole = rows_of(f"{s3}/out")
    units = [_records(store, suffix)[1] for suffix in SUFFIXES]
    for how, record in zip(HARMS[:4], units, strict=True):
        _damage(store, how, record)
    store.write(f"scores/part-{'0' * 32}.parquet", b"stray")
    assert len(verify_output(store.uri)[1]) >= 5
    found = repair_output(store.uri, columns_read)
    assert (found.left, found.complete) == ([], False)
    assert sum("to be scored again" in line for line in found.done) == 4
    assert store.list_names("").keys() == {RUN, CHECKPOINT}
    score_locally(tiny_model, f"{s3}/in", f"{s3}/out", **OPTIONS)
    assert verify_output(store.uri)[1] == []
    assert [r["row_id"] for r in rows_of(f"{s3}/out")] == [r["row_id"] for r in whole]


def test_repair_sweeps_strays_and_temporary_files_and_nothing_else(output: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"part-{'2' * 32}.parquet").write_bytes(b"theirs")
    stray = output / "scores" / f"part-{'0' * 32}.parquet"
    stray.write_bytes(b"stray")
    stale = output / "scores" / f".part-{'0' * 32}.parquet.{'a' * 32}"
    stale.write_bytes(b"half")
    (output / "notes.txt").write_text("mine")
    (output / "scores" / "date=9").symlink_to(elsewhere)
    assert len(faults_of(output)) == 1
    found = repair_output(str(output), columns_read)
    assert (len(found.done), found.left, found.complete) == (1, [], True)
    assert not stray.exists()
    assert not stale.exists()
    assert (output / "notes.txt").read_text() == "mine"
    assert len(list(elsewhere.iterdir())) == 1
    assert faults_of(output) == []


def test_a_folder_that_is_a_link_is_not_swept(output: Path, tmp_path: Path) -> None:
    shutil.move(output / "rejects", tmp_path / "linked")
    (output / "rejects").symlink_to(tmp_path / "linked")
    theirs = tmp_path / "linked" / f"part-{'2' * 32}.parquet"
    theirs.write_bytes(b"theirs")
    repair_output(str(output), columns_read)
    assert theirs.exists()


@pytest.mark.parametrize("kind", [name for name in DAMAGE if name != "another-run"])
def test_a_damaged_manifest_is_written_again_where_all_else_is_whole(
    kind: str, output: Path, place: Path
) -> None:
    path = output / SUCCESS
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    found = repair_output(str(output), columns_read)
    assert (found.left, found.complete) == ([], True)
    assert faults_of(output) == []
    first, second = (json.loads((folder / SUCCESS).read_text()) for folder in (output, place / "out"))
    assert (first["parts"], first["totals"]) == (second["parts"], second["totals"])


def test_a_manifest_of_more_than_is_committed_is_deleted(output: Path) -> None:
    for record in record_paths(output):
        record.unlink()
    assert not repair_output(str(output), columns_read).complete
    assert not (output / SUCCESS).exists()


def test_units_of_a_shard_that_is_gone_are_left_as_they_are(
    place: Path, tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    write_shards(str(tmp_path / "in"))
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", **OPTIONS)
    store = Store(str(tmp_path / "out"))
    _harm(store, "part", ".gz")
    shard = tmp_path / "in" / "date=1" / "c.jsonl.gz"
    shard.rename(tmp_path / "aside")
    before = sorted(store.find(""))
    assert main(["verify", store.uri, "--repair"]) == 1
    assert (
        "c.jsonl.gz is gone: restore it and repair again, or drop its scores with armo-ray score --forget"
        in capsys.readouterr().out
    )
    assert sorted(store.find("")) == before
    (tmp_path / "aside").rename(shard)
    assert main(["verify", store.uri, "--repair"]) == 0
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", **OPTIONS)
    assert verify_output(store.uri)[1] == []


def test_repair_waits_for_no_run_that_writes_the_output(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RENEW_S", 0.1), ("STALE_S", 1.0), ("_LOOK_S", 0.05)):
        monkeypatch.setattr(lock, name, value)
    with (
        lock.held(Store(str(output))),
        pytest.raises(ConfigError, match="is being written by another command"),
    ):
        repair_output(str(output), columns_read)


def test_a_damaged_run_without_commits_is_begun_anew(tmp_path: Path, place: Path, tiny_model: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RUN).write_text('{"identity": ')
    with pytest.raises(ConfigError, match=f"{RUN}: damaged"):
        score_locally(tiny_model, place / "in", tmp_path / "out", **OPTIONS)
    assert repair_output(str(tmp_path / "out"), columns_read).left == []
    score_locally(tiny_model, place / "in", tmp_path / "out", **OPTIONS)
    assert faults_of(tmp_path / "out") == []


def test_a_run_that_is_of_none_of_the_commits_is_the_fault_and_costs_no_commit(
    output: Path, place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    score_locally(tiny_model, place / "in", tmp_path / "other", **{**OPTIONS, "unit_rows": 8})
    kept = (output / RUN).read_bytes()
    shutil.copy(tmp_path / "other" / RUN, output / RUN)
    assert any(f"{RUN}: does not belong to the run of the" in fault for fault in faults_of(output))
    before = sorted(output.rglob("*"))
    assert len(repair_output(str(output), columns_read).left) == 1
    assert sorted(output.rglob("*")) == before
    (output / RUN).write_bytes(kept)
    assert faults_of(output) == []


def test_repair_touches_nothing_that_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "part-0.parquet").write_bytes(b"mine")
    assert main(["verify", str(tmp_path), "--repair"]) == 2
    assert (tmp_path / "scores" / "part-0.parquet").exists()
    assert main(["verify", "--model", "x", "--repair"]) == 2


# origins


def test_shards_that_are_gone_or_changed_since_are_told_and_are_no_fault(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(str(tmp_path / "in"))
    for name, options in (("text", {"keep_text": True}), ("bare", {})):
        score_locally(tiny_model, tmp_path / "in", tmp_path / name, **OPTIONS, **options)
    caplog.set_level("INFO")
    assert main(["verify", str(tmp_path / "bare")]) == 0
    assert "of 4 shards, 4 unchanged; their text can be read again" in caplog.text
    (tmp_path / "in" / "a.parquet").unlink()
    (tmp_path / "in" / "date=1" / "b.jsonl").write_text("other")
    assert main(["verify", str(tmp_path / "bare")]) == 0
    assert "of 4 shards, 2 unchanged, 1 gone, 1 changed; text can be read again only" in caplog.text
    assert main(["verify", str(tmp_path / "text")]) == 0
    assert "their text is kept with the scores" in caplog.text


def test_units_of_shards_that_are_copied_back_byte_for_byte_are_scored_again(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(str(tmp_path / "in"))
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", **OPTIONS)
    store = Store(str(tmp_path / "out"))
    before = scores_of(tmp_path / "out")
    for suffix in SUFFIXES:
        _harm(store, "part", suffix)
    for shard in (tmp_path / "in").rglob("*.*"):
        os.utime(shard, (1000, 1000))
    caplog.set_level("INFO")
    assert main(["verify", store.uri]) == 1
    assert "of 4 shards, 4 unchanged; their text can be read again" in caplog.text
    assert main(["verify", store.uri, "--repair"]) == 0
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", **OPTIONS)
    assert verify_output(store.uri)[1] == []
    assert scores_of(tmp_path / "out") == pytest.approx(before)


def test_a_storage_that_cannot_be_reached_is_told(output: Path) -> None:
    records = commits.read_commits(Store(str(output)))
    away = [commit_record(source=f"az://nowhere/{i}.jsonl", identity="1-1") for i in range(100)]
    if find_spec("adlfs"):
        pytest.skip("adlfs is there and would look for the storage")
    states, told = find_states([*records, *away], None, columns_read)
    assert len(told) == 1
    assert "az://nowhere: " in told[0]
    assert "of 104 shards, 4 unchanged, 100 unknown" in describe(states, False)
