"""`armo-ray reweigh`: new scores from the rewards and gates in an output, without a model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from armo_ray.curate import derived_output, ensemble
from armo_ray.curate.fitted_formula import Fitted, fit
from armo_ray.curate.grown_output import lacking_units, output_of
from armo_ray.curate.options import ReweighOptions
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice
from armo_ray.measures.comparison import compare
from armo_ray.outputs.database import database
from armo_ray.outputs.scores import Scores, check_counted, open_scores, scan
from armo_ray.storage.filesystem import read_text
from armo_ray.storage.json_files import to_json

_BASE = ("model_fingerprint", "fixed_weights", "reward_transform_matrix", "ensemble", "risk")


def run(options: ReweighOptions) -> None:
    """Write complete outputs with new scores, and compare their ranking with the old. Raises ConfigError."""
    if options.format != "parquet":
        raise ConfigError("--format jsonl: reweigh writes Parquet, for other commands to read")
    _check_fit(options)
    if options.ensemble is not None:
        if options.append:
            raise ConfigError("--append: an ensemble standardizes the scores over all rows: make it anew")
        if options.weight or options.factor or options.mask or options.transform or options.length_penalty:
            raise ConfigError("--ensemble takes no other weights: reweigh its output in a second step")
        if options.ensemble != "mean-std" and "risk" in options.model_fields_set:
            raise ConfigError(f"--risk works only with --ensemble mean-std, not with {options.ensemble}")
        ensemble.run(options)
        return
    scores = open_scores(options.scores, options.partition)
    if options.length_penalty:
        with database(options) as con:
            check_counted(con, scores, "--length-penalty")
    formula = {} if options.fit_pairs else formula_of(options, scores)
    with output_of(options, "reweigh") as store:
        fitted = fit(options, scores) if options.fit_pairs else None
        formula = fitted_formula(fitted, scores) if fitted else formula
        lacking = lacking_units(options, scores, store)
        if lacking is None:
            return
        scores, done = lacking
        made = {"command": "reweigh", "options": options.model_dump(mode="json"), "formula": formula}
        made |= {"fit": fitted.details} if fitted else {}
        identity = {"model_fingerprint": formula["model_fingerprint"]}
        fingerprint = derived_output.begin(scores, store, {**made, "scores": scores.outputs}, identity)
        change = derived_output.Change(made_by=formula, fingerprint=fingerprint)
        moved = derived_output.rewrite(scores, store, options, change, done)
        comparison = compare_with(options, scores, moved) if scores.parts else {}
        summary = [f"- {name}: {value}" for name, value in comparison.items()]
        if fitted:
            print(f"{fitted.about}\n")
            comparison["fit"] = fitted.details
        print("\n".join(summary))
        if comparison:
            store.write("comparison.json", to_json(comparison))
        of = "of the rows that were added last " if options.append else ""
        about = "\n".join([f"The new scores {of}compared with the old:", "", *summary])
        about = f"{fitted.about}\n\n{about}" if fitted else about
        derived_output.finish(store, options, "Reweighed scores", about)


def _check_fit(options: ReweighOptions) -> None:
    if not options.fit_pairs:
        if given := options.model_fields_set & {"fit", "test_fraction", "folds", "seed"}:
            raise ConfigError(f"--{min(given).replace('_', '-')} works only with --fit-pairs")
        return
    if options.append:
        raise ConfigError("--append: a fit is of all pairs: give the weights that it printed with --weight")
    others = ("weight", "factor", "mask", "transform", "length_penalty", "ensemble")
    if given := options.model_fields_set.intersection(others):
        raise ConfigError(f"--fit-pairs finds the formula: leave out --{min(given).replace('_', '-')}")


def fitted_formula(fitted: Fitted, scores: Scores) -> dict[str, Any]:
    """The changes to the metadata, as `formula_of`. A factor is of the present score, weights replace every formula."""
    base = _base_of(scores)
    if fitted.factor is None:
        return _complete(base, {"fixed_weights": list(fitted.weights or ()), "ensemble": None})
    present = scores.metadata
    if present.get("ensemble") in ("min", "mean-std"):
        raise ConfigError(
            f"--fit temperature: the {present['ensemble']} of several scores has no factor: use --fit weights"
        )
    factors = present.get("objective_factors") or [1.0] * len(scores.reward_names)
    formula = {name: present.get(name) for name in _BASE}
    formula["objective_factors"] = [fitted.factor * float(factor) for factor in factors]
    formula["length_penalty"] = fitted.factor * float(present.get("length_penalty") or 0.0)
    return _complete(base, formula)


def _base_of(scores: Scores) -> dict[str, Any]:
    """The model's own formula."""
    base: dict[str, Any] | None = scores.metadata.get("base")
    return base or {name: scores.metadata.get(name) for name in _BASE}


