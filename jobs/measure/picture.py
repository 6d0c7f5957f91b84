"""Write charts of a report side by side as one SVG file, for pages that cannot hold HTML.

python -m jobs.measure.picture OUT/report.html FILE.svg "Scores" "Best of n"
"""

import argparse
import re
from pathlib import Path

GAP, HEADING = 24, 24  # SVG user units
CHART = re.compile(
    r'<svg class="chart"[^>]*viewBox="0 0 (\d+) (\d+)"[^>]*aria-label="([^"]*)">(.*?)</svg>', re.S
)


def picture(page: str, titles: list[str]) -> str:
    """The charts with these titles as an SVG file with the light colors of the page, on white.

    Raises KeyError if the page has no chart with a title.
    """
    charts = {title: (int(width), int(height), body) for width, height, title, body in CHART.findall(page)}
    colors = dict(re.findall(r"--(\w+): ([^;]+);", page.split("@media")[0]))
    rules = re.findall(r"^svg (?:text|\.)[^\n]*$", page, re.M)
    style = re.sub(r"var\(--(\w+)\)", lambda name: colors[name[1]], "\n".join(rules))
    x, tallest, drawn = GAP, 0, []
    for title in titles:
        width, height, body = charts[title]
        drawn.append(
            f'<g transform="translate({x} {GAP})"><text class="heading" y="4">{title}</text>'
            f'<g transform="translate(0 {HEADING})">{body}</g></g>'
        )
        x, tallest = x + width + GAP, max(tallest, height)
    bottom = tallest + HEADING + 2 * GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="{bottom}" viewBox="0 0 {x} {bottom}">\n'
        f"<style>\ntext {{ font-family: sans-serif; }}\n{style}\n"
        f"svg text.heading {{ font-size: 14px; fill: {colors['ink']}; }}\n</style>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("titles", nargs="+", metavar="TITLE")
    args = parser.parse_args()
    args.file.write_text(picture(args.report.read_text("utf-8"), args.titles), "utf-8")


if __name__ == "__main__":
    main()
