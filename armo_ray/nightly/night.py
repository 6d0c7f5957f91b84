"""A night as its file describes it: the steps in their order, all checked before any work. Imports nothing slow."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from armo_ray.curate.options import FilterOptions, LabelOptions, MineOptions
from armo_ray.errors import ConfigError
from armo_ray.nightly.options import GateOptions, NightlyOptions, PublishOptions
from armo_ray.options import DATE, Options, checked, day_of, listed, read_values
from armo_ray.report.options import ReportOptions
from armo_ray.score.config import ScoreConfig, load_configs

_KINDS: dict[str, type[Options]] = {
    "score": ScoreConfig,
    "mine": MineOptions,
    "label": LabelOptions,
    "filter": FilterOptions,
    "report": ReportOptions,
    "gate": GateOptions,
    "publish": PublishOptions,
}
DATASETS = ("mine", "label", "filter")  # the steps that make one
RUNNING = {"memory", "threads", "spill", "engine", "task_rows"}  # where a step works, which changes no row
_READERS = (*DATASETS, "report")
_OF_THE_NIGHT = ("date", "max_runtime")
_OF_THE_CLUSTER = ("replicas", "gpus_per_replica")  # options of [score] that the command line may replace


class Step(NamedTuple):
    """A command of the night with its options: one, or for score one for each model."""

    name: str
    options: tuple[Any, ...]
    reads: tuple[str, ...] = ()  # outputs of scores
    writes: tuple[str, ...] = ()
    appends: bool = False


@dataclass(frozen=True)
class Night:
    """A checked night. `home` is the directory of its record and pages, `publish` that of the pointers."""

    date: str
    max_runtime: float | None
    steps: tuple[Step, ...]
    partition: tuple[str, ...]  # the directories of its scores, if they are not all
    gate: GateOptions
    publish: str | None
    home: str
    force_latest: bool

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)


def load_night(options: NightlyOptions) -> Night:
    """The night that a file describes, with the options of the command line in place of the file's.

    Raises ConfigError, which names the section, if any part of it is wrong.
    """
    try:
        return _night(options)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith("config ") else f"config {options.file}: {text}") from None


def _night(options: NightlyOptions) -> Night:
    values = read_values(options.file, hint="")
    sections = {
        name: {key.replace("-", "_"): entry for key, entry in value.items()}
        for name, value in values.items()
        if isinstance(value, dict)
    }
    shared = {name: value for name, value in values.items() if name not in sections}
    own = {name: shared.pop(name) for name in _OF_THE_NIGHT if name in shared}
    options = checked(NightlyOptions, own | options.model_dump(exclude_unset=True), None)
    day = str(day_of(options.date))
    replaced = {
        name: getattr(options, name) for name in _OF_THE_CLUSTER if getattr(options, name) is not None
    }
    if replaced and "score" not in sections:
        raise ConfigError(f"--{next(iter(replaced)).replace('_', '-')}: there is no [score] to use it")
    if replaced:
        sections["score"] |= replaced
    _check_names(sections, shared)
    place = _home_of(sections, day)
    given = {
        name: _completed(name, section, sections, shared, day, place) for name, section in sections.items()
    }
    steps = {name: _step(name, given[name]) for name in ("score", *_READERS) if name in given}
    gate = _section(GateOptions, "gate", sections.get("gate", {}))
    _check_steps(steps)
    _check_growth(steps, sections, shared)
    _check_gate(gate, steps)
    return Night(
        date=day,
        max_runtime=options.max_runtime,
        steps=tuple(steps[name] for name in _order(steps)),
        partition=_partition_of(shared, day),
        gate=gate,
        publish=_section(PublishOptions, "publish", given["publish"]).to if "publish" in given else None,
        home=place,
        force_latest=options.force_latest,
    )


def _check_names(sections: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    if not any(name in sections for name in ("score", *_READERS)):
        raise ConfigError(f"no step: expected sections such as [{'], ['.join(_KINDS)}]")
    for name in sections:
        if name not in _KINDS:
            close = difflib.get_close_matches(name, _KINDS, 1)
            raise ConfigError(
                f"[{name}]: unknown section" + (f"; did you mean [{close[0]}]?" if close else "")
            )
    for name in shared:
        if not any(name in _KINDS[section].model_fields for section in sections):
            raise ConfigError(f"{name}: not an option of any of the sections")
    for section, values in sections.items():
        for name in _OF_THE_NIGHT:
            if name in values:
                raise ConfigError(f"[{section}] {name}: of the whole night: put it before the first section")


def _partition_of(shared: Mapping[str, Any], day: str) -> tuple[str, ...]:
    partition = tuple(_dated(listed(shared.get("partition")), day))
    if not all(isinstance(text, str) for text in partition):
        raise ConfigError(f"partition: expected text such as date={DATE}, found {shared['partition']!r}")
    _check_partition(partition)
    return partition


def _check_partition(partition: Sequence[str]) -> None:
    """Raises ConfigError if one cannot be parsed."""
    if partition:
        from armo_ray.outputs.partitions import parse_partitions  # takes a while, and few nights have some

        parse_partitions(partition)


def _home_of(sections: Mapping[str, Any], day: str) -> str:
    """The directory of this night: below that of [publish], else below the output of [score]."""
    place = sections.get("publish", {}).get("to") or sections.get("score", {}).get("output")
    if not isinstance(place, str):
        raise ConfigError(
            "publish: a night needs [publish] with a place to write to, or [score] with an output"
        )
    to = _section(PublishOptions, "publish", {"to": place.replace(DATE, day)}).to
    return f"{to.rstrip('/')}/nights/{day}"


def _completed(
    name: str,
    section: Mapping[str, Any],
    sections: Mapping[str, Any],
    shared: Mapping[str, Any],
    day: str,
    home: str,
) -> dict[str, Any]:
    """The values of a section, with those that it leaves to the night, and with the date in all of them."""
    fields = _KINDS[name].model_fields
    values = {key: value for key, value in shared.items() if key in fields} | dict(section)
    gate = sections.get("gate", {})
    if name == "score":  # it replaces {date} itself, by several days
        if "max_reject_fraction" in gate:  # so that its status says what the gate says
            values.setdefault("max_reject_fraction", gate["max_reject_fraction"])
        return {
            **{k: v if k in ("input", "output") else _dated(v, day) for k, v in values.items()},
            "date": day,
        }
    if name in _READERS:
        values["date"] = day
        if "scores" not in values and len(listed(sections.get("score", {}).get("model"))) == 1:
            values["scores"] = listed(sections["score"].get("output"))
    if name == "report":
        values.setdefault("output", home)
        for limit in {"max_psi", "max_ks"}.intersection(gate if "against" in values else ()):
            values.setdefault(limit, gate[limit])  # so that its page says what the gate says
    return {key: _dated(value, day) for key, value in values.items()}


def _dated(value: Any, day: str) -> Any:
    """A value with {date} replaced in every text."""
    if isinstance(value, str):
        return value.replace(DATE, day)
    if isinstance(value, list):
        return [_dated(entry, day) for entry in value]
    return {key: _dated(entry, day) for key, entry in value.items()} if isinstance(value, dict) else value


@contextmanager
def in_section(name: str) -> Iterator[None]:
    """Name the section of the file in a ConfigError of the body."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"[{name}] {error}") from None