def _complete(base: dict[str, Any], formula: dict[str, Any]) -> dict[str, Any]:
    formula = {**base, "objective_factors": None, "length_penalty": 0.0, "base": base, **formula}
    text = json.dumps({**formula, "model_fingerprint": base["model_fingerprint"]}, sort_keys=True)
    return {**formula, "model_fingerprint": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def formula_of(options: ReweighOptions, scores: Scores) -> dict[str, Any]:
    """The changes to the metadata of the scores, which armo_ray.outputs.schema.recomputed interprets.

    They always start from the model's own formula, which `base` keeps: an earlier reweighing leaves no trace. Each
    formula has its own `model_fingerprint`, so that scores of two formulas cannot be mixed.
    """
    names, base = scores.reward_names, _base_of(scores)
    formula: dict[str, Any] = {}
    if options.weight and (options.factor or options.mask or options.transform):
        raise ConfigError("--weight replaces the model's weights: leave out --factor, --mask and --transform")
    if options.weight:
        formula["fixed_weights"] = _vector(options.weight, names, 0.0, "--weight")
        formula["ensemble"] = None
    elif options.transform and base["reward_transform_matrix"] is None:
        raise ConfigError(
            f"--transform: {scores.metadata['model']} has no gates, so there is no transform matrix to replace"
        )
    elif (options.factor or options.mask) and base["ensemble"] in ("min", "mean-std"):
        raise ConfigError(f"the {base['ensemble']} of several scores has no weights to change: give --weight")
    if options.factor or options.mask:
        if twice := sorted(set(options.factor) & set(options.mask)):
            raise ConfigError(f"--mask {twice[0]}: this reward also has a --factor")
        masked = _vector(dict.fromkeys(options.mask, 0.0), names, 1.0, "--mask")
        factors = _vector(options.factor, names, 1.0, "--factor")
        formula["objective_factors"] = [a * b for a, b in zip(masked, factors, strict=True)]
    if options.transform is not None:
        formula["reward_transform_matrix"] = read_transform(options.transform, len(names))
    if options.length_penalty is not None:
        formula["length_penalty"] = options.length_penalty
    if not formula:
        raise ConfigError(
            "nothing to change: give --weight, --factor, --mask, --transform or --length-penalty"
        )
    return _complete(base, formula)


def _vector(values: Mapping[str, float], names: tuple[str, ...], default: float, option: str) -> list[float]:
    for name, value in values.items():
        if name not in names:
            raise ConfigError(f"{option} {name}: this model has no such reward; {advice(name, names)}")
        if not np.isfinite(value):
            raise ConfigError(f"{option} {name}: {value} is not a finite number")
    return [float(values.get(name, default)) for name in names]


def read_transform(uri: str, size: int) -> list[list[float]]:
    """A (size, size) matrix from a JSON file, bare or under the key reward_transform_matrix. Raises ConfigError."""
    try:
        content = json.loads(read_text(uri))
    except ValueError as error:
        raise ConfigError(f"--transform {uri}: not valid JSON: {error}") from error
    if isinstance(content, dict):
        content = content.get("reward_transform_matrix")
    try:
        matrix = np.array(content, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--transform {uri}: not a matrix of numbers: {error}") from error
    if matrix.shape != (size, size) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"--transform {uri}: expected {size} rows of {size} finite numbers, got {matrix.shape}"
        )
    rows: list[list[float]] = matrix.tolist()
    return rows


def compare_with(
    options: ReweighOptions, scores: Scores, moved: Sequence[derived_output.Moved]
) -> dict[str, Any]:
    """Compare how the old scores and the new rank the candidates (armo_ray.measures.comparison)."""
    place_of = {part.uri: place for place, part in enumerate(scores.parts)}
    moved = [to for to in moved if to.source in place_of]  # without rejects
    new_parts = {to.part: replace(scores.parts[place_of[to.source]], uri=to.part) for to in moved}
    new_parts = dict(sorted(new_parts.items(), key=lambda entry: (entry[1].output, entry[1].directories)))
    place_of_new = {uri: place for place, uri in enumerate(new_parts)}
    with database(options) as con:
        con.register(
            "moved",
            pa.table(
                {
                    "old_part": [place_of[to.source] for to in moved],
                    "new_part": [place_of_new[to.part] for to in moved],
                    "first": [to.first for to in moved],
                }
            ),
        )
        con.execute(
            f"""CREATE TEMP TABLE compared AS
                SELECT row_number() OVER () AS place, prompt_id AS prompt, a.score AS old, b.score AS new
                FROM ({scan(scores.parts, numbered=True)}) a JOIN moved ON a.__part = old_part
                JOIN (SELECT __part, __row, score FROM ({scan(new_parts.values(), numbered=True)})) b
                ON b.__part = new_part AND b.__row = a.__row + first"""
        )
        return compare(con, "compared")
