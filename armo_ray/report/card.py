"""The dataset card of an output, README.md: what was scored with what, how far, and how to read it.

The driver writes it, now and then while a run goes on and at its end. A card that somebody edited, which has
lost its first comment, stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from armo_ray import __version__
from armo_ray.markdown import CARD, front_matter, table
from armo_ray.plan import Job
from armo_ray.schema import REJECTS, footer
from armo_ray.storage.commits import now
from armo_ray.storage.parts import REJECTS as REJECTS_FOLDER
from armo_ray.storage.parts import SCORES
from armo_ray.storage.store import Store

MARK = "<!-- armo-ray writes this file; delete this line to keep it as you edit it -->"
LLAMA3 = "https://www.llama.com/llama3/license/"
# of models whose card names one; nothing is guessed of others
_LICENCES = {
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": f"[Meta Llama 3 Community License]({LLAMA3}) (`llama3` on its model card)"
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
    "flags": "`special_token_text`: text that spells a special token; `truncated`",
    "step_scores": "what a process reward model says of each step",
    "prompt": "messages before the answer",
    "response": "the answer",
    "reason": "why it could not be scored",
    "detail": "the same, in words",
    "raw": "the row as JSON, once for each row",
}


@dataclass(frozen=True)
class Facts:
    """What a card tells besides the job."""

    inputs: Sequence[str]  # of the last run
    counts: Mapping[str, Any]  # as commits.totals has them
    state: str


def write(store: Store, job: Job, facts: Facts) -> bool:
    """Write the card; False where one is there that somebody edited."""
    try:
        found = store.read(CARD).decode()
    except FileNotFoundError:
        found = MARK
    if MARK not in found:
        return False
    store.write(CARD, render(job, facts).encode())
    return True


def render(job: Job, facts: Facts) -> str:
    """The text of a card."""
    counts, model = facts.counts, footer(job.scores)["model"]
    configs = {}
    if counts["scored"]:
        configs["scores"] = {"train": f"{SCORES}/**/*.parquet"}
    if counts["rejected"]:
        configs["rejects"] = {"train": f"{REJECTS_FOLDER}/*.parquet"}
    lines = [
        *front_matter(configs, ("armo-ray", "reward-model"), counts["scored"]),
        MARK,
        f"# Scores by {model.rstrip('/').rpartition('/')[2]}",
        "",
        f"{facts.state} One row per answer, scored by armo-ray {__version__}; as of {now()}.",
        "",
        "## Source",
        "",
        *(f"- `{uri}`" for uri in facts.inputs),
        "",
        f"Layout `{job.layout.kind}`: " + ", ".join(f"{k} from `{v}`" for k, v in job.layout.columns.items()),
        "",
        *_model(job),
        *_counts(counts),
        *_columns(job),
        *_licence(model),
        *_loading(job, configs),
    ]
    return "\n".join(lines)


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


def _counts(counts: Mapping[str, Any]) -> list[str]:
    names = {"units": "units of work", "shards": "shards", "candidates": "candidates", "scored": "scored"}
    rows = [(told, f"{counts[name]:,}") for name, told in names.items() if name in counts]
    rows.append(("tokens, each conversation whole", f"{counts['num_tokens']:,}"))
    rows += [(f"rejected: `{reason}`", f"{n:,}") for reason, n in sorted(counts["rejected"].items())]
    return ["## Counts", "", *table(("", ""), rows), ""]


def _columns(job: Job) -> list[str]:
    directories = [name for name in job.partition_by if name in job.scores.names]
    rows = [(f"`{f.name}`", kind(f.type), _meaning(f.name, job)) for f in job.scores]
    text = ["## Columns", "", *table(("column", "type", "meaning"), rows), ""]
    if rewards := job.scores.field("rewards").type:
        text += ["Rewards: " + ", ".join(f"`{rewards.field(i).name}`" for i in range(rewards.num_fields)), ""]
    text += ["Directories such as `date=.../` on the way to a part are columns too.", ""] * bool(directories)
    rejects = [(f"`{f.name}`", kind(f.type), _MEANING[f.name]) for f in REJECTS]
    return [*text, "Of rejects:", "", *table(("column", "type", "meaning"), rejects), ""]


def _meaning(name: str, job: Job) -> str:
    return f"`{job.carried[name]}` of the input" if name in job.carried else _MEANING[name]


def kind(of: pa.DataType) -> str:
    """The name of a type; of the rewards' struct not all of its names."""
    if pa.types.is_struct(of) and of.num_fields and len({field.type for field in of}) == 1:
        return f"struct of {of.num_fields} {of.field(0).type}"
    return str(of)


def _licence(model: str) -> list[str]:
    told = _LICENCES.get(model, "not known to armo-ray: see where it came from")
    return [
        "## Licence",
        "",
        f"- of the model: {told}",
        "- of the data: what holds for its source holds for what was kept of it here",
        "",
    ]


def _loading(job: Job, configs: Mapping[str, Any]) -> list[str]:
    names = ", ".join(f'"{name}"' for name in configs)
    return [
        "## Loading",
        "",
        "```python",
        f'OUT = "{job.output}"',
        "",
        "import datasets",
        f'scores = datasets.load_dataset(OUT, "scores", split="train")  # of {names or "none yet"}',
        "",
        "import duckdb",
        f"path = f\"{{OUT}}/{SCORES}/**/*.parquet\"",
        'best = duckdb.sql(f"FROM read_parquet(\'{path}\', hive_partitioning = true) ORDER BY score DESC")',
        "",
        "import ray.data",
        f'ds = ray.data.read_parquet(f"{{OUT}}/{SCORES}")',
        "```",
        "",
        "Parts that `_SUCCESS` or a record in `_commits/` names are whole; while a run goes on, others may not be.",
        "",
    ]
