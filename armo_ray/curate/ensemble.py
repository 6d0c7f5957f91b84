"""`armo-ray reweigh --ensemble`: one score from the scores that several models gave the same candidates."""

import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from armo_ray.curate import derived_output
from armo_ray.curate.options import ReweighOptions
from armo_ray.curate.tasks import engine
from armo_ray.curate.votes import voted
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import quote
from armo_ray.formatting.tables import markdown_table
from armo_ray.measures.comparison import compare
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import new_output
from armo_ray.outputs.partitions import shards_in_partitions
from armo_ray.outputs.schema import DISAGREEMENT, OWN_FIELDS
from armo_ray.outputs.scores import Part, Scores, open_scores, scan
from armo_ray.storage import commits
from armo_ray.storage.json_files import to_json
from armo_ray.storage.parts import REJECTS, SCORES, read_part, write_table
from armo_ray.storage.records import CommitRecord, PartEntry
from armo_ray.storage.store import Store
from armo_ray.text.layouts import layout_and_reading

_TASK_UNITS = 64
MAJORITY = "majority"  # name of the reward that is the score


@dataclass(frozen=True)
class Member:
    """A complete output of one model. Its scores are standardized to (score - mean) / deviation."""

    name: str
    output: str
    mean: float
    deviation: float


class Unit(NamedTuple):
    """The commit record of a unit of the first member, and of every other the records that hold its rows."""

    first: CommitRecord
    others: tuple[tuple[CommitRecord, ...], ...]


@dataclass(frozen=True)
class Task:
    """Some units."""

    members: tuple[Member, ...]
    units: tuple[Unit, ...]
    output: str
    formula: Mapping[str, Any]
    fingerprint: str  # of the output


def run(options: ReweighOptions) -> None:
    """Write an output whose rewards are the standardized scores of the models. Raises ConfigError."""
    outputs = [open_scores([uri], options.partition) for uri in options.scores]
    if len(outputs) < 2:
        raise ConfigError(
            "--ensemble: give the outputs of several models, as `armo-ray score --model A B` writes them"
        )
    with new_output(options.output, "reweigh", options.engine) as store:
        units = _paired(outputs)
        members = _members(options, outputs)
        formula = _formula(options, outputs, members)
        made = {"command": "reweigh", "options": options.model_dump(mode="json"), "formula": formula}
        identity = {"model_fingerprint": formula["model_fingerprint"]}
        fingerprint = derived_output.begin(outputs[0], store, made, identity)
        tasks = [
            Task(members, tuple(units[i : i + _TASK_UNITS]), store.uri, formula, fingerprint)
            for i in range(0, len(units), _TASK_UNITS)
        ]
        with engine(options) as run_tasks:
            done = run_tasks(_combine, tasks)
        missing = sum(count for count, _ in done)
        written = [part for _, parts in done for part in parts]
        summary = [f"- {m.name}: {m.output}, mean {m.mean:g}, deviation {m.deviation:g}" for m in members]
        summary += [f"- left out: {missing} candidates of the first output that another model did not score"]
        compared = _compare(options, members, written)
        summary += ["", _table(compared)]
        print("\n".join(summary))
        store.write("comparison.json", to_json(compared))
        of = "votes" if options.ensemble == "majority" else "standardized scores"
        about = "\n".join([f"The {options.ensemble} of the {of} of:", "", *summary])
        derived_output.finish(store, options, "Scores of an ensemble", about)


def _compare(options: ReweighOptions, members: Sequence[Member], written: Sequence[Part]) -> dict[str, Any]:
    """How the new scores rank the candidates, compared with the scores of each model."""
    comparisons = {}
    with database(options) as con:
        for member in members:
            name = f"rewards.{quote(member.name)}"
            con.execute(
                f"""CREATE OR REPLACE TEMP TABLE compared AS
                    SELECT row_number() OVER () AS place, prompt_id AS prompt, {name} AS old, score AS new
                    FROM ({scan(written)})"""
            )
            comparisons[f"order by {member.name}"] = compare(con, "compared")
    return comparisons


