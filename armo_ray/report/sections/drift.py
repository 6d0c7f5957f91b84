"""The section that compares with an older output."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from armo_ray.report.charts import bar
from armo_ray.report.html import join, number, paragraph, signed, table

_MOST_MOVED = 12  # columns that are shown at once


def drift(found: Mapping[str, Any]) -> Markup:
    head = ("column", "PSI", "", "KS", "", "5 %", "median", "95 %", "")
    columns = sorted(found["columns"].items(), key=lambda entry: (not entry[1]["drifted"], -entry[1]["psi"]))
    most = (max((r["psi"] for _, r in columns), default=0), max((r["ks"] for _, r in columns), default=0))
    rows = [
        (
            name,
            number(row["psi"]),
            bar(row["psi"], max(most[0], found["max_psi"])),
            number(row["ks"]),
            bar(row["ks"], max(most[1], found["max_ks"])),
            *(signed(shift["shift"]) for shift in row["quantiles"].values()),
            "drifted" if row["drifted"] else "",
        )
        for name, row in columns
    ]
    names = found["drifted"]
    verdict = f"drifted are {', '.join(names)}." if names else "nothing drifted."
    kind = "warning" if names else "fine"
    body = [Markup('<p class="{}">Compared with {}: {}</p>').format(kind, found["against"], verdict)]
    if rows:
        body.append(table(head, rows[:_MOST_MOVED]))
        if len(rows) > _MOST_MOVED:
            body.append(
                Markup("<details><summary>The {} columns that moved less</summary>{}</details>").format(
                    len(rows) - _MOST_MOVED, table(head, rows[_MOST_MOVED:])
                )
            )
        body.append(paragraph(_how(found)))
    return join(*body)


def _how(found: Mapping[str, Any]) -> str:
    return (
        f"The population stability index (PSI) compares how many candidates fall between the older output's deciles: "
        f"below 0.1 is steady, above 0.25 has changed. Kolmogorov-Smirnov (KS) is the largest distance between the "
        f"two distributions. The last columns tell how far quantiles moved. A column has drifted where PSI is over "
        f"{number(max(found['max_psi'], found['chance_psi']))} or KS over "
        f"{number(max(found['max_ks'], found['chance_ks']))}: the limits asked for, or what chance reaches once in "
        f"1,000 times with {number(found['prompts']['older'])} and {number(found['prompts']['now'])} prompts."
    )
