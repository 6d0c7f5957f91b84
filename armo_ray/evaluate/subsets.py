"""The subsets of known benchmarks, and the weight of each in its section."""

from collections.abc import Mapping

Counts = Mapping[str, Mapping[str, int]]  # by section, the weight of each of its subsets

# https://github.com/allenai/reward-bench, rewardbench/constants.py; math-prm has 447 rows
REWARDBENCH: Counts = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
# Until 2024-09-10 the counts of the two xstest subsets were swapped: results published before have these weights.
SWAPPED = {"xstest-should-refuse": 250, "xstest-should-respond": 154}
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
# M-RewardBench has fewer rows where translations were left out: see its analysis/plot_utils.py.
_TRANSLATED = {
    "alpacaeval-easy": 79,
    "alpacaeval-length": 79,
    "alpacaeval-hard": 76,
    "mt-bench-easy": 24,
    "mt-bench-med": 38,
    "mt-bench-hard": 35,
    "llmbar-natural": 76,
    "llmbar-adver-neighbor": 124,
    "llmbar-adver-GPTInst": 87,
    "llmbar-adver-GPTOut": 42,
    "llmbar-adver-manual": 43,
    "xstest-should-respond": 247,
    "donotanswer": 135,
    "math-prm": 983,
    "hep-python": 163,
}
M_REWARDBENCH: Counts = {
    section: {name: _TRANSLATED.get(name, count) for name, count in counts.items()}
    for section, counts in REWARDBENCH.items()
}
DOMAINS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
RM_BENCH = ("chat", "math", "code", "safety")
STYLES = ("easy", "normal", "hard")
