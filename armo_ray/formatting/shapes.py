"""The shapes that charts are drawn with, as SVG, and the ticks of their axes. Any text is escaped.

`kind` is a class of chart.css, `title` is shown when the mouse is over the shape.
"""

from math import ceil, floor, log10

from markupsafe import Markup


def ticks(low: float, high: float, most: int = 5, least: float = 0.0) -> list[float]:
    """About `most` round numbers from low to high, at least `least` apart."""
    if not high > low:
        return [low]
    raw = max((high - low) / most, least)
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return [i * step for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def tick(value: float) -> str:
    """A number beside a tick: 12,000, 1.5M."""
    for size, sign in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:,.6g}"


def text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    drawn = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return drawn.format(kind, x, y, anchor, text)


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> Markup:
    label = Markup("<title>{}</title>").format(title) if title else ""
    drawn = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>')
    return drawn.format(kind, x, y, width, height, label)


def circle(x: float, y: float, radius: float, title: str) -> Markup:
    drawn = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{:.3g}"><title>{}</title></circle>')
    return drawn.format(x, y, radius, title)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    drawn = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return drawn.format(kind, x1, y1, x2, y2)
