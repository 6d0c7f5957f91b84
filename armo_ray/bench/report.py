"""The tables of a result: one for each workload to read at a terminal, and a short one for a README."""

import statistics
from collections.abc import Sequence
from typing import Any

Row = Sequence[str]
GLOSSARY = """\
tokens/s counts every conversation whole; computed/s what went through the model, padding included. MFU: the
operations that had to be done, over time, over the rate of a dense matrix product in the same run. x floor: time
over the time of the operations that remain after sharing, at that rate. comp/real: computed over real tokens.
fill: share of the forward passes' room without padding. peak MiB: of the first pass, above what was in use. x padded-8,
x shared: times as fast as padded-8 and packed+shared, medians of the ratios in each round [min, max]. error and
flips: against float32 one by one, the largest score error in standard deviations of the scores, the relative
error of the rewards, and within-prompt pairs in another order."""
_HEADINGS = (
    "contender",
    "cand/s",
    "tokens/s",
    "computed/s",
    "MFU",
    "x floor",
    "comp/real",
    "fill",
    "peak MiB",
    "x padded-8",
    "x shared",
    "error",
    "rewards",
    "flips",
)


def full_report(result: dict[str, Any]) -> str:
    """Everything that a reader needs to judge the numbers."""
    tables = [workload_table(workload) for workload in result["workloads"]]
    return "\n\n".join([headline(result), *tables, GLOSSARY])


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
    return "\n".join([told, "", aligned([_HEADINGS, *map(_row, done)]), "", *notes]).rstrip()


def readme_table(result: dict[str, Any]) -> str:
    """Markdown: for every contender and workload tokens/s, MFU and the speed-up over padded-8."""
    workloads = result["workloads"]
    heads = [f"{w['name']} (dedup {w['dedup_ratio']:.2f})" for w in workloads]
    rows: list[Row] = [["tokens/s, MFU, x padded-8", *heads]]
    for i, contender in enumerate(workloads[0]["contenders"]):
        rows.append([contender["name"], *(_cell(w["contenders"][i]) for w in workloads)])
    return f"{headline(result)}\n\n{aligned(rows)}"


def aligned(rows: Sequence[Row]) -> str:
    """Markdown with equal widths: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - bool(i)) + ":" * bool(i) for i, width in enumerate(widths)]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(lines)


def _row(contender: dict[str, Any]) -> Row:
    m = contender["measures"]
    agreement = ["-", "-", "-"]
    if "flips" in contender:
        agreement = [
            f"{contender['max_score_error']:.1e}",
            f"{contender['rewards_error']:.1e}",
            f"{contender['flips']}/{contender['pairs']}",
        ]
    return [
        contender["name"],
        f"{m['candidates_per_s']:.4g}",
        f"{m['tokens_per_s']:,.0f}",
        f"{m['computed_tokens_per_s']:,.0f}",
        f"{100 * m['mfu']:.1f} %",
        f"{m['times_floor']:.2f}",
        f"{m['padding']:.2f}",
        f"{m['fill']:.2f}",
        "-" if contender["peak_bytes"] is None else f"{contender['peak_bytes'] / 2**20:,.0f}",
        _ratio(m.get("speedup")),
        _ratio(m.get("gain")),
        *agreement,
    ]


def _ratio(found: Sequence[float] | None) -> str:
    return "-" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def _cell(contender: dict[str, Any]) -> str:
    if "measures" not in contender:
        return "-"
    m = contender["measures"]
    speedup = f", {m['speedup'][0]:.2f}x" if "speedup" in m else ""
    return f"{m['tokens_per_s']:,.0f}, {100 * m['mfu']:.0f} %{speedup}"
