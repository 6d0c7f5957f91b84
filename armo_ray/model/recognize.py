"""Identification of a checkpoint's family by its config and tensor names, and a check that its head is complete.

Nothing is guessed: a tensor that is missing, unexpected or of another shape is an error that says what was
expected and what was found.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES, HIDDEN, Family
from armo_ray.model.family_file import family_of
from armo_ray.model.head_shapes import (
    Expected,
    Shape,
    Shapes,
    armorm,
    beaver,
    chain,
    ldl,
    ldl_objectives,
    pairrm,
    qrm,
    two_labels,
)
from armo_ray.model.head_shapes import linear as _linear

# The order of the model card, https://huggingface.co/RLHFlow/ArmoRM-Llama3-8B-v0.1, with "-" as "_".
ARMORM_REWARDS = (
    "helpsteer_helpfulness",
    "helpsteer_correctness",
    "helpsteer_coherence",
    "helpsteer_complexity",
    "helpsteer_verbosity",
    "ultrafeedback_overall_score",
    "ultrafeedback_instruction_following",
    "ultrafeedback_truthfulness",
    "ultrafeedback_honesty",
    "ultrafeedback_helpfulness",
    "beavertails_is_safe",
    "prometheus_score",
    "argilla_overall_quality",
    "argilla_judge_lm",
    "code_complexity",
    "code_style",
    "code_explanation",
    "code_instruction_following",
    "code_readability",
)
HELPSTEER_REWARDS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
STEP_REWARDS = ("mean", "min", "product", "last")
LM_HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
HEAD_PREFIXES = (
    "regression_layer.",
    "reward_transform_matrix",
    "gating.",
    "score.",
    "weights.",
    "v_head.",
    "regression_head.",
    "score_head.",
    "normalizer.",
    "gating_layer.",
    "head_layer.",
)
_BACKBONE = re.compile(r"(model|lm_head)\.|.*rotary_emb\.inv_freq$")
# How a decoder's tensors may be named, whatever has a head besides; the last one of a decoder that was saved alone.
_DECODER = re.compile(r"(model|transformer|layers|embed_tokens|norm)\.")
# For each family whose head has its own tensors, a tensor that identifies it; the most specific ones come first.
_IDENTIFIED_BY = {
    "qrm": "gating.layers.2.running_mean",
    "armorm": "gating.logit_scale",
    "urm": "weights.fc.0.weight",
    "mlp-classifier": "score.2.weight",
    "classifier": "score.weight",
    "starling": "transformer.embed_tokens.weight",
    "value-head": "v_head.weight",
    "trl-value-head": "v_head.summary.weight",
    "grm": "v_head.summary.0.weight",
    "ultrarm": "regression_head.weight",
    "eurus": "regression_head.weight",
    "ldl": "gating_layer.network.0.weight",
    "deberta": "pooler.dense.weight",
    "pairrm": "head_layer.1.weight",
}
# Families whose tensors are also those of another family, by their architecture.
_ARCHITECTURES = {"Qwen2ForProcessRewardModel": "prm-qwen", "Qwen2ForPrmModel": "prm-skywork"}
# The backbones of families whose tensors alone do not identify them.
BACKBONE_OF = {
    "ultrarm": "llama",
    "eurus": "mistral",
    "ldl": "gemma2",
    "deberta": "deberta-v2",
    "pairrm": "deberta-v2",
}
# Families whose config may name the rewards.
OWN_OBJECTIVES = ("armorm", "qrm")
# Families that are only used by name, by a tensor of theirs.
_NAMED = {"score_head.weight": ("beaver-reward", "beaver-cost")}
# Nexusflow's Athene has the tensors of a value head. Both names of its architecture are in use.
_ATHENE = re.compile("Athene|CustomAutoModelForSequenceClassification")
# Heads of these classes read every token, marks between steps, or a token that is appended to the response.
_UNSUPPORTED = re.compile("TokenClassification|ProcessRewardModel|PrmModel")


def recognize(config: Mapping[str, Any], shapes: Mapping[str, Shape], family: str | Family | None) -> Family:
    """The family of a checkpoint with these tensors, which must include its complete head.

    Args:
        family: a name in FAMILIES, a TOML file or a Family; needed if the tensors alone do not identify it.

    Raises:
        ConfigError: no family fits, or not the one named; a tensor of the head is missing, unexpected or of a wrong
            shape.
    """
    if family is not None:
        recognized = family_of(family) if isinstance(family, str) else family
    else:
        architectures = config.get("architectures") or ()
        named = next((_ARCHITECTURES[a] for a in architectures if a in _ARCHITECTURES), None)
        name = named or _by_tensors(config, shapes)
        if not named and (unsupported := [a for a in architectures if _UNSUPPORTED.search(a)]):
            raise ConfigError(
                f"architecture {unsupported[0]}: its head looks like that of the family {name}, but it reads other "
                f"tokens, which is not supported"
            )
        recognized = FAMILIES[name]
    _check(recognized, config, shapes)
    if "objectives" in config and recognized.name in OWN_OBJECTIVES:
        reward_names(recognized, config, shapes)  # may raise ConfigError
    return recognized


def _by_tensors(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
    """The name of the one family that the tensors and the config fit. Raises ConfigError if there is none."""
    marked = [name for name, mark in _IDENTIFIED_BY.items() if mark in shapes]
    if not marked:
        raise ConfigError(_no_head(shapes))
    kind = config.get("model_type")
    fitting = [name for name in marked if BACKBONE_OF.get(name, kind) == kind]
    if not fitting:
        twins = " or ".join(f"{name} ({BACKBONE_OF[name]})" for name in marked)
        raise ConfigError(f"{_IDENTIFIED_BY[marked[0]]}: of {twins}, but model_type is {kind}: say --family")
    if fitting[0] == "value-head" and any(_ATHENE.search(a) for a in config.get("architectures") or ()):
        raise ConfigError(
            "v_head.weight of an Athene model, or of another one that is loaded by code of its own: say --family "
            "athene if it reads a token after the response, --family value-head if it reads the response's last"
        )
    return fitting[0]


def _no_head(shapes: Mapping[str, Shape]) -> str:
    heads = [name for name in sorted(shapes) if name.startswith(HEAD_PREFIXES)]
    if named := next((names for mark, names in _NAMED.items() if mark in shapes), None):
        return (
            f"{', '.join(heads[:5])}: of a family that is only used if asked for: --family {'|'.join(named)}"
        )
    if heads:
        return f"no known head: found {', '.join(heads[:5])}, expected one of {', '.join(_IDENTIFIED_BY.values())}"
    kind = "a language-model head" if LM_HEAD in shapes else "no head at all"
    judges = [name for name, f in FAMILIES.items() if f.reads_logits]
    return (
        f"not a reward model by its tensors: found {kind}, expected one of {', '.join(_IDENTIFIED_BY.values())}. A "
        "language model trained to judge has no tensors of its own: say how to read it with --family "
        f"{'|'.join(judges)}"
    )


def _check(family: Family, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    try:
        expected, optional = expected_head(family, config, shapes)
    except KeyError as error:
        raise ConfigError(f"config.json has no {error}, which the family {family.name} needs") from None
    prefixes = head_prefixes(family)
    head = {name: shape for name, shape in shapes.items() if name.startswith(prefixes)}
    if family == HIDDEN:
        return
    if family.name not in FAMILIES:  # nothing is known of such a model but its file
        head |= {name: shape for name, shape in shapes.items() if not _BACKBONE.match(name)}
    head |= {name: shapes[name] for name in (*expected, *optional) if name in shapes}
    faults = [f"missing {name}" for name in sorted(expected.keys() - head.keys())]
    faults += [f"unexpected {name}" for name in sorted(head.keys() - expected.keys() - optional.keys())]
    faults += [
        f"{name} has shape {head[name]}, expected {shape}"
        for name, shape in sorted((expected | optional).items())
        if head.get(name, shape) != shape
    ]
    if faults:
        raise ConfigError(f"not a complete head of the family {family.name}: {'; '.join(faults)}")


def recognized_by(family: Family) -> str:
    """What identifies a family: its architecture or one of its tensors, with its backbone if others have the same, or
    its name alone.
    """
    if architecture := next((a for a, name in _ARCHITECTURES.items() if name == family.name), None):
        return f"architecture `{architecture}`"
    if family.name not in _IDENTIFIED_BY or family.unverified:
        return "`--family`"
    backbone = BACKBONE_OF.get(family.name)
    return f"`{_IDENTIFIED_BY[family.name]}`" + (f", {backbone}" if backbone else "")


def is_beside(name: str, family: Family) -> bool:
    """Whether a tensor belongs to no decoder, in a checkpoint whose head is of no use."""
    return family == HIDDEN and not _DECODER.match(name)


def head_prefixes(family: Family) -> tuple[str, ...]:
    """How the names of tensors begin that belong to a head, and not to the backbone."""
    return (*HEAD_PREFIXES, *(f"{layer}." for layer in family.layers))


def expected_head(
    family: Family, config: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> tuple[Shapes, Shapes]:
    """The shapes of the tensors that a head must have, and of those that it may have."""
    if family == HIDDEN:
        return {}, {}
    if family.layers:
        return chain(family, int(config["hidden_size"]), shapes), {}
    if family.tokens:
        return _language_model(config, shapes)
    return _EXPECTED[family.name](config, shapes)


def reward_names(family: Family, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The names of a checkpoint's rewards, in the order in which its head returns them.

    Raises ConfigError if the labels do not give every reward a name of its own.
    """
    if family.by_step:
        return STEP_REWARDS
    if family == HIDDEN:
        return ()
    judged = {"outcome": ("correct",), "pairs": ("win_rate",)}
    if family.text in judged:
        return judged[family.text]
    if named := family.label_names:
        return named
    if family.name in OWN_OBJECTIVES:
        count = int(config.get("num_objectives", len(ARMORM_REWARDS)))
        if config.get("objectives") is not None:
            return _objectives(config["objectives"], count)
        return _names(ARMORM_REWARDS, count, "objective")
    if family.name == "ldl":
        return _names((), ldl_objectives(config), "objective")
    if family.name == "urm":
        return _names(HELPSTEER_REWARDS, shapes["score.weight"][0] // 2, "attribute")
    count = shapes[_last_layer(family)][0]
    labels = config.get("id2label") or {}
    names = [
        re.sub(r"\W+", "_", str(labels.get(str(i), f"LABEL_{i}"))).strip("_").lower() for i in range(count)
    ]
    if "" in names or len(set(names)) < count:
        raise ConfigError(
            f"config.json: id2label {labels}: every label must give its reward a name of its own, "
            f"found {', '.join(map(repr, names))}"
        )
    return ("reward",) if names == ["label_0"] else tuple(names)


def _objectives(given: Any, count: int) -> tuple[str, ...]:
    """The names in a config that gives them. Raises ConfigError unless each reward has one of its own."""
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"config.json: objectives is {given!r:.100}: expected a list of names")
    names = tuple(re.sub(r"\W+", "_", name).strip("_") for name in given)
    if len(names) != count:
        raise ConfigError(
            f"config.json: objectives has {len(names)} names, but num_objectives is {count}: one for each is needed"
        )
    if unclear := [name for name in names if not name or names.count(name) > 1]:
        raise ConfigError(
            f"config.json: objectives: every one must give its reward a name of its own, found {unclear[0]!r} "
            f"{names.count(unclear[0])} times"
        )
    return names


