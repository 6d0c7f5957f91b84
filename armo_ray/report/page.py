"""The report as one HTML file that needs nothing else: no network, no script. Each section is a template."""

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from armo_ray.formatting.numbers import date
from armo_ray.formatting.svg import Chart, chart_style, curve, histogram
from armo_ray.formatting.templates import render
from armo_ray.model.families import FAMILIES
from armo_ray.report.distributions import Correlation, Distribution
from armo_ray.report.groups import Group
from armo_ray.report.length import LengthBin, Trend
from armo_ray.report.nights_view import nights_view
from armo_ray.report.numbers import Report, Scored
from armo_ray.report.speed import Speed

_ENOUGH = 10  # candidates: correlations of fewer mean nothing
_MOST_REWARDS = 40  # to draw
_MOST_ROWS = 30  # in a table of groups
_MOST_VALUES = 24  # of a group, to draw the gates of
_POLICY = ("max_length", "truncate", "special_tokens", "unit_rows", "partition_by")
_MODEL = (
    *("model", "model_revision", "model_family", "model_fingerprint"),
    *("reference_model", "reference_revision", "reference_fingerprint", "beta", "length_normalized", "dtype"),
)


class GateTable(NamedTuple):
    """Mean gates of the values of a group: gates[i][j] is that of objectives[i] for values[j]."""

    group: str
    objectives: list[str]
    values: list[str]
    gates: list[list[float]]
    most: float
    is_cut: bool  # to the values with the most candidates


def page(report: Report, beside: Collection[str] = ()) -> str:
    """The HTML of a report; it links the pages of its nights among the files beside it."""
    names = [uri.rstrip("/").rsplit("/", 1)[-1] for uri in report.outputs]
    scored = "Scores from" if report.scored else "No scores from" if report.complete else "No scores yet from"
    view = _view(report, beside) | (_scored_view(report, report.scored) if report.scored else {})
    return render(
        "report/templates/page.html.jinja",
        report=report,
        scored=report.scored,
        title=", ".join(names),
        about=f"{scored} {report.model.get('model')}",
        # the style sheets are the package's own: nothing in them comes from data
        style=Markup(files(__package__).joinpath("templates/page.css").read_text("utf-8") + chart_style()),
        sections=_sections(report, view),
        slug=lambda title: title.lower().replace(" ", "-"),
        plain=_plain,
        most_rows=_MOST_ROWS,
        most_rewards=_MOST_REWARDS,
        **view,
    )


def _sections(report: Report, view: Mapping[str, Any]) -> list[str]:
    """The titles of the sections that have something to show, in their order; each names its template."""
    scored = report.scored
    several = scored and len(view["rewards"]) > 1 and report.totals["scored"] >= _ENOUGH
    shown = {
        "Overview": True,
        "Nights": report.nights and report.nights.nights,
        "Drift": report.drift,
        "Distributions": scored,
        "What drives the score": several and scored and scored.influence,
        "Gating": scored and view["gate_tables"],
        "Correlation": several,
        "Length": scored and scored.length,
        "Within prompts": scored,
        "Chosen and rejected": scored and scored.pairs,
        "Groups": scored and scored.groups,
        "Examples": scored,
        "Rejects": report.rejects,
        "Judge": report.asked,
        "Speed and cost": report.speed,
    }
    return [title for title, content in shown.items() if content]


def _view(report: Report, beside: Collection[str]) -> dict[str, Any]:
    """What the sections about the run, its nights and drift show."""
    drift = report.drift
    columns = list(drift.columns.items()) if drift else []
    most_psi = max((column.psi for _, column in columns), default=0.0)
    most_ks = max((column.ks for _, column in columns), default=0.0)
    return {
        "facts": _facts(report),
        "rejected": sum(report.totals["rejected"].values()),
        "drifts": sorted(columns, key=lambda entry: (not entry[1].drifted, -entry[1].psi)),
        "most_psi": max(most_psi, drift.max_psi) if drift else most_psi,
        "most_ks": max(most_ks, drift.max_ks) if drift else most_ks,
        "throughput_chart": _throughput_chart(report.speed) if report.speed else None,
    } | (nights_view(report.nights, beside, _MOST_REWARDS) if report.nights and report.nights.nights else {})


