"""Sections that compare: within prompts, chosen with rejected, groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from armo_ray.report.charts import bar, curve, histogram
from armo_ray.report.html import facts, figure, grid, heading, join, number, paragraph, percent, signed, table

_MOST_ROWS = 30


def prompts(found: Mapping[str, Any]) -> Markup:
    several = found["with_several"]
    if not several:
        return paragraph(f"Each of the {number(found['prompts'])} prompts has one scored candidate.")
    told = [
        ("prompts", number(found["prompts"])),
        ("with several candidates", number(several)),
        (
            "two best are tied",
            f"{number(found['tied_for_best'])} ({percent(found['tied_for_best'] / several)})",
        ),
        ("all are equal", f"{number(found['all_equal'])} ({percent(found['all_equal'] / several)})"),
        ("deviation within a prompt", number(found["sd_within"])),
        ("share of all variance", percent(found["share_of_variance"])),
        ("mean distance of best and worst", number(found["mean_range"])),
    ]
    ranges, best = found["ranges"], found["best_of_n"]
    drawn = [
        figure(
            histogram(
                "Best less worst score of a prompt",
                ranges["histogram"],
                "best - worst",
                "prompts",
                ranges["quantiles"]["0.5"],
            ),
            "Prompts on the left have candidates that score alike, and give pairs that teach little.",
        )
    ]
    if best:
        points = list(zip(best["n"], best["mean_score"], strict=True))
        caption = (
            f"Mean score of the best of n candidates of a prompt, over all ways to draw them, of the "
            f"{number(best['prompts'])} prompts with {best['n'][-1]} to {best['most_candidates']} candidates. Where "
            f"it flattens, more candidates add little."
        )
        drawn.append(figure(curve("Best of n", points, ("n", "mean score of the best")), caption))
    return join(facts(told), grid(*drawn))


def pairs(found: Mapping[str, Any]) -> Markup:
    margins = found["margins"]
    drawn = figure(
        histogram(
            "Chosen less rejected score",
            margins["histogram"],
            "chosen - rejected",
            "pairs",
            margins["quantiles"]["0.5"],
        ),
        f"In {percent(found['accuracy'])} of {number(found['pairs'])} pairs chosen scores higher; "
        f"{number(found['ties'])} are tied; the mean margin is {number(found['mean_margin'])}. To the right of 0 the "
        f"model agrees with the label.",
    )
    columns = sorted(found["columns"].items(), key=lambda entry: -entry[1]["accuracy"])
    rows = [
        (name, percent(row["accuracy"]), bar(row["accuracy"] - 0.5, 0.5, -0.5), number(row["ties"]))
        for name, row in columns
    ]
    lengths = [
        (_ratio(row), number(row["pairs"]), percent(row["accuracy"]), bar(row["accuracy"] - 0.5, 0.5, -0.5))
        for row in found["length"]
        if row["pairs"]
    ]
    body = [
        drawn,
        heading("One column alone"),
        table(("column", "chosen is larger", "", "ties"), rows),
        paragraph("Bars begin at 50 %, which chance reaches."),
        heading("By the chosen answer's length"),
        table(("chosen's tokens to rejected's", "pairs", "chosen scores higher", ""), lengths),
        paragraph(
            f"Chosen is the longer one in {percent(found['chosen_is_longer'])} of the pairs. A model that is "
            f"right only where it is longer counts words."
        ),
    ]
    return join(*body, *(_pairs_by(name, values) for name, values in found["groups"].items()))


def _pairs_by(name: str, values: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        (
            _value(row["value"]),
            number(row["pairs"]),
            percent(row["accuracy"]),
            bar(row["accuracy"] - 0.5, 0.5, -0.5),
            signed(row["mean_margin"]),
            percent(row["chosen_is_longer"]),
        )
        for row in values[:_MOST_ROWS]
    ]
    head = (name, "pairs", "chosen scores higher", "", "mean margin", "chosen is longer")
    return join(heading(f"By {name}"), table(head, rows), _left_out(values))


def _ratio(row: Mapping[str, Any]) -> str:
    return (
        f"{row['from']:g} times and more" if row["to"] is None else f"{row['from']:g} to {row['to']:g} times"
    )


def _value(value: str | None) -> str:
    return "(none)" if value is None else value or "(empty)"


def groups(found: Mapping[str, Sequence[Mapping[str, Any]]], mean: float) -> Markup:
    body = []
    for name, values in found.items():
        shown = values[:_MOST_ROWS]
        most = max(abs(row["mean_score"] - mean) for row in shown)
        rows = [
            (
                _value(row["value"]),
                number(row["candidates"]),
                number(row["mean_score"]),
                signed(row["mean_score"] - mean),
                bar(row["mean_score"] - mean, most, -most),
                number(row["sd_score"]),
                percent(row["best_of_prompt"] / row["candidates"]),
                number(row["mean_response_tokens"]),
            )
            for row in shown
        ]
        head = (
            name,
            "candidates",
            "mean score",
            "difference from the mean of all",
            "",
            "sd",
            "best of its prompt",
            "mean tokens",
        )
        body += [heading(f"By {name}"), table(head, rows), _left_out(values)]
    body.append(
        paragraph(
            "Best of its prompt: the share of the candidates that score higher than all others of their prompt. It "
            "compares answers to the same questions, which means do not."
        )
    )
    return join(*body)


def _left_out(values: Sequence[Any]) -> Markup:
    more = len(values) - _MOST_ROWS
    return paragraph(f"{number(more)} more are in the JSON file.") if more > 0 else Markup("")
