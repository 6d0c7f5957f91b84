"""A policy's implicit reward is beta times the log ratio of its response's probabilities to its reference model's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from armo_ray.cli.main import main
from armo_ray.engine import RewardModel, Scores
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import inspect
from armo_ray.model.families import FAMILIES
from armo_ray.model.messages import Messages
from armo_ray.model.reference import Reference
from armo_ray.outputs.schema import footer
from armo_ray.score.config import load_config
from armo_ray.score.job import prepare
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.engine.test_families import texts
from tests.support.by_day import by_day
from tests.support.local import config_for, read_table, rows_of, score_locally
from tests.support.published import ids_of, load, tokenizer_of

DPO = FAMILIES["dpo"]
# the first token of a response: after the header, or after the special token before a header that is encoded with it
LLAMA = "<|end_header_id|>\n\n"
BEFORE = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": "<|im_start|>",
    "gemma2": "<start_of_turn>model\n",
}
TIED = {"tie_word_embeddings": True}
CASES: dict[str, tuple[str, dict[str, Any], float, bool]] = {
    "llama": ("llama", {}, 0.1, False),
    "qwen2": ("qwen2", TIED, 2.5, True),
    "gemma2": ("gemma2", TIED, 0.1, False),  # which caps its logits
    "mistral": ("mistral", {}, 0.1, True),
}


def write_pair(path: Path, backbone: str = "llama", **fields: Any) -> tuple[str, str]:
    """A policy and a reference model with other random weights."""
    for seed, name in enumerate(("policy", "reference")):
        write_family(path / name, "dpo", backbone, seed, **fields)
    return str(path / "policy"), str(path / "reference")


def loaded(policy: str, reference: str, beta: float = 0.1, normalized: bool = False) -> RewardModel:
    given = Reference(reference, beta=beta, length_normalized=normalized)
    return RewardModel.load(policy, None, "float32", "cpu", 900, family="dpo", reference=given)


def said() -> list[tuple[Messages, str]]:
    """Real pairs of responses to one prompt, and one response twice."""
    actual = texts("dpo")[:8]
    return [*actual, actual[0]]


def scores_of(model: RewardModel, policy: str, share: bool = True) -> Scores:
    candidates = [Candidate(i, "response", prompt, answer) for i, (prompt, answer) in enumerate(said())]
    done = Encoder(Chat.load(Path(policy), DPO), 8192).encode(candidates)
    assert done.rejects == []
    return model.with_options(share_prompts=share).score(done.sequences())


def plainly(policy: str, reference: str, before: str, beta: float, normalized: bool) -> list[float]:
    """The reward of every response, from the log-softmax of whole conversations, one at a time."""
    tokenizer = tokenizer_of(Path(policy))
    models = [load(AutoModelForCausalLM, Path(path)) for path in (policy, reference)]
    mark = tokenizer.encode(before, add_special_tokens=False)
    rewards = []
    for prompt, answer in said():
        ids = ids_of(tokenizer, prompt, answer)
        found = ids[0].tolist()
        start = max(i for i in range(len(found)) if found[i : i + len(mark)] == mark) + len(mark)
        of_both = []
        for model in models:
            logs = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
            of_both.append(logs[range(start - 1, len(found) - 1), found[start:]])
        total = float((of_both[0] - of_both[1]).sum())
        rewards.append(beta * total / (len(found) - start if normalized else 1))
    return rewards


@pytest.mark.parametrize("case", by_day(CASES, ["llama", "qwen2"]))
def test_rewards_are_log_ratios_of_the_whole_response_by_transformers(case: str, tmp_path: Path) -> None:
    backbone, fields, beta, normalized = CASES[case]
    policy, reference = write_pair(tmp_path, backbone, **fields)
    model = loaded(policy, reference, beta, normalized)
    with torch.inference_mode():
        expected = plainly(policy, reference, BEFORE[backbone], beta, normalized)
    shared, unshared = (scores_of(model, policy, share) for share in (True, False))
    assert shared.computed_tokens < unshared.computed_tokens
    for actual in (shared, unshared):
        assert np.all(np.abs(actual.score - expected) < 1e-5 * np.maximum(1, np.abs(expected)))
        assert np.array_equal(actual.rewards[:, 0], actual.score)
    assert shared.score[0] == shared.score[-1]
    assert np.ptp(expected) > 1e-3
    assert shared.flops < unshared.flops


def test_equal_models_give_nothing_and_swapped_models_the_negative(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    assert not scores_of(loaded(policy, policy), policy).score.any()
    there, back = (
        scores_of(loaded(*pair), policy).score for pair in ((policy, reference), (reference, policy))
    )
    assert np.array_equal(there, -back)
    assert np.abs(there).min() > 0


def test_the_work_of_both_models_and_of_their_heads_is_counted(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    prompt, response = [1, 2, 3, 4, 5], [6, 7, 8]
    alone = RewardModel.load(policy, None, "float32", "cpu", family="token-logit").with_options(
        needed_rows=False
    )
    backbone = alone.score([(prompt, [response])]).flops
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    head = 2 * config["vocab_size"] * config["hidden_size"] * len(response)
    for responses, count in (([response], 1), ([response, response], 1)):  # equal responses are computed once
        actual = loaded(policy, reference).score([(prompt, responses)])
        assert actual.flops == 2 * (backbone + head) * count


def test_a_token_after_equal_beginnings_is_that_of_each_response(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    model = loaded(policy, reference)
    prompt, same = list(range(20)), list(range(20, 60))
    responses = [[*same, 61, 62], [*same, 63, 62], [*same, 61]]
    shared = model.score([(prompt, responses)])
    alone = [model.score([(prompt, [response])]).score[0] for response in responses]
    assert shared.computed_tokens == 60 + 2 + 2
    assert np.abs(shared.score - alone).max() < 1e-5
    assert len(set(alone)) == 3


def given(tmp_path: Path, **options: Any) -> dict[str, Any]:
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}) + "\n"
    )
    return {
        "input": [str(tmp_path / "in.jsonl")],
        "output": str(tmp_path / "out"),
        "model": str(tmp_path / "policy"),
        "family": "dpo",
        **options,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "reference-model: the family dpo compares a policy with .* give that model"),
        ({"beta": 0.2}, "beta: only of the family dpo or prm-eurus: give --reference-model, too"),
        (
            {"reference_model": "wider"},
            "wider has a vocabulary of [0-9]+ tokens, but the policy .*policy one of",
        ),
        ({"reference_model": "other"}, "other has another tokenizer than the policy"),
        (
            {"reference_model": "rewards"},
            "reference-model: .*not a complete head of the family dpo: missing lm_head",
        ),
        ({"reference_model": "policy", "model": "rewards"}, "rewards: not a complete head of the family dpo"),
        (
            {"reference_model": "policy", "model": "rewards", "family": "classifier"},
            "the family classifier has none",
        ),
        ({"reference_model": "policy", "dtype": "fp8"}, "dtype: fp8 is too coarse"),
        ({"reference_model": "policy", "beta": 0}, "beta: input should be greater than 0"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_refused_before_any_work(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_family(tmp_path / "policy", "dpo")
    size = json.loads((tmp_path / "policy" / "config.json").read_text())["vocab_size"]
    write_family(tmp_path / "wider", "dpo", vocab_size=size + 8)
    write_family(tmp_path / "rewards", "classifier")
    write_family(tmp_path / "other", "dpo")
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    paths = {k: str(tmp_path / v) for k, v in options.items() if k in ("model", "reference_model")}
    with pytest.raises(ConfigError, match=message):
        prepare(load_config(None, given(tmp_path, **options | paths)))
    assert not (tmp_path / "out").exists()


def test_another_layout_of_a_tokenizer_file_or_template_is_no_other_tokenizer(tmp_path: Path) -> None:
    policy, reference = write_pair(tmp_path)
    file = tmp_path / "reference" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")), indent=3), "utf-8")
    (tmp_path / "reference" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert loaded(policy, reference).score([([1, 2], [[3]])]).score[0] != 0


def test_gemma_shares_its_embeddings_with_its_head_if_its_config_does_not_say_so(tmp_path: Path) -> None:
    write_family(tmp_path, "dpo", "gemma2", tie_word_embeddings=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert inspect(str(tmp_path), family="dpo").family is DPO


def test_a_run_names_both_models_and_is_resumed_with_the_same_ones_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, reference = write_pair(tmp_path)
    options = given(tmp_path, reference_model=reference, beta=0.5)
    manifest = score_locally(policy, tmp_path / "in.jsonl", tmp_path / "out", **keywords(options))
    assert manifest["totals"]["scored"] == 2
    assert verify_output(str(tmp_path / "out"))[1] == []
    identity = json.loads((tmp_path / "out" / "_run.json").read_text())["identity"]
    about = footer(read_table(tmp_path / "out").schema)
    prints = [inspect(path, family="dpo").fingerprint for path in (policy, reference)]
    for record in (identity, about):
        assert [record["policy_fingerprint"], record["reference_fingerprint"]] == prints
        assert (record["beta"], record["length_normalized"]) == (0.5, False)
    assert about["reference_model"] == reference
    row = rows_of(tmp_path / "out")[0]
    assert main(["explain", str(tmp_path / "out"), row["row_id"], "--all-tokens"]) == 0
    told = capsys.readouterr().out
    assert told.count("read: log-probability of the next token") == row["num_response_tokens"]
    for changed, named in (({"beta": 0.2}, "beta"), ({"reference_model": policy}, "reference_fingerprint")):
        with pytest.raises(ConfigError, match=named):
            prepare(
                config_for(policy, tmp_path / "in.jsonl", tmp_path / "out", **keywords(options | changed))
            )


def keywords(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in ("family", "reference_model", "beta")}


def test_plan_and_verify_take_both_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, reference = write_pair(tmp_path)
    options = given(tmp_path, reference_model=reference)
    flags = ["--model", policy, "--family", "dpo", "--reference-model", reference]
    places = ["--input", options["input"][0], "--output", options["output"]]
    assert main(["plan", *places, *flags, "--gpu", "h100"]) == 0
    assert f"reference   {reference}: memory holds two models" in capsys.readouterr().out
    assert main(["verify", *flags, "--device", "cpu", "--dtype", "float32"]) == 0
    assert "fit to score with" in capsys.readouterr().out
    assert main(["verify", *flags[:4]]) == 2
