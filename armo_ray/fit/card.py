"""The model card of a fitted checkpoint, README.md, made of the facts in fit.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from armo_ray.fit.student import poor_order
from armo_ray.formatting.numbers import number, percent
from armo_ray.formatting.templates import render
from armo_ray.version import __version__

_ORIGINAL = (
    "transformers runs the released ArmoRM's code on this checkpoint. That code looks for Llama-3's tokens between a "
    "prompt and a response, so it serves backbones with Llama-3's vocabulary and template alone."
)
_OTHERS = (
    "Only armo-ray loads this checkpoint: the released ArmoRM's code is for Llama, and looks for Llama-3's tokens "
    "between a prompt and a response."
)
_PENALTY = ("penalty", "before", "after", "held_out_before", "held_out_after")
_GATES = {
    "uniform": "The same weight for every reward, whatever the prompt.",
    "constant": "Fixed weights, the same for every prompt, fitted to pairs.",
    "mlp": "Weights that depend on the prompt, by a network fitted to pairs.",
    "teacher": "Weights that depend on the prompt, by a network fitted to the gates of the larger model.",
    "teacher-constant": "Fixed weights, the same for every prompt: those of the larger model.",
    "none": "There is one reward, and no gate.",
}


def card(title: str, facts: Mapping[str, Any]) -> str:
    """The text of the card."""
    return render(
        "fit/templates/README.md.jinja",
        title=title,
        facts=facts,
        version=__version__,
        base_model=_hub_id(str(facts["backbone"]["model"])),
        note=_note(facts),
        objective_head=[
            "reward",
            "range",
            "rows",
            "alpha",
            "R2",
            "Pearson",
            "R2, held out",
            "Spearman, held out",
        ],
        objective_rows=list(_objectives(facts)),
        verbosity=_verbosity(facts),
        penalty_rows=[[row["name"], *(number(row[key]) for key in _PENALTY)] for row in facts["penalties"]],
        gate=_gate(facts),
        has_gate_figure="gates.svg" in facts["figures"],
        held_out_rows=[_accuracy(row) for row in facts["held_out"]],
        no_table=no_table(facts),
        teacher_rows=list(_teacher(facts)),
        poor_order=poor_order((facts.get("teacher") or {}).get("agreement", {})),
        data_rows=[[f"`{row['output']}`", row["use"], number(row["rows"])] for row in facts["data"]],
        count_rows=list(_counts(facts)),
        dropped=", ".join(f"`{name}`" for name in facts["dropped_tensors"]) or "nothing",
    )


def no_table(facts: Mapping[str, Any]) -> str:
    """Why there is no table of held-out pairs though there are pairs; else empty."""
    if facts["held_out"] or not facts["pairs"]["used"]:
        return ""
    pairs = facts["pairs"]
    if not facts["test_fraction"]:
        return "No pair was held out, as the test fraction is 0: nothing tells how often this model is right."
    return (
        f"Of {pairs['used']:,} pairs {pairs['tested']:,} are held out and {pairs['fitted']:,} are there to fit to: too "
        f"few to tell how often this model is right."
    )


def _hub_id(model: str) -> str | None:
    """The model, if it is a hub id, as front matter wants it."""
    return (
        model
        if model.count("/") == 1 and not model.startswith((".", "/", "~")) and ":" not in model
        else None
    )


def _note(facts: Mapping[str, Any]) -> str:
    if facts["head"] != "armorm":
        return ""
    return _ORIGINAL if facts["backbone"]["model_type"] == "llama" else _OTHERS


def _objectives(facts: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in facts["objectives"]:
        scale = "as it is" if row["scale"] is None else "{:g} to {:g} as 0 to 1".format(*row["scale"])
        numbers = [
            row["alpha"],
            row["r2"],
            row["pearson"],
            row["held_out"]["r2"],
            row["held_out"]["spearman"],
        ]
        yield [row["name"], scale, number(row["rows"]), *map(number, numbers)]


def _verbosity(facts: Mapping[str, Any]) -> str:
    if not facts["penalties"]:
        return ""
    name = facts["verbosity"]
    what = "the length of the answer, log(1 + tokens)," if name == facts["length"] else "another reward"
    return (
        f"Each reward enters the score less its penalty times `{name}`, which predicts {what} and has no weight of "
        f"its own. Spearman's correlation with it, before and after, on {facts['penalty_rows']:,} rows and on held-out "
        f"prompts:"
    )


def _gate(facts: Mapping[str, Any]) -> str:
    gate = facts["gate"]
    text = _GATES[gate["kind"]]
    if gate.get("why"):
        text += f" {gate['why']}"
    if gate.get("weights"):
        shares = ", ".join(f"`{n}` {w:.3f}" for n, w in sorted(gate["weights"].items(), key=lambda e: -e[1]))
        text += f"\n\nWeights: {shares}."
    if gate.get("beta"):
        factor = number(gate["beta"])
        text += (
            f"\n\nMargins were multiplied by {factor} in training only; scores are in units of the labels."
        )
    return text


def _accuracy(row: Mapping[str, Any]) -> list[str]:
    losses = [number(row["log_loss"]), number(row["log_loss_se"])]
    return [row["name"], percent(row["accuracy"]), percent(row["accuracy_se"]), *losses]


def _teacher(facts: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in (facts.get("teacher") or {}).get("agreement", {}).items():
        yield [name, number(value)]


def _counts(facts: Mapping[str, Any]) -> Iterator[list[str]]:
    counts: Sequence[tuple[str, Mapping[str, Any]]] = (("rows", facts["rows"]), ("pairs", facts["pairs"]))
    for of, values in counts:
        for name, value in values.items():
            if isinstance(value, int):
                yield [f"{of}: {name.replace('_', ' ')}", number(value)]
    for row in facts["masks"]:
        yield [f"rows with {', '.join(row['labels'])}", number(row["rows"])]
