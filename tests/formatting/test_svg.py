"""Charts as SVG: well formed, with the values that they were given, and with any text as text."""

from xml.etree import ElementTree

import pytest

from armo_ray.formatting.series import Point, series
from armo_ray.formatting.shapes import ticks
from armo_ray.formatting.svg import Bar, Chart, bars, curve, heatmap, histogram, reliability

EVIL = "<script>alert('x')</script>\" & "
NAMES = [EVIL, "b"]
CHARTS = {
    "bars": bars(EVIL, [Bar(EVIL, 0.5, 0.4, 0.6, 0.1), Bar("b", 1.0)]),
    "heatmap": heatmap(EVIL, NAMES, NAMES, [[1.0, None], [-0.5, 0.0]]),
    "histogram": histogram(EVIL, [0.0, 1.0, 2.0], [3, 0], (EVIL, "candidates"), mark=0.5),
    "curve": curve(EVIL, [(1.0, 0.5), (2.0, 0.7)], ("n", EVIL), (0.1, 0.4), [(0.4, 0.6), (0.5, 0.9)]),
    "series": series(
        EVIL, [Point(EVIL[:14], 1.0, (0.5, 1.5)), Point("b", None), Point("c", 2.0, None, "above")]
    ),
    "reliability": reliability(EVIL, [(0.6, 0.5, 10), (0.9, 1.0, 90)]),
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_shows_hostile_text_as_text(name: str) -> None:
    root = ElementTree.fromstring(CHARTS[name].standalone())
    assert root.find(f".//{SVG}script") is None
    assert EVIL in [text.text for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", CHARTS)
def test_the_file_and_the_page_have_the_same_shapes(name: str) -> None:
    def shapes(text: str, space: str) -> list[tuple[str, dict[str, str]]]:
        elements = ElementTree.fromstring(text).iter()
        return [(e.tag.removeprefix(space), e.attrib) for e in elements if e.get("class", "chart") != "chart"]

    inline = shapes(CHARTS[name].__html__(), "")
    file = shapes(CHARTS[name].standalone(), SVG)
    assert [shape for shape in file if shape[1].get("x") != "12"] == [
        s for s in inline if s[0] not in ("svg", "div")
    ]


def test_a_file_needs_no_style_of_a_page() -> None:
    assert "var(" not in CHARTS["bars"].standalone()


def test_bars_are_as_long_as_their_values() -> None:
    root = ElementTree.fromstring(CHARTS["bars"].standalone())
    widths = [float(bar.get("width", "")) for bar in root.iter(f"{SVG}rect") if bar.get("class") == "pale"]
    assert widths == [200.0, 400.0]


def test_cells_are_shaded_by_their_distance_from_the_middle() -> None:
    chart = heatmap("h", ["a"], ["b", "c", "d"], [[0.5, 1.0, 0.25]], middle=0.5, most=0.5)
    cells = ElementTree.fromstring(chart.standalone()).iter(f"{SVG}rect")
    shades = [(cell.get("class"), cell.get("fill-opacity")) for cell in cells if cell.get("fill-opacity")]
    assert shades == [("shade bar", "0.00"), ("shade bar", "1.00"), ("shade less", "0.50")]


@pytest.mark.parametrize("small", [False, True], ids=["large", "small"])
def test_a_series_breaks_where_a_value_is_unknown_and_points_to_where_one_is_outside(small: bool) -> None:
    values = [1.0, 2.0, None, 3.0, 1.0]
    points = [Point(str(i), value, (0.0, 4.0)) for i, value in enumerate(values)]
    points[3] = points[3]._replace(outside="above", label="high")
    points[4] = points[4]._replace(outside="below", label="low")
    root = ElementTree.fromstring(series("s", points, small).standalone())
    assert len([line for line in root.iter(f"{SVG}polyline") if line.get("class") == "line"]) == 2
    found = {mark[0].text: mark for mark in root.iter(f"{SVG}polygon") if mark.get("class") == "less"}
    for side, tip_is in (("high", min), ("low", max)):
        ys = [float(corner.split(",")[1]) for corner in found[side].get("points", "").split()]
        assert ys[2] == tip_is(ys)
    assert len(list(root.iter(f"{SVG}circle"))) == (0 if small else 2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 3, [3]), (-12, 34, [-10, 0, 10, 20, 30])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_chart_in_a_template_is_its_inline_svg() -> None:
    chart = Chart("t", 10, 20, [])
    assert 'viewBox="0 0 10 20" role="img" aria-label="t"' in chart.__html__()
