"""`ray job submit` as the README has it, from S3 to S3, on nodes that ask for a token, come late, and are lost."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support.local import rows_of, score_locally
from tests.support.paths import SAMPLE
from tests.support.runs import read_until, task_of, wait_until
from tests.support.submitted import head_in, node, status_of, submit, wait_until_up

pytest_plugins = ("tests.support.s3_server",)
pytestmark = pytest.mark.ray


@pytest.fixture
def head(s3: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    with head_in(tmp_path) as environment:
        yield environment


@pytest.mark.timeout(400)
def test_a_submitted_job_wants_a_token_waits_for_a_node_works_on_every_one_and_loses_one_without_a_trace(
    s3: str, head: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    wait_until_up(head)
    assert status_of(head, secrets.token_hex(32)) in (401, 403)
    store = Store(s3)
    store.write("in/date=2026-11-20/a.jsonl", SAMPLE.read_bytes())
    options = ["--input", f"{s3}/in/", "--output", f"{s3}/out", "--model", str(tiny_model), "--keep", "id"]
    options += ["--dtype", "float32", "--unit-rows", "10", "--replicas", "2"]
    job = submit(
        head, "jobs.score", "jobs/nightly.toml", *options, "--gpus-per-replica", "2", "--device", "cpu,cpu"
    )
    read_until(job, "waiting for the GPUs of 2 replicas of 2 GPUs: the nodes have 3")
    assert not store.list_names("out/_commits")
    with node(
        head, tmp_path / "late.log", f"--address={head['RAY_ADDRESS']}", "--num-cpus=1", "--num-gpus=3"
    ) as late:
        seen: set[str] = set()

        def worked() -> bool:
            seen.update(map(task_of, descendants(late.pid)))
            return "Replica" in seen and len(store.list_names("out/_commits")) >= 3

        wait_until(job, worked)
    told = job.communicate(timeout=300)[0]
    assert job.returncode == 0, told
    assert "260 of 260 candidates scored, 0 rejected" in told
    assert verify_output(f"{s3}/out") == ({"units": 26, "candidates": 260, "scored": 260, "rejected": 0}, [])
    assert (store.read_json("out/_SUCCESS") or {})["totals"]["scored"] == 260
    assert head["RAY_AUTH_TOKEN"].encode() not in store.read("out/_run.json")
    assert b"| scored | 260 |" in store.read("out/README.md")
    assert (store.read_json("out/status.json") or {})["meaning"] == "complete"
    score_locally(tiny_model, SAMPLE, tmp_path / "out", unit_rows=10)
    found, expected = by_place(f"{s3}/out"), by_place(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert max(abs(found[place] - expected[place]) for place in found) < 1e-5


def by_place(out: Path | str) -> dict[tuple[int, int], float]:
    return {(row["source_row"], row["candidate"]): row["score"] for row in rows_of(out)}
