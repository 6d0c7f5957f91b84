"""The families in words: their models and rewards, and what each was compared with. README's table is made of it."""

from typing import NamedTuple

from armo_ray.model.families import FAMILIES
from armo_ray.model.recognize import recognized_by


class Entry(NamedTuple):
    """One family. `checked` names the code whose procedure the tests write out and compare with."""

    models: str
    rewards: str
    score: str
    checked: str


_ATTRIBUTES = "one per label, by its name", "their mean"
_GATED = "gated sum"
_REWARD = "`reward`", "the reward"
_STEPS = "`mean`, `min`, `product`, `last`; `step_scores`", "`mean`"
CATALOG = {
    "armorm": Entry(
        "ArmoRM-Llama3-8B-v0.1", "19 objectives and gates", _GATED, "the model's modeling_custom.py"
    ),
    "qrm": Entry(
        "QRM-Llama3-8B, QRM-Llama3.1-8B",
        "19 means of quantiles and gates",
        _GATED,
        "rewardbench/models/qrm.py of reward-bench",
    ),
    "classifier": Entry(
        "FsfairX, Llama-3.1 RB2 (`--revision`), Skywork-Reward",
        *_ATTRIBUTES,
        "AutoModelForSequenceClassification of transformers",
    ),
    "mlp-classifier": Entry(
        "Qwen2.5-Math-RM: a head of two layers", *_ATTRIBUTES, "Qwen2ForRewardModel of the model's own code"
    ),
    "urm": Entry(
        "URM-LLaMa-3.1-8B",
        "5 attributes and gates",
        _GATED,
        "the class of the model's own code",
    ),
    "value-head": Entry("checkpoints with a `v_head`", *_ATTRIBUTES, "a linear layer on the last token"),
    "starling": Entry(
        "Starling-RM-34B",
        "`reward`, at the token before the first of id 0",
        "the reward",
        "the code of its model card",
    ),
    "orm-mistral": Entry(
        "Llama3.1-8B-ORM-Mistral-Data", '`correct`: P("+")', "the reward", "math-rm of RLHFlow"
    ),
    "orm-deepseek": Entry(
        "Llama3.1-8B-ORM-Deepseek-Data", '`correct`: P("+")', "the reward", "math-rm of RLHFlow"
    ),
    "prm-mistral": Entry("Llama3.1-8B-PRM-Mistral-Data", *_STEPS, "math-rm of RLHFlow"),
    "prm-deepseek": Entry("Llama3.1-8B-PRM-Deepseek-Data", *_STEPS, "math-rm of RLHFlow"),
    "pairwise": Entry(
        "pair-preference-model-LLaMA3-8B",
        "`win_rate` over the row's other responses, in both orders; of more than 17 responses, over 16 drawn by hash",
        "the win rate",
        "pair-pm of RLHFlow",
    ),
    "trl-value-head": Entry(
        "value heads of TRL and LlamaFactory, also in `value_head.safetensors`", *_REWARD, "ValueHead of TRL"
    ),
    "grm": Entry(
        "GRM-llama3-8B-sftreg, GRM-Gemma-2B-sftreg: a value head of two layers",
        *_REWARD,
        "rewardbench/models/grm.py of reward-bench",
    ),
    "token-logit": Entry(
        "Llama-3.1-Nemotron-70B-Reward-HF",
        "`reward`: the logit of token 0 after the response",
        "the reward",
        "the logits of AutoModelForCausalLM, as its model card reads them",
    ),
    "dpo": Entry(
        "any language model trained with DPO, next to its `--reference-model`",
        "`reward`: beta times the log ratio of the response",
        "the reward",
        "the log-softmax of AutoModelForCausalLM, summed as in the paper of DPO",
    ),
    "athene": Entry(
        "Athene-RM-8B, Athene-RM-70B",
        "`reward`, at a token after the response",
        "the reward",
        "its model card",
    ),
    "ultrarm": Entry(
        "UltraRM-13b, in its own prompt format", *_REWARD, "rewardbench/models/openbmb.py of reward-bench"
    ),
    "eurus": Entry(
        "Eurus-RM-7b, in its own prompt format; one question only",
        *_REWARD,
        "rewardbench/models/openbmb.py of reward-bench",
    ),
    "beaver-reward": Entry(
        "beaver-7b-v1.0-reward, in its own prompt format",
        *_REWARD,
        "rewardbench/models/beaver.py of reward-bench",
    ),
    "beaver-cost": Entry(
        "beaver-7b-v1.0-cost, in its own prompt format",
        "`cost`",
        "the negated cost",
        "rewardbench/models/beaver.py of reward-bench",
    ),
    "ldl": Entry(
        "LDL-Reward-Gemma-2-27B-v0.1, its `.pt` files converted",
        "22 means of distributions and gates",
        _GATED,
        "rewardbench/models/ldlreward.py of reward-bench",
    ),
    "worldpm": Entry(
        "WorldPM-72B: an `mlp-classifier` whose conversations begin with an empty system prompt",
        *_REWARD,
        "the README of WorldPM",
    ),
    "prm-qwen": Entry("Qwen2.5-Math-PRM-7B, Qwen2.5-Math-PRM-72B", *_STEPS, "its model card"),
    "prm-reasonflux": Entry(
        "ReasonFlux-PRM-7B, whose template has the system prompt", *_STEPS, "the README of ReasonFlux"
    ),
    "prm-eurus": Entry(
        "EurusPRM-Stage1, EurusPRM-Stage2, next to their `--reference-model`",
        "the same, of log ratios up to each step's end; `step_scores`",
        "`mean`",
        "its model card, and eval/processbench.py of ImplicitPRM",
    ),
    "prm-shepherd": Entry(
        "math-shepherd-mistral-7b-prm, in its own prompt format; one question only", *_STEPS, "its model card"
    ),
    "prm-skywork": Entry(
        "Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B, in its own prompt format; one question only",
        *_STEPS,
        "skywork-o1-prm-inference, as openr has it",
    ),
    "deberta": Entry(
        "reward-model-deberta-v3-large-v2, an encoder: prompts are not shared; one question only",
        *_REWARD,
        "DebertaV2ForSequenceClassification of transformers, called as in its model card",
    ),
    "pairrm": Entry(
        "PairRM-hf, an encoder that compares two responses; one question only, and nothing is cut",
        "`win_rate`, as of `pairwise`",
        "the win rate",
        "DebertaV2PairRM of llm_blender, called as in its model card",
    ),
}
HEADS = ("family", "models", "recognized by", "rewards", "score")


def table() -> list[tuple[str, ...]]:
    """The rows of README's table, under HEADS."""
    return [
        (f"`{name}`", entry.models, recognized_by(FAMILIES[name]), entry.rewards, entry.score)
        for name, entry in CATALOG.items()
    ]
