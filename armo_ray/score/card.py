"""The dataset card of an output, README.md: what was scored with what, how far, and how to read it.

The driver writes it, now and then during a run and at its end. A card without its first comment was edited by
somebody, and stays as it is.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from armo_ray.outputs.cards import CARD, Parts, front_matter, table
from armo_ray.outputs.schema import REJECTS, footer
from armo_ray.score.job import Job
from armo_ray.storage import commits, parts
from armo_ray.storage.records import PartEntry, Totals
from armo_ray.storage.store import Store
from armo_ray.version import __version__

MARK = "<!-- armo-ray writes this file; delete this line to keep it as you edit it -->"
_LLAMA3 = "https://www.llama.com/llama3/license/"
# of models whose card names one; nothing is guessed of others
_LICENCES = {
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": f"[Meta Llama 3 Community License]({_LLAMA3}) (`llama3` on its model card)"
}
_LONGER = {
    "none": "rejected as `too_long`",
    "left": "cut at the beginning of their prompt and flagged `truncated`",
    "middle": "cut in the middle of their prompt and flagged `truncated`",
}
_MEANING = {
    "row_id": "`<shard hash>:<row>:<candidate>`, unique and stable",
    "prompt_id": "hash of the rendered prompt: groups a prompt across shards",
    "source": "the shard that it came from",
    "source_row": "row of the shard, from 0; line number in JSONL",
    "candidate": "which answer of the row, from 0",
    "role": "`chosen`, `rejected` or `response`",
    "score": "the model's score, higher is better",
    "rewards": "what the model says of each objective",
    "gating": "the weights of the objectives; null where the model has none",
    "num_prompt_tokens": "tokens before the answer",
    "num_response_tokens": "tokens of the answer",
    "flags": "what to know of a row, such as `truncated`; README lists them",
    "step_scores": "what a process reward model says of each step",
    "prompt": "messages before the answer",
    "response": "the answer",
    "reason": "why it could not be scored",
    "detail": "the same, in words",
    "raw": "the row as JSON, once for each row",
}


class Card:
    """The card of an output while a run writes it.

    Args:
        inputs: of this run.
        earlier: units that were committed before it.
        planned: units that it has to commit, if that is known before the shards are read.
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
        self.before: Totals | None = None  # of the earlier units, read when they are needed

    def in_progress(self, own: Totals, done: float) -> None:
        """Write how far the run is: the totals of what it committed, and the fraction of its input that is done."""
        if self.before is None:
            self.before = Totals.of(commits.read_commits(self.store, self.earlier))
        totals = self.before.plus(own)
        of = "" if self.planned is None else f" of {self.before.units + self.planned}"
        self._write(totals, f"In progress: {done:.0%} of the input, {totals.units}{of} units committed.")

    def stopped(self) -> None:
        """Write what is committed now, which may be more than the run counted before it stopped."""
        if commits.SUCCESS in self.store.list_names(""):
            return  # stopped before it began: the output is as complete as it was
        if records := commits.read_commits(self.store):
            state = f"Not complete: {len(records)} units were committed when the run stopped."
            self._write(Totals.of(records), state)

    def complete(self, totals: Totals) -> None:
        """Write the totals of all commits."""
        manifest = commits.find_manifest(self.store)
        self._write(totals, "Complete.", None if manifest is None else manifest.parts)

    def _write(self, totals: Totals, state: str, written: Sequence[PartEntry] | None = None) -> None:
        try:
            if MARK.encode() not in self.store.read(CARD):
                return
        except FileNotFoundError:
            pass
        text = render(self.job, Facts(self.store.uri, self.inputs, totals, state, written))
        self.store.write(CARD, text.encode())


class Facts(NamedTuple):
    """What a card says besides the job."""

    uri: str
    inputs: Sequence[str]
    totals: Totals
    state: str
    parts: Sequence[PartEntry] | None = None  # all of them, if the output is complete


def render(job: Job, facts: Facts) -> str:
    """The text of a card."""
    totals, model = facts.totals, footer(job.scores)["model"]
    configs = {}
    if totals.scored:
        configs["scores"] = {"train": f"{parts.SCORES}/**/*.parquet"}
    if totals.rejected:
        configs["rejects"] = {"train": f"{parts.REJECTS}/*.parquet"}
    written = [part.to_dict() for part in facts.parts or ()]
    tags, state = ("armo-ray", "reward-model"), (facts.uri, written or commits.now())
    lines = [
        *front_matter(configs, tags, totals.scored, state, _by_folder(configs, facts.parts)),
        MARK,
        f"# Scores by {model.rstrip('/').rpartition('/')[2]}",
        "",
        f"{facts.state} One row per answer, scored by armo-ray {__version__}. As of {commits.now()}.",
        "",
        "## Source",
        "",
        *(f"- `{uri}`" for uri in facts.inputs),
        "",
        f"Layout {job.layout.title}: " + ", ".join(f"{k} from `{v}`" for k, v in job.layout.columns.items()),
        "",
        *_model(job),
        *_counts(totals),
        *_columns(job),
        *_licence(model),
        *_loading(facts.uri, bool(job.partition_by) or any("=" in part.path for part in facts.parts or ())),
    ]
    return "\n".join(lines)


