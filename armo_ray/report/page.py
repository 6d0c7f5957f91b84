"""The report as one HTML file that needs nothing else: no network, no script."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from armo_ray.model.families import FAMILIES
from armo_ray.report.sections import comparisons, distributions, drift, overview

_PAGE = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><p>armo_ray report</p><h1>{title}</h1><p>{about}</p></header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{sections}
</main>
<footer>Made {made_at} by armo-ray {version}. The JSON file beside this page has more numbers.</footer>
</body>
</html>
""")
_ENOUGH = 10  # candidates: of fewer, what goes together tells nothing
_SECTION = Markup(
    '<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>\n{2}\n</section>'
)


def page(found: Mapping[str, Any]) -> str:
    """The HTML of the numbers of a report."""
    sections = {title: body for title, body in _sections(found).items() if body}
    names = {title: title.lower().replace(" ", "-") for title in sections}
    outputs = ", ".join(uri.rstrip("/").rsplit("/", 1)[-1] for uri in found["outputs"])
    model = found["model"].get("model")
    scored = (
        "Scores of" if found["scored"] else "No scores yet of" if not found["complete"] else "No scores of"
    )
    return str(
        _PAGE.format(
            title=outputs,
            about=f"{scored} {model}",
            # the style sheet is this package's own: nothing of it comes from data
            style=Markup(files(__package__).joinpath("page.css").read_text("utf-8")),
            contents=Markup("").join(
                Markup('<li><a href="#{}">{}</a></li>').format(name, title) for title, name in names.items()
            ),
            sections=Markup("\n").join(
                _SECTION.format(names[title], title, body) for title, body in sections.items()
            ),
            made_at=found["made_at"],
            version=found["armo_ray"],
        )
    )


def _told_once(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Without the only reward of a model where it is the score itself."""
    rewards = [name for name in columns if name.startswith("rewards.")]
    twice = len(rewards) == 1 and columns[rewards[0]] == columns["score"]
    return {name: own for name, own in columns.items() if not (twice and name in rewards)}


def _sections(found: Mapping[str, Any]) -> dict[str, Markup]:
    """By title, in their order; an empty one is left out."""
    nothing = Markup("")
    scored, made = found["scored"], {"Overview": overview.overview(found)}
    if found["drift"]:
        made["Drift"] = drift.drift(found["drift"])
    if scored:
        columns = _told_once(scored["columns"])
        rewards = [name for name in columns if name.startswith("rewards.")]
        family = FAMILIES.get(found["model"].get("model_family"))
        of_prompt = family is not None and family.reads == "gate"
        several = len(rewards) > 1 and found["totals"]["scored"] >= _ENOUGH
        made |= {
            "Distributions": distributions.distributions(columns),
            "What drives the score": distributions.makeup(scored["influence"], columns)
            if several and scored["influence"]  # the least of several is no sum
            else nothing,
            "Gating": distributions.gating(scored["groups"], of_prompt),
            "Correlation": distributions.correlation(scored["correlation"]) if several else nothing,
            "Length": distributions.length(scored["length"], columns),
            "Within prompts": comparisons.prompts(scored["prompts"]),
            "Chosen and rejected": comparisons.pairs(scored["pairs"]) if scored["pairs"] else nothing,
            "Groups": comparisons.groups(scored["groups"], columns["score"]["mean"])
            if scored["groups"]
            else nothing,
            "Examples": overview.examples(scored["examples"]),
        }
    if found["rejects"]:
        made["Rejects"] = overview.rejected(found["rejects"], found["totals"]["candidates"])
    if found["speed"]:
        made["Speed and cost"] = overview.speed(found["speed"])
    return made
