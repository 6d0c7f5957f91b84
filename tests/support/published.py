"""How the authors of each family score, written out plainly with transformers: what the tests compare with.

In float32, with eager attention, one conversation at a time, by their templates and their rules for positions.
Shares no code with the package under test but the reading of files.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

Messages = list[dict[str, str]]
# from the messages before an answer and the answer: its score, and its rewards, or what is said of its steps
Published = Callable[[Messages, str], tuple[float, list[float]]]
CONTEXT = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
# what ends a user's turn, by the token that does; Qwen's last new line becomes one token with an answer's
TURN_ENDS = {
    "<|eot_id|>": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|im_end|>": "<|im_end|>\n<|im_start|>assistant",
    "<end_of_turn>": "<end_of_turn>\n<start_of_turn>model\n",
}
FP32: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


def load(auto: Any, path: Path, **options: Any) -> Any:
    return auto.from_pretrained(path, **FP32, **options).eval()


def tokenizer_of(path: Path) -> Any:
    auto: Any = AutoTokenizer
    return auto.from_pretrained(path)


def ids_of(tokenizer: Any, prompt: Messages, answer: str) -> torch.Tensor:
    """One conversation: the template's text without BOS, to which the tokenizer adds one if it does so."""
    text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    adds = tokenizer.bos_token is not None and tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    if adds:
        text = text.replace(tokenizer.bos_token, "")
    ids: torch.Tensor = tokenizer(text, return_tensors="pt")["input_ids"]
    return ids


def head_of(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("*.safetensors"))
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def sequential(tensors: dict[str, torch.Tensor], name: str, between: type[nn.Module]) -> nn.Sequential:
    """The layers name.0, name.2, ... of a checkpoint, with a function between any two."""
    found = sorted(
        {int(key.removeprefix(name + ".").split(".")[0]) for key in tensors if key.startswith(name)}
    )
    layers: list[nn.Module] = []
    for i in found:
        weight = tensors[f"{name}.{i}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": tensors[f"{name}.{i}.bias"]})
        layers += [linear, between()]
    return nn.Sequential(*layers[:-1])


def classifier(path: Path) -> Published:
    model, tokenizer = load(AutoModelForSequenceClassification, path), tokenizer_of(path)

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        logits = model(ids_of(tokenizer, prompt, answer)).logits[0].tolist()
        return float(np.mean(logits)), logits

    return score


