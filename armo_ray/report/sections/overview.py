"""Sections about the run: what was scored with what, how fast, what was rejected, rows to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from armo_ray.report.charts import histogram
from armo_ray.report.html import date, facts, figure, heading, join, number, paragraph, percent, table

_POLICY = ("max_length", "truncate", "special_tokens", "unit_rows", "partition_by")


def overview(found: Mapping[str, Any]) -> Markup:
    totals, model = found["totals"], found["model"]
    identity = found["runs"][0].get("identity", {})
    rejected, scored = sum(totals["rejected"].values()), found["scored"]
    told = [
        ("candidates scored", number(totals["scored"])),
        ("rejected", f"{number(rejected)} ({percent(rejected / max(totals['candidates'], 1))})"),
        ("prompts", number(scored["prompts"]["prompts"]) if scored else "-"),
        ("mean score", number(scored["columns"]["score"]["mean"]) if scored else "-"),
        ("units", number(totals["units"])),
    ]
    if found["speed"]:
        told.append(("tokens, each conversation whole", number(found["speed"]["tokens"])))
    cards = Markup("").join(
        Markup('<div class="card"><b>{}</b><span>{}</span></div>').format(value, name) for name, value in told
    )
    rows = [("output", ", ".join(found["outputs"]))]
    rows += [
        (name.replace("_", " "), _told(model[name]))
        for name in ("model", "model_revision", "model_family", "model_fingerprint", "dtype")
        if model.get(name) is not None
    ]
    rows += [(name.replace("_", " "), _told(identity[name])) for name in _POLICY if identity.get(name)]
    layout = identity.get("layout") or {}
    rows += [("layout", ", ".join(f"{part} = {column}" for part, column in layout.items()))] if layout else []
    rows += [("begun", date(run["created_at"])) for run in found["runs"] if "created_at" in run]
    rows += [("made by", _made(run["made_by"])) for run in found["runs"] if "made_by" in run]
    rows += [("versions", _told(run["versions"])) for run in found["runs"][:1] if "versions" in run]
    inputs = [(row["source"], number(row["candidates"])) for row in found["inputs"]]
    more = totals["shards"] - len(inputs)
    return join(
        Markup("")
        if found["complete"]
        else _warning("This output is not complete: the page tells what is committed."),
        Markup("")
        if scored
        else _warning("Every candidate was rejected." if rejected else "No candidate was scored yet."),
        Markup('<div class="cards">{}</div>').format(cards),
        facts(rows),
        heading("Shards with the most candidates") if inputs else Markup(""),
        table(("shard", "candidates"), inputs) if inputs else Markup(""),
        paragraph(f"{number(more)} more shards.") if more > 0 else Markup(""),
    )


def _warning(text: str) -> Markup:
    return Markup('<p class="warning">{}</p>').format(text)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _made(made: Mapping[str, Any]) -> str:
    given = {name: value for name, value in made.get("options", {}).items() if value and name != "output"}
    return f"armo-ray {made.get('command')}: {_told(given)}"


def rejected(rows: Sequence[Mapping[str, Any]], candidates: int) -> Markup:
    told = [
        (row["reason"], number(row["rejects"]), percent(row["rejects"] / max(candidates, 1))) for row in rows
    ]
    body = [table(("reason", "rejects", "of all candidates"), told)]
    for row in rows:
        for example in row["examples"]:
            where = f"{row['reason']}: {example['source']} row {example['source_row']}"
            if example["candidate"] is not None:
                where += f" candidate {example['candidate']}"
            body.append(
                Markup("<details><summary>{}: {}</summary><pre>{}</pre>{}</details>").format(
                    where,
                    example["detail"],
                    example["raw"] or "(the row is with an earlier reject of it)",
                    _trace(example["row_id"]),
                )
            )
    return join(*body)


def _trace(row_id: str | None) -> Markup:
    return Markup("") if row_id is None else Markup("<p>armo-ray explain OUT {}</p>").format(row_id)


def examples(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    body = []
    for name, rows in found.items():
        body.append(heading(f"{name.capitalize()} scores"))
        body += [_example(row) for row in rows]
    return join(*body)


def _example(row: Mapping[str, Any]) -> Markup:
    groups = "".join(f", {name} {value}" for name, value in row["groups"].items())
    flags = f", {', '.join(row['flags'])}" if row["flags"] else ""
    parts = ", ".join(f"{name} {number(value)}" for name, value in row["parts"].items())
    texts = [
        Markup("<dt>{}</dt><dd>{}</dd>").format(name, text)
        for name, text in (
            ("where", f"{row['source']} row {row['source_row']} candidate {row['candidate']}{groups}{flags}"),
            ("largest parts of the score", parts),
            ("prompt", row["prompt"]),
            ("response", row["response"]),
            ("all of its parts", f"armo-ray explain OUT {row['row_id']}"),
        )
        if text
    ]
    head = Markup('<article class="example"><h4><b>{}</b> role {}, {} tokens</h4>').format(
        number(row["score"]), row["role"], number(row["num_response_tokens"])
    )
    return head + Markup("<dl>{}</dl></article>").format(Markup("").join(texts))


def speed(found: Mapping[str, Any]) -> Markup:
    total = sum(found["seconds"].values()) or 1.0
    cost = found["cost_usd"]
    told = [
        ("from, to", f"{date(found['first'])} to {date(found['last'])}"),
        ("first unit's start to the last commit, less pauses", f"{number(found['active_seconds'])} s"),
        ("candidates a second", number(found["candidates_per_second"])),
        ("tokens/s, each conversation whole", number(found["tokens_per_second"])),
        (
            "computed tokens, each shared prefix once",
            f"{number(found['computed_tokens'])} of {number(found['tokens'])}",
        ),
        ("replicas", number(found["replicas"])),
        ("share of the replicas' time in the model", percent(found["busy"])),
        ("model FLOPs utilization", percent(found["mfu"])),
        ("hours of replicas", number(found["replica_hours"])),
        ("billed hours", f"{number(found['paid_hours'])}, of GPUs, or of replicas without any"),
        ("cost", "give --price" if cost is None else f"{cost:,.2f} USD"),
    ]
    steps = [(step, number(seconds), percent(seconds / total)) for step, seconds in found["seconds"].items()]
    units = [
        (
            unit["unit"][16:],  # the rest is the shard's
            f"{unit['source']} rows {unit['first_row']}+{unit['num_rows']}",
            number(unit["scored"]),
            number(unit["num_tokens"]),
            number(unit["work_seconds"]),
            number(unit["num_tokens"] / unit["work_seconds"]) if unit["work_seconds"] else "-",
        )
        for unit in found["slowest_units"]
    ]
    return join(
        facts(told),
        _throughput(found["throughput"], found["active_seconds"]),
        heading("Seconds of all workers, by step"),
        table(("step", "seconds", "share"), steps),
        heading("Units with the most work"),
        table(("unit", "shard", "scored", "tokens", "seconds", "tokens/s"), units, words=2),
    )


def _throughput(bins: Sequence[Mapping[str, float]], active: float) -> Markup:
    if not bins:
        return Markup("")
    scale, unit = (
        (3600, "hours") if active > 3 * 3600 else (60, "minutes") if active > 180 else (1, "seconds")
    )
    edges = [row["from_seconds"] / scale for row in bins] + [active / scale]
    counts = [row["tokens_per_second"] for row in bins]
    drawn = histogram(
        "Throughput over time", {"edges": edges, "counts": counts}, f"{unit} at work", "tokens/s"
    )
    return figure(
        drawn,
        "Tokens a second over the time at work, counted when a unit is committed. Falling bars are "
        "a starved or shrinking pool; pauses between runs are left out.",
    )
