"""Whatever fails, repeats, comes late or stops: run again, an output ends whole, with the rows of an undisturbed one.

The input holds every format and cut: Parquet of many row groups, of one giant one and of empty ones, equal names in
two directories, JSON lines plain, gzip and zstd, a damaged shard, rows that are rejected.
"""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from s3fs import S3FileSystem

from armo_ray.score.config import ScoreConfig
from armo_ray.score.stages import Scorer
from tests.support.in_process import FAULTS, FINE, Cluster, Crash
from tests.support.invariants import check_equal, check_whole
from tests.support.local import config_for

pytest_plugins = ("tests.support.s3_server",)

OPTIONS: dict[str, Any] = {"unit_rows": 8, "keep": ["id"], "partition_by": ["kind"]}
SCORERS: dict[str, Scorer] = {}


def pairs(name: str, count: int) -> list[dict[str, Any]]:
    rows = [
        {
            "id": f"{name}-{i}",
            "kind": "ab"[i % 2],
            "prompt": f"{name} {i}?",
            "chosen": f"yes {i}",
            "rejected": "no",
        }
        for i in range(count)
    ]
    rows[count // 2]["chosen"] = ""  # a reject
    return rows


def lines(name: str, count: int) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in pairs(name, count)).encode()


def write_groups(path: Path, sizes: list[int]) -> None:
    table = pa.Table.from_pylist(pairs(path.parent.name + path.stem, max(sum(sizes), 1)))
    at = 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for size in sizes:
            writer.write_table(table.slice(at, size), row_group_size=max(size, 1))
            at += size


def write_input(folder: Path) -> None:
    for day in ("date=2026-11-19", "date=2026-11-20"):
        (folder / day).mkdir(parents=True)
    first, second = folder / "date=2026-11-19", folder / "date=2026-11-20"
    write_groups(first / "part.parquet", [2, 2, 0, 3, 0, 1])
    write_groups(second / "part.parquet", [11])  # cut into units by rows
    write_groups(second / "empty.parquet", [])
    (first / "damaged.parquet").write_bytes(b"PAR1, and nothing more")
    (first / "a.jsonl").write_bytes(lines("plain", 7))
    (second / "a.jsonl.gz").write_bytes(gzip.compress(lines("gz", 5)))
    (second / "a.jsonl.zst").write_bytes(pa.compress(lines("zst", 5), "zstd", asbytes=True))


class Runs(RuleBasedStateMachine):
    """Runs over one input into one output, with faults; shards come, change and go between them."""

    model: Path
    make_folder: ClassVar[Callable[..., Path]]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.folder = self.make_folder()
        self.out = self.folder / "out"
        write_input(self.folder / "in")
        self.options: dict[str, Any] = {}
        self.added = self.whole = 0
        self.cluster = Cluster(lambda: FINE, lambda spans: spans, SCORERS)

    def run_once(self, draw: Callable[[], str], shuffle: Callable[[Any], Any]) -> None:
        self.cluster.draw, self.cluster.shuffle = draw, shuffle
        config = config_for(self.model, self.folder / "in", self.out, **OPTIONS, **self.options)
        try:
            self.cluster.run(config)
        except Crash:
            self.whole = 0
            return
        self.cluster.write_late()
        self.whole += 1
        self.options = {}
        check_whole(self.out)

    @rule(data=st.data(), often=st.integers(1, 4))
    def run_with_faults(self, data: st.DataObject, often: int) -> None:
        what = st.sampled_from([FINE] * 4 * often + list(FAULTS))
        self.run_once(lambda: data.draw(what), lambda spans: data.draw(st.permutations(spans)))

    @rule()
    def write_late(self) -> None:
        self.cluster.write_late()

    @rule()
    def add_a_shard(self) -> None:
        self.added += 1
        (self.folder / "in" / "date=2026-11-20" / f"more-{self.added}.jsonl").write_bytes(lines("more", 3))
        self.whole = 0

    @rule(name=st.sampled_from(["date=2026-11-19/part.parquet", "date=2026-11-19/damaged.parquet"]))
    def change_a_parquet_shard(self, name: str) -> None:
        self.cluster.write_late()  # a writer of the old rows is refused by their commit's other id, not held here
        path = self.folder / "in" / name
        self.added += 1
        write_groups(path, [2, 1 + self.added])
        self.options["redo"] = [*self.options.get("redo", []), str(path)]
        self.whole = 0

    @precondition(lambda self: self.added)
    @rule()
    def lose_a_shard(self) -> None:
        path = self.folder / "in" / "date=2026-11-20" / f"more-{self.added}.jsonl"
        if path.exists():
            self.cluster.write_late()
            path.unlink()
            self.options["forget"] = [*self.options.get("forget", []), str(path)]
            self.whole = 0

    def teardown(self) -> None:
        if not hasattr(self, "out"):
            return
        self.cluster.write_late()
        self.run_once(lambda: FINE, lambda spans: spans)
        assert self.whole
        undisturbed = self.folder / "undisturbed"
        Cluster(lambda: FINE, lambda spans: spans, SCORERS).run(
            config_for(self.model, self.folder / "in", undisturbed, **OPTIONS)
        )
        check_whole(undisturbed)
        check_equal(self.out, undisturbed)