def last_token(path: Path, head: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Published:
    model, tokenizer = load(AutoModel, path), tokenizer_of(path)

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        hidden = model(ids_of(tokenizer, prompt, answer)).last_hidden_state[0, -1]
        total, rewards = head(hidden)
        return float(total), rewards.tolist()

    return score


def mlp_classifier(path: Path) -> Published:
    layers = sequential(head_of(path), "score", nn.ReLU)
    return last_token(path, lambda hidden: (layers(hidden)[0], layers(hidden)))


def worldpm(path: Path) -> Published:
    """The README of WorldPM: a system prompt that is there and empty."""
    scored = mlp_classifier(path)
    return lambda prompt, answer: scored([{"role": "system", "content": ""}, *prompt], answer)


def value_head(path: Path) -> Published:
    weight = head_of(path)["v_head.weight"]
    return last_token(path, lambda hidden: ((weight @ hidden)[0], weight @ hidden))


def trl_value_head(path: Path) -> Published:
    """TRL's ValueHead: one linear layer, whose dropout does nothing at inference."""
    tensors = head_of(path)
    summary = nn.Linear(tensors["v_head.summary.weight"].shape[1], 1)
    summary.load_state_dict({k: tensors[f"v_head.summary.{k}"] for k in ("weight", "bias")})
    return last_token(path, lambda hidden: (summary(hidden)[0], summary(hidden)))


def grm(path: Path) -> Published:
    layers = sequential(head_of(path), "v_head.summary", nn.ReLU)
    return last_token(path, lambda hidden: (layers(hidden)[0], layers(hidden)))


def athene(path: Path) -> Published:
    """One token more after the conversation, and the value at the last token of its kind."""
    model, tokenizer, weight = load(AutoModel, path), tokenizer_of(path), head_of(path)["v_head.weight"][0]
    mark = tokenizer.convert_tokens_to_ids("<|reserved_special_token_1|>")

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids = torch.cat((ids_of(tokenizer, prompt, answer), torch.tensor([[mark]])), dim=1)
        rewards = model(ids).last_hidden_state[0] @ weight
        reward = float(rewards[(ids[0] == mark).nonzero()[-1].item()])
        return reward, [reward]

    return score


def in_own_text(path: Path, text: Callable[[Messages, str], str], head: str) -> Published:
    """A family that gives its tokenizer a text without a chat template. The last token is read."""
    model, tokenizer, tensors = load(AutoModel, path), tokenizer_of(path), head_of(path)
    bias = tensors.get(f"{head}.bias", torch.zeros(1))

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids = tokenizer(text(prompt, answer), return_tensors="pt")["input_ids"]
        reward = float(tensors[f"{head}.weight"][0] @ model(ids).last_hidden_state[0, -1] + bias[0])
        return reward, [reward]

    return score


def ultrarm_text(prompt: Messages, answer: str) -> str:
    turns = [*prompt, {"role": "assistant", "content": answer}]
    return "\n".join(f"{['Human', 'Assistant'][i % 2]}: {m['content']}" for i, m in enumerate(turns))


def eurus_text(prompt: Messages, answer: str) -> str:
    (question,) = prompt
    return f"[INST] {question['content']} [/INST] {answer}"


def beaver_text(prompt: Messages, answer: str) -> str:
    text = "BEGINNING OF CONVERSATION: "
    for message in prompt:
        user = message["role"] == "user"
        text += f"USER: {message['content']} ASSISTANT:" if user else message["content"] + "</s>"
    return text + answer


def beaver(path: Path, kind: str) -> Published:
    plain, tensors = in_own_text(path, beaver_text, "score_head"), head_of(path)
    mean = tensors["normalizer.mean"][0] if kind == "reward" else 0.0

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        reward = float((plain(prompt, answer)[0] - mean) / (tensors["normalizer.var"][0].sqrt() + 1e-8))
        return reward if kind == "reward" else -reward, [reward]

    return score


def token_logit(path: Path) -> Published:
    """The logit of token 0 after the last token, as in the card of Llama-3.1-Nemotron-70B-Reward-HF."""
    model, tokenizer = load(AutoModelForCausalLM, path), tokenizer_of(path)

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        reward = float(model(ids_of(tokenizer, prompt, answer)).logits[0, -1, 0])
        return reward, [reward]

    return score


def rating(path: Path, tokens: list[str], values: list[float]) -> Published:
    """The mean of the values, each with the probability of its token among the tokens."""
    model, tokenizer = load(AutoModelForCausalLM, path), tokenizer_of(path)
    rows = [tokenizer.encode(token, add_special_tokens=False)[0] for token in tokens]

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        whole = model(ids_of(tokenizer, prompt, answer)).logits[0, -1].softmax(dim=0)[rows]
        among = whole / whole.sum()
        return float(among @ torch.tensor(values)), [*among.tolist(), float(whole.sum())]

    return score


def urm(path: Path) -> Published:
    tensors = head_of(path)
    gate = sequential(tensors, "weights.fc", nn.SELU)

    def head(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rewards = (tensors["score.weight"] @ hidden).view(-1, 5, 2)[:, :, 0].view(5)
        return (rewards * gate(hidden)).sum(), rewards

    return last_token(path, head)


def ldl(path: Path) -> Published:
    """The distributions of all objectives, weighted and summed, and the mean of the result."""
    tensors = head_of(path)
    regression = sequential(tensors, "regression_layer.network", nn.LeakyReLU)
    gating = sequential(tensors, "gating_layer.network", nn.LeakyReLU)
    levels = torch.linspace(0, 1, 10)

    def head(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distributions = torch.softmax(regression(hidden).view(-1, 10), dim=-1)
        return (gating(hidden) @ distributions * levels).sum(), distributions @ levels

    return last_token(path, head)


def starling(path: Path) -> Published:
    tensors, tokenizer = head_of(path), tokenizer_of(path)
    auto: Any = AutoModel
    model = auto.from_config(AutoConfig.from_pretrained(path), **FP32).eval()
    model.load_state_dict(
        {k.removeprefix("transformer."): v for k, v in tensors.items() if k.startswith("transformer.")}
    )

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids = ids_of(tokenizer, prompt, answer)
        values = model(ids).last_hidden_state[0] @ tensors["v_head.weight"][0]
        zeros = (ids[0] == 0).nonzero()
        end = int(zeros[0]) if len(zeros) else len(ids[0])
        return float(values[end - 1]), [float(values[end - 1])]

    return score


def gate_of(tokenizer: Any, ids: torch.Tensor) -> int:
    """Where the user's last turn ends: the start of the last occurrence of what goes from there to the answer."""
    header = next(text for mark, text in TURN_ENDS.items() if mark in tokenizer.chat_template)
    pattern, found = tokenizer.encode(header, add_special_tokens=False), ids[0].tolist()
    return max(j for j in range(len(found)) if found[j : j + len(pattern)] == pattern)


def armorm(path: Path) -> Published:
    tensors, tokenizer, model = head_of(path), tokenizer_of(path), load(AutoModel, path)
    depth = sum(name.startswith("gating.layers.") for name in tensors) // 2
    layers: list[nn.Module] = []
    for i in range(depth):
        weight = tensors[f"gating.layers.{i}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": tensors[f"gating.layers.{i}.bias"]})
        layers += [linear, nn.ReLU()]
    gating = nn.Sequential(*layers[:-1])

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids = ids_of(tokenizer, prompt, answer)
        hidden = model(ids).last_hidden_state[0]
        gate = gating(hidden[gate_of(tokenizer, ids)]) / 10
        rewards = tensors["regression_layer.weight"] @ hidden[-1]
        weights = torch.softmax(gate, dim=0) * tensors["gating.logit_scale"]
        return float((weights * (rewards @ tensors["reward_transform_matrix"])).sum()), rewards.tolist()

    return score


def qrm(path: Path) -> Published:
    tensors, tokenizer, model = head_of(path), tokenizer_of(path), load(AutoModel, path)
    layers: list[nn.Module] = []
    for i in (0, 3, 6):
        norm = nn.BatchNorm1d(len(tensors[f"gating.layers.{i + 2}.bias"]))
        prefix = f"gating.layers.{i + 2}."
        norm.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        weight = tensors[f"gating.layers.{i}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.load_state_dict({"weight": weight})
        layers += [linear, nn.ReLU(), norm]
    last = sequential(
        {k.replace("layers.9", "last.0"): v for k, v in tensors.items()}, "gating.last", nn.ReLU
    )
    gating = nn.Sequential(*layers, last).eval()

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids = ids_of(tokenizer, prompt, answer)
        hidden = model(ids).last_hidden_state[0]
        gate = torch.softmax(gating(hidden[gate_of(tokenizer, ids)][None]) / 10, dim=1)[0]
        gate = gate * tensors["gating.logit_scale"]
        quantiles = (tensors["regression_layer.weight"] @ hidden[-1]).reshape(19, 19)
        rewards = quantiles.mean(dim=1) @ tensors["reward_transform_matrix"]
        return float((gate * rewards).sum()), rewards.tolist()

    return score


def orm(path: Path, mark: str) -> Published:
    tokenizer, model = tokenizer_of(path), load(AutoModelForCausalLM, path)
    signs = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    end = 3 if "eot_id" in tokenizer.chat_template else 4  # other templates end a turn with a new line

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        text = prompt[-1]["content"] + " " + (answer.replace(mark, "") if mark else answer)
        turns = [*prompt[:-1], {"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt")["input_ids"]
        good = float(model(ids).logits[:, -end, signs].softmax(dim=-1)[0, 0])
        return good, [good]

    return score


def prm(path: Path, step_end: str) -> Published:
    tokenizer, model = tokenizer_of(path), load(AutoModelForCausalLM, path)
    signs = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        steps, turns = [step.strip() for step in answer.split(step_end)], [*prompt[:-1]]
        found = []
        for k, step in enumerate(steps):
            text = prompt[-1]["content"] + " " + step if k == 0 else step
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt")["input_ids"]
            found.append(float(model(ids).logits[:, -3, signs].softmax(dim=-1)[0, 0]))
        return sum(found) / len(found), found

    return score


def prm_qwen(path: Path, system: str) -> Published:
    """The card of Qwen2.5-Math-PRM: <extra_0> after each paragraph, and class 1 of two where it stands."""
    layers, tokenizer, model = (
        sequential(head_of(path), "score", nn.ReLU),
        tokenizer_of(path),
        load(AutoModel, path),
    )
    (mark,) = tokenizer.encode("<extra_0>")

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        steps = [step.strip() for step in answer.split("\n\n")]  # the card has a list of clean paragraphs
        turns = [*prompt, {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"}]
        if system:
            turns = [{"role": "system", "content": system}, *turns]
        ids = tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")
        found = layers(model(ids).last_hidden_state[0]).softmax(dim=-1)[ids[0] == mark, 1].tolist()
        return sum(found) / len(found), found

    return score


def prm_shepherd(path: Path) -> Published:
    """The card of Math-Shepherd's model: the whole text, and the odds of + and - at each token of ки."""
    tokenizer, model = tokenizer_of(path), load(AutoModelForCausalLM, path)
    signs, mark = tokenizer.encode("+ -")[1:], tokenizer.encode("ки")[-1]

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids = torch.tensor([tokenizer.encode(f"{prompt[-1]['content']} {answer}")])
        found = model(ids).logits[:, :, signs].softmax(dim=-1)[:, :, 0][ids == mark].tolist()
        return sum(found) / len(found), found

    return score


def prm_skywork(path: Path) -> Published:
    """skywork-o1-prm-inference: each line by itself, a new line after it, and the sigmoid of the value there."""
    tokenizer, model, tensors = tokenizer_of(path), load(AutoModel, path), head_of(path)
    weight, bias = tensors["v_head.summary.weight"], tensors["v_head.summary.bias"]
    mark = tokenizer.encode("\n")[-1]

    def score(prompt: Messages, answer: str) -> tuple[float, list[float]]:
        ids, ends = tokenizer.encode(tokenizer.bos_token + prompt[-1]["content"] + "\n"), []
        for step in answer.split("\n"):
            ids += [*tokenizer.encode(step), mark]
            ends.append(len(ids) - 1)
        values = model(torch.tensor([ids])).last_hidden_state[0] @ weight[0] + bias
        found = torch.sigmoid(values)[ends].tolist()
        return sum(found) / len(found), found

    return score


def pairwise(path: Path) -> Callable[[Messages, str, str], float]:
    """The probability that the first answer is better."""
    tokenizer, model, plain = tokenizer_of(path), load(AutoModelForCausalLM, path), tokenizer_of(path)
    plain.chat_template = CONTEXT
    signs = [tokenizer.encode(sign, add_special_tokens=False)[0] for sign in "AB"]

    def score(prompt: Messages, chosen: str, rejected: str) -> float:
        context, found = plain.apply_chat_template(prompt, tokenize=False), []
        for place in (0, 1):
            first, second = [chosen, rejected][place], [chosen, rejected][1 - place]
            text = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
            rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
            ids = tokenizer.encode(
                rendered.replace(tokenizer.bos_token, ""), return_tensors="pt", add_special_tokens=False
            )
            logits = model(ids).logits[0, -1, signs].double()
            found.append(float(logits.softmax(0)[place]))
        return sum(found) / 2

    return score


PUBLISHED: dict[str, Callable[[Path], Published]] = {
    "armorm": armorm,
    "qrm": qrm,
    "classifier": classifier,
    "mlp-classifier": mlp_classifier,
    "worldpm": worldpm,
    "urm": urm,
    "value-head": value_head,
    "starling": starling,
    "orm-mistral": partial(orm, mark=" ки"),
    "orm-deepseek": partial(orm, mark=""),
    "prm-mistral": partial(prm, step_end="ки\n"),
    "prm-deepseek": partial(prm, step_end="\n\n"),
    "trl-value-head": trl_value_head,
    "grm": grm,
    "token-logit": token_logit,
    "athene": athene,
    "ultrarm": partial(in_own_text, text=ultrarm_text, head="regression_head"),
    "eurus": partial(in_own_text, text=eurus_text, head="regression_head"),
    "beaver-reward": partial(beaver, kind="reward"),
    "beaver-cost": partial(beaver, kind="cost"),
    "ldl": ldl,
    "prm-qwen": partial(
        prm_qwen, system=r"Please reason step by step, and put your final answer within \boxed{}."
    ),
    "prm-reasonflux": partial(prm_qwen, system=""),
    "prm-shepherd": prm_shepherd,
    "prm-skywork": prm_skywork,
}
