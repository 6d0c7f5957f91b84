"""Rows that kill or fail the process that works on them cost themselves alone."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armo_ray.score.poison import FANOUT, MOST_POISON, find_poison
from armo_ray.verify.output import verify_output
from tests.support.local import rows_of, score_locally
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import finish, start

# Python loads a module of this name when it starts: what imports the tokenizer or the model gets one that some texts
# break. In the graph a unit has two attempts and not three, which only take longer.
FRAGILE = """
import ctypes, sys
from importlib.machinery import PathFinder

def break_tokenizer(module):
    encode = module.Encoder.encode

    def fragile(self, candidates):
        if any("crash the tokenizer" in c.response for c in candidates):
            ctypes.string_at(0)
        return encode(self, candidates)

    module.Encoder.encode = fragile

def break_model(module):
    from armo_ray.score.stages.unit_block import unnest

    call = module.Scorer.__call__

    def fragile(self, table):
        responses = unnest(table["scored"])["response"].to_pylist()
        answers = [message["content"] for response in responses for message in response]
        if any("crash the model" in a for a in answers):
            ctypes.string_at(0)
        if any("fail the model" in a for a in answers):
            raise ZeroDivisionError("a kernel divides by zero")
        return call(self, table)

    module.Scorer.__call__ = fragile

def limit_retries(module):
    module.RETRIES = 1

CHANGES = {
    "armo_ray.text.tokenization": break_tokenizer,
    "armo_ray.score.stages.score": break_model,
    "armo_ray.cluster.connect": limit_retries,
}

class Finder:
    def find_spec(self, name, path, target=None):
        if name not in CHANGES:
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), CHANGES[name](module))
        return spec

sys.meta_path.insert(0, Finder())
"""


READERS = {"a.parquet": {4: "crash the tokenizer"}}  # in the second of three units
REPLICAS = {"b.jsonl": {1: "crash the model", 2: "fail the model"}}  # in the first of two


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "poison_of",
    [
        pytest.param(REPLICAS, id="replicas"),
        pytest.param(READERS | REPLICAS, id="readers-and-replicas", marks=pytest.mark.nightly),
    ],
)
def test_rows_that_kill_or_fail_a_worker_are_rejected_as_poison_and_all_others_scored(
    poison_of: dict[str, dict[int, str]], local_ray: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in SAMPLE.open()][:15]
    shards = {"a.parquet": rows[:9], "b.jsonl": rows[9:]}
    write(tmp_path / "sound-in", shards)
    score_locally(tiny_model, tmp_path / "sound-in", tmp_path / "sound", unit_rows=6)
    expected = by_place(tmp_path / "sound")
    for name, poison in poison_of.items():
        for i, text in poison.items():
            shards[name][i]["chosen"] = text
    write(tmp_path / "in", shards)
    (tmp_path / "fragile").mkdir()
    (tmp_path / "fragile" / "sitecustomize.py").write_text(FRAGILE)
    out, options = tmp_path / "out", ("--unit-rows", "6", "--keep-text", "--gpus-per-replica", "0")
    path = {"PYTHONPATH": f"{tmp_path}/fragile:{ROOT}"}
    workers = json.dumps({"runtime_env": {"env_vars": path}})
    variables: dict[str, Any] = path | {"RAY_ADDRESS": local_ray, "RAY_JOB_CONFIG_JSON_ENV_VAR": workers}
    run = start(tiny_model, tmp_path / "in", out, *options, **variables)
    told = finish(run, 3)  # more than one in a hundred
    assert int(re.findall(r"retries=(\d+)", told)[-1]) >= 1
    assert re.search(r"WARNING a task failed with \w+: .+; its units are done again\n", told)
    rejects = rows_of(out, "rejects")
    assert {row["reason"] for row in rejects} == {"poison"}
    places = [(name, i) for name, poison in poison_of.items() for i in poison]
    assert [(Path(row["source"]).name, row["source_row"]) for row in rejects] == places
    texts = [text for poison in poison_of.values() for text in poison.values()]
    assert [json.loads(row["raw"])["chosen"] for row in rejects] == texts
    for row, text in zip(rejects, texts, strict=True):
        assert ("a kernel divides by zero" in row["detail"]) == (text == "fail the model")
    found = by_place(out)
    assert found.keys() == {place for place in expected if place[:2] not in places}
    assert max(abs(found[place] - expected[place]) for place in found) < 1e-5
    assert verify_output(str(out))[1] == []


def write(folder: Path, shards: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(shards["a.parquet"]), folder / "a.parquet", row_group_size=3)
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shards["b.jsonl"]))


def by_place(out: Path) -> dict[tuple[str, int, int], float]:
    """Scores by shard, row and candidate: the shards differ, so their rows' ids do."""
    return {
        (Path(row["source"]).name, row["source_row"], row["candidate"]): row["score"] for row in rows_of(out)
    }


@given(st.data(), st.integers(0, 3000))
def test_bisection_finds_the_rows_that_fail_alone_and_no_other_in_few_tries(
    data: st.DataObject, count: int
) -> None:
    rows = st.integers(0, max(count - 1, 0))
    poison = data.draw(st.sets(rows, max_size=min(count, MOST_POISON)))
    once = data.draw(st.sets(rows, max_size=min(count, 3))) - poison  # as a process that memory was short for
    most = data.draw(st.integers(1, 3000))  # rows that memory holds together
    tried: Counter[tuple[int, int]] = Counter()

    def failure(start: int, stop: int) -> str | None:
        assert 0 <= start < stop <= count
        tried[start, stop] += 1
        fails = bool(poison & {*range(start, stop)}) or stop - start > most
        return "killed" if fails or (start in once and tried[start, stop] == 1) else None

    assert find_poison(failure, count, "shard") == dict.fromkeys(poison, "killed")
    assert max(tried.values(), default=0) <= 2
    if most >= count:
        levels = 1 + math.ceil(math.log(max(count, 2), FANOUT) + 1e-9)
        assert sum(tried.values()) <= 1 + len(poison | once) * (levels * FANOUT + 1)


def test_where_many_rows_fail_the_fault_is_not_in_the_rows() -> None:
    with pytest.raises(
        RuntimeError, match=r"s\.jsonl: more than 16 rows .* the last with killed: the fault is not in"
    ):
        find_poison(lambda start, stop: "killed", 1000, "s.jsonl")