def _table(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """Comparisons by name as a table in Markdown, also to be read as text."""
    columns = list(next(iter(compared.values())))
    rows = [
        [name, *(f"{value:.4g}" if isinstance(value, float) else value for value in of.values())]
        for name, of in compared.items()
    ]
    return markdown_table(["compared with", *columns], rows, aligned=True)


def _paired(outputs: Sequence[Scores]) -> list[Unit]:
    """The units of the first output, with those of the others that hold their rows.

    Raises ConfigError if the outputs are not of the same rows.
    """
    by_output = _records_of(outputs)
    first = by_output[0]
    for scores, records in zip(outputs[1:], by_output[1:], strict=True):
        differs = sorted(_rows(records).items() ^ _rows(first).items())
        readings = [layout_and_reading(one.runs[0].identity) for one in (outputs[0], scores)]
        if differs or readings[0] != readings[1]:
            difference = f"first difference: {differs[0][0][0]}" if differs else "another layout"
            raise ConfigError(
                f"{scores.outputs[0]} has other rows than {outputs[0].outputs[0]} ({difference}). Score both in one "
                f"run, with --model A B, or each whole, on shards that do not change"
            )
    others = [_by_shard(records) for records in by_output[1:]]
    return [
        Unit(record, tuple(_overlapping(record, stop, shards[key]) for shards in others))
        for key, ordered in _by_shard(first).items()
        for record, stop in zip(ordered, [*(after.first_row for after in ordered[1:]), math.inf], strict=True)
    ]


def _records_of(outputs: Sequence[Scores]) -> list[list[CommitRecord]]:
    """The records of each output, in all of them of the shards that have candidates of the partitions in one."""
    partitions = outputs[0].partitions
    committed = [commits.read_commits(Store(scores.outputs[0]), run=scores.runs[0]) for scores in outputs]
    chosen = [
        {record.source for record in shards_in_partitions(records, partitions)} for records in committed
    ]
    return [list(shards_in_partitions(records, partitions, set().union(*chosen))) for records in committed]


def _rows(records: Sequence[CommitRecord]) -> dict[tuple[str, str], int]:
    """The number of rows of every shard, by its URI and identity."""
    rows: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.source, record.identity)
        rows[key] = rows.get(key, 0) + record.num_rows
    return rows


def _by_shard(records: Sequence[CommitRecord]) -> dict[tuple[str, str], list[CommitRecord]]:
    shards: dict[tuple[str, str], list[CommitRecord]] = {}
    for record in sorted(records, key=lambda record: record.first_row):
        shards.setdefault((record.source, record.identity), []).append(record)
    return shards


def _overlapping(
    record: CommitRecord, stop: float, ordered: Sequence[CommitRecord]
) -> tuple[CommitRecord, ...]:
    """Those of the records of a shard, in their order, that have rows of this one, which ends before row `stop`."""
    low = max(bisect_right(ordered, record.first_row, key=lambda other: other.first_row) - 1, 0)
    high = bisect_left(ordered, stop, key=lambda other: other.first_row)
    return tuple(ordered[low : max(high, low + 1)])


def _members(options: ReweighOptions, outputs: Sequence[Scores]) -> tuple[Member, ...]:
    members = []
    for scores in outputs:
        output = scores.outputs[0]
        with database(options) as con:
            row = con.execute(f"SELECT avg(score), stddev_pop(score) FROM ({scan(scores.parts)})").fetchone()
        # rounded because the order of summation varies
        mean, deviation = (float(f"{value:.9g}") for value in row or (0, 0))
        if not deviation:
            raise ConfigError(f"{output}: all its scores are equal, so they rank nothing")
        members.append(Member(output.rpartition("/")[2], output, mean, deviation))
    if options.ensemble == MAJORITY and MAJORITY in {member.name for member in members}:
        raise ConfigError(
            f"--ensemble {MAJORITY}: name the output {MAJORITY} otherwise: the score has this name"
        )
    if len({member.name for member in members}) < len(members):
        raise ConfigError(
            "--ensemble: members are named after the last component of their output's URI, and two of these are equal"
        )
    return tuple(members)


