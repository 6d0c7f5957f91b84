"""Known benchmarks: their subsets, and how accuracies on these combine into the numbers that their authors report."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.evaluate import rules
from armo_ray.evaluate.items import Floats, Items, check_names
from armo_ray.evaluate.subsets import (
    DOMAINS,
    M_REWARDBENCH,
    PRIOR_SETS,
    REWARDBENCH,
    RM_BENCH,
    STYLES,
    SWAPPED,
)

Accuracies = Mapping[str, Any]  # by subset: a number, or an array of bootstrap samples
Credits = dict[str, Floats]  # by label, of shape (items,) or, in a benchmark with styles, (items, styles)

OVERALL = "Overall"
STEPWISE = "processbench"  # of solutions with labels of steps: see first_errors

_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")


@dataclass(frozen=True)
class Benchmark:
    """How items become accuracies.

    `needs` are columns of the published files that the scores must have; `takes` are columns that are used if present.
    """

    needs: tuple[str, ...]
    takes: tuple[str, ...]
    labels: Callable[[Items], list[str]]  # of every item; raises ConfigError if one is not of the benchmark
    credits: Callable[[Items, Floats, list[str]], Credits]  # from one value per candidate, and the labels
    sections: Callable[[Accuracies, Mapping[str, int]], dict[str, Any]]  # from accuracy and items by subset
    styles: tuple[str, ...] = ()  # each style makes a subset of every label

    def subsets(self, by_label: Mapping[str, Any]) -> dict[str, Any]:
        """Values by label, as values by subset: in a benchmark with styles, their last axis becomes subsets."""
        if not self.styles:
            return dict(by_label)
        return {
            f"{label} {style}": value[..., i]
            for label, value in by_label.items()
            for i, style in enumerate(self.styles)
        }


def grouped(credit: Floats, labels: list[str]) -> Credits:
    """Credits of items (G, ...) by label, in the order in which labels first appear."""
    array = np.array(labels)
    return {label: credit[array == label] for label in dict.fromkeys(labels)}


def _pairwise(items: Items, values: Floats, labels: list[str]) -> Credits:
    return grouped(rules.pairwise(items, values), labels)


def _pairs_only(items: Items, kind: str) -> None:
    items.check(kind, lambda correct, wrong: correct == wrong == 1, "one of each per row")


def _rewardbench_labels(items: Items) -> list[str]:
    _pairs_only(items, "RewardBench")
    labels = items.texts("subset")
    scored_subsets = [name for counts in REWARDBENCH.values() for name in counts]
    check_names(
        labels,
        [*scored_subsets, *PRIOR_SETS, "anthropic_harmless", "mtbench_gpt4", "mtbench_human"],
        "subset",
    )
    return labels


def _weighted(accuracy: Accuracies, counts: Mapping[str, int]) -> Any:
    """The mean of accuracies weighted by `counts`; NaN if a subset is missing."""
    if not counts.keys() <= accuracy.keys():
        return np.nan
    return sum(accuracy[name] * count for name, count in counts.items()) / sum(counts.values())


def _mean(values: Any) -> Any:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else np.nan


def rewardbench(accuracy: Accuracies, _: Mapping[str, int]) -> dict[str, Any]:
    """The four sections and their mean; also with the weights used before 2024-09-10, and with the prior sets."""
    sections = {section: _weighted(accuracy, counts) for section, counts in REWARDBENCH.items()}
    safety = _weighted(accuracy, {**REWARDBENCH["Safety"], **SWAPPED})
    legacy = _mean((sections | {"Safety": safety}).values())
    prior = _weighted(accuracy, dict.fromkeys(PRIOR_SETS, 1))
    overall = _mean(sections.values())
    return sections | {
        OVERALL: overall,
        "Safety (legacy)": safety,
        "Overall (legacy)": legacy,
        "Prior Sets": prior,
        "Overall with prior sets": (4 * overall + prior / 2) / 4.5,
        "Overall with prior sets (legacy)": (4 * legacy + prior / 2) / 4.5,
    }


def _languages(items: Items) -> list[str]:
    """The column language, else the language in the shard's path, as in .../deu_Latn/test.parquet."""
    if "language" in items.columns:
        return items.texts("language")
    in_path = [_LANGUAGE.findall(where) for where in items.where]
    for names, where in zip(in_path, items.where, strict=True):
        if not names:
            raise ConfigError(f"{where}: no language: score with --keep language, or from .../deu_Latn/...")
    return [names[-1] for names in in_path]


