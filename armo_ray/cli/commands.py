"""The commands by name: what each does, the options it takes, and the function that runs it.

Options and functions are named as "module:name", so that a command imports nothing of another.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from armo_ray.exit_status import COMPLETE, DRIFTED, FAILED, MISUSED, OUT_OF_TIME, TOO_MANY_REJECTS

SCORE_OPTIONS = "armo_ray.score.config:ScoreConfig"

_SCORE_STATUSES = {
    COMPLETE: "complete",
    FAILED: "failed or stopped; run the same command again to go on",
    MISUSED: "wrong usage or configuration; nothing was done",
    TOO_MANY_REJECTS: "complete, but more than --max-reject-fraction was rejected",
    OUT_OF_TIME: "stopped by --max-runtime; run the same command again to go on",
}

_JUDGE_STATUSES = _SCORE_STATUSES | {
    OUT_OF_TIME: "stopped by --max-runtime or --max-cost; run the same command again to go on"
}


class Command(NamedTuple):
    """One command.

    run: the function. It takes the checked options, or, if `checks` is set, a `Given` that it checks itself before it
        imports anything slow. Returns the exit status; None stands for COMPLETE.
    options: the models of its options; none for bench, which has a parser of its own.
    usage: what follows the name in the usage, unless that is the words and the required flags.
    score_options: if it takes the options of score too, the heading of those that score requires.
    words_optional: whether flags may stand for its words.
    statuses: what its exit statuses mean, where they say more than success or failure.
    resumes: whether the same command goes on after it was stopped.
    """

    summary: str
    example: str
    run: str
    options: tuple[str, ...] = ()
    usage: str = ""
    score_options: str = ""
    words_optional: bool = False
    statuses: Mapping[int, str] = {}
    checks: bool = False
    resumes: bool = False


COMMANDS = {
    "score": Command(
        "Score conversations with a reward model, into partitioned Parquet.",
        "armo-ray score --input s3://data/rollouts/ --output s3://data/scored/ \\\n"
        "    --model RLHFlow/ArmoRM-Llama3-8B-v0.1 --keep id",
        "armo_ray.score.command:run",
        (SCORE_OPTIONS,),
        statuses=_SCORE_STATUSES,
        checks=True,
        resumes=True,
    ),
    "embed": Command(
        "Write the hidden states of a model, from which fit makes heads, into partitioned Parquet.",
        "armo-ray embed --input s3://data/rated/ --output s3://data/hidden/ \\\n"
        "    --model meta-llama/Llama-3.1-8B-Instruct",
        "armo_ray.embed.command:run",
        ("armo_ray.embed.options:EmbedOptions",),
        statuses=_SCORE_STATUSES,
        checks=True,
        resumes=True,
    ),
    "judge": Command(
        "Score conversations with a generative model and a prompt, behind an OpenAI-compatible endpoint.",
        "armo-ray judge --input pairs.parquet --output judged --judge pair \\\n"
        "    --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-32B",
        "armo_ray.judge.command:run",
        ("armo_ray.judge.options:JudgeOptions",),
        usage="[CONFIG.toml] --input URI... --output DIR --judge JUDGE\n"
        "       --model NAME {--endpoint URL | --serve vllm} [options]",
        statuses=_JUDGE_STATUSES,
        checks=True,
        resumes=True,
    ),
    "plan": Command(
        "Estimate what score would do, how long it would take, and what it would cost.",
        "armo-ray plan jobs/nightly.toml --output OUT --previous OLDER --replicas 1:8 --price 2.5",
        "armo_ray.plan.command:run",
        ("armo_ray.plan.options:PlanOptions",),
        score_options="required",
        checks=True,
    ),
    "mine": Command(
        "Make preference pairs from scores.",
        "armo-ray mine OUT --output PAIRS --strategy best-vs-sigma --min-margin score=0.02",
        "armo_ray.curate.mine:run",
        ("armo_ray.curate.options:MineOptions",),
    ),
    "label": Command(
        "Make labels from scores, for distillation, reward models, SFT and GRPO.",
        "armo-ray label OUT --output LABELS --scale standardized --per subset",
        "armo_ray.curate.label:run",
        ("armo_ray.curate.options:LabelOptions",),
    ),
    "filter": Command(
        "Keep the scored rows that satisfy conditions.",
        "armo-ray filter OUT --output KEPT --where 'score >= q0.9 and helpsteer_verbosity < 0.6' --top-k 4",
        "armo_ray.curate.filter:run",
        ("armo_ray.curate.options:FilterOptions",),
    ),
    "reweigh": Command(
        "Make new scores from stored rewards and gates, several models' scores, or labelled pairs.",
        "armo-ray reweigh OUT --output OTHER --mask helpsteer_verbosity --length-penalty 0.0001\n"
        "armo-ray reweigh OUT --output OTHER --fit-pairs PAIRS",
        "armo_ray.curate.reweigh:run",
        ("armo_ray.curate.options:ReweighOptions",),
    ),
    "fit": Command(
        "Fit a reward model to hidden states and labels, or to pairs.",
        "armo-ray fit OUT --output DIR --scale helpfulness=0:4 --gate constant",
        "armo_ray.fit.command:run",
        ("armo_ray.fit.options:FitOptions",),
        resumes=True,
    ),
    "evaluate": Command(
        "Measure how often scores are right, on a benchmark or on labelled pairs.",
        "armo-ray evaluate OUT --by source\n"
        "armo-ray evaluate --benchmark rewardbench --input 'filtered-*.parquet' --model DIR --output RB",
        "armo_ray.evaluate.start:run",
        ("armo_ray.evaluate.options:EvaluateOptions",),
        usage="[CONFIG.toml] OUT... [options]\n"
        "       armo-ray evaluate --input URI... --model MODEL --output DIR [options]",
        words_optional=True,
        score_options="to score first, instead of giving OUT",
        statuses=_SCORE_STATUSES,
        checks=True,
        resumes=True,
    ),
    "compare": Command(
        "Compare two outputs over the same rows.",
        "armo-ray compare OLD NEW --movers 10",
        "armo_ray.compare.command:run",
        ("armo_ray.compare.options:CompareOptions",),
        usage="[CONFIG.toml] OLD NEW [options]",
    ),
    "report": Command(
        "Write a page about outputs, complete or not, and about their drift.",
        "armo-ray report OUT --against OLDER\narmo-ray report OUT --by date --price 2.5",
        "armo_ray.report.command:run",
        ("armo_ray.report.options:ReportOptions",),
        statuses={
            COMPLETE: "written",
            FAILED: "failed or stopped",
            MISUSED: "wrong usage or configuration; nothing was done",
            DRIFTED: "written, and a column drifted by more than --max-psi or --max-ks",
        },
    ),
    "verify": Command(
        "Check an output or a dataset with its files, a model on this machine, or a judge.",
        "armo-ray verify OUT --repair\narmo-ray verify --model DIR --dtype fp8",
        "armo_ray.verify.command:run",
        (
            "armo_ray.verify.options:VerifyOptions",
            "armo_ray.verify.options:VerifyJudgeOptions",
            "armo_ray.verify.options:VerifyModelOptions",
        ),
        words_optional=True,
        usage="OUT [--repair]\n       armo-ray verify --model MODEL [options]\n"
        "       armo-ray verify --judge JUDGE --endpoint URL --model NAME",
        statuses={
            COMPLETE: "no fault was found, or all were repaired",
            FAILED: "faults were found, or are left after --repair",
            MISUSED: "wrong usage, or there is no such output or model",
        },
        checks=True,
    ),
    "explain": Command(
        "Trace rows: their tokens, what their scores are made of, and the prompt's other candidates.",
        "armo-ray explain OUT highest --all-tokens",
        "armo_ray.explain.command:run",
        ("armo_ray.explain.options:ExplainOptions",),
    ),
    "nightly": Command(
        "Score, make datasets, judge them and publish them: a whole night from one file.",
        "armo-ray nightly jobs/night.toml --date 2026-11-20",
        "armo_ray.nightly.command:run",
        ("armo_ray.nightly.options:NightlyOptions",),
        statuses={
            COMPLETE: "complete, and published if the file says where",
            FAILED: _SCORE_STATUSES[FAILED],
            MISUSED: _SCORE_STATUSES[MISUSED],
            DRIFTED: "complete, but not published: a condition of the gate failed",
            OUT_OF_TIME: _SCORE_STATUSES[OUT_OF_TIME],
        },
        resumes=True,
    ),
    "layouts": Command(
        "List the layouts of public data sets, with an example row of each.",
        "armo-ray layouts ultrafeedback",
        "armo_ray.layouts.command:run",
        ("armo_ray.layouts.options:LayoutsOptions",),
        words_optional=True,
    ),
    "models": Command(
        "List the families of models: what recognizes each, and what it returns.",
        "armo-ray models armorm",
        "armo_ray.models.command:run",
        ("armo_ray.models.options:ModelsOptions",),
        words_optional=True,
    ),
    "tiny-model": Command(
        "Write a tiny random reward model, for trying things out.",
        "armo-ray tiny-model DIR --family classifier --backbone qwen2",
        "armo_ray.tiny.command:run",
        ("armo_ray.tiny.options:TinyModelOptions",),
    ),
    "bench": Command(
        "Measure the engine against plain transformers code.",
        "armo-ray bench --model DIR --workloads pairs rollouts-8",
        "armo_ray.bench.command:execute",
    ),
}


def load(name: str) -> Any:
    """What "module:name" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
