"""The keys of report.json, which programs read."""

import json
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main

_BINS = "edges counts below above"
_EXAMPLE = (
    "row_id source source_row candidate role score num_response_tokens flags groups parts prompt response"
)
KEYS = {  # by path; `*` and a list stand for their first entry
    "": "version made_at armo_ray outputs complete model runs inputs totals speed asked scored drift nights rejects",
    "inputs": "source candidates",
    "speed": "first last active_seconds candidates_per_second tokens_per_second tokens computed_tokens replicas "
    "seconds mfu busy replica_hours gpus_per_replica paid_hours cost_usd throughput slowest_units",
    "speed.throughput": "from_seconds tokens_per_second",
    "speed.slowest_units": "unit source first_row num_rows scored num_tokens seconds work_seconds",
    "scored": "columns correlation influence length prompts groups pairs examples",
    "scored.columns.*": "mean sd min max quantiles histogram",
    "scored.columns.*.histogram": _BINS,
    "scored.correlation": "names matrix",
    "scored.influence.*": "mean mean_absolute share_of_variance",
    "scored.length": "columns bins",
    "scored.length.columns.*": "slope intercept slope_in_sd correlation",
    "scored.length.bins": "from to candidates mean_tokens mean_score sd_score",
    "scored.prompts": "prompts with_several sizes tied_for_best all_equal sd_within share_of_variance mean_range "
    "ranges best_of_n",
    "scored.prompts.sizes": "candidates prompts",
    "scored.prompts.ranges": "quantiles histogram",
    "scored.prompts.ranges.histogram": _BINS,
    "scored.prompts.best_of_n": "prompts n mean_score most_candidates",
    "scored.groups.*": "value candidates mean_score sd_score mean_response_tokens mean_prompt_tokens rewards gating "
    "best_of_prompt",
    "scored.pairs": "pairs accuracy ties mean_margin chosen_is_longer margins columns length groups",
    "scored.pairs.margins": "quantiles histogram",
    "scored.pairs.margins.histogram": _BINS,
    "scored.pairs.columns.*": "accuracy ties",
    "scored.pairs.length": "from to pairs accuracy",
    "scored.pairs.groups.*": "value pairs accuracy ties mean_margin chosen_is_longer",
    "scored.examples": "highest lowest",
    "scored.examples.highest": _EXAMPLE,
    "scored.examples.lowest": _EXAMPLE,
    "rejects": "reason rejects examples",
    "rejects.examples": "source source_row candidate role detail raw row_id",
    "drift": "against max_psi max_ks prompts chance_psi chance_ks drifted columns mean_score verdict per",
    "drift.mean_score": "older now shift_in_sd",
    "drift.per": "column values",
    "drift.per.values": "value prompts mean_score psi ks drifted verdict",
    "drift.per.values.psi": "column value limit",
    "nights": "by without nights",
    "nights.nights": "night scored candidates rejected p10 p90 values",
    "nights.nights.values.*": "value before mean sd outside",
    "drift.prompts": "older now",
    "drift.columns.*": "psi ks quantiles drifted",
    "drift.columns.*.quantiles.*": "older now shift",
}


@pytest.fixture(scope="module")
def report(scored_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("report")
    assert (
        main(
            [
                "report",
                str(scored_pairs),
                "--output",
                str(place),
                "--against",
                str(scored_pairs),
                "--per",
                "role",
                "--by",
                "day",
            ]
        )
        == 0
    )
    content: dict[str, Any] = json.loads((place / "report.json").read_bytes())
    return content


def entry_at(content: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        content = next(iter(content.values())) if step == "*" else content[step]
        content = content[0] if isinstance(content, list) else content
    return content


def test_report_json_keeps_its_keys(report: dict[str, Any]) -> None:
    assert {path: " ".join(entry_at(report, path)) for path in KEYS} == KEYS