def _m_rewardbench_labels(items: Items) -> list[str]:
    subsets = _rewardbench_labels(items)
    return [f"{language} {subset}" for language, subset in zip(_languages(items), subsets, strict=True)]


def m_rewardbench(accuracy: Accuracies, _: Mapping[str, int]) -> dict[str, Any]:
    """The mean of the sections of every language, its mean over languages other than English, and the sections."""
    sections: dict[str, Any] = {}
    overall: dict[str, Any] = {}
    for language in sorted({name.partition(" ")[0] for name in accuracy}):
        own = {name.partition(" ")[2]: a for name, a in accuracy.items() if name.startswith(f"{language} ")}
        of_language = {section: _weighted(own, counts) for section, counts in M_REWARDBENCH.items()}
        overall[language] = _mean(of_language.values())
        sections |= {f"{language} {section}": value for section, value in of_language.items()}
    return (
        overall
        | {OVERALL: _mean(v for name, v in overall.items() if not name.lower().startswith("eng"))}
        | sections
    )


def _rewardbench_2_labels(items: Items) -> list[str]:
    canonical = {name.lower(): name for name in DOMAINS}
    subsets = items.texts("subset")
    check_names([name.lower() for name in subsets], [*canonical], "domain")
    labels = [canonical[name.lower()] for name in subsets]
    for label, (correct, wrong), where in zip(labels, items.counts.tolist(), items.where, strict=True):
        if not (correct and wrong if label == "Ties" else correct == 1 and wrong):
            raise ConfigError(
                f"{where}: {correct} chosen and {wrong} rejected responses; RewardBench 2 has 1 chosen (in "
                f"Ties 1 or more) and at least 1 rejected"
            )
    return labels


def _rewardbench_2_credits(items: Items, values: Floats, labels: list[str]) -> Credits:
    by_label = grouped(rules.best_of(items, values), labels)
    if "Ties" in by_label:
        prompts: dict[str, dict[str, int]] = {"ref": {}, "tied": {}}
        for i, (name, label) in enumerate(zip(items.texts("id"), labels, strict=True)):
            if label == "Ties":
                kind, _, number = name.partition(":")
                if kind not in prompts or not number or number in prompts[kind]:
                    raise ConfigError(f"{items.where[i]}: id {name}: expected one ref:N and one tied:N")
                prompts[kind][number] = i
        if unpaired := sorted(prompts["ref"].keys() ^ prompts["tied"].keys()):
            number = unpaired[0]
            raise ConfigError(f"Ties {number}: one of ref:{number} and tied:{number} is missing")
        ref, tied = (np.array([prompts[k][n] for n in prompts["ref"]], np.int64) for k in ("ref", "tied"))
        by_label["Ties"] = rules.ties(items, values, ref, tied)
    return by_label


def rewardbench_2(accuracy: Accuracies, _: Mapping[str, int]) -> dict[str, Any]:
    """The plain mean of the six domains."""
    return {OVERALL: _weighted(accuracy, dict.fromkeys(DOMAINS, 1))}


def _rm_bench_labels(items: Items) -> list[str]:
    labels = [name.split("-")[0] for name in _domains(items)]
    items.check("RM-Bench", lambda correct, wrong: correct == wrong == 3, "three of each per row")
    check_names(labels, RM_BENCH, "domain")
    return labels


