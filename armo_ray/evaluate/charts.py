"""Charts of an evaluation as SVG files."""

from collections.abc import Mapping
from typing import Any

from armo_ray.evaluate.tables import SHOWN, length_label
from armo_ray.formatting.svg import Bar, Chart, bars, heatmap, reliability


def figures(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """File names and SVG texts."""
    return {name: chart.standalone() for name, chart in _charts(evaluation).items()}


def _charts(evaluation: Mapping[str, Any]) -> dict[str, Chart]:
    accuracy = [
        Bar(name, row["accuracy"], row["low"], row["high"], row["longest"])
        for kind in ("sections", "subsets")
        if kind == "sections" or len(evaluation[kind]) <= SHOWN
        for name, row in evaluation[kind].items()
    ]
    length = [Bar(length_label(row), row["accuracy"]) for row in evaluation["length"] if row["pairs"]]
    ranked = sorted(evaluation["objectives"].items(), key=lambda entry: -entry[1])
    names, matrix = evaluation["agreement"]["names"], evaluation["agreement"]["matrix"]
    charts = {
        "accuracy.svg": bars(
            "Accuracy in percent with its 95 % interval"
            + ("; orange: always choosing the longest response" if length else ""),
            accuracy,
        ),
        "objectives.svg": bars("Accuracy of each reward alone", [Bar(*entry) for entry in ranked]),
        "agreement.svg": heatmap(
            "Percentage of pairs that two columns order the same way",
            names,
            names,
            matrix,
            middle=0.5,
            most=0.5,
        ),
    }
    if length:
        title = "Accuracy by the length of the correct response relative to the wrong one"
        charts["length.svg"] = bars(title, length)
    if bins := evaluation["calibration"].get("bins"):
        points = [(row["confidence"], row["accuracy"], row["pairs"]) for row in bins]
        charts["calibration.svg"] = reliability("How often the higher score is right, by confidence", points)
    return charts