def test_any_sequence_of_runs_faults_and_changes_ends_whole_and_equal(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    Runs.model = tiny_model
    Runs.make_folder = partial(tmp_path_factory.mktemp, "runs")
    examples = 10 if request.config.getoption("--all") else 3
    run_state_machine_as_test(Runs, settings=settings(max_examples=examples, stateful_step_count=6))


def run_to_the_end(cluster: Cluster, config: ScoreConfig, rng: random.Random, faults: Counter[str]) -> None:
    """Run again and again, as whoever starts a run does, until it ends; faults come at random."""

    def draw() -> str:
        fault = rng.choice([FINE, FINE, *FAULTS])
        faults[fault] += fault != FINE
        return fault

    cluster.draw, cluster.shuffle = draw, lambda spans: rng.sample(spans, len(spans))
    while True:
        try:
            cluster.run(config)
            break
        except Crash:
            if rng.random() < 0.5:
                cluster.write_late()
    cluster.write_late()


def soak(model: Path, inputs: str, outputs: str, count: int, seed: int) -> Counter[str]:
    """Runs with so many faults, each into an output of its own that ends whole, equal to an undisturbed one."""
    undisturbed = config_for(model, inputs, f"{outputs}/undisturbed", **OPTIONS)
    Cluster(lambda: FINE, lambda spans: spans, SCORERS).run(undisturbed)
    faults: Counter[str] = Counter()
    rng, cluster = random.Random(seed), Cluster(lambda: FINE, lambda spans: spans, SCORERS)
    while faults.total() < count:
        out = f"{outputs}/{faults.total()}"
        run_to_the_end(cluster, config_for(model, inputs, out, **OPTIONS), rng, faults)
        check_whole(out)
        check_equal(out, undisturbed.output)
    return faults


@pytest.mark.nightly
def test_runs_on_s3_that_fail_at_random_end_whole_and_equal(
    s3: str, tiny_model: Path, tmp_path: Path
) -> None:
    write_input(tmp_path / "in")
    S3FileSystem().put(f"{tmp_path}/in/", f"{s3}/in/", recursive=True)
    assert soak(tiny_model, f"{s3}/in", f"{s3}/out", 5, 0).total() >= 5


@pytest.mark.soak
@pytest.mark.timeout(36000)
def test_stages_that_fail_repeat_and_come_late_change_nothing(
    request: pytest.FixtureRequest,
    s3: str,
    tiny_model: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A thousand faults and more in minutes: those of processes are in test_soak."""
    count, seed = request.config.getoption("--soak-faults"), request.config.getoption("--soak-seed")
    write_input(tmp_path / "in")
    S3FileSystem().put(f"{tmp_path}/in/", f"{s3}/in/", recursive=True)
    faults = soak(tiny_model, f"{tmp_path}/in", f"{tmp_path}/out", -(-count // 2), seed)
    faults += soak(tiny_model, f"{s3}/in", f"{s3}/out", count // 2, seed)
    record_property("stages", f"{faults.total()} faults: {dict(faults)}")
