"""The stages of `jobs.measure.gpu` that score, by name. Each stores lines as it measures."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from armo_ray.bench import contenders, workloads
from armo_ray.bench.workloads import Group
from armo_ray.engine import RewardModel, Scores
from armo_ray.measures.agreement import spearman
from jobs.measure import gpu_jobs
from jobs.measure.gpu_bench import Bench

UNSHARED = {"share_prompts": False, "needed_rows": False}
SHARED = {"needed_rows": False}


def build(bench: Bench) -> None:
    started = time.perf_counter()
    weights = sum(tensor.nbytes for tensor in bench.model.backbone.parameters())
    bench.sync()
    bench.say(seconds=round(time.perf_counter() - started, 1), weight_bytes=weights)


def speed(bench: Bench, name: str, score: Callable[[Sequence[Group]], Scores]) -> dict[str, Scores]:
    """Time a contender on every workload; returns its scores."""
    scores = {}
    for work, groups in bench.works.items():
        score(groups[:2])
        seconds: list[float] = []
        while len(seconds) < 3 and sum(seconds) < 8:
            bench.sync()
            started = time.perf_counter()
            result = score(groups)
            bench.sync()
            seconds.append(time.perf_counter() - started)
        scores[work] = result
        _say_speed(bench, name, work, seconds, result)
    return scores


def _say_speed(bench: Bench, name: str, work: str, seconds: Sequence[float], result: Scores) -> None:
    median = statistics.median_low(seconds)
    packs = {"host_gap": 1 - result.model_seconds / seconds[-1], "packs": result.num_packs}
    bench.say(
        contender=name,
        work=work,
        seconds=median,
        passes=[round(s, 4) for s in seconds],
        tokens=result.num_tokens,
        tokens_per_s=result.num_tokens / median,
        computed_tokens=result.computed_tokens,
        dedup_ratio=workloads.describe(bench.works[work])["dedup_ratio"],
        finite=bool(np.isfinite(result.score).all()),
        **({"flops": result.flops, **packs} if result.flops else {}),
    )


def option_speed(bench: Bench, name: str, options: dict[str, bool]) -> None:
    speed(bench, name, bench.model.with_options(**options).score)


def baseline_speed(bench: Bench, name: str) -> None:
    speed(bench, name, contenders.prepare(name, bench.model).score)


def bits(bench: Bench) -> None:
    """Whether fixed packs give equal bits when prompts are shuffled, and when fewer are scored."""
    groups = bench.works["pairs"]
    order = np.random.default_rng(0).permutation(len(groups))

    def by_prompt(model: RewardModel, chosen: Sequence[Group]) -> Any:
        return model.score(chosen).score.reshape(len(chosen), -1)

    same = []
    for options in ({"share_prompts": False}, {}):
        model = bench.model.with_options(fixed_packs=True, **options)
        scores = by_prompt(model, groups)
        same.append(np.array_equal(scores[order], by_prompt(model, [groups[i] for i in order])))
        if options:
            few = np.array_equal(scores[:3], by_prompt(model, groups[:3]))
    bench.say(same_bits=same[0], same_bits_shared=same[1], same_bits_with_fewer=few)


def profile(bench: Bench) -> None:
    """The share of the time that kernels run, and where it goes; profile.txt has more."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    groups = bench.works["rollouts-8"][:8]
    bench.model.score(groups)
    bench.sync()
    started = time.perf_counter()
    with profile(activities=activities) as recorded:
        bench.model.score(groups)
        bench.sync()
        wall = time.perf_counter() - started
    events = recorded.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = events.table(sort_by=key, row_limit=40, max_name_column_width=90)
    (bench.out / "profile.txt").write_text(table, "utf-8")
    times = {event.key: getattr(event, key) / 1e6 for event in events}
    if on_gpu:  # an operator's time repeats that of its kernels
        times = {e.key: getattr(e, key) / 1e6 for e in events if "CUDA" in str(e.device_type)}
    longest = sorted(times.items(), key=lambda item: -item[1])[:12]
    bench.say(wall=wall, kernels=sum(times.values()), longest={name[:90]: t for name, t in longest})


def compiled(bench: Bench) -> None:
    from torch._dynamo.utils import counters

    model = bench.model.with_options(compile=True)
    started = time.perf_counter()
    model.score(bench.works["pairs"][:8])
    bench.sync()
    bench.say(cold_seconds=round(time.perf_counter() - started, 1))
    speed(bench, "engine+compile", model.score)
    speed(bench, "packed+compile", model.with_options(**UNSHARED).score)
    bench.say(graphs=counters["stats"]["unique_graphs"], recompiles=dict(counters["recompiles"]))


def fp8(bench: Bench, compiled: bool) -> None:
    name = "fp8+compile" if compiled else "fp8"
    exact = {work: bench.model.score(groups).score for work, groups in bench.works.items()}
    model = contenders.prepare("fp8+compile", bench.model).packs
    assert model is not None
    started = time.perf_counter()
    model = model.with_options(compile=compiled)
    model.score(bench.works["pairs"][:8])
    bench.sync()
    bench.say(cold_seconds=round(time.perf_counter() - started, 1))
    for work, scores in speed(bench, name, model.score).items():
        bench.say(contender=name, work=work, spearman=spearman(exact[work], scores.score))


RUN: dict[str, Callable[[Bench], None]] = {
    "build": build,
    "packed": partial(option_speed, name="packed", options=UNSHARED),
    "shared": partial(option_speed, name="shared", options=SHARED),
    "engine": partial(option_speed, name="engine", options={}),
    "padded-8": partial(baseline_speed, name="padded-8"),
    "sorted": partial(baseline_speed, name="sorted"),
    "bits": bits,
    "profile": profile,
    "compile": compiled,
    "fp8": partial(fp8, compiled=False),
    "fp8+compile": partial(fp8, compiled=True),
    "load": gpu_jobs.load,
    "bench": gpu_jobs.whole_benchmark,
    "job": gpu_jobs.job,
    "split-70b": gpu_jobs.split,
}
