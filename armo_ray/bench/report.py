"""From what was seen to what is told: rates, ratios within a round, and the tables for a terminal and a README."""

import statistics
from collections.abc import Sequence
from typing import Any

from armo_ray.formatting.numbers import UNKNOWN, percent, significant
from armo_ray.formatting.tables import markdown_table

Ratio = tuple[float, float, float]  # median, least and most over the rounds
BASELINE = "padded-8"
STEP = "packed+shared"
GLOSSARY = """\
tokens/s counts every conversation whole; computed/s what went through the model, padding included. MFU: the
operations that had to be done, over time, over the rate of a dense matrix product in the same run. x floor: time
over the time of the operations that remain after sharing, at that rate. comp/real: computed over real tokens.
fill: share of the forward passes' room without padding. peak MiB: of the first pass, above what was in use. x padded-8,
x shared: times as fast as padded-8 and packed+shared, medians of the ratios in each round [min, max]. error and
flips: against float32 one by one, the largest score error in standard deviations of the scores, the relative
error of the rewards, and within-prompt pairs in another order."""


def derive(workload: dict[str, Any]) -> dict[str, Any]:
    """The workload with the measures of every contender that finished, and what sharing reached."""
    matmul_flops = statistics.median(workload["matmul_flops"])
    contenders = workload["contenders"]
    by_name = {c["name"]: c for c in contenders if c["error"] is None}
    for found in by_name.values():
        found["measures"] = _measures(found, workload, matmul_flops)
        for key, other in (("speedup", BASELINE), ("gain", STEP)):
            if other in by_name:
                found["measures"][key] = ratio(by_name[other]["seconds"], found["seconds"])
    if "packed" in by_name and STEP in by_name:
        reached = ratio(by_name["packed"]["seconds"], by_name[STEP]["seconds"])
        workload["share_of_dedup"] = [r / workload["dedup_ratio"] for r in reached]
    return workload


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """How many times faster the second is: the median of the ratios within each round, with min and max."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def headline(result: dict[str, Any]) -> str:
    """Model, machine, versions and protocol."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['model']}, {result['dtype']}, on {result['hardware']['name']} ({versions})\n"
        f"{result['clock']}; {result['rounds']} rounds in alternating order; packs of {result['token_budget']} tokens; "
        f"lengths x {result['length_scale']:g}; seed {result['seed']}\n"
        f"{result['command']}"
    )


def workload_table(workload: dict[str, Any]) -> str:
    """A workload with a row for every contender, and the reasons of those that did not finish."""
    told = (
        f"{workload['name']}: {workload['candidates']} candidates of {workload['prompts']} prompts, "
        f"{workload['tokens']} tokens, deduplication ratio {workload['dedup_ratio']:.2f}, "
        f"arrival batches of 8 pad {workload['padding_of_8']:.2f}x; "
        f"a dense matrix product runs at {statistics.median(workload['matmul_flops']) / 1e12:.3g} TFLOP/s"
    )
    done = [c for c in workload["contenders"] if "measures" in c]
    notes = [f"{c['name']} did not run: {c['error']}" for c in workload["contenders"] if c["error"]]
    if "share_of_dedup" in workload:
        median, least, most = workload["share_of_dedup"]
        notes.append(
            f"sharing reaches {median:.2f} [{least:.2f}, {most:.2f}]"
            " of the deduplication ratio (packed / packed+shared)"
        )
    notes += [
        f"{c['name']}: {'the same bits' if c['same_bits'] else 'other bits'} in a shuffled order of prompts"
        for c in done
        if "same_bits" in c
    ]
    rows = [_row(contender) for contender in done]
    table = markdown_table(list(rows[0]), (list(row.values()) for row in rows), aligned=True) if rows else ""
    return "\n".join([told, "", table, "", *notes]).rstrip()


def readme_table(result: dict[str, Any]) -> str:
    """Markdown: for every contender and workload tokens/s, MFU and the speed-up over padded-8."""
    workloads = result["workloads"]
    heads = [f"{w['name']} (dedup {w['dedup_ratio']:.2f})" for w in workloads]
    rows = [
        [contender["name"], *(_cell(w["contenders"][i]) for w in workloads)]
        for i, contender in enumerate(workloads[0]["contenders"])
    ]
    table = markdown_table(["tokens/s, MFU, x padded-8", *heads], rows, aligned=True)
    return f"{headline(result)}\n\n{table}"


def _measures(found: dict[str, Any], workload: dict[str, Any], matmul_flops: float) -> dict[str, Any]:
    seconds = statistics.median(found["seconds"])
    return {
        "seconds": seconds,
        "candidates_per_s": workload["candidates"] / seconds,
        "tokens_per_s": workload["tokens"] / seconds,
        "computed_tokens_per_s": found["computed_tokens"] / seconds,
        "mfu": found["flops"] / seconds / matmul_flops,
        "times_floor": seconds * matmul_flops / workload["floor_flops"],
        "padding": found["computed_tokens"] / workload["tokens"],
        "fill": found["needed_tokens"] / found["slots"],
    }


def _row(contender: dict[str, Any]) -> dict[str, str]:
    """The cells of a contender by their headings."""
    m, compared = contender["measures"], "flips" in contender
    return {
        "contender": contender["name"],
        "cand/s": significant(m["candidates_per_s"]),
        "tokens/s": f"{m['tokens_per_s']:,.0f}",
        "computed/s": f"{m['computed_tokens_per_s']:,.0f}",
        "MFU": percent(m["mfu"]),
        "x floor": f"{m['times_floor']:.2f}",
        "comp/real": f"{m['padding']:.2f}",
        "fill": f"{m['fill']:.2f}",
        "peak MiB": UNKNOWN if contender["peak_bytes"] is None else f"{contender['peak_bytes'] / 2**20:,.0f}",
        "x padded-8": _ratio(m.get("speedup")),
        "x shared": _ratio(m.get("gain")),
        "error": f"{contender['max_score_error']:.1e}" if compared else UNKNOWN,
        "rewards": f"{contender['rewards_error']:.1e}" if compared else UNKNOWN,
        "flips": f"{contender['flips']}/{contender['pairs']}" if compared else UNKNOWN,
    }


def _ratio(found: Sequence[float] | None) -> str:
    return UNKNOWN if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def _cell(contender: dict[str, Any]) -> str:
    if "measures" not in contender:
        return UNKNOWN
    m = contender["measures"]
    speedup = f", {m['speedup'][0]:.2f}x" if "speedup" in m else ""
    return f"{m['tokens_per_s']:,.0f}, {100 * m['mfu']:.0f} %{speedup}"