def _domains(items: Items) -> list[str]:
    """The column domain, else the beginning of the file's name, as in chat_filtered.json."""
    if "domain" in items.columns:
        return items.texts("domain")
    in_name = [re.split(r"[_.]", _file_of(where))[0] for where in items.where]
    for name, where in zip(in_name, items.where, strict=True):
        if name.split("-")[0] not in RM_BENCH:
            raise ConfigError(
                f"{where}: no column domain, and the file's name begins with none of {', '.join(RM_BENCH)}"
            )
    return in_name


def _rm_bench_credits(items: Items, values: Floats, labels: list[str]) -> Credits:
    return grouped(rules.easy_normal_hard(items, values), labels)


def rm_bench(accuracy: Accuracies, _: Mapping[str, int]) -> dict[str, Any]:
    """Every domain, as the mean over styles; every style, as the mean over domains; and the mean of the domains."""
    domains = {name: _weighted(accuracy, {f"{name} {style}": 1 for style in STYLES}) for name in RM_BENCH}
    styles = {s: _weighted(accuracy, {f"{name} {s}": 1 for name in RM_BENCH}) for s in STYLES}
    return domains | styles | {OVERALL: _mean(domains.values())}


def _llmbar_labels(items: Items) -> list[str]:
    _pairs_only(items, "LLMBar")
    return [label.lower() for label in items.texts("subset")]


def llmbar(accuracy: Accuracies, _: Mapping[str, int]) -> dict[str, Any]:
    """The mean of the adversarial subsets, and the mean of all subsets."""
    adversarial = [a for name, a in accuracy.items() if name.startswith("adversarial")]
    return {"Adversarial": _mean(adversarial), OVERALL: _mean(accuracy.values())}


def _rag_labels(items: Items) -> list[str]:
    """The column subset, else the file's name without its ending, as in helpful.jsonl."""
    items.check(
        "RAG-RewardBench", lambda correct, wrong: bool(correct and wrong), "at least one of each per row"
    )
    if "subset" in items.columns:
        return items.texts("subset")
    return [_file_of(where).partition(".")[0] for where in items.where]


def _file_of(where: str) -> str:
    """The name of an item's file, without folders."""
    return where.rpartition(" row ")[0].rpartition("/")[2]


def labelled_labels(items: Items) -> list[str]:
    """The values of the columns named by --by, joined by spaces; `all` without such columns."""
    if not items.columns:
        return ["all"] * len(items)
    columns = [["null" if v is None else str(v) for v in column] for column in items.columns.values()]
    return [" ".join(label) for label in zip(*columns, strict=True)]


def labelled(accuracy: Accuracies, counts: Mapping[str, int]) -> dict[str, Any]:
    """The mean over all items and, with several subsets, the plain mean of their accuracies."""
    overall = {OVERALL: _weighted(accuracy, counts)}
    return overall | ({"Mean of subsets": _mean(accuracy.values())} if len(accuracy) > 1 else {})


BENCHMARKS = {
    "rewardbench": Benchmark(("subset",), (), _rewardbench_labels, _pairwise, rewardbench),
    "rewardbench-2": Benchmark(
        ("subset", "id"), (), _rewardbench_2_labels, _rewardbench_2_credits, rewardbench_2
    ),
    "rm-bench": Benchmark((), ("domain",), _rm_bench_labels, _rm_bench_credits, rm_bench, STYLES),
    "m-rewardbench": Benchmark(("subset",), ("language",), _m_rewardbench_labels, _pairwise, m_rewardbench),
    "rag-rewardbench": Benchmark((), ("subset",), _rag_labels, _pairwise, labelled),
    "llmbar": Benchmark(("subset",), (), _llmbar_labels, _pairwise, llmbar),
    "labelled": Benchmark((), ("subset",), labelled_labels, _pairwise, labelled),
}