def _formula(options: ReweighOptions, outputs: Sequence[Scores], members: Sequence[Member]) -> dict[str, Any]:
    """The metadata of the new scores, which armo_ray.outputs.schema.recomputed interprets."""
    formula: dict[str, Any] = {
        "model": f"{options.ensemble} of {', '.join(m.name for m in members)}",
        "model_revision": None,
        "reward_transform_matrix": None,
        "objective_factors": None,
        "length_penalty": 0.0,
        "base": None,
        "fixed_weights": _weights(options.ensemble, len(members)),
        "ensemble": options.ensemble,
        "risk": options.risk,
        "members": [vars(m) for m in members],
    }
    prints = [scores.metadata["model_fingerprint"] for scores in outputs]
    text = json.dumps([prints, formula], sort_keys=True)
    return {**formula, "model_fingerprint": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def _weights(ensemble: str | None, members: int) -> list[float] | None:
    """The weights of the rewards in the score; None if it is no weighted sum."""
    weights = {"mean": [1 / members] * members, MAJORITY: [1.0] + [0.0] * members}
    return weights.get(str(ensemble))


def _combine(task: Task) -> tuple[int, list[Part]]:
    """Write and commit the units of a task; returns the number of rows left out, and the parts of scores."""
    store, missing, parts = Store(task.output), 0, []
    for unit in task.units:
        others = [
            ChainMap(*(_scores_in(member, part) for record in records for part in record.parts_in(SCORES)))
            for member, records in zip(task.members[1:], unit.others, strict=True)
        ]
        written = []
        source = Store(task.members[0].output)
        written += [derived_output.copy_part(source, store, part) for part in unit.first.parts_in(REJECTS)]
        for part in unit.first.parts_in(SCORES):
            table = derived_output.without_states(read_part(source, part))
            combined = _combined(table, others, task)
            missing += table.num_rows - combined.num_rows
            if combined.num_rows:
                written.append(write_table(store, part.path, combined))
                parts.append(Part(f"{store.uri}/{part.path}", combined.num_rows, 0, ()))
        commits.commit(store, derived_output.record_of([unit.first], written, task.fingerprint))
    return missing, parts


@lru_cache(maxsize=16)  # units of the first member that are smaller share one of another
def _scores_in(member: Member, part: PartEntry) -> dict[str, float]:
    """The standardized scores of a part by row id."""
    table = read_part(Store(member.output), part)
    values = (table["score"].to_numpy().astype(np.float64) - member.mean) / member.deviation
    return dict(zip(table["row_id"].to_pylist(), values.tolist(), strict=True))


def _combined(table: pa.Table, others: Sequence[Mapping[str, float]], task: Task) -> pa.Table:
    """The rows that every model scored; the rewards of a row are its standardized scores, named after the members."""
    first = task.members[0]
    table = table.filter(
        pa.array([all(row in other for other in others) for row in table["row_id"].to_pylist()])
    )
    rows = table["row_id"].to_pylist()
    columns = [(table["score"].to_numpy().astype(np.float64) - first.mean) / first.deviation]
    columns += [np.array([other[row] for row in rows], np.float64) for other in others]
    names = [member.name for member in task.members]
    votes = voted(table, np.stack(columns, axis=1))
    if task.formula["ensemble"] == "majority":
        names, columns = [MAJORITY, *names], [votes.won, *columns]
    fields = [pa.field(name, pa.float32()) for name in names]
    rewards = pa.StructArray.from_arrays([pa.array(c.astype(np.float32)) for c in columns], fields=fields)
    no_gating = pa.nulls(len(rows), rewards.type)
    for name, values in (("rewards", rewards), ("gating", no_gating)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, pa.field(name, rewards.type), values)
    table = table.drop_columns([field.name for field in OWN_FIELDS if field.name in table.column_names])
    place = table.schema.get_field_index("flags") + 1
    disagreement = pa.array(votes.disagreement, pa.float32(), from_pandas=True)
    table = table.add_column(place, DISAGREEMENT, disagreement)
    return derived_output.rescored(table, task.formula)
