"""An evaluation as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from armo_ray.formatting.numbers import bare_percent, significant
from armo_ray.formatting.tables import text_table

SHOWN = 60  # most subsets that are listed: M-RewardBench has 552, and its sections suffice


def evaluation(results: Mapping[str, Any]) -> str:
    """All tables of an evaluation."""
    parts = [
        _accuracies(results),
        _pairs(results["pairs"]) if len(results["pairs"]) <= SHOWN else "",
        _length(results["length"]),
        _objectives(results),
        _calibration(results["calibration"]),
    ]
    if results["published"] is not None:
        parts.append(_published(results["published"]))
    return "\n\n".join(part for part in parts if part)


def first_errors(results: Mapping[str, Any]) -> str:
    """The table of ProcessBench, at the threshold given and at the one that is best for a subset."""
    lines = [_first_errors(results, "a step is wrong")]
    if results["unscored"]:
        lines.append(
            f"{results['unscored']} of {results['items']} solutions have no scores and count as wrong"
        )
    if tuned := results["tuned"]:
        lines.append(f"\n{_first_errors(tuned, 'best for gsm8k')}")
    return "\n".join(lines)


def _first_errors(found: Mapping[str, Any], what: str) -> str:
    head = [
        f"{what} below {found['threshold']:.4g}",
        "with error",
        "without",
        "error, %",
        "correct, %",
        "F1, %",
    ]
    rows = []
    for name, row in found["subsets"].items():
        sizes = [str(row["with_error"]), str(row["without_error"])]
        accuracies = [bare_percent(row[key]) for key in ("error_accuracy", "correct_accuracy", "f1")]
        between = f"{bare_percent(row['low'])} - {bare_percent(row['high'])}"
        rows.append([name, *sizes, *accuracies, between])
    rows.append(["Average F1", "", "", "", "", bare_percent(found["f1"]), ""])
    return text_table([*head, "95 % interval"], rows)


def _accuracies(results: Mapping[str, Any]) -> str:
    head = ["accuracy, %", "items", "score", "95 % interval", "always longest"]
    subsets = results["subsets"] if len(results["subsets"]) <= SHOWN else {}
    rows = [_accuracy(name, str(row["items"]), row) for name, row in subsets.items()]
    rows += [_accuracy(name, "", row) for name, row in results["sections"].items()]
    lines = [text_table(head, rows)]
    if len(subsets) < len(results["subsets"]):
        lines.append(
            f"{len(results['subsets'])} subsets are not shown; --output writes them to evaluation.json"
        )
    if results["unscored"]:
        lines.append(
            f"{results['unscored']} of {results['items']} items have responses without a score and count as wrong"
        )
    if judge := results.get("judge"):
        lines.append(
            f"{results['unjudged']} of {results['items']} items have responses without a verdict; "
            f"{_rule(judge['source'])} an error counts {judge['error']:g} and a tie {judge['tie']:g}"
        )
    if results.get("ties"):
        lines.append(f"{results['ties']} rows are ties without a preferred response and are left out")
    if results["missing_sections"]:
        lines.append(f"not shown, as subsets are missing: {', '.join(results['missing_sections'])}")
    return "\n".join(lines)


def _accuracy(name: str, items: str, row: Mapping[str, float]) -> list[str]:
    between = f"{bare_percent(row['low'])} - {bare_percent(row['high'])}"
    return [name, items, bare_percent(row["accuracy"]), between, bare_percent(row["longest"])]


def _pairs(subsets: Mapping[str, Any]) -> str:
    head = ["scored pairs", "pairs", "ties", "mean margin", "median", "correct is longer, %"]
    return text_table(
        head,
        [
            [
                name,
                str(row["pairs"]),
                str(row["ties"]),
                significant(row["mean_margin"]),
                significant(row["median_margin"]),
                bare_percent(row["correct_is_longer"]),
            ]
            for name, row in subsets.items()
        ],
    )


def length_label(row: Mapping[str, Any]) -> str:
    if row["to"] is None:
        return f"{row['from']:g} times or longer"
    return f"{row['from']:g} to {row['to']:g} times"


def _length(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = [[length_label(row), str(row["pairs"]), bare_percent(row["accuracy"])] for row in rows]
    return text_table(["length of the correct response / wrong one", "pairs", "accuracy, %"], cells)


def _objectives(results: Mapping[str, Any]) -> str:
    alike = dict(zip(results["agreement"]["names"], results["agreement"]["matrix"][0], strict=True))
    ranked = sorted(results["objectives"].items(), key=lambda entry: -entry[1])
    rows = [[name, bare_percent(value), bare_percent(alike[name])] for name, value in ranked]
    return text_table(["each reward alone", "accuracy, %", "agrees with the score, %"], rows)


def _calibration(calibration: Mapping[str, Any]) -> str:
    if "bins" not in calibration:
        return f"calibration: {calibration['reason']}"
    head = ["confidence, %", "pairs", "mean", "correct, %"]
    rows = [
        [
            f"{100 * b['from']:.0f} - {100 * b['to']:.0f}",
            str(b["pairs"]),
            bare_percent(b["confidence"]),
            bare_percent(b["accuracy"]),
        ]
        for b in calibration["bins"]
    ]
    error = bare_percent(calibration["expected_error"])
    note = (
        f"sigmoid(margin / {calibration['temperature']:.4g}) is off by {error} percentage points on the pairs that the "
        f"temperature was fitted to"
    )
    return f"{text_table(head, rows)}\n{note}"


def _published(published: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{row['published']:.2f}", f"{row['found']:.2f}", f"{row['difference']:+.2f}"]
        for name, row in published["sections"].items()
    ]
    table = text_table([published["model"], "published", "measured", "difference"], rows)
    missing = f"; not measured: {', '.join(published['missing'])}" if published["missing"] else ""
    verdict = "reproduces" if published["reproduced"] else "does not reproduce"
    note = f"{verdict} what was published in {len(rows)} sections, to within one point{missing}"
    notes = [note, *([published["note"]] if published.get("note") else []), f"({published['source']})"]
    return "\n".join((table, *notes))


def _rule(source: str | None) -> str:
    return f"by {source}," if source else "no benchmark says how these count; here"
