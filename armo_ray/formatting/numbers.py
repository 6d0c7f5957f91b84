"""Numbers, shares and times as people read them; an unknown value is a dash."""

from datetime import UTC, datetime

UNKNOWN = "-"
_SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None) -> str:
    """About four digits of a fraction and all digits of a whole number, grouped: 0.523, 34.12, 12,345."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size < 1e-15:  # rounding of a zero
        return "0"
    if isinstance(value, int) or (size < 1e15 and value == int(value)):
        return f"{int(value):,}"
    if size >= 1e6 or size < 1e-4:
        return f"{value:.3g}"
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 4 if size < 0.1 else 3
    return f"{value:,.{digits}f}"


def signed(value: float | None) -> str:
    """A difference: `number` with a plus sign where it is positive."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def significant(value: float | None, digits: int = 4) -> str:
    """A number of a table for a terminal: so many significant digits, not grouped."""
    return UNKNOWN if value is None else f"{value:.{digits}g}"


def rate(value: float | None, grouped: bool = False) -> str:
    """At least three digits and no needless ones: 0.523, 34.1, 12345; grouped: 12,345."""
    if value is None:
        return UNKNOWN
    if value < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if grouped else f"{value:.0f}"


def abbreviated(value: float) -> str:
    """About three digits, from 100,000 on with k, M, G or T: 99,999, 1.23 M."""
    if value < 99_999.5:
        return f"{value:,.0f}" if value >= 99.95 or value == int(value) else f"{value:.3g}"
    value = float(f"{value:.3g}")  # first, so that 999,999 becomes 1 M
    size, unit = next((size, unit) for size, unit in _SIZES if value >= size)
    return f"{value / size:g} {unit}"


def percent(value: float | None, unit: str = " %") -> str:
    """A fraction of 1 in percent: 52.3 %."""
    return UNKNOWN if value is None else f"{100 * value:z.1f}{unit}"


def bare_percent(value: float | None) -> str:
    """A fraction of 1 in percent for a column whose heading names the unit: 52.31."""
    return UNKNOWN if value is None else f"{100 * value:z.2f}"


def times(value: float | None) -> str:
    """A factor: 1.25x."""
    return UNKNOWN if value is None else f"{value:.2f}x"


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def date(text: str) -> str:
    """An ISO 8601 time with its zone, in UTC to the second."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
