"""`armo-ray judge` at a server that counts."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from armo_ray.cli.main import main
from armo_ray.endpoint.limits import Allowance, Shares
from armo_ray.judge.asker import Asker
from armo_ray.judge.stages import read_calls, write_verdicts
from armo_ray.score import passes
from armo_ray.storage.store import Store
from tests.support.paths import ROOT
from tests.support.runs import commits_of


def arguments(url: str, judge: Any, inputs: Any, output: Any, *options: str) -> list[str]:
    """Of a run; options that are given again replace those before."""
    given = ["--endpoint", f"{url}/v1", "--model", "fake", "--judge", str(judge), "--input", str(inputs)]
    return ["judge", *given, "--output", str(output), *options]


def judge(url: str, file: Any, inputs: Any, output: Any, *options: str) -> int:
    """The exit status of a run in this process, on the Ray that it uses."""
    return main(arguments(url, file, inputs, output, *options))


def start(url: str, file: Any, inputs: Any, output: Any, *options: str, **env: str) -> subprocess.Popen[str]:
    """The same in a process of its own, on a Ray of its own unless RAY_ADDRESS says otherwise."""
    command = [sys.executable, "-m", "armo_ray", *arguments(url, file, inputs, output, *options)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def execute_here(store: Store, job: Any, spans: Any, standing: Any, options: Any) -> None:
    """As `armo_ray.judge.pipeline.execute`, with the stages one after the other in this process, without Ray."""
    from armo_ray.judge.pipeline import _committed

    shares = Shares(
        options.in_flight, options.max_cost or float("inf"), options.input_price, options.output_price
    )

    async def renew(client: str, holds: int, wants: int, used: Any, pause_s: float) -> Allowance:
        return shares.renew(client, holds, wants, time.monotonic(), used, pause_s)

    def work(left: Any) -> Any:
        asker = Asker(job, renew)
        try:
            for span in left:
                for table in read_calls(span, job):
                    yield _committed(write_verdicts(asker(table), job), job.endpoint.key_variable)
        finally:
            asker.close()

    passes.begin(store, standing)
    passes.commit_all(store, job.fingerprint, spans, standing.left, work, work)


def asked(output: Any) -> dict[str, float]:
    """What commit records say was asked, summed."""
    store = Store(str(output))
    records = [store.read_json(f"_commits/{name}") or {} for name in store.list_names("_commits")]
    names = ("requests", "prompt_tokens", "completion_tokens", "cost")
    return {name: sum(record["asked"][name] for record in records) for name in names}


def units_of_parts(output: Path) -> list[str]:
    """The unit of every part of scores: one each if every unit is committed once."""
    units = [path.stem.removeprefix("part-") for path in (output / "scores").rglob("*.parquet")]
    assert set(units) <= {Path(name).stem for name in commits_of(output)}
    return units


def pairs(count: int, marks: dict[int, str] | None = None) -> list[dict[str, Any]]:
    """Rows with two responses each; some prompts hold a text of their own."""
    return [
        {"prompt": f"Question {i}? {(marks or {}).get(i, '')}", "chosen": f"Yes {i}.", "rejected": f"No {i}."}
        for i in range(count)
    ]
