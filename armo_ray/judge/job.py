"""The job of a judge: what is checked of the judge file and the endpoint before Ray starts."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray.endpoint.client import Endpoint, check
from armo_ray.endpoint.rewards import PROTOCOLS
from armo_ray.errors import ConfigError
from armo_ray.judge.options import JudgeOptions
from armo_ray.judge.served import check_installed
from armo_ray.judging.judge import load_judge
from armo_ray.judging.reward_servers import reward_server, takes_text
from armo_ray.judging.specification import Judge
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import resolve
from armo_ray.outputs.schema import JUDGE_FIELDS, SCHEMA_VERSION, scores_schema
from armo_ray.score.run import Check, Job, Scorer, prepare_runs
from armo_ray.storage import commits
from armo_ray.storage.models import local_model
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span
from armo_ray.text import labels
from armo_ray.text.paths import root_of
from armo_ray.text.whole_text import WholeText

logger = logging.getLogger(__name__)

_SERVED = "http://127.0.0.1"  # of an actor, which knows the port


class Serve(NamedTuple):
    """A server that an actor starts."""

    gpus: int
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JudgeJob(Job):
    """A job whose scores a judge gives."""

    judge: Judge
    endpoint: Endpoint
    prices: tuple[float, float]  # of a million prompt tokens and of a million tokens that the model writes
    tokens_per_slot: float = math.inf  # in flight, for each request that may be
    tokenizer: str | None = None  # of a server that takes text
    serve: Serve | None = None  # how an actor starts a server of its own
    served: str | None = None  # the model, as the replies of the first committed unit name it

    @property
    def columns(self) -> list[str]:
        """The input columns to read."""
        shown = (name for column in self.judge.columns for name in (column, root_of(column)))
        return list(dict.fromkeys((*super().columns, *shown)))


def prepare(
    options: JudgeOptions, write: bool = True, check_rows: Check | None = None
) -> tuple[JudgeJob, list[Span]]:
    """Check judge, endpoint, input and output, and write `_run.json`. Returns the job and its spans; asks nothing.

    Raises ConfigError if the run cannot begin.
    """
    judge, protocol = _judge(options)
    endpoint = Endpoint(
        options.endpoint or _SERVED,
        options.model,
        options.api_key_env,
        options.timeout,
        protocol=protocol,
        activation=options.activation,
    )
    if options.serve:
        check_installed()
    else:
        endpoint = replace(endpoint, model=check(endpoint))
    logger.info("judge %s: rewards %s", judge.name, ", ".join(judge.reward_names))
    identity = {"model": endpoint.model, "judge_fingerprint": judge.fingerprint}
    if protocol != "chat":
        identity["protocol"] = protocol
    if options.tokenizer is not None:
        identity["tokenizer_fingerprint"] = chat_of(options.tokenizer).fingerprint
    scorer = Scorer(identity, partial(_job, options, judge, endpoint))
    ((job, spans),) = prepare_runs([(options, scorer)], write, check_rows)
    assert isinstance(job, JudgeJob), "made by _job"
    return replace(job, served=_served(Store(job.output))), spans


def _served(store: Store) -> str | None:
    """The model that the replies of a committed unit name. An alias may come to mean another model."""
    asked = (dict(record.extra).get("asked", {}) for record in commits.read_log(store).records())
    return next((entry["model"] for entry in asked if entry.get("model")), None)


def _judge(options: JudgeOptions) -> tuple[Judge, str]:
    """The judge, and the protocol of its endpoint."""
    if options.judge not in PROTOCOLS:
        if options.tokenizer or options.activation:
            raise ConfigError("tokenizer and activation are of reward servers; a judge reads messages")
        return load_judge(options.judge), "chat"
    if options.serve or options.verify:
        raise ConfigError(
            f"judge: {options.judge} is a server of yours, which --serve and --verify are not for"
        )
    if takes_text(options.judge) != (options.tokenizer is not None):
        needs = "takes messages: leave out" if options.tokenizer else "takes text: give"
        raise ConfigError(f"tokenizer: a server of the kind {options.judge} {needs} --tokenizer")
    return reward_server(options.judge), options.judge


@lru_cache(maxsize=1)
def chat_of(model: str) -> Chat:
    """The template and tokenizer of a model, which is copied to this node first if it is missing."""
    return Chat.load(resolve(local_model(model)[0])[0])


@lru_cache(maxsize=1)
def whole_text(model: str) -> WholeText:
    """What renders conversations as the text that this model reads, loaded once per process."""
    return WholeText(chat_of(model))


def _job(
    options: JudgeOptions, judge: Judge, endpoint: Endpoint, settings: Mapping[str, Any], kept: pa.Schema
) -> JudgeJob:
    metadata = {
        "model": endpoint.model,
        "model_revision": None,
        "model_fingerprint": judge.fingerprint,
        "model_family": "judge",
        "judge": judge.name,
        "dtype": "as served",
        "fixed_weights": list(judge.weights),
        "schema_version": SCHEMA_VERSION,
        "run_fingerprint": settings["fingerprint"],
        **labels.described(settings["labels"]),
    }
    own = (*JUDGE_FIELDS, *labels.fields(settings["labels"]))
    return JudgeJob(
        **settings,
        scores=scores_schema(judge.reward_names, kept, options.keep_text, metadata, own),
        about=_about(endpoint.model, judge),
        judge=judge,
        endpoint=endpoint,
        prices=(options.input_price, options.output_price),
        tokens_per_slot=(options.tokens_in_flight or math.inf) / options.in_flight,
        tokenizer=_found(options.tokenizer),
        serve=Serve(options.gpus_per_server, options.serve_args) if options.serve else None,
    )


def _found(model: str | None) -> str | None:
    """A directory by its absolute path, which workers find; anything else as it is."""
    return str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model


def _about(model: str, judge: Judge) -> tuple[tuple[str, str], ...]:
    """What the dataset card says of the judge."""
    published = (("prompt", judge.source), ("license of the prompt", judge.license)) if judge.source else ()
    return (
        ("model", f"`{model}`, as the endpoint names it"),
        ("judge", f"`{judge.name}`"),
        ("fingerprint of the judge", f"`{judge.fingerprint}`"),
        *published,
        ("orders, samples", f"{judge.orders}, {judge.samples}"),
    )
