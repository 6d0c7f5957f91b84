"""The rules of the benchmarks, against plain code that goes response by response."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmarks import BENCHMARKS, rewardbench
from armo_ray.evaluate.charts import figures
from armo_ray.evaluate.diagnostics import agreement_of, by_length, margins, reliability, resampled
from armo_ray.evaluate.items import Items
from armo_ray.evaluate.published import against, find_published, published
from armo_ray.evaluate.results import evaluate_items
from armo_ray.evaluate.subsets import DOMAINS, PRIOR_SETS, REWARDBENCH
from armo_ray.evaluate.tables import evaluation
from armo_ray.measures.calibration import fit_temperature

NAN = float("nan")
score = st.one_of(st.integers(-3, 3).map(float), st.just(NAN))  # few values: many ties
Rows = list[tuple[list[float], list[float]]]  # scores of correct and of wrong responses


def items_of(rows: Rows, **columns: list[str]) -> Items:
    flat = [(i, v, right) for i, row in enumerate(rows) for right, vs in zip((True, False), row) for v in vs]  # noqa: B905
    item, values, correct = zip(*flat, strict=True)
    array = np.array(values, np.float32)
    return Items(
        ("score", "same", "opposite"),
        np.stack((array, array, -array), axis=1),
        np.arange(1, len(flat) + 1, dtype=np.float64),
        np.array(item, np.int64),
        np.array(correct),
        {name: tuple(column) for name, column in columns.items()},
        tuple(f"shard.jsonl row {i}" for i in range(len(rows))),
    )


def lists(low: int, high: int) -> st.SearchStrategy[list[float]]:
    return st.lists(score, min_size=low, max_size=high)


def accuracies(name: str, items: Items) -> dict[str, float]:
    benchmark = BENCHMARKS[name]
    credits_by_subset = benchmark.subsets(
        benchmark.credits(items, items.values[:, 0], benchmark.labels(items))
    )
    return {subset: float(credit.mean()) for subset, credit in credits_by_subset.items()}


@settings(max_examples=60)
@given(st.lists(st.tuples(lists(1, 3), lists(1, 3)), min_size=1, max_size=6))
def test_the_credit_of_a_labelled_item_is_its_fraction_of_correctly_ordered_pairs(rows: Rows) -> None:
    expected = [sum(c > w for c in right for w in wrong) / (len(right) * len(wrong)) for right, wrong in rows]
    assert accuracies("labelled", items_of(rows))["all"] == pytest.approx(np.mean(expected))


@settings(max_examples=60)
@given(st.lists(st.tuples(lists(1, 1), lists(3, 3)), min_size=1, max_size=6))
def test_rewardbench_2_shares_credit_among_the_responses_with_the_highest_score(rows: Rows) -> None:
    def credit(right: list[float], wrong: list[float]) -> float:
        scores = [*right, *wrong]
        if any(map(math.isnan, scores)):
            return 0.0
        best = [i for i, s in enumerate(scores) if s == max(scores)]
        return 1 / len(best) if 0 in best else 0.0

    items = items_of(rows, subset=["Math"] * len(rows), id=["x"] * len(rows))
    found = accuracies("rewardbench-2", items)
    assert found == {"Math": pytest.approx(np.mean([credit(*row) for row in rows]))}


def ties_score(rows: Rows, ids: list[str]) -> float:
    """The rule as the reference describes it, prompt by prompt."""
    stats: dict[str, dict[str, tuple[bool, float, float]]] = defaultdict(dict)
    for (right, wrong), name in zip(rows, ids, strict=True):
        lost = any(map(math.isnan, [*right, *wrong]))
        margin = NAN if lost else min(right) - max(wrong)
        spread = NAN if any(map(math.isnan, right)) else max(right) - min(right)
        kind, _, prompt = name.partition(":")
        stats[prompt][kind] = (margin > 0, spread, margin)
    total = 0.0
    for both in stats.values():
        (ref_right, _, ref_margin), (tied_right, spread, tied_margin) = both["ref"], both["tied"]
        least = NAN if math.isnan(ref_margin) or math.isnan(tied_margin) else min(ref_margin, tied_margin)
        if math.isnan(least) or math.isnan(spread) or (spread == 0 and least == 0):
            more = 0.0
        else:
            more = math.tanh((least / spread if spread else math.copysign(math.inf, least)) - 1)
        total += 0.3 * tied_right + 0.3 * ref_right + 0.2 * (tied_margin > spread) + 0.2 * (least > spread)
        total += 0.01 * more
    return total / len(stats)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.tuples(lists(1, 1), lists(1, 4)), st.tuples(lists(2, 5), lists(1, 4))),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_ties_of_rewardbench_2_count_accuracy_and_margin_of_both_prompts(
    prompts: list[tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]], random: object
) -> None:
    named = [
        (row, f"{kind}:{n}")
        for n, both in enumerate(prompts)
        for kind, row in zip(("ref", "tied"), both, strict=True)
    ]
    random.shuffle(named)  # type: ignore[attr-defined]
    rows, ids = [row for row, _ in named], [name for _, name in named]
    found = accuracies("rewardbench-2", items_of(rows, subset=["ties"] * len(rows), id=ids))
    assert found == {"Ties": pytest.approx(ties_score(rows, ids))}


@settings(max_examples=60)
@given(st.lists(st.tuples(lists(3, 3), lists(3, 3)), min_size=4, max_size=8))
def test_rm_bench_compares_three_styles_in_four_domains(rows: Rows) -> None:
    domains = ["chat", "code", "math", "safety-refuse", "safety-response", "chat", "code", "math"][
        : len(rows)
    ]
    items = items_of(rows, domain=domains)
    found = accuracies("rm-bench", items)
    expected = {}
    for domain in ("chat", "code", "math", "safety"):
        own = [row for row, name in zip(rows, domains, strict=True) if name.startswith(domain)]
        won = [[np.mean([right[i] > wrong[j] for right, wrong in own]) for j in range(3)] for i in range(3)]
        hard = (won[0][1] + won[0][2] + won[1][2]) / 3
        normal = (won[0][0] + won[1][1] + won[2][2]) / 3
        easy = (won[1][0] + won[2][0] + won[2][1]) / 3
        expected[domain] = (hard + normal + easy) / 3
        assert found[f"{domain} hard"] == pytest.approx(hard)
        assert found[f"{domain} easy"] == pytest.approx(easy)
    sections = BENCHMARKS["rm-bench"].sections(found, {})
    assert sections["Overall"] == pytest.approx(np.mean(list(expected.values())))
    assert {name: sections[name] for name in expected} == pytest.approx(expected)


def test_the_styles_of_an_item_of_rm_bench_are_resampled_together() -> None:
    rows: Rows = [
        ([won] * 3, [0.5] * 3) for won in (0.0, 1.0) for _ in range(10)
    ]  # all nine comparisons equal
    found = evaluate_items(items_of(rows, domain=["chat"] * 20), BENCHMARKS["rm-bench"], 1000, 0)
    for key in ("low", "high"):  # as wide as for one style, not narrower by the root of three
        assert found["sections"]["chat"][key] == pytest.approx(found["subsets"]["chat hard"][key])


def test_the_published_subsets_of_armorm_give_its_published_sections() -> None:
    found = find_published("rewardbench", "/models/ArmoRM-Llama3-8B-v0.1", None)
    assert found is not None
    rounded = {name: round(value, 2) for name, value in found["sections"].items()}
    assert [rounded[s] for s in REWARDBENCH] == [96.93, 76.75, 90.54, 97.35]
    assert rounded["Overall"] == 90.39
    assert (rounded["Safety (legacy)"], rounded["Overall (legacy)"]) == (92.20, 90.81)
    assert rounded["Overall with prior sets (legacy)"] == 88.97
    assert round(rounded["Prior Sets"], 1) == 74.3


def published_items() -> tuple[dict[str, float], Items]:
    """The published sections of ArmoRM, and items that are right as often as it was."""
    entry = find_published("rewardbench", "ArmoRM-Llama3-8B-v0.1", None)
    assert entry is not None
    rows: Rows = []
    subsets: list[str] = []
    for counts in REWARDBENCH.values():
        for name, count in counts.items():
            right = round(entry["subsets"][name] / 100 * count)
            rows += [([1.0], [float(i >= right) * 2]) for i in range(count)]
            subsets += [name] * count
    return entry["sections"], items_of(rows, subset=subsets)


def test_published_results_are_reproduced_by_equal_accuracies_and_not_by_others() -> None:
    sections, items = published_items()
    found = evaluate_items(items, BENCHMARKS["rewardbench"], 200, 0)
    accuracy = {name: row["accuracy"] for name, row in found["sections"].items()}
    assert 100 * accuracy["Overall"] == pytest.approx(sections["Overall"], abs=0.02)
    assert found["missing_sections"] == [s for s in sections if "rior" in s]
    for row in found["sections"].values():
        assert row["low"] < row["accuracy"] < row["high"]
    (entry,) = [e for e in published("rewardbench") if "ArmoRM" in e["model"]]
    comparison = against(entry, accuracy)
    assert comparison["reproduced"]
    assert sorted(comparison["missing"]) == sorted(found["missing_sections"])
    accuracy["Reasoning"] -= 0.02
    assert not against(entry, accuracy)["reproduced"]


def test_sections_need_all_their_subsets() -> None:
    accuracy = dict.fromkeys(PRIOR_SETS, 0.5) | dict.fromkeys(REWARDBENCH["Chat"], 0.75)
    found = rewardbench(accuracy, {})
    assert (found["Chat"], found["Prior Sets"]) == (0.75, 0.5)
    assert math.isnan(found["Safety"])
    assert math.isnan(found["Overall"])


def test_m_rewardbench_is_the_mean_over_languages_other_than_english() -> None:
    subsets = [name for counts in REWARDBENCH.values() for name in counts]
    wins = {"deu_Latn": 1.0, "arb_Arab": -1.0, "eng_Latn": 1.0}
    rows: Rows = [([win], [0.0]) for win in wins.values() for _ in subsets]
    items = items_of(rows, subset=subsets * 3, language=[name for name in wins for _ in subsets])
    found = evaluate_items(items, BENCHMARKS["m-rewardbench"], 100, 0)["sections"]
    overall = {name: found[name]["accuracy"] for name in (*wins, "Overall", "deu_Latn Safety")}
    assert overall == {"deu_Latn": 1, "arb_Arab": 0, "eng_Latn": 1, "Overall": 0.5, "deu_Latn Safety": 1}


def test_a_terminal_and_a_figure_show_only_the_sections_of_very_many_subsets() -> None:
    rows: Rows = [([1.0], [0.0])] * 61
    for count in (60, 61):
        labels = [f"subset {i}" for i in range(count)]
        found = evaluate_items(items_of(rows[:count], subset=labels), BENCHMARKS["labelled"], 100, 0)
        numbers = {**found, "calibration": {"reason": "none"}, "published": None}
        for text in (evaluation(numbers), figures(numbers)["accuracy.svg"]):
            assert "Mean of subsets" in text
            assert ("subset 7" in text) == (count == 60)
    assert "61 subsets are not shown; --output writes them to evaluation.json" in evaluation(numbers)


def test_every_reward_is_evaluated_like_the_score_and_compared_with_it() -> None:
    rows: Rows = [([2.0], [1.0]), ([3.0], [1.0]), ([0.0], [1.0]), ([1.0], [1.0])]
    found = evaluate_items(items_of(rows), BENCHMARKS["labelled"], 100, 0)
    assert found["objectives"] == {"same": 0.5, "opposite": 0.25}
    assert found["agreement"]["matrix"] == [[0.875, 0.875, 0.125]] * 2 + [[0.125, 0.125, 0.875]]
    assert found["subsets"]["all"]["longest"] == 0  # the wrong response is longer in every item
    assert found["pairs"]["all"] == {
        "pairs": 4,
        "ties": 1,
        "mean_margin": 0.5,
        "median_margin": 0.5,
        "correct_is_longer": 0.0,
    }


def test_a_response_without_a_score_makes_its_item_wrong_and_is_left_out_of_diagnostics() -> None:
    rows: Rows = [([NAN], [1.0]), ([1.0], [NAN]), ([1.0], [0.0])]
    items = items_of(rows)
    found = evaluate_items(items, BENCHMARKS["labelled"], 100, 0)
    assert (found["items"], found["unscored"]) == (3, 2)
    assert found["subsets"]["all"]["accuracy"] == pytest.approx(1 / 3)
    assert margins(items, ["a", "a", "b"])["a"]["pairs"] == 0
    assert sum(row["pairs"] for row in by_length(items)) == 1
    assert agreement_of(np.ones((1, 2))).tolist() == [[1, 1], [1, 1]]


def test_scores_from_bradley_terry_are_calibrated_at_the_fitted_temperature_only() -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20_000)
    right = rng.random(len(margin)) < 1 / (1 + np.exp(-np.abs(margin) / 0.7))
    labelled = np.where(right, 1, -1) * np.abs(margin)
    temperature = fit_temperature(labelled)
    assert temperature == pytest.approx(0.7, rel=0.05)
    assert reliability(labelled, temperature)["expected_error"] < 0.02
    assert reliability(labelled, 0.1)["expected_error"] > 0.05
    assert sum(b["pairs"] for b in reliability(labelled, 1.0)["bins"]) == len(labelled)


def test_resampled_means_have_the_mean_and_deviation_of_sample_means() -> None:
    credit = np.array([0.0, 0.5, 1.0, 1.0] * 25)
    drawn = resampled(credit, 20_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(credit.mean(), abs=0.002)
    assert drawn.std() == pytest.approx(credit.std() / 10, rel=0.03)
    assert len(set(drawn.tolist())) > 20


@pytest.mark.parametrize(
    ("name", "rows", "columns", "message"),
    [
        ("rewardbench", [([1.0], [0.0, 0.0])], {"subset": ["math-prm"]}, "shard.jsonl row 0: 1 chosen and 2 rejected"),
        ("rewardbench", [([1.0], [0.0])], {"subset": ["maths"]}, "benchmark: maths; expected alpacaeval-easy"),
        ("rewardbench-2", [([1.0], [0.0])], {"subset": ["Maths"], "id": ["1"]}, "not a domain of this benchmark"),
        ("rewardbench-2", [([1.0, 1.0], [0.0])], {"subset": ["Math"], "id": ["1"]}, "2 chosen and 1 rejected"),
        ("rewardbench-2", [([1.0], [0.0])], {"subset": ["Ties"], "id": ["ref:1"]}, "tied:1 is missing"),
        ("rewardbench-2", [([1.0], [0.0])], {"subset": ["Ties"], "id": ["1"]}, "id 1: expected one ref:N"),
        ("rm-bench", [([1.0, 1.0, 1.0], [0.0])], {"domain": ["chat"]}, "RM-Bench has three of each"),
        ("rm-bench", [([1.0] * 3, [0.0] * 3)], {"domain": ["chess"]}, "not a domain of this benchmark: chess"),
        ("m-rewardbench", [([1.0], [0.0])], {"subset": ["math-prm"]}, "no language: score with --keep language"),
        ("llmbar", [([1.0], [0.0])], {"subset": [None]}, "row 0: subset is null"),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" not in value else None,
)  # fmt: skip
def test_rows_that_are_not_of_the_benchmark_are_refused(
    name: str, rows: Rows, columns: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_items(items_of(rows, **columns), BENCHMARKS[name], 100, 0)


def test_a_model_without_published_results_gets_none_and_a_wrong_name_a_hint() -> None:
    assert find_published("rewardbench", "my-own", None) is None
    with pytest.raises(ConfigError, match="did you mean RLHFlow/ArmoRM-Llama3-8B"):
        find_published("rewardbench", "x", "RLHFlow/ArmoRM-Llama3-8B")
    found = find_published("rewardbench-2", "allenai/Llama-3.1-70B-Instruct-RM-RB2", None)
    assert found is not None
    assert np.mean([found["sections"][d] for d in DOMAINS]) == pytest.approx(
        found["sections"]["Overall"], abs=0.06
    )
