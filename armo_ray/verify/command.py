"""`armo-ray verify`: check an output, or a model. Imports nothing slow before the options are checked."""

import json
from collections.abc import Mapping
from pathlib import Path

from armo_ray.errors import ConfigError
from armo_ray.exit_status import COMPLETE, FAILED
from armo_ray.options import Given, load_options
from armo_ray.verify.options import VerifyJudgeOptions, VerifyModelOptions, VerifyOptions


def run(given: Given) -> int:
    """Check, print what was found, and return the exit status. Raises ConfigError."""
    if "judge" in given.values:
        return _check_judge(load_options(VerifyJudgeOptions, None, given.values))
    if ("output" in given.values) == ("model" in given.values):
        raise ConfigError(
            "give an output to check, or --model to check a model or, with --judge and --endpoint, a judge"
        )
    for_output, for_model = given.of(VerifyOptions), given.of(VerifyModelOptions)
    if "model" in given.values:
        if for_output.keys() - for_model.keys():
            raise ConfigError("--repair needs an output")
        return _check_model(load_options(VerifyModelOptions, None, for_model))
    if wrong := [f"--{name}" for name in for_model if name not in for_output]:
        raise ConfigError(f"{', '.join(wrong)} can only be used with --model")
    options = load_options(VerifyOptions, None, for_output)
    return _check_stored(options.output, options.repair)


def _check_stored(output: str, repair: bool) -> int:
    from armo_ray.storage.store import Store
    from armo_ray.verify.dataset import is_dataset, verify_dataset

    store = Store(output)
    if not is_dataset(store):
        return _repair(output) if repair else _check_output(output)
    if repair:
        raise ConfigError(f"--repair: {output} is a dataset: make it again, in another output")
    counts, faults = verify_dataset(store)
    print("\n".join([*faults, f"{output}: {_summary(counts, len(faults), '')}"]))
    return FAILED if faults else COMPLETE


def _summary(counts: Mapping[str, int], faults: int, advice: str) -> str:
    told = ", ".join(f"{number} {name}" for name, number in counts.items())
    state = f"{faults} fault{'s' * (faults > 1)}{advice}" if faults else "whole"
    return f"{told}: {state}" if told else state


def _check_output(output: str) -> int:
    from armo_ray.storage.store import Store
    from armo_ray.text.labels import columns_read
    from armo_ray.verify.output import counts_of, examine
    from armo_ray.verify.sources import tell_states

    examined = examine(Store(output))
    tell_states(examined.records, examined.run, columns_read)
    for fault in examined.faults:
        print(fault.message)
    repairable = any(not fault.undone for fault in examined.faults)
    advice = "; --repair repairs what it can" * repairable
    print(f"{output}: {_summary(counts_of(examined), len(examined.faults), advice)}")
    return FAILED if examined.faults else COMPLETE


def _repair(output: str) -> int:
    from armo_ray.text.labels import columns_read
    from armo_ray.verify.repair import repair_output

    repaired = repair_output(output, columns_read)
    for line in (*repaired.done, *repaired.left):
        print(line)
    left = f", {len(repaired.left)} faults left" if repaired.left else ""
    state = "complete" if repaired.complete else "not complete: run the same command again"
    print(f"{output}: {len(repaired.done)} repairs{left}; {state}")
    return FAILED if repaired.left else COMPLETE


def _check_judge(options: VerifyJudgeOptions) -> int:
    from armo_ray.endpoint.client import Endpoint, check
    from armo_ray.judging.judge import load_judge
    from armo_ray.judging.self_check import lines, self_check

    judge = load_judge(options.judge)
    endpoint = Endpoint(options.endpoint, options.model, options.api_key_env)
    check(endpoint)
    print("\n".join(lines(self_check(judge, endpoint))))
    return COMPLETE


def _check_model(options: VerifyModelOptions) -> int:
    if options.record is not None and not Path(options.record).parent.is_dir():
        raise ConfigError(f"--record {options.record}: no such directory")
    from armo_ray.model.reference import given_by
    from armo_ray.verify.model import read_record, report, verify_model

    against = None if options.against is None else read_record(options.against)
    reference = given_by(
        options.reference_model, options.reference_revision, options.beta, options.length_normalized
    )
    checks, record = verify_model(
        options.model, options.revision, options.dtype, options.device, options.family, against, reference
    )
    print(report(checks))
    if options.record is not None and record:
        Path(options.record).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    failed = sum(not check.passed for check in checks)
    print(f"{options.model}: {f'{failed} checks failed' if failed else 'fit to score with'}")
    return FAILED if failed else COMPLETE
