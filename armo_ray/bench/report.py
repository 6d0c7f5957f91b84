"""The results as rates, ratios within a round, and tables for a terminal and a README."""

import statistics
from collections.abc import Sequence
from typing import Any

from armo_ray.formatting.numbers import UNKNOWN, percent, significant
from armo_ray.formatting.tables import markdown_table

Ratio = tuple[float, float, float]  # median, minimum and maximum over the rounds
BASELINE = "padded-8"
STEP = "packed+shared"
GLOSSARY = """\
tokens/s: tokens per second, every conversation counted whole.
computed tokens/s: tokens that went through the model, shared prefixes once, with padding. Give this number to
  armo-ray plan as --computed-tokens-per-second.
MFU: the necessary operations per second, divided by the rate of a dense matrix product in the same run.
x floor: time divided by the time that the operations left after sharing take at that rate.
comp/real: computed tokens divided by real tokens.
fill: share of the forward passes' capacity that holds no padding.
peak MiB: memory of the first pass, above what was in use.
x padded-8, x shared: speed relative to padded-8 and packed+shared, medians of the ratios in each round [min, max].
error, rewards, flips: compared with float32 one by one, the largest score error in standard deviations of the scores,
  the relative error of the rewards, and the within-prompt pairs whose order differs."""


def derive(workload: dict[str, Any]) -> dict[str, Any]:
    """Add the measures of every contender with a timed pass, and the share of the possible saving that sharing reached.

    The workload may be unfinished: measures cover the passes so far.
    """
    by_name = {c["name"]: c for c in workload["contenders"] if c["error"] is None and c["seconds"]}
    for contender in by_name.values():
        contender["measures"] = _measures(contender, workload, statistics.median(workload["matmul_flops"]))
        for key, other in (("speedup", BASELINE), ("gain", STEP)):
            if other in by_name:
                contender["measures"][key] = ratio(by_name[other]["seconds"], contender["seconds"])
    if "packed" in by_name and STEP in by_name:
        reached = ratio(by_name["packed"]["seconds"], by_name[STEP]["seconds"])
        workload["share_of_dedup"] = [r / workload["dedup_ratio"] for r in reached]
    return workload


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """How many times faster the second is: median, minimum and maximum of the ratios within each common round."""
    ratios = [a / b for a, b in zip(slow, fast, strict=False)]
    return statistics.median(ratios), min(ratios), max(ratios)


def headline(result: dict[str, Any]) -> str:
    """Model, machine, versions and protocol."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['model']}, {result['dtype']}, on {result['hardware']['name']} ({versions})\n"
        f"{_own_rate(result)}"
        f"{result['clock']}; {result['rounds']} rounds in alternating order; packs of {result['token_budget']} tokens; "
        f"lengths x {result['length_scale']:g}; seed {result['seed']}\n"
        f"{result['command']}"
    )


def closing(result: dict[str, Any]) -> str:
    """What the tables' headings mean, and the workloads that a time limit left out."""
    left_out = "".join(f"{line}\n" for line in result["not_measured"])
    return f"{GLOSSARY}\n\n{left_out}"


def workload_table(workload: dict[str, Any]) -> str:
    """A row for every contender, and the reasons why others did not finish."""
    rates = workload["matmul_flops"]
    speed = f"{statistics.median(rates) / 1e12:.3g} TFLOP/s" if rates else "an unmeasured speed"
    summary = (
        f"{workload['name']}: {workload['candidates']} candidates of {workload['prompts']} prompts, "
        f"{workload['tokens']} tokens, deduplication ratio {workload['dedup_ratio']:.2f}, "
        f"batches of 8 in order of arrival compute {workload['padding_of_8']:.2f}x the tokens; "
        f"a dense matrix product runs at {speed}"
    )
    done = [c for c in workload["contenders"] if "measures" in c]
    notes = [f"{c['name']} did not run: {c['error']}" for c in workload["contenders"] if c["error"]]
    notes += [
        f"{c['name']}: {len(c['seconds'])} of {len(rates)} rounds"
        for c in done
        if len(c["seconds"]) < len(rates)
    ]
    if "share_of_dedup" in workload:
        median, least, most = workload["share_of_dedup"]
        notes.append(
            f"sharing reaches {median:.2f} [{least:.2f}, {most:.2f}]"
            " of the deduplication ratio (packed / packed+shared)"
        )
    notes += [
        f"{c['name']}: {'the same bits' if c['same_bits'] else 'different bits'} with shuffled prompts"
        for c in done
        if "same_bits" in c
    ]
    rows = [_row(contender) for contender in done]
    table = markdown_table(list(rows[0]), (list(row.values()) for row in rows), aligned=True) if rows else ""
    return "\n".join([summary, "", table, "", *notes]).rstrip()


def readme_table(result: dict[str, Any]) -> str:
    """A Markdown table of tokens/s, MFU and the speedup over padded-8, by contender and workload."""
    workloads = result["workloads"]
    heads = [f"{w['name']} (dedup {w['dedup_ratio']:.2f})" for w in workloads]
    rows = [
        [contender["name"], *(_cell(w["contenders"][i]) for w in workloads)]
        for i, contender in enumerate(workloads[0]["contenders"])
    ]
    table = markdown_table(["tokens/s, MFU, x padded-8", *heads], rows, aligned=True)
    return f"{headline(result)}\n\n{table}"


def _own_rate(result: dict[str, Any]) -> str:
    rate = result.get("layer_matmul_flops")  # older results lack it
    return f"products of the model's own shapes run at {rate / 1e12:.3g} TFLOP/s\n" if rate else ""


def _measures(contender: dict[str, Any], workload: dict[str, Any], matmul_flops: float) -> dict[str, Any]:
    seconds = statistics.median(contender["seconds"])
    return {
        "seconds": seconds,
        "candidates_per_s": workload["candidates"] / seconds,
        "tokens_per_s": workload["tokens"] / seconds,
        "computed_tokens_per_s": contender["computed_tokens"] / seconds,
        "mfu": contender["flops"] / seconds / matmul_flops,
        "times_floor": seconds * matmul_flops / workload["floor_flops"],
        "padding": contender["computed_tokens"] / workload["tokens"],
        "fill": contender["needed_tokens"] / contender["slots"],
    }


def _row(contender: dict[str, Any]) -> dict[str, str]:
    """The cells of a contender by heading."""
    m, compared = contender["measures"], "flips" in contender
    return {
        "contender": contender["name"],
        "cand/s": significant(m["candidates_per_s"]),
        "tokens/s": f"{m['tokens_per_s']:,.0f}",
        "computed tokens/s": f"{m['computed_tokens_per_s']:,.0f}",
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


def _ratio(spread: Sequence[float] | None) -> str:
    return UNKNOWN if spread is None else "{:.2f} [{:.2f}, {:.2f}]".format(*spread)


def _cell(contender: dict[str, Any]) -> str:
    if "measures" not in contender:
        return UNKNOWN
    m = contender["measures"]
    speedup = f", {m['speedup'][0]:.2f}x" if "speedup" in m else ""
    return f"{m['tokens_per_s']:,.0f}, {100 * m['mfu']:.0f} %{speedup}"
