"""The third step, on a CPU: writes scores as parts and a commit record."""

import socket
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from armo_ray.score.passes import Committed
from armo_ray.score.run import Job
from armo_ray.score.stages.hidden import finite_states, prompts_of
from armo_ray.score.stages.unit_block import FAILURES, NO_SHARD, Header, reject_table, to_raw, unnest
from armo_ray.storage import commits, parts, readers
from armo_ray.storage.records import CommitRecord, ForwardPasses, Timing
from armo_ray.storage.shards import Shard, row_id
from armo_ray.storage.store import Store
from armo_ray.storage.units import Unit

Floats = npt.NDArray[np.float32]


def write_and_commit(table: pa.Table, job: Job) -> Committed:
    """Write the parts of a scored unit, then its commit record.

    Raises RuntimeError if the candidates are not all scored or rejected, or if an earlier commit has other counts.
    """
    started = time.perf_counter()
    header, store = Header.of(table), Store(job.output)
    shard, unit = header.shard, header.unit
    scores, failed = _score_table(table, shard, job)
    rejects = pa.concat_tables([unnest(table["rejects"]), _unscored(failed, shard, unit, job)])
    if scores.num_rows + rejects.num_rows != header.candidates:
        raise RuntimeError(
            f"{shard.uri} rows {unit.first_row}+{unit.num_rows}: {header.candidates} candidates were read, but "
            f"{scores.num_rows} scored and {rejects.num_rows} rejected"
        )
    record = _record(header, job, scores.num_rows, _counts(rejects["reason"]))
    before = commits.find_record(store, unit.id)
    if before is not None:  # a replayed task does not write the parts again
        commits.check_same(store, before, record)
        return Committed(before, unit.source_bytes, socket.gethostname())
    written = parts.write_scores(store, unit.id, scores, shard.partitions, job.partition_by, job.folder)
    if (prompts := prompts_of(table, scores)) is not None:
        written += parts.write_prompts(store, unit.id, prompts)
    written += parts.write_rejects(store, unit.id, rejects.replace_schema_metadata(job.scores.metadata))
    seconds = header.seconds | {"write": time.perf_counter() - started}
    timing = Timing(
        seconds={step: round(value, 4) for step, value in seconds.items()},
        began=round(header.began, 3),
        load_seconds=header.load_seconds,  # not rounded, to distinguish replicas
    )
    record = replace(record, parts=tuple(written), timing=timing)
    commits.commit(store, record)
    return Committed(record, unit.source_bytes, socket.gethostname())


def _record(header: Header, job: Job, scored: int, rejected: dict[str, int]) -> CommitRecord:
    """The commit record of a unit, before its parts are written."""
    shard, unit = header.shard, header.unit
    return CommitRecord(
        unit=unit.id,
        source=shard.uri,
        identity=shard.identity,
        content=header.content,
        ordinal=unit.ordinal,
        first_row=unit.first_row,
        num_rows=unit.num_rows,
        last=unit.last,
        candidates=header.candidates,
        scored=scored,
        rejected=rejected,
        num_tokens=header.num_tokens,
        computed_tokens=header.computed_tokens,
        run_fingerprint=job.fingerprint,
        extra=header.extra,
        passes=ForwardPasses(
            num_packs=header.num_packs,
            packed_tokens=header.packed_tokens,
            pack_capacity=header.pack_capacity,
            flops=header.flops,
            peak_flops=header.peak_flops,
            token_budget=header.token_budget,
        ),
    )


def candidate_rows(table: pa.Table, job: Job) -> pa.Table:
    """The candidates of a scored unit, one per row: columns of the scores, and `reason` and `detail` of rejects."""
    scores, failed = _score_table(table, NO_SHARD, job)
    columns = ["candidate", "role", "reason", "detail"]
    rejects = [unnest(table["rejects"]).select(columns), failed.select(columns)]
    rows = scores.drop_columns(["row_id", "source", "source_row"])
    return pa.concat_tables([rows, *rejects], promote_options="default")


