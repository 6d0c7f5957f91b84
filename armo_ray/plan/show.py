"""The estimate as text for people."""

import math
from collections.abc import Iterator
from typing import Any

from armo_ray.formatting.numbers import abbreviated, percent, significant
from armo_ray.plan import preview
from armo_ray.plan.intervals import Figure, Z

_BAR = 40
_LABEL = 12
_NO_RATE = (
    "unknown: the speed of a replica has not been measured. Give --previous OUT, an earlier output of this model on "
    "such machines, --computed-tokens-per-second X, from the column computed tokens/s of armo-ray bench, or --gpu NAME"
)


def lines(estimate: dict[str, Any]) -> Iterator[str]:
    """The lines of an estimate, as `estimate` and `estimate_stated` of `armo_ray.plan.estimate` return it."""
    model = estimate["model"]
    if "input" not in estimate:
        yield _line("model", f"{model['path']} ({model['dtype']})")
        yield _line(
            "to do", f"{amount(estimate['to_do']['rows'])} rows, {amount(estimate['to_do']['tokens'])} tokens"
        )
        yield from _cost(estimate)
        return
    yield _line(
        "model",
        f"{model['path']} ({model['family']}, {model['dtype']}), at most {estimate['max_length']:,} tokens",
    )
    if reference := model.get("reference_model"):
        yield _line("reference", f"{reference}: memory holds two models, and both compute every token")
    yield _line("input", _input(estimate["input"]))
    yield _line("layout", _layout(estimate["layout"]))
    yield _line("output", f"{estimate['output']}: {_units(estimate)}")
    if estimate["preview"]:
        yield from preview.lines(estimate["preview"])
        yield ""
    if estimate["refused"]:
        yield _line("refused", estimate["refused"])
    todo, sample = estimate["to_do"], estimate["sample"]
    if not todo["shards"]:
        yield _line("to do", "nothing")
        return
    how = {
        "footers": "from the footers",
        "all": "counted",
        "sample": "estimated from the sample",
        "projected": "if they are like the sample",
    }[todo["counted"]]
    yield _line("to do", f"{amount(todo['rows'])} rows, {amount(todo['candidates'])} candidates, {how}")
    read = "the whole input" if sample["complete"] else f"{sample['places']} places"
    yield _line(
        "sample",
        f"{read}: {sample['rows']:,} rows, {sample['candidates']:,} candidates, "
        f"{abbreviated(sample['tokens'])} tokens, in {sample['seconds']:.1f} s; 95 % intervals in parentheses",
    )
    yield _line("rejects", _rejects(estimate))
    yield _line("prompts", _prompts(estimate["prompts"]))
    yield from _lengths(estimate)
    yield _line(
        "tokens",
        f"{amount(todo['tokens'])} in conversations, {amount(todo['computed'])} to compute: {_ratio(estimate)}",
    )
    yield from _cost(estimate)


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"


def _input(source: dict[str, Any]) -> str:
    shards = f"{source['shards']:,} shard{'s' * (source['shards'] != 1)}, {abbreviated(source['bytes'])}B"
    if parquet := source["parquet_shards"]:
        whose = "" if parquet == source["shards"] else f" in {parquet:,} Parquet shards"
        shards += f": {source['parquet_rows']:,} rows, {source['parquet_candidates']:,} candidates{whose}"
    unreadable = source["unreadable_shards"]
    return shards + (f"; {unreadable:,} cannot be read and will be rejected" if unreadable else "")


def _layout(layout: dict[str, Any]) -> str:
    read = ", ".join(f"{role}={column}" for role, column in layout["read"].items())
    return f"{layout['name']}: {read}; columns that are not read: {', '.join(layout['unread']) or 'none'}"


def _units(estimate: dict[str, Any]) -> str:
    done, of_all = estimate["committed"]["units"], estimate["committed"]["units_of_output"]
    of_others = f" (and {of_all - done:,} from other shards)" if of_all > done else ""
    return f"{done:,} units committed{of_others}, {amount(estimate['to_do']['units'])} to do"


def _rejects(estimate: dict[str, Any]) -> str:
    likely = {
        name: figure for name, figure in estimate["rejects"].items() if figure.value and name != "truncated"
    }
    named = [f"{share(figure)} {name}" for name, figure in likely.items()]
    long = estimate["rejects"]["too_long"]
    if not long.value and long.high:
        named.append(f"too_long at most {_percent(long.high)} %")
    cut = estimate["rejects"]["truncated"]
    return (", ".join(named) or "none") + (f"; {share(cut)} truncated and scored" if cut.value else "")