def _section(kind: Any, name: str, values: Mapping[str, Any]) -> Any:
    with in_section(name):
        return checked(kind, values, None)


def _step(name: str, values: Mapping[str, Any]) -> Step:
    if name == "score":
        with in_section(name):
            configs = load_configs(None, values)
        return Step(name, tuple(configs), (), tuple(config.output for config in configs))
    options = _section(_KINDS[name], name, values)
    with in_section(name):
        _check_partition(options.partition)
    older = getattr(options, "against", ())
    appends = bool(getattr(options, "append", False))
    return Step(name, (options,), (*options.scores, *older), (options.output,), appends)


def _order(steps: Mapping[str, Step]) -> list[str]:
    """Score, mine, label, filter, report; filter before mine and label if one of them reads what it writes."""
    names = [name for name in ("score", "mine", "label", "filter", "report") if name in steps]
    if "filter" in steps and any(_feeds(steps["filter"], steps.get(name)) for name in ("mine", "label")):
        names.remove("filter")
        names.insert(1 if "score" in steps else 0, "filter")
    return names


def _feeds(step: Step, reader: Step | None) -> bool:
    return reader is not None and any(_same(a, b) for a in step.writes for b in reader.reads)


def _same(a: str, b: str) -> bool:
    return a.rstrip("/") == b.rstrip("/")


