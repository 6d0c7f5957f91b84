"""From options to a job: what is checked of input and output, whatever gives the scores, before Ray starts.

Imports neither torch nor ray.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.outputs.schema import SCHEMA_VERSION
from armo_ray.score import kept_columns, survey
from armo_ray.score.partitions import columns_to_keep
from armo_ray.score.run_options import RunOptions
from armo_ray.storage import commits, lock, parts, resume
from armo_ray.storage.content import settled
from armo_ray.storage.json_files import fingerprint_of
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from armo_ray.text import label_options, labels
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import InputColumns
from armo_ray.text.labels import Label, Labels
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import Reading
from armo_ray.version import __version__

if TYPE_CHECKING:
    from armo_ray.outputs.selection import Selection  # imports duckdb
    from armo_ray.storage.shards import Shard

logger = logging.getLogger(__name__)

_VERSIONED = ("ray", "torch", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings that every worker needs to read rows and to write scores; sent with each task."""

    output: str
    layout: Layout
    reading: Reading
    unit_rows: int
    fingerprint: str
    scores: pa.Schema  # of the scores, partition columns included
    carried: dict[str, str]  # name in the scores -> column of the input
    as_json: tuple[str, ...]  # names in the scores of the columns kept as JSON text
    keep_text: bool
    partition_by: tuple[str, ...]
    selection: "Selection | None" = None  # which rows are read; None: all
    about: tuple[
        tuple[str, str], ...
    ] = ()  # what the dataset card says of what gives the scores: names and texts
    labels: Labels = field(default_factory=dict)  # numbers given to the responses, by name
    unread: tuple[str, ...] = ()  # input columns that are not read, to be displayed

    @property
    def has_scores(self) -> bool:
        """Whether candidates get scores, or hidden states alone."""
        return "score" in self.scores.names

    @property
    def folder(self) -> str:
        """The folder of the output in which the rows of candidates lie."""
        return parts.SCORES if self.has_scores else parts.HIDDEN

    @property
    def columns(self) -> list[str]:
        """The input columns to read."""
        read = (*self.layout.sources, *self.carried.values(), *labels.sources_of(self.labels))
        return list(dict.fromkeys(read))


class Scorer(NamedTuple):
    """What gives the scores of a run: a reward model or a judge."""

    identity: Mapping[str, Any]  # its settings that the scores depend on
    make: Callable[
        [Mapping[str, Any], pa.Schema], Job
    ]  # from the fields of Job but `scores`, and the kept types
    step_end: str | None = None  # of a process model: the text that ends a step of a response


Check = Callable[[Any, list[Span], Any], None]  # of a job, its spans and its options; may raise ConfigError


def prepare_runs(
    runs: Sequence[tuple[RunOptions, Scorer]], write: bool = True, check: Check | None = None
) -> list[tuple[Job, list[Span]]]:
    """Check input and output of runs and write their `_run.json`, once all are checked. Returns jobs and their spans.

    `write=False` makes the same checks but writes nothing. `check` is a further check, which may raise ConfigError.

    Raises ConfigError if a run cannot begin.
    """
    checked = [_checked(config, scorer, check) for config, scorer in runs]
    for (config, _), (job, _, identity, details) in zip(runs, checked, strict=True) if write else ():
        store = Store(job.output)
        with lock.held(store, config.command, folders=()):  # another command may be writing there
            commits.open_run(store, identity, details)
    return [(job, spans) for job, spans, _, _ in checked]


class _Checked(NamedTuple):
    """A run that passed all checks, and the contents of its `_run.json`."""

    job: Job
    spans: list[Span]
    identity: dict[str, Any]
    details: dict[str, Any]


def _checked(config: RunOptions, scorer: Scorer, check: Check | None) -> _Checked:
    store = Store(config.output)
    shards = find_shards(config.input, each=config.days == 1)
    shards = [shard for shard in shards if not shard.uri.startswith(store.uri + "/")]
    if not shards:
        raise ConfigError(f"output {config.output}: the whole input lies in it")
    parts.check_directories(store, shards)
    columns = columns_to_keep(
        {**config.keep, **config.keep_json}, config.partition_by, shards, with_labels(config)
    )
    seen = survey.survey(shards)
    chosen = _selection(config, shards)
    layout = detected(seen.found, config, scorer)
    survey.check(seen, layout)
    given = labels_read(config, layout, seen.found)
    unread = survey.unread(seen, layout, (*columns.values(), *labels.sources_of(given)))
    logger.info("layout %s: %s", layout.title, ", ".join(f"{k}={v}" for k, v in layout.columns.items()))
    if given:
        logger.info("labels: %s", ", ".join(f"{name}={label.column}" for name, label in given.items()))
    logger.info("columns that are not read: %s", ", ".join(unread) or "none")
    kept_seen = [
        kept_columns.Seen(sample.shard.uri, list(sample.found.names), sample.schema, sample.rows)
        for sample in seen.samples
        if sample.found.names
    ]
    kept = kept_types(columns, config, kept_seen)
    warn_of_labels(given, kept_seen)
    details = {"config": config.model_dump(mode="json"), "versions": _versions(), "carried": _encode(kept)}
    identity = _identity(config, scorer, layout, columns, given, chosen)
    run = commits.open_run(store, identity, details, write=False)
    log = commits.read_log(store, run)  # raises if a record is damaged, before any work
    committed = log.units_in_shards({shard.hash for shard in shards})
    kept = _decode(run.carried)  # types from the first run: a later shard must not change them
    kept_columns.check(kept, columns, config.keep_json, kept_seen)
    job = replace(job_of(config, scorer, layout, columns, kept, given, chosen), unread=tuple(unread))
    try:
        shards = settled(store, shards, committed, job.columns)
    except OSError as error:
        raise ConfigError(f"input: cannot be compared with the committed rows: {error}") from error
    spans = cut(shards, job.fingerprint, config.unit_rows, layout.candidate_columns, seen.footers)
    resume.standing(
        store, spans, job.fingerprint, config.redo, config.forget, committed
    )  # may raise ConfigError
    if check is not None:
        check(job, spans, config)
    return _Checked(job, spans, identity, details)