def _prompts(prompts: dict[str, Any]) -> str:
    if prompts["others"] is None:
        return "none to compare"
    return (
        f"{percent(prompts['repeated'])} of the sampled rows share their prompt with another row; over all rows to do, "
        f"a row shares its prompt with {amount(prompts['others'])} others on average"
    )


def _lengths(estimate: dict[str, Any]) -> Iterator[str]:
    lengths = estimate["lengths"]
    if lengths["mean"] is None:
        return
    bound = lengths["longest"] if lengths["is_bound"] else None  # a length that is only a lower bound
    quantiles = ", ".join(
        f"{100 * q:.0f} % {f'beyond {n - 1:,}' if n == bound else f'up to {n:,}'}"
        for q, n in lengths["quantiles"].items()
    )
    more = "at least " if bound else ""
    yield _line(
        "lengths",
        f"mean {more}{lengths['mean']:,.0f} tokens, {quantiles}, longest {more}{lengths['longest']:,}",
    )
    most = max(bucket["share"] for bucket in lengths["histogram"])
    fate = "rejected" if estimate["truncate"] == "none" else "truncated, or rejected if nothing can be cut"
    for bucket in lengths["histogram"]:
        bar = "#" * round(_BAR * bucket["share"] / most) or ("." if bucket["share"] else "")
        over = (
            f"  longer than {estimate['max_length']:,}: {fate}"
            if bucket["from"] > estimate["max_length"]
            else ""
        )
        to = f"{bucket['to']:,}" if bound is None or bucket["to"] < bound else "more"
        yield f"{bucket['from']:>10,} - {to:>7} {100 * bucket['share']:6.2f} %  {bar}{over}"


def _ratio(estimate: dict[str, Any]) -> str:
    ratio = estimate["deduplication_ratio"]
    return "nothing to share" if ratio is None else f"deduplication ratio {amount(ratio)}"


def _cost(estimate: dict[str, Any]) -> Iterator[str]:
    rate, cost = estimate["throughput"], estimate["cost"]
    if rate is None:
        yield _line("time", _NO_RATE)
        for gpu, figures in estimate["gpu_estimates"].items():
            speed, hours = figures["computed_tokens_per_second"], amount(figures["cost"]["gpu_hours"])
            yield _line(
                f"  {gpu}", f"{speed:,.0f} computed tokens/s, {hours} GPU hours: estimated, not measured"
            )
        return
    spread = "" if rate["spread"] is None else f", varying by {100 * rate['spread']:.0f} % between units"
    if spread and not rate["units"]:
        spread = f", give or take a factor of {math.exp(Z * rate['spread']):.1f}"
    load = f", {rate['load_seconds']:.0f} s to load the model" if rate["load_seconds"] else ""
    units = f"{rate['units']:,} units of {rate['source']}" if rate["units"] else rate["source"]
    yield _line(
        "throughput",
        f"{rate['computed_tokens_per_second']:,.0f} computed tokens/s per replica{spread} ({units}){load}",
    )
    gpus = cost["gpus_per_replica"]
    paid = cost["gpu_hours"] if gpus else cost["replica_hours"]
    yield _line(
        "GPU hours" if gpus else "hours", f"{amount(paid)}{f', {gpus:g} GPU per replica' if gpus else ''}"
    )
    walls = [
        f"{duration(figure)} with {n} replica{'s' * (n > 1)}" for n, figure in cost["wall_hours"].items()
    ]
    yield _line("wall time", ", ".join(walls))
    if cost["usd"] is not None:
        yield _line("cost", f"{amount(cost['usd'])} USD at {cost['price']:g} per hour")


def amount(figure: Figure) -> str:
    """A value with its interval, unless it is exact."""
    return _with_interval(*map(abbreviated, figure))


def share(figure: Figure) -> str:
    """A fraction of 1 in percent, with two digits and its interval, unless it is exact."""
    value, low, high = map(_percent, figure)
    return _with_interval(value, low, high, " %")


def _percent(fraction: float) -> str:
    return significant(100 * fraction, 2 if fraction < 0.995 else 3)


def _with_interval(value: str, low: str, high: str, unit: str = "") -> str:
    return f"{value}{unit}" if low == high else f"{value}{unit} ({low} - {high})"


def duration(hours: Figure) -> str:
    size, unit = next(
        (s, u) for s, u in ((1, "h"), (60, "min"), (3600, "s")) if hours.value * s >= 1 or u == "s"
    )
    return f"{amount(Figure(*(x * size for x in hours)))} {unit}"