def _by_folder(folders: Iterable[str], written: Sequence[PartEntry] | None) -> Parts | None:
    if written is None:
        return None
    return {name: {"train": [part for part in written if part.is_in(name)]} for name in folders}


def _model(job: Job) -> list[str]:
    known = footer(job.scores)
    special = "read as plain text and flagged" if job.special_tokens == "plain" else "read as special tokens"
    rows = [
        ("model", f"`{known['model']}`"),
        ("revision", f"`{known['model_revision']}`" if known["model_revision"] else "none, a directory"),
        ("family", job.family.name),
        ("fingerprint of the weights", f"`{known['model_fingerprint']}`"),
        ("backbone's type", job.dtype),
        ("longest conversation", f"{job.max_length} tokens; longer ones are {_LONGER[job.truncate]}"),
        ("text that spells special tokens", special),
    ]
    return ["## Model", "", *table(("", ""), rows), ""]


def _counts(totals: Totals) -> list[str]:
    counts = [] if totals.shards is None else [("shards", totals.shards)]
    counts += [("units of work", totals.units), ("candidates", totals.candidates), ("scored", totals.scored)]
    counts.append(("tokens, each conversation whole", totals.num_tokens))
    counts += [(f"rejected: `{reason}`", count) for reason, count in sorted(totals.rejected.items())]
    rows = [(name, f"{count:,}") for name, count in counts]
    return ["## Counts", "", *table(("", ""), rows), ""]


def _columns(job: Job) -> list[str]:
    rewards = job.scores.field("rewards").type
    return [
        "## Columns",
        "",
        *table(
            ("column", "type", "meaning"),
            [(f"`{f.name}`", kind(f.type), _meaning(f.name, job)) for f in job.scores],
        ),
        "",
        "Rewards: " + ", ".join(f"`{rewards.field(i).name}`" for i in range(rewards.num_fields)),
        "",
        "Directories `NAME=VALUE` on the way to a part are columns for readers of hive partitions.",
        "",
        "Of rejects:",
        "",
        *table(
            ("column", "type", "meaning"), [(f"`{f.name}`", kind(f.type), _MEANING[f.name]) for f in REJECTS]
        ),
        "",
    ]


def _meaning(name: str, job: Job) -> str:
    return f"`{job.carried[name]}` of the input" if name in job.carried else _MEANING[name]


def kind(of: pa.DataType) -> str:
    """The name of a type; of the rewards' struct not all of its names."""
    if pa.types.is_struct(of) and of.num_fields and len({field.type for field in of}) == 1:
        return f"struct of {of.num_fields} {kind(of.field(0).type)}"
    return "float32" if pa.types.is_float32(of) else str(of)


def _licence(model: str) -> list[str]:
    licence = _LICENCES.get(model, "not known to armo-ray: see where it came from")
    return [
        "## Licence",
        "",
        f"- of the model: {licence}",
        "- of the data: what holds for its source holds for what was kept of it here",
        "",
    ]


def _loading(uri: str, partitioned: bool) -> list[str]:
    # datasets reads the card of a directory, but none of an object store
    given = f'"parquet", data_files=f"{{OUT}}/{parts.SCORES}/**/*.parquet"' if "://" in uri else "OUT"
    columns = [
        f'scores = datasets.Dataset(pyarrow.parquet.read_table(f"{{OUT}}/{parts.SCORES}"))'
        "  # with the directories as columns",
    ]
    return [
        "## Loading",
        "",
        "```python",
        f"OUT = {json.dumps(uri)}",
        "",
        "import datasets",
        *(["import pyarrow.parquet"] if partitioned else []),
        f'scores = datasets.load_dataset({given}, split="train")',
        *(columns if partitioned else []),
        "",
        "import duckdb",
        f"files = f\"read_parquet('{{OUT}}/{parts.SCORES}/**/*.parquet', hive_partitioning = true)\"",
        'best = duckdb.sql(f"FROM {files} ORDER BY score DESC LIMIT 10")',
        "",
        "import ray.data",
        f'ds = ray.data.read_parquet(f"{{OUT}}/{parts.SCORES}")',
        "```",
        "",
        "While a run goes on, only the parts that a record in `_commits/` names are there to stay.",
        "",
    ]