def job_of(
    config: RunOptions,
    scorer: Scorer,
    layout: Layout,
    columns: dict[str, str],
    kept: pa.Schema,
    given: Labels,
    chosen: "Selection | None" = None,
) -> Job:
    """The job of a run, given its layout, its kept columns and their types, and its labels."""
    settings = {
        "output": config.output,
        "layout": layout,
        "reading": _reading(config),
        "unit_rows": config.unit_rows,
        "fingerprint": fingerprint_of(_identity(config, scorer, layout, columns, given, chosen)),
        "carried": columns,
        "as_json": tuple(config.keep_json),
        "keep_text": config.keep_text,
        "partition_by": config.partition_by,
        "selection": chosen,
        "labels": given,
    }
    return scorer.make(settings, kept)


def detected(found: InputColumns, config: RunOptions, scorer: Scorer) -> Layout:
    """The layout of an input with these columns. Raises ConfigError."""
    return detect(found, config.layout, config.column, config.winner, config.ignore, scorer.step_end)


def with_labels(config: RunOptions) -> bool:
    """Whether the scores may have a column of labels."""
    return bool(config.label) or config.labels_by_default


def labels_read(config: RunOptions, layout: Layout, found: InputColumns) -> dict[str, Label]:
    """The labels that a run reads from an input with these columns. Raises ConfigError."""
    if not config.label and config.labels_by_default:
        return label_options.default_labels(layout, found)
    return label_options.resolve(config.label, layout, found)


def warn_of_labels(given: Labels, seen: Sequence[kept_columns.Seen]) -> None:
    """Warn of each label whose column some shards or blocks lack: it is missing in all their rows."""
    for name in given:
        if without := [shard.uri for shard in seen if name in labels.lacking(given, shard.names)]:
            logger.warning(
                "label %s is missing in the %d shards that lack column %s, the first is %s",
                name,
                len(without),
                given[name].column,
                without[0],
            )


def _selection(config: RunOptions, shards: "Sequence[Shard]") -> "Selection | None":
    if config.only_where is None or config.earlier is None:
        return None
    from armo_ray.outputs.selection import check_covered, select

    chosen = select(config.earlier, config.only_where)
    check_covered(chosen, shards)
    logger.info("only rows where %s in %s", chosen.where, chosen.output)
    return chosen


def _reading(config: RunOptions) -> Reading:
    return Reading(dict(config.role), config.tool_calls)


def _identity(
    config: RunOptions,
    scorer: Scorer,
    layout: Layout,
    columns: dict[str, str],
    given: Labels,
    chosen: "Selection | None",
) -> dict[str, Any]:
    """The settings that rows, columns or units depend on; two runs can share an output only if these are equal."""
    as_json = {"keep_json": sorted(config.keep_json)} if config.keep_json else {}
    only = {"only": chosen.recorded()} if chosen else {}
    labelled = {"labels": labels.record(given)} if given else {}
    return (
        as_json
        | only
        | labelled
        | {
            **scorer.identity,
            "layout": layout.record(),
            **_reading(config).recorded(),
            "keep": columns,
            "keep_text": config.keep_text,
            "partition_by": list(config.partition_by),
            "unit_rows": config.unit_rows,
            "schema_version": SCHEMA_VERSION,
        }
    )


def kept_types(columns: dict[str, str], config: RunOptions, seen: list[kept_columns.Seen]) -> pa.Schema:
    """The types of the kept columns, which fit all shards or blocks seen. Raises ConfigError."""
    kept = kept_columns.unify(columns, config.keep_json, seen)
    nested = [field for field in kept if field.name in config.partition_by and pa.types.is_nested(field.type)]
    if nested:
        raise ConfigError(f"partition-by: {nested[0].name} is {nested[0].type}, not one value")
    for column in dict.fromkeys(columns.values()):
        if without := [shard.uri for shard in seen if column not in shard.names]:
            logger.warning(
                "kept column %s is null for the %d shards that lack it, the first is %s",
                column,
                len(without),
                without[0],
            )
    return kept


@cache
def _versions() -> dict[str, str]:
    return {"armo-ray": __version__, **{name: version(name) for name in _VERSIONED}}


def _encode(schema: pa.Schema) -> str:
    text: str = schema.serialize().to_pybytes().hex()
    return text


def _decode(text: str | None) -> pa.Schema:
    assert text is not None, "open_run raises if _run.json lacks it"
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
