"""Sections about the numbers: distributions, correlation, what the score is made of, length."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from armo_ray.report.charts import bar, curve, heatmap, histogram, small_histogram
from armo_ray.report.html import (
    breakable,
    figure,
    grid,
    heading,
    join,
    number,
    paragraph,
    percent,
    signed,
    table,
)

MOST = 40  # objectives that are drawn


def _plain(name: str) -> str:
    return name.removeprefix("rewards.").removeprefix("gating.")


def distributions(columns: Mapping[str, Mapping[str, Any]]) -> Markup:
    score, length = columns["score"], columns["num_response_tokens"]
    large = grid(
        figure(
            histogram("Scores", score["histogram"], "score", mark=score["quantiles"]["0.5"]),
            "How many candidates have each score; the line is the median." + _beside(score["histogram"]),
        ),
        figure(
            histogram("Response lengths", length["histogram"], "tokens", mark=length["quantiles"]["0.5"]),
            "How long the responses are, in tokens." + _beside(length["histogram"]),
        ),
    )
    rewards = [name for name in columns if name.startswith("rewards.")][:MOST]
    small = Markup("").join(
        Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(
            breakable(_plain(name)),
            small_histogram(
                f"{_plain(name)}: median {number(columns[name]['quantiles']['0.5'])}",
                columns[name]["histogram"],
                columns[name]["quantiles"]["0.5"],
            ),
        )
        for name in rewards
    )
    each = join(
        heading("Each reward"),
        paragraph("The same for every reward of the model, each on an axis of its own."),
        Markup('<div class="small">{}</div>').format(small),
    )
    return join(large, each if rewards else Markup(""), heading("Quantiles"), _quantiles(columns))


def _quantiles(columns: Mapping[str, Mapping[str, Any]]) -> Markup:
    shown = [name for name in columns if not name.startswith("gating.")]
    levels = list(columns["score"]["quantiles"])
    rows = [
        (
            _plain(name),
            number(columns[name]["mean"]),
            number(columns[name]["sd"]),
            *(_level(name, columns[name]["quantiles"][level]) for level in levels),
        )
        for name in shown
    ]
    head = ("column", "mean", "sd", *(f"{100 * float(level):g} %" for level in levels))
    return table(head, rows)


def _level(name: str, value: float) -> str:
    return number(round(value)) if name.startswith("num_") else number(value)


def _beside(bins: Mapping[str, Any]) -> str:
    count = bins["below"] + bins["above"]
    return f" {number(count)} lie outside of the axis." if count else ""


def correlation(found: Mapping[str, Any]) -> Markup:
    at = [i for i, name in enumerate(found["names"]) if _plain(name) == name or i < MOST]
    names = [_plain(found["names"][i]) for i in at]
    values = [[found["matrix"][i][j] for j in at] for i in at]
    return figure(
        heatmap("Correlation between the columns", names, names, values),
        "Pearson's correlation over all candidates, times 100: blue rises together, orange moves apart. "
        "Rewards that nearly always rise together say the same thing twice.",
    )


def makeup(found: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Mapping[str, Any]]) -> Markup:
    """What drives the score, and mean gates."""
    ranked = sorted(found.items(), key=lambda entry: -abs(entry[1]["share_of_variance"] or 0))
    most = max((abs(row["share_of_variance"] or 0) for row in found.values()), default=0.0)
    low = min((row["share_of_variance"] or 0 for row in found.values()), default=0.0)
    gates = {_plain(name): row["mean"] for name, row in columns.items() if name.startswith("gating.")}
    head = ["part of the score", "share of its variance", "", "mean", "mean absolute value"]
    rows = [
        [
            name,
            percent(row["share_of_variance"]),
            bar(row["share_of_variance"], most, min(low, 0.0)),
            signed(row["mean"]),
            number(row["mean_absolute"]),
            *([number(gates.get(name)), bar(gates.get(name), max(gates.values()))] if gates else []),
        ]
        for name, row in ranked
    ]
    head += ["mean gate", ""] if gates else []
    told = (
        "The score is the sum of these parts, each a reward times its weight. The share of variance tells which of "
        "them make scores differ, and adds up to 100 %; the mean tells what they add to every score. A negative share "
        "narrows the scores."
    )
    if gates:
        told += " The gate is how much the model looks at a reward."
    return join(table(head, rows), paragraph(told))


def length(found: Mapping[str, Any], columns: Collection[str]) -> Markup:
    """Score against length, and the slopes of the columns that are told of."""
    own = found["columns"]["score"]
    points = [(row["mean_tokens"], row["mean_score"]) for row in found["bins"]]
    bars = [
        (row["mean_score"] - row["sd_score"], row["mean_score"] + row["sd_score"]) for row in found["bins"]
    ]
    slope = own["slope"]
    drawn = curve(
        "Score by response length",
        points,
        ("mean tokens of the response", "mean score"),
        None if slope is None else (slope / 100, own["intercept"]),
        bars,
    )
    told = "A point for each twelfth of the responses by length; upright lines are one standard deviation."
    if slope is not None:
        told += (
            f" The straight line is fitted to all candidates: {signed(slope)} for 100 tokens more, "
            f"correlation {number(own['correlation'])}."
        )
    return join(
        figure(drawn, told), _slopes({name: own for name, own in found["columns"].items() if name in columns})
    )


def _slopes(columns: Mapping[str, Mapping[str, Any]]) -> Markup:
    ranked = sorted(columns.items(), key=lambda entry: -(entry[1]["correlation"] or 0))
    most = max((abs(row["correlation"] or 0) for row in columns.values()), default=0.0)
    rows = [
        [
            _plain(name),
            signed(row["correlation"]),
            bar(row["correlation"], most, -most),
            signed(row["slope"]),
            signed(row["slope_in_sd"]),
        ]
        for name, row in ranked
    ]
    head = ("column", "correlation with length", "", "for 100 tokens more", "in deviations")
    return join(
        table(head, rows),
        paragraph(
            "A reward that rises with length whatever is said rewards verbosity. The slope is of least squares over "
            "all candidates, in the reward's own units and in its standard deviations."
        ),
    )


def _differ(gates: Sequence[Mapping[str, float]]) -> bool:
    """Whether some mean gate differs by a hundredth: each prompt may have candidates in all groups."""
    return any(max(row[o] for row in gates) - min(row[o] for row in gates) >= 0.01 for o in gates[0])


def gating(groups: Mapping[str, Sequence[Mapping[str, Any]]], of_prompt: bool) -> Markup:
    """Mean gates by the values of each group; `of_prompt`: they depend on nothing else."""
    body = []
    for name, rows in groups.items():
        shown = sorted(rows, key=lambda row: -row["candidates"])[:24]
        if not _differ([row["gating"] for row in shown]):
            continue
        objectives = sorted(shown[0]["gating"], key=lambda o: -max(row["gating"][o] for row in shown))[:MOST]
        values = [[row["gating"][o] for row in shown] for o in objectives]
        drawn = heatmap(
            f"Mean gate by {name}",
            objectives,
            [str(row["value"]) for row in shown],
            values,
            max(max(row) for row in values),
        )
        caption = (
            f"The mean gate of each reward, times 100, by {name}"
            f"{', the 24 values with the most candidates' if len(rows) > 24 else ''}."
            f"{' The gate depends on the prompt alone: columns differ where the prompts do.' if of_prompt else ''}"
        )
        body.append(figure(drawn, caption))
    return join(*body)
