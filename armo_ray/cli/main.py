"""The command line. Parses, checks, and only then imports what is slow."""

import argparse
import importlib
import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO

from armo_ray.bench.command import execute
from armo_ray.cli.parser import CURATION, build_parser
from armo_ray.cluster import watch
from armo_ray.errors import ConfigError
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.options import AnyOptions, load_options
from armo_ray.plan.options import PlanOptions
from armo_ray.report.options import ReportOptions
from armo_ray.score.config import ScoreConfig, load_configs
from armo_ray.signals import OutOfTime, limited, stop_on_sigterm

if TYPE_CHECKING:
    from armo_ray.storage.records import Totals  # imports pyarrow

COMPLETE, FAILED, MISUSED, TOO_MANY_REJECTS, DRIFTED, OUT_OF_TIME = range(6)

_GO_ON = "what is committed stays, run it again to go on"

logger = logging.getLogger("armo_ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    run = _COMMANDS.get(args.command, _curate)
    watch.command = f"armo-ray {args.command}"
    stop_on_sigterm()
    try:
        status = run(args)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(f"armo-ray {args.command}: error: {error}", file=sys.stderr)
        return MISUSED
    except (RuntimeError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            return FAILED
        print(f"armo-ray {args.command}: failed: {error}", file=sys.stderr)
        return FAILED
    except OutOfTime:
        print(
            f"armo-ray {args.command}: --max-runtime is over; run it again to go on",
            file=sys.stderr,
        )
        return OUT_OF_TIME
    except KeyboardInterrupt:
        print(
            f"armo-ray {args.command}: stopped; "
            + (_GO_ON if run in (_score, _evaluate) else "nothing is left"),
            file=sys.stderr,
        )
        return FAILED


def _is_unread(stream: TextIO) -> bool:
    """Whether who read the output has left, as `head` does; nothing more is written to it then."""
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


def _score(args: argparse.Namespace) -> int:
    began, given = time.monotonic(), _given(args, ScoreConfig)
    return _score_all(load_configs(args.config, given, **_reading(args.config)), began)


def _score_all(configs: Sequence[ScoreConfig], began: float) -> int:
    """Score with each configuration, all of which are checked first."""
    from armo_ray.score import trial
    from armo_ray.score.job import prepare_all

    prepared = prepare_all(configs, check=trial.check)
    from armo_ray.score import pipeline

    limit, statuses = configs[0].max_runtime, []
    with limited(limit and limit - (time.monotonic() - began)):
        for (job, spans), config in zip(prepared, configs, strict=True):
            totals, judged = pipeline.run(job, spans, config)
            _summarize(totals, config)
            statuses.append(_judge(judged, config))
    return max(statuses)


def _plan(args: argparse.Namespace) -> int:
    options = load_options(PlanOptions, None, _given(args, PlanOptions))
    configs = load_configs(args.config, _given(args, ScoreConfig), **_reading(args.config))
    from armo_ray.plan.estimate import estimate
    from armo_ray.plan.show import lines

    for config in configs:
        told = estimate(config, options)
        print(json.dumps(told) if args.json else "\n".join(lines(told)), flush=True)
    return COMPLETE


def _evaluate(args: argparse.Namespace) -> int:
    """The tables of an output, or of the one that the options of score describe."""
    began, given = time.monotonic(), _given(args, ScoreConfig)
    output = given.pop("output", None)
    if not given and not args.words:
        raise ConfigError("give outputs of armo-ray score; or --input, --model and --output, to score first")
    if not given:
        return _curate(args)
    if args.words:
        raise ConfigError(
            f"{args.words[0]}: give outputs of armo-ray score, or --input and --model, not both"
        )
    if output is None:
        raise ConfigError("--output: missing, the scores and tables need a place")
    options = load_options(
        EvaluateOptions, None, {**_given(args, EvaluateOptions), "scores": f"{output}/scored"}
    )
    from armo_ray.evaluate import benchmark_files
    from armo_ray.evaluate import command as evaluate
    from armo_ray.storage import lock
    from armo_ray.storage.store import Store

    evaluate.check(options, str(given.get("model")))
    with lock.held(Store(output)):
        config, files = benchmark_files.scoring(options, given, output)
        with benchmark_files.naming(files):
            status = _score_all([config], began)
        evaluate.run(options.model_copy(update={"output": f"{output}/tables"}), replace=True)
    return status


def _given(args: argparse.Namespace, kind: type[AnyOptions]) -> dict[str, Any]:
    """The flags that were given."""
    given = {name: value for name, value in vars(args).items() if name in kind.model_fields}
    lists = (value for value in given.values() if isinstance(value, list))
    if swallowed := [word for words in lists for word in words if word.endswith(".toml")]:
        raise ConfigError(f"{swallowed[0]}: put the TOML file before the flags")
    return given


def _reading(file: str | None) -> dict[str, Any]:
    """How a TOML file is read that lies in a storage."""
    if file is None or "://" not in file:
        return {}
    from armo_ray.storage.filesystem import read_text

    return {"read": read_text}


def _curate(args: argparse.Namespace) -> int:
    kind, _ = CURATION[args.command]
    options = _of_words(args, kind)
    own = args.command in ("evaluate", "compare")
    module = f"armo_ray.{args.command}.command" if own else f"armo_ray.curate.{args.command}"
    command = importlib.import_module(module)
    command.run(options)
    return COMPLETE


def _report(args: argparse.Namespace) -> int:
    options = _of_words(args, ReportOptions)
    from armo_ray.report import command

    return DRIFTED if command.run(options) else COMPLETE


def _of_words(args: argparse.Namespace, kind: type[AnyOptions]) -> AnyOptions:
    """The options of a command whose words are a TOML file, if any, and outputs."""
    given = _given(args, kind)
    files = [word for word in args.words if word.endswith(".toml")]
    if len(files) > 1:
        raise ConfigError(f"{files[1]}: one TOML file is enough")
    if outputs := [word for word in args.words if word not in files]:
        given["scores"] = outputs
    file = files[0] if files else None
    return load_options(kind, file, given, **_reading(file))


def _summarize(totals: "Totals", config: ScoreConfig) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(totals.rejected.items()))
    logger.info(
        "%s: %d of %d candidates scored, %d rejected%s",
        config.output,
        totals.scored,
        totals.candidates,
        totals.num_rejected,
        f" ({reasons})" if reasons else "",
    )


def _judge(totals: "Totals", config: ScoreConfig) -> int:
    """The exit status, by the shards of this run."""
    # a lost shard is one reject, whatever it held: it weighs as a shard
    unreadable = totals.rejected.get("unreadable_shard", 0) / max(totals.shards or 0, 1)
    rejected = totals.num_rejected - totals.rejected.get("skipped", 0)  # as --winner asks for
    fraction = max(rejected / max(totals.candidates, 1), unreadable)
    if fraction <= config.max_reject_fraction:
        return COMPLETE
    logger.error(
        "rejects are %.2f %%, more than --max-reject-fraction %g: see %s/rejects",
        100 * fraction,
        config.max_reject_fraction,
        config.output,
    )
    return TOO_MANY_REJECTS


def _verify(args: argparse.Namespace) -> int:
    if (args.output is None) == (args.model is None):
        raise ConfigError("give an output to check, or --model to try out a model")
    if args.model is not None:
        if args.repair:
            raise ConfigError("--repair goes with an output")
        return _verify_model(args)
    if args.revision or args.family or args.dtype or args.device or args.record or args.against:
        raise ConfigError("--revision, --family, --dtype, --device, --record and --against go with --model")
    if args.repair:
        return _repair(args.output)
    from armo_ray.storage.store import Store
    from armo_ray.text.layouts import columns_read
    from armo_ray.verify.output import counts_of, examine
    from armo_ray.verify.sources import tell_states

    found = examine(Store(args.output))
    tell_states(found.records, found.run, columns_read)
    for fault in found.faults:
        print(fault.message)
    count = len(found.faults)
    told = ", ".join(f"{count} {name}" for name, count in counts_of(found).items())
    mend = "; --repair repairs what it can" if any(not fault.undone for fault in found.faults) else ""
    state = f"{count} fault{'s' * (count > 1)}{mend}" if count else "whole"
    print(f"{args.output}: {told}: {state}")
    return FAILED if count else COMPLETE


def _repair(output: str) -> int:
    from armo_ray.text.layouts import columns_read
    from armo_ray.verify.repair import repair_output

    found = repair_output(output, columns_read)
    for line in (*found.done, *found.left):
        print(line)
    left = f", {len(found.left)} faults are left" if found.left else ""
    state = "complete" if found.complete else "not complete: run the same armo-ray score command again"
    print(f"{output}: {len(found.done)} repairs{left}; {state}")
    return FAILED if found.left else COMPLETE


def _explain(args: argparse.Namespace) -> int:
    from armo_ray.explain.find import find
    from armo_ray.explain.show import lines

    print("\n".join(lines(find(args.output, args.row), args.model, args.all_tokens)))
    return COMPLETE


def _verify_model(args: argparse.Namespace) -> int:
    from armo_ray.verify.model import read_record, report, verify_model

    against = None if args.against is None else read_record(args.against)
    if args.record is not None and not Path(args.record).parent.is_dir():
        raise ConfigError(f"--record {args.record}: no such directory")
    dtype = args.dtype or "bfloat16"
    checks, record = verify_model(args.model, args.revision, dtype, args.device, args.family, against)
    print(report(checks))
    if args.record is not None and record:
        Path(args.record).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    failed = sum(not check.passed for check in checks)
    print(f"{args.model}: {f'{failed} checks failed' if failed else 'fit to score with'}")
    return FAILED if failed else COMPLETE


def _layouts(args: argparse.Namespace) -> int:
    from armo_ray.layouts.show import lines

    print("\n".join(lines(args.name)))
    return COMPLETE


def _tiny_model(args: argparse.Namespace) -> int:
    from armo_ray.tiny.families import write_family

    directory = Path(args.directory)
    filled = f"{directory} exists and is not an empty directory"
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(filled)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as beside:
        whole = Path(beside) / "model"
        write_family(whole, args.family, args.backbone, args.seed)
        try:
            whole.rename(directory)
        except OSError as error:  # another command was faster
            raise ConfigError(filled) from error
    print(f"{args.directory}: a random model of the family {args.family}, 2 layers; its scores mean nothing")
    return COMPLETE


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "score": _score,
    "plan": _plan,
    "evaluate": _evaluate,
    "report": _report,
    "verify": _verify,
    "explain": _explain,
    "layouts": _layouts,
    "tiny-model": _tiny_model,
    "bench": execute,
}