def _names(published: tuple[str, ...], count: int, stem: str) -> tuple[str, ...]:
    """The published names if their number is right, otherwise the stem with numbers."""
    return published if len(published) == count else tuple(f"{stem}_{i}" for i in range(count))


def _last_layer(family: Family) -> str:
    if family.layers:
        return f"{family.layers[-1]}.weight"
    names = {"classifier": "score.weight", "mlp-classifier": "score.2.weight"}
    return names.get(family.name, "v_head.weight")


def _classifier(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Expected:
    count = _count(config, shapes, "score.weight")
    return {"score.weight": (count, int(config["hidden_size"]))}, {"score.bias": (count,)}


def _mlp_classifier(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Expected:
    hidden = int(config["hidden_size"])
    count = _count(config, shapes, "score.2.weight")
    return _linear("score.0", hidden, hidden) | _linear("score.2", count, hidden), {}


def _urm(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Expected:
    hidden, count = int(config["hidden_size"]), _count(config, shapes, "score.weight")
    expected: Shapes = {"score.weight": (count, hidden)}
    for i, wide_out in ((0, hidden), (2, hidden), (4, count // 2)):
        expected |= _linear(f"weights.fc.{i}", wide_out, hidden)
    return expected, {"score.bias": (count,)}


def _value_head(config: Mapping[str, Any], _: Mapping[str, Shape]) -> Expected:
    if config.get("reward_token_id") is not None:
        raise ConfigError(
            "config.json has a reward_token_id: models that read a reward token are not supported"
        )
    return {"v_head.weight": (1, int(config["hidden_size"]))}, {"v_head.bias": (1,)}


def _language_model(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Expected:
    size = (int(config["vocab_size"]), int(config["hidden_size"]))
    if scaled := [name for name in ("logits_scaling", "logit_scale") if config.get(name) is not None]:
        raise ConfigError(f"config.json has {scaled[0]}: a model that scales its logits is not supported")
    by_default = str(config.get("model_type")).startswith("gemma")  # whose configs do not say it
    tied = config.get("tie_word_embeddings", by_default) and LM_HEAD not in shapes
    return {EMBEDDINGS if tied else LM_HEAD: size}, {}


def _count(config: Mapping[str, Any], shapes: Mapping[str, Shape], name: str) -> int:
    """The number of labels, from the config or else from the shape of the last layer."""
    return len(config.get("id2label") or ()) or int(config.get("num_labels") or shapes.get(name, (1,))[0])


_EXPECTED: dict[str, Callable[[Mapping[str, Any], Mapping[str, Shape]], Expected]] = {
    "armorm": armorm,
    "qrm": qrm,
    "classifier": _classifier,
    "mlp-classifier": _mlp_classifier,
    "urm": _urm,
    "value-head": _value_head,
    "starling": _value_head,
    "ldl": ldl,
    "pairrm": pairrm,
    "beaver-reward": lambda config, _: beaver(config, "reward"),
    "beaver-cost": lambda config, _: beaver(config, "cost"),
    "prm-qwen": lambda config, _: (two_labels(config), {}),
    "prm-reasonflux": lambda config, _: (two_labels(config), {}),
} | {name: _language_model for name, family in FAMILIES.items() if family.reads_logits}