def _check_steps(steps: Mapping[str, Step]) -> None:
    """Raises ConfigError if steps write to one place, or a step reads nothing of what the night scores."""
    makers = [step for name, step in steps.items() if name != "report"]
    places = [place.rstrip("/") for step in makers for place in step.writes]
    if twice := [place for place in places if places.count(place) > 1]:
        raise ConfigError(f"two steps write to {twice[0]}: give each an output of its own")
    sources = [steps[name] for name in ("score", "filter") if name in steps]
    for name in (name for name in _READERS if name in steps):
        others = [step for step in sources if step.name != name]
        if "score" in steps and not any(_feeds(source, steps[name]) for source in others):
            made = _listed(place for source in others for place in source.writes)
            raise ConfigError(
                f"[{name}] scores: {_listed(steps[name].options[0].scores)} is not what this night makes ({made}): "
                f"leave it out to read the output of [score]"
            )
        filtered = steps.get("filter")
        if filtered and _feeds(filtered, steps[name]) and filtered.options[0].format != "parquet":
            raise ConfigError(
                f"[{name}] scores: the output of [filter] is {filtered.options[0].format}; use parquet"
            )
    if "filter" in steps and not (steps["filter"].options[0].where or steps["filter"].options[0].top_k):
        raise ConfigError("[filter] nothing to filter by: give where or top-k")


def _check_growth(steps: Mapping[str, Step], sections: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Raises ConfigError if a dataset that grows would have other options every night."""
    for name in (name for name in DATASETS if name in steps and steps[name].appends):
        given = {"scores": sections.get("score", {}).get("output")} | dict(shared) | sections[name]
        may_change = {"date", *RUNNING, *(("partition",) if name == "filter" else ())}
        fixed = _KINDS[name].model_fields.keys() & given.keys() - may_change
        changing = sorted(key for key in fixed if DATE in str(given[key]))
        if changing and "output" not in changing:
            raise ConfigError(
                f"[{name}] {changing[0]}: {given[changing[0]]} changes every night, and append = true adds rows made "
                f"with the same options from the same outputs: leave out one of them, or put {DATE} in the output"
            )


def _check_gate(gate: GateOptions, steps: Mapping[str, Step]) -> None:
    """Raises ConfigError if a condition asks for what no step gives."""
    report, mine = steps.get("report"), steps.get("mine")
    compared = report is not None and bool(report.options[0].against)
    needs = {
        "max_reject_fraction": ("score" in steps, "[score]"),
        "max_psi": (compared, "[report] with against"),
        "max_ks": (compared, "[report] with against"),
        "min_pairs": (mine is not None, "[mine]"),
        "min_mean_margin": (mine is not None and mine.options[0].layout == "trl", "[mine] with layout trl"),
    }
    for name, (is_there, what) in needs.items():
        if getattr(gate, name) is not None and not is_there:
            raise ConfigError(f"[gate] {name}: needs {what}")


def _listed(places: Iterable[str]) -> str:
    return ", ".join(places)
