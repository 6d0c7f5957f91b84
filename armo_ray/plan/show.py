"""The estimate as text for people."""

from collections.abc import Iterator
from typing import Any

from armo_ray.formatting.numbers import abbreviated, percent, significant
from armo_ray.plan import preview
from armo_ray.plan.intervals import Figure

_BAR = 40
_LABEL = 12
_NO_RATE = (
    "unknown: nothing says how fast a replica is. Give --previous OUT, an earlier output of this model on such "
    "machines, or --tokens-per-second X, as armo-ray bench measures it"
)


def lines(told: dict[str, Any]) -> Iterator[str]:
    """An estimate, line by line."""
    model = told["model"]
    yield _line(
        "model",
        f"{model['path']} ({model['family']}, {model['dtype']}), at most {told['max_length']:,} tokens",
    )
    yield _line("input", _input(told["input"]))
    yield _line("layout", _layout(told["layout"]))
    yield _line("output", f"{told['output']}: {_units(told)}")
    if told["preview"]:
        yield from preview.lines(told["preview"])
        yield ""
    if told["refused"]:
        yield _line("refused", told["refused"])
    todo, sample = told["to_do"], told["sample"]
    if not todo["shards"]:
        yield _line("to do", "nothing")
        return
    how = {"footers": "from the footers", "all": "counted", "sample": "as the sample tells"}[todo["counted"]]
    yield _line("to do", f"{amount(todo['rows'])} rows, {amount(todo['candidates'])} candidates, {how}")
    read = "all of it" if sample["complete"] else f"{sample['places']} places of it"
    yield _line(
        "sample",
        f"{read}: {sample['rows']:,} rows, {sample['candidates']:,} candidates, "
        f"{abbreviated(sample['tokens'])} tokens, in {sample['seconds']:.1f} s; (a - b) is a 95 % interval",
    )
    yield _line("rejects", _rejects(told))
    yield _line("prompts", _prompts(told["prompts"]))
    yield from _lengths(told)
    yield _line(
        "tokens",
        f"{amount(todo['tokens'])} of conversations, {amount(todo['computed'])} to compute: {_ratio(told)}",
    )
    yield from _cost(told)


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"


def _input(found: dict[str, Any]) -> str:
    shards = f"{found['shards']:,} shard{'s' * (found['shards'] != 1)}, {abbreviated(found['bytes'])}B"
    if parquet := found["parquet_shards"]:
        whose = "" if parquet == found["shards"] else f" in {parquet:,} of Parquet"
        shards += f": {found['parquet_rows']:,} rows, {found['parquet_candidates']:,} candidates{whose}"
    unreadable = found["unreadable_shards"]
    return shards + (f"; {unreadable:,} cannot be read, and will be rejected" if unreadable else "")


def _layout(found: dict[str, Any]) -> str:
    read = ", ".join(f"{part}={column}" for part, column in found["read"].items())
    return f"{found['name']}: {read}; columns that are not read: {', '.join(found['unread']) or 'none'}"


def _units(told: dict[str, Any]) -> str:
    done, of_all = told["committed"]["units"], told["committed"]["units_of_output"]
    of_others = f" (and {of_all - done:,} of other shards)" if of_all > done else ""
    return f"{done:,} units committed{of_others}, {amount(told['to_do']['units'])} to do"


def _rejects(told: dict[str, Any]) -> str:
    found = {name: figure for name, figure in told["rejects"].items() if figure.value and name != "truncated"}
    named = [f"{share(figure)} {name}" for name, figure in found.items()]
    long = told["rejects"]["too_long"]
    if not long.value and long.high:
        named.append(f"too_long at most {significant(100 * long.high, 2)} %")
    cut = told["rejects"]["truncated"]
    return (", ".join(named) or "none") + (f"; {share(cut)} are truncated and scored" if cut.value else "")


def _prompts(found: dict[str, Any]) -> str:
    if found["others"] is None:
        return "none to compare"
    return (
        f"{percent(found['repeated'])} of the sampled rows have another's prompt; of all rows to do, "
        f"{amount(found['others'])} others have a row's prompt, on average"
    )


def _lengths(told: dict[str, Any]) -> Iterator[str]:
    found = told["lengths"]
    if found["mean"] is None:
        return
    bound = found["longest"] if found["is_bound"] else None  # what is that long may be longer
    quantiles = ", ".join(
        f"{100 * q:.0f} % {f'beyond {n - 1:,}' if n == bound else f'up to {n:,}'}"
        for q, n in found["quantiles"].items()
    )
    more = "at least " if bound else ""
    yield _line(
        "lengths",
        f"mean {more}{found['mean']:,.0f} tokens, {quantiles}, longest {more}{found['longest']:,}",
    )
    most = max(one["share"] for one in found["histogram"])
    fate = "rejected" if told["truncate"] == "none" else "truncated, or rejected where nothing can be cut"
    for one in found["histogram"]:
        bar = "#" * round(_BAR * one["share"] / most) or ("." if one["share"] else "")
        over = f"  longer than {told['max_length']:,}: {fate}" if one["from"] > told["max_length"] else ""
        to = f"{one['to']:,}" if bound is None or one["to"] < bound else "more"
        yield f"{one['from']:>10,} - {to:>7} {100 * one['share']:6.2f} %  {bar}{over}"


def _ratio(told: dict[str, Any]) -> str:
    found = told["deduplication_ratio"]
    return "nothing to share" if found is None else f"deduplication ratio {amount(found)}"


def _cost(told: dict[str, Any]) -> Iterator[str]:
    rate, cost = told["throughput"], told["cost"]
    if rate is None:
        yield _line("time", _NO_RATE)
        return
    spread = "" if rate["spread"] is None else f", give or take {100 * rate['spread']:.0f} % between units"
    load = f", {rate['load_seconds']:.0f} s to load the model" if rate["load_seconds"] else ""
    units = f"{rate['units']:,} units of {rate['source']}" if rate["units"] else rate["source"]
    yield _line(
        "throughput", f"{rate['tokens_per_second']:,.0f} computed tokens/s a replica{spread} ({units}){load}"
    )
    gpus = cost["gpus_per_replica"]
    paid = cost["gpu_hours"] if gpus else cost["replica_hours"]
    yield _line(
        "GPU hours" if gpus else "hours", f"{amount(paid)}{f', {gpus:g} GPU a replica' if gpus else ''}"
    )
    walls = [
        f"{duration(figure)} with {n} replica{'s' * (n > 1)}" for n, figure in cost["wall_hours"].items()
    ]
    yield _line("wall time", ", ".join(walls))
    if cost["usd"] is not None:
        yield _line("cost", f"{amount(cost['usd'])} USD at {cost['price']:g} an hour")


def amount(figure: Figure) -> str:
    """A value with its interval, unless it is exact."""
    return _with_interval(*map(abbreviated, figure))


def share(figure: Figure) -> str:
    """A fraction of 1 in percent, with two digits and its interval, unless it is exact."""
    return _with_interval(*(significant(100 * x, 2) for x in figure), unit=" %")


def _with_interval(value: str, low: str, high: str, unit: str = "") -> str:
    return f"{value}{unit}" if low == high else f"{value}{unit} ({low} - {high})"


def duration(hours: Figure) -> str:
    size, unit = next(
        (s, u) for s, u in ((1, "h"), (60, "min"), (3600, "s")) if hours.value * s >= 1 or u == "s"
    )
    return f"{amount(Figure(*(x * size for x in hours)))} {unit}"
