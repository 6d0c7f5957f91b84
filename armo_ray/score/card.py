"""The dataset card of an output, README.md: what was scored, with which model, how far, and how to read it.

The driver writes it from time to time during a run and at its end. A card whose first comment was deleted belongs to
whoever edited it, and is not written again.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import pyarrow as pa

from armo_ray.outputs.cards import CARD, Split, card
from armo_ray.outputs.schema import REJECTS, footer
from armo_ray.score.progress import Progress, every
from armo_ray.score.run import Job
from armo_ray.storage import commits, parts
from armo_ray.storage.commit_log import CommitLog
from armo_ray.storage.records import PartEntry, Totals
from armo_ray.storage.store import Store

MARK = "<!-- armo-ray writes this file; delete this line to keep it as you edit it -->"
_EVERY_S = 30.0
_LLAMA3 = "https://www.llama.com/llama3/license/"
# only of models whose card names one
_LICENSES = {
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": f"[Meta Llama 3 Community License]({_LLAMA3}) (`llama3` on its model card)"
}
_MEANING = {
    "row_id": "`<shard hash>:<row>:<candidate>`, unique and stable",
    "prompt_id": "hash of the rendered prompt: groups a prompt across shards",
    "source": "URI of the shard",
    "source_row": "row of the shard, from 0; in JSONL the line",
    "candidate": "index of the response within its row, from 0",
    "role": "`chosen`, `rejected` or `response`",
    "score": "the model's score, higher is better",
    "rewards": "the model's reward for each objective",
    "gating": "the model's weights of the objectives; null where it has none",
    "num_prompt_tokens": "tokens before the response",
    "num_response_tokens": "tokens of the response",
    "flags": "notes on the row, such as `truncated`; README of armo-ray lists them",
    "step_scores": "a process reward model's score of each step",
    "verdicts": "what the judge wrote of the candidate, by call",
    "agreement": "fraction of the verdicts that equal the most frequent one",
    "order_flips": "fraction of its contests in which the order decides",
    "labels": "numbers that the input gives to the response; null where it gives none",
    "disagreement": "share of the votes of an ensemble that are not those of the majority",
    "hidden_last": "final hidden state of the token that gives the rewards, as bytes",
    "hidden_gate": "final hidden state of the token that gives the gates, as bytes",
    "prompt": "messages before the response",
    "response": "messages of the response",
    "reason": "why it was not scored",
    "detail": "the reason in words",
    "raw": "the row as JSON, with the first of its rejects",
}


class Card:
    """The card of an output while a run writes it.

    Args:
        inputs: URIs that the run reads.
        earlier: ids of the units that were committed before it.
        planned: units that it has to commit, if they can be counted before the shards are read.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        inputs: Sequence[str],
        earlier: Iterable[str] = (),
        planned: int | None = None,
    ) -> None:
        self.store = store
        self.job = job
        self.inputs = inputs
        self.earlier = earlier
        self.planned = planned
        self.before: Totals | None = None  # totals of the earlier units, once read

    def in_progress(self, own: Totals, done: float) -> None:
        """Write how far the run is: totals of its own commits, and the fraction of its input that is done."""
        if self.before is None:
            self.before = commits.read_log(self.store).totals(units=frozenset(self.earlier))
        totals = self.before.plus(own)
        of = "" if self.planned is None else f" of {self.before.units + self.planned}"
        self._write(totals, f"In progress: {done:.0%} of the input, {totals.units}{of} units committed.")

    def drafted(self, progress: Progress) -> AbstractContextManager[None]:
        """Writes the card from time to time during the body."""
        return every(
            _EVERY_S,
            "writing the dataset card",
            lambda: self.in_progress(progress.counts.totals, progress.counts.done),
        )

    def stopped(self, totals: Totals) -> None:
        """Write the totals of all commits of a run that stopped."""
        if totals.units:
            self._write(totals, f"Not complete: {totals.units} units were committed when the run stopped.")

    def complete(self, log: CommitLog) -> None:
        """Write the totals of all commits."""
        written = log.folders() if log.num_parts > commits.MOST_PARTS else log.parts()
        self._write(log.totals(), "Complete.", written)

    def _write(self, totals: Totals, state: str, written: Sequence[PartEntry] | None = None) -> None:
        try:
            if MARK.encode() not in self.store.read(CARD):
                return
        except FileNotFoundError:
            pass
        text = render(self.job, Facts(self.store.uri, self.inputs, totals, state, written))
        self.store.write(CARD, text.encode())


class Facts(NamedTuple):
    """What a card shows besides the job."""

    uri: str
    inputs: Sequence[str]
    totals: Totals
    state: str
    parts: Sequence[PartEntry] | None = None  # all parts, once the output is complete


def render(job: Job, facts: Facts) -> str:
    """The text of a card."""
    totals, about = facts.totals, footer(job.scores)
    configs = {}
    if totals.scored:
        configs[job.folder] = {"train": _split(job.folder, "**/*.parquet", facts.parts)}
    if totals.scored and about.get("hidden", {}).get("gates"):
        configs["prompts"] = {"train": _split(parts.PROMPTS, "*.parquet", facts.parts)}
    if totals.rejected:
        configs["rejects"] = {"train": _split(parts.REJECTS, "*.parquet", facts.parts)}
    is_partitioned = bool(job.partition_by) or any("=" in part.path for part in facts.parts or ())
    rewards = job.scores.field("rewards").type if job.has_scores else pa.struct([])
    return card(
        "score/templates/README.md.jinja",
        configs,
        ("armo-ray", "reward-model") if job.has_scores else ("armo-ray",),
        (facts.uri, [part.to_dict() for part in facts.parts or ()] or commits.now()),
        totals.scored,
        mark=MARK,
        model=about["model"].rstrip("/").rpartition("/")[2],
        facts=facts,
        uri=json.dumps(facts.uri),
        is_remote="://" in facts.uri,
        is_partitioned=is_partitioned,
        layout=job.layout,
        about=job.about,
        counts=_counts(totals, job.has_scores),
        folder=job.folder,
        hidden=about.get("hidden"),
        columns=[(f"`{field.name}`", kind(field.type), _meaning(field.name, job)) for field in job.scores],
        rewards=[rewards.field(i).name for i in range(rewards.num_fields)],
        rejects=[(f"`{field.name}`", kind(field.type), _MEANING[field.name]) for field in REJECTS],
        license=_LICENSES.get(about["model"]),
    )


def _split(folder: str, files: str, written: Sequence[PartEntry] | None) -> Split:
    own = None if written is None else [part for part in written if part.is_in(folder)]
    return Split(f"{folder}/{files}", own)


def _counts(totals: Totals, has_scores: bool) -> list[tuple[str, str]]:
    done = "scored" if has_scores else "embedded"
    counts = [] if totals.shards is None else [("shards", totals.shards)]
    counts += [("units of work", totals.units), ("candidates", totals.candidates), (done, totals.scored)]
    counts.append(("tokens, each conversation counted whole", totals.num_tokens))
    counts += [(f"rejected: `{reason}`", count) for reason, count in sorted(totals.rejected.items())]
    return [(name, f"{count:,}") for name, count in counts]


def _meaning(name: str, job: Job) -> str:
    return f"`{job.carried[name]}` of the input" if name in job.carried else _MEANING[name]


def kind(of: pa.DataType) -> str:
    """The name of a type; a struct of rewards is abbreviated."""
    if pa.types.is_struct(of) and of.num_fields and len({field.type for field in of}) == 1:
        return f"struct of {of.num_fields} {kind(of.field(0).type)}"
    return "float32" if pa.types.is_float32(of) else str(of)
