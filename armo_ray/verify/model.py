"""The pre-flight checks of a model: files, template and token ids, then scores by every method of the engine."""

import json
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import Checkpoint, inspect, resolve
from armo_ray.model.families import Family
from armo_ray.model.policy_pair import inspect_reference
from armo_ray.model.reference import Reference, check_given
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import local_model
from armo_ray.text.tokenization import Encoder
from armo_ray.verify.conversations import CONVERSATIONS, Sequences, encode
from armo_ray.verify.files import Check, check_head, check_released, check_tokens


class _Entry(BaseModel):
    place: list[int] = Field(min_length=1)
    values: dict[str, float] = Field(min_length=1)


class _Record(BaseModel):
    """The scores that --record writes and --against reads."""

    dtype: str
    values: list[_Entry] = Field(min_length=1)


def verify_model(
    model: str,
    revision: str | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    family: str | Family | None = None,
    against: dict[str, Any] | None = None,
    reference: Reference | None = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Check a model on this machine.

    Args:
        model, revision: a directory, its URI, or a hub id. A model with the released model's name is also compared
            with published values.
        dtype, device: as RewardModel.load takes them.
        family: a name in armo_ray.model.families, a TOML file, or a Family; by default it is recognized from the
            checkpoint's tensors.
        against: the record of an earlier check.
        reference: the reference model of a policy; its model may also be a URI.

    Returns:
        The checks, and a record of the scores. If a check of files or token ids fails, nothing is scored and the
        record is empty.

    Raises ConfigError if there is no such model, dtype or device, or if a policy's reference model is not given.
    """
    directory = _directory(model, revision)
    try:
        checkpoint = inspect(directory, family=family)
        chat = Chat.load(checkpoint.path, checkpoint.family)
    except ConfigError as error:
        return [Check("files and template", False, str(error))], {}
    check_given(checkpoint.family, reference, dtype)
    other = None
    if reference is not None:
        reference = replace(reference, model=_directory(reference.model, reference.revision), revision=None)
        try:
            other = inspect_reference(checkpoint, reference.model)
        except ConfigError as error:
            return [Check("reference model", False, str(error))], {}
    sequences = encode(Encoder(chat, int(checkpoint.config["max_position_embeddings"])))
    published = json.loads(files("armo_ray.verify").joinpath("published.json").read_text("utf-8"))
    checks, named = _check_files(checkpoint, chat, sequences), _last(model) == _last(published["model"])
    if named:
        checks += check_released(checkpoint, chat, published)
    if not all(check.passed for check in checks):
        return checks, {}
    both = [checkpoint, *([other] if other else [])]
    scored, record = _score(both, sequences, dtype, device, reference)
    if named or _last(checkpoint.config.get("_name_or_path", "")) == _last(published["model"]):
        scored.append(_published(named, _compared("published values", published, record)))
    if against is not None:
        scored.append(_compared("recorded values", against, record))
    return checks + scored, record


def _directory(model: str, revision: str | None) -> str:
    path, resolved = local_model(model, revision)
    return str(resolve(path, None if is_remote(model) else resolved)[0])


def _check_files(checkpoint: Checkpoint, chat: Chat, sequences: Sequences) -> list[Check]:
    detail = f"family {checkpoint.family.name}, fingerprint {checkpoint.fingerprint}"
    loaded = Check("files and template", True, detail)
    return [loaded, *check_head(checkpoint), *check_tokens(chat, sequences)]


def _compared(label: str, expected: dict[str, Any], record: dict[str, Any]) -> Check:
    from armo_ray.verify.numbers import check_expected

    own = {tuple(entry["place"]): entry["values"] for entry in record["values"]}
    exact = record["dtype"] == "float32"
    return check_expected(label, expected, own, exact)


def _last(name: Any) -> str:
    return str(name).strip().rstrip("/").rpartition("/")[2]


def _published(named: bool, check: Check) -> Check:
    """Pass a model that names the released one only in its config: it may be derived from it, and differ."""
    if named or check.passed:
        return check
    return Check(check.name, True, f"not the released model's: {check.detail}")


def _score(
    checkpoints: list[Checkpoint],
    sequences: Sequences,
    dtype: str,
    device: str | None,
    reference: Reference | None,
) -> tuple[list[Check], dict[str, Any]]:
    """Score the conversations, and again in float32 if that fits. The record holds the more exact results.

    `checkpoints`: the model, and its reference model if it has one.
    """
    from armo_ray.engine import RewardModel
    from armo_ray.engine.device import room_for
    from armo_ray.verify.numbers import check_scores, check_ways, coefficients, named_values, score_alone

    checkpoint = checkpoints[0]
    path, family = str(checkpoint.path), checkpoint.family
    model = RewardModel.load(path, dtype=dtype, device=device, family=family, reference=reference)
    checks, ways, shared = check_scores(model, checkpoint, sequences)
    scores, used, at = ways["alone"], dtype, model.device
    weights = coefficients(shared, checkpoint)
    del model  # memory may not hold both models
    size = sum(4 * math.prod(tensor.shape) for one in checkpoints for tensor in one.tensors.values())
    exact = None
    if dtype == "float32":
        exact = scores
    elif room_for(size, at):
        model = RewardModel.load(path, dtype="float32", device=device, family=family, reference=reference)
        plain = model.with_options(share_prompts=False)
        scores = exact = score_alone(plain, sequences.ids)
        weights, used = coefficients(plain.score(sequences.ids), checkpoint), "float32"
    else:
        checks.append(Check("float32", True, f"not tried: {size / 1e9:.0f} GB do not fit in the free memory"))
    checks += check_ways(ways, exact)
    values = named_values(scores, weights, checkpoint.reward_names)
    entries = [{"place": p, "values": v} for p, v in zip(sequences.places, values, strict=True)]
    return checks, {"fingerprint": checkpoint.fingerprint, "dtype": used, "values": entries}


def report(checks: list[Check]) -> str:
    """One line per check."""
    return "\n".join(f"{'ok  ' if c.passed else 'FAIL'}  {c.name}: {c.detail}" for c in checks)


def read_record(file: str) -> dict[str, Any]:
    """Read the record of an earlier check. Raises ConfigError if the file is not one."""
    try:
        record = _Record.model_validate_json(Path(file).read_bytes())
    except OSError as error:
        raise ConfigError(f"--against {file}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        reason = ": ".join((".".join(map(str, fault["loc"])), fault["msg"])).removeprefix(": ")
        raise ConfigError(f"--against {file}: not a file that --record wrote: {reason}") from error
    if any(entry.place[0] >= len(CONVERSATIONS) for entry in record.values):
        raise ConfigError(
            f"--against {file}: it was written by another version, which has other conversations"
        )
    return record.model_dump()
