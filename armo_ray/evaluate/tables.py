"""An evaluation as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from armo_ray.formatting.numbers import bare_percent, significant
from armo_ray.formatting.tables import text_table

SHOWN = 60  # subsets at most: M-RewardBench has 552, of which its sections tell enough


def evaluation(found: Mapping[str, Any]) -> str:
    """All tables of an evaluation, under headings."""
    parts = [
        _accuracies(found),
        _pairs(found["pairs"]) if len(found["pairs"]) <= SHOWN else "",
        _length(found["length"]),
        _objectives(found),
        _calibration(found["calibration"]),
    ]
    if found["published"] is not None:
        parts.append(_published(found["published"]))
    return "\n\n".join(part for part in parts if part)


def _accuracies(found: Mapping[str, Any]) -> str:
    head = ["accuracy, %", "items", "score", "95 % interval", "always longest"]
    subsets = found["subsets"] if len(found["subsets"]) <= SHOWN else {}
    rows = [_accuracy(name, str(row["items"]), row) for name, row in subsets.items()]
    rows += [_accuracy(name, "", row) for name, row in found["sections"].items()]
    told = [text_table(head, rows)]
    if len(subsets) < len(found["subsets"]):
        told.append(
            f"{len(found['subsets'])} subsets are not shown: with --output they are in evaluation.json"
        )
    if found["unscored"]:
        told.append(
            f"{found['unscored']} of {found['items']} items hold answers without a score: they are wrong"
        )
    if found.get("ties"):
        told.append(f"{found['ties']} rows are ties, of which no answer is preferred: they are left out")
    if found["missing_sections"]:
        told.append(f"subsets are missing for: {', '.join(found['missing_sections'])}")
    return "\n".join(told)


def _accuracy(name: str, items: str, row: Mapping[str, float]) -> list[str]:
    between = f"{bare_percent(row['low'])} - {bare_percent(row['high'])}"
    return [name, items, bare_percent(row["accuracy"]), between, bare_percent(row["longest"])]


def _pairs(found: Mapping[str, Any]) -> str:
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
            for name, row in found.items()
        ],
    )


def length_label(row: Mapping[str, Any]) -> str:
    if row["to"] is None:
        return f"{row['from']:g} times and longer"
    return f"{row['from']:g} to {row['to']:g} times"


def _length(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[length_label(row), str(row["pairs"]), bare_percent(row["accuracy"])] for row in rows]
    return text_table(["correct answer's length", "pairs", "accuracy, %"], cells)


def _objectives(found: Mapping[str, Any]) -> str:
    alike = dict(zip(found["agreement"]["names"], found["agreement"]["matrix"][0], strict=True))
    ranked = sorted(found["objectives"].items(), key=lambda entry: -entry[1])
    rows = [[name, bare_percent(value), bare_percent(alike[name])] for name, value in ranked]
    return text_table(["one objective alone", "accuracy, %", "agrees with the score, %"], rows)


def _calibration(found: Mapping[str, Any]) -> str:
    if "bins" not in found:
        return f"calibration: {found['reason']}"
    head = ["confidence, %", "pairs", "mean", "right, %"]
    rows = [
        [
            f"{100 * b['from']:.0f} - {100 * b['to']:.0f}",
            str(b["pairs"]),
            bare_percent(b["confidence"]),
            bare_percent(b["accuracy"]),
        ]
        for b in found["bins"]
    ]
    told = f"sigmoid(margin / {found['temperature']:.4g}) is off by {bare_percent(found['expected_error'])} points"
    return f"{text_table(head, rows)}\n{told}, on the pairs that the temperature was fitted to"


def _published(found: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{row['published']:.2f}", f"{row['found']:.2f}", f"{row['difference']:+.2f}"]
        for name, row in found["sections"].items()
    ]
    told = text_table([found["model"], "published", "found", "difference"], rows)
    missing = f"; without {', '.join(found['missing'])}" if found["missing"] else ""
    verdict = "reproduces" if found["reproduced"] else "does not reproduce"
    return f"{told}\n{verdict} what was published in {len(rows)} sections, to a point{missing}\n({found['source']})"