def _score_table(table: pa.Table, shard: Shard, job: Job) -> tuple[pa.Table, pa.Table]:
    """The rows of the scores, and the rows that have none, with the reason and detail."""
    rows = unnest(table["scored"])
    reasons, details = _failures(table, job)
    keys = zip(rows["source_row"].to_pylist(), rows["candidate"].to_pylist(), strict=True)
    arrays: dict[str, Any] = {name: rows[name] for name in rows.column_names} | {
        "row_id": pa.array([row_id(shard.uri, row, candidate) for row, candidate in keys], pa.string()),
        "source": pa.repeat(pa.scalar(shard.uri), rows.num_rows),
    }
    if job.has_scores:
        arrays |= _score_columns(table, job)
    for name in job.scores.names:  # columns of a kind of model: step_scores, verdicts, ...
        if name not in arrays:
            arrays[name] = table[name].combine_chunks().flatten()
    whole = pa.table([arrays[name] for name in job.scores.names], schema=job.scores)
    failed = rows.select(["source_row", "candidate", "role"])
    failed = failed.append_column("reason", reasons).append_column("detail", details)
    return whole.filter(reasons.is_null()), failed.filter(reasons.is_valid())


def _numbers(table: pa.Table, job: Job) -> tuple[Floats, Floats, Floats]:
    """Score (C,), rewards (C, K) and gating, (C, K) or (C, 0), as the model returned them."""
    score, rewards, gating = (
        table[name].combine_chunks().flatten().to_numpy() for name in ("score", "rewards", "gating")
    )
    count = job.scores.field("rewards").type.num_fields
    shape = (len(score), count if len(gating) else 0)
    return score, rewards.reshape(len(score), count), gating.reshape(shape)


def _score_columns(table: pa.Table, job: Job) -> dict[str, pa.Array]:
    score, rewards, gating = _numbers(table, job)
    vector = job.scores.field("rewards").type
    return {
        "score": pa.array(score),
        "rewards": _struct(rewards, vector),
        "gating": _struct(gating, vector) if gating.size else pa.nulls(len(score), vector),
    }


def _failures(table: pa.Table, job: Job) -> tuple[pa.Array, pa.Array]:
    """Why candidates have no score, and the details; null for those that have one."""
    if FAILURES in table.column_names:  # a judge gives a score or a reason
        failures = unnest(table[FAILURES])
        return failures["reason"].combine_chunks(), failures["detail"].combine_chunks()
    details: list[str | None] = [None] * unnest(table["scored"]).num_rows
    if (states := finite_states(table, job.scores)) is not None:
        for i in np.flatnonzero(~states):
            details[i] = (
                "a hidden state that the head reads is not finite: damaged weights, or too large for float16"
            )
    if job.has_scores:
        score, rewards, gating = _numbers(table, job)
        finite = np.isfinite(score) & np.isfinite(rewards).all(axis=1) & np.isfinite(gating).all(axis=1)
        for i in np.flatnonzero(~finite):
            details[i] = f"the model returned {score[i]}, or a reward or gate that is not finite"
    reasons = [detail and "non_finite_score" for detail in details]
    return pa.array(reasons, pa.string()), pa.array(details, pa.string())


def _unscored(failed: pa.Table, shard: Shard, unit: Unit, job: Job) -> pa.Table:
    """Rejects for candidates that have no score; the text of their rows is read again."""
    rows = failed.to_pylist()
    raw = readers.read_rows(shard, unit, job.columns, {r["source_row"] for r in rows}) if rows else {}
    entries = [(*row.values(), to_raw(raw[row["source_row"]])) for row in rows]
    return reject_table(shard, entries)


def _counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in reasons.value_counts().to_pylist()}


def _struct(values: npt.NDArray[np.float32], kind: pa.DataType) -> pa.StructArray:
    return pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(column)) for column in values.T], fields=list(kind)
    )