def _scored_view(report: Report, scored: Scored) -> dict[str, Any]:
    """What the sections about scores show."""
    columns = _without_duplicate(scored.columns)
    family = FAMILIES.get(report.model.get("model_family") or "")
    length = scored.length
    trends = [entry for entry in length.columns.items() if entry[0] in columns] if length else []
    return {
        "columns": columns,
        "rewards": [name for name in columns if name.startswith("rewards.")],
        "quantile_labels": [f"{100 * float(level):g} %" for level in columns["score"].quantiles],
        "gates": {_plain(name): own.mean for name, own in columns.items() if name.startswith("gating.")},
        "drivers": sorted(
            scored.influence.items(), key=lambda entry: -abs(entry[1].share_of_variance or 0.0)
        ),
        "gate_tables": [
            table
            for name, groups in scored.groups.items()
            if (table := _gate_table(name, groups)) is not None
        ],
        "gates_read_prompt": family is not None and family.reads == "gate",
        "correlation": _drawn_correlation(scored.correlation),
        "length_chart": _length_chart(length.bins, length.columns["score"]) if length else None,
        "trends": sorted(trends, key=lambda entry: -(entry[1].correlation or 0.0)),
        "largest_difference": _largest_difference,
    }


def _plain(name: str) -> str:
    return name.removeprefix("rewards.").removeprefix("gating.")


def _without_duplicate(columns: Mapping[str, Distribution]) -> dict[str, Distribution]:
    """The columns without a model's only reward if it is the score itself."""
    rewards = [name for name in columns if name.startswith("rewards.")]
    is_score = len(rewards) == 1 and columns[rewards[0]] == columns["score"]
    return {name: own for name, own in columns.items() if not (is_score and name in rewards)}


def _facts(report: Report) -> list[tuple[str, str]]:
    """What was scored, with which model and which options."""
    identity = report.runs[0].get("identity", {})
    rows = [("output", ", ".join(report.outputs))]
    rows += [
        (_words(name), _listed(report.model[name])) for name in _MODEL if report.model.get(name) is not None
    ]
    rows += [(_words(name), _listed(identity[name])) for name in _POLICY if identity.get(name)]
    if layout := identity.get("layout"):
        rows.append(("layout", ", ".join(f"{role} = {column}" for role, column in layout.items())))
    rows += [("started", date(run["created_at"])) for run in report.runs if "created_at" in run]
    rows += [("made by", _command(run["made_by"])) for run in report.runs if "made_by" in run]
    rows += [("versions", _listed(run["versions"])) for run in report.runs[:1] if "versions" in run]
    return rows


def _words(name: str) -> str:
    return name.replace("_", " ")


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _command(made_by: Mapping[str, Any]) -> str:
    options = {
        name: value for name, value in made_by.get("options", {}).items() if value and name != "output"
    }
    return f"armo-ray {made_by.get('command')}: {_listed(options)}"


def _gate_table(name: str, groups: Sequence[Group]) -> GateTable | None:
    """None if all mean gates are about equal, as they are when each prompt has candidates in all groups."""
    largest = sorted(groups, key=lambda group: -group.candidates)[:_MOST_VALUES]
    shown = sorted(largest, key=lambda group: str(group.value))
    gates = {o: [group.gating[o] for group in shown] for o in shown[0].gating}
    if not any(max(row) - min(row) >= 0.01 for row in gates.values()):
        return None
    objectives = sorted(gates, key=lambda o: -max(gates[o]))[:_MOST_REWARDS]
    rows = [gates[o] for o in objectives]
    values = [str(group.value) for group in shown]
    return GateTable(name, objectives, values, rows, max(map(max, rows)), len(groups) > len(shown))


def _drawn_correlation(correlation: Correlation) -> Correlation:
    """The score, the length and the first rewards, by their plain names."""
    at = [i for i, name in enumerate(correlation.names) if _plain(name) == name or i < _MOST_REWARDS]
    names = [_plain(correlation.names[i]) for i in at]
    return Correlation(names, [[correlation.matrix[i][j] for j in at] for i in at])


def _length_chart(bins: Sequence[LengthBin], trend: Trend) -> Chart:
    points = [(own.mean_tokens, own.mean_score) for own in bins]
    whiskers = [(own.mean_score - own.sd_score, own.mean_score + own.sd_score) for own in bins]
    line = None
    if trend.slope is not None and trend.intercept is not None:
        line = (trend.slope / 100, trend.intercept)
    titles = ("mean tokens of the response", "mean score")
    return curve("Score by response length", points, titles, line, whiskers)


def _largest_difference(groups: Sequence[Group], mean: float) -> float:
    return max(abs(group.mean_score - mean) for group in groups)


def _throughput_chart(speed: Speed) -> Chart | None:
    if not speed.throughput:
        return None
    active = speed.active_seconds
    scale, unit = (
        (3600, "hours") if active > 3 * 3600 else (60, "minutes") if active > 180 else (1, "seconds")
    )
    edges = [own.from_seconds / scale for own in speed.throughput] + [active / scale]
    rates = [own.tokens_per_second for own in speed.throughput]
    return histogram("Throughput over time", edges, rates, (f"active {unit}", "tokens/s"))
