"""A whole night by `ray job submit`, from a bucket to a bucket, on three nodes of which one is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support.growing_outputs import rows_in
from tests.support.paths import SAMPLE
from tests.support.runs import kill, read_until, task_of, wait_until
from tests.support.submitted import head_in, node, submit, wait_until_up

pytest_plugins = ("tests.support.s3_server",)
pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

DAY = "2026-11-20"
AGAIN = 6  # a run that is long enough to lose a node in


@pytest.fixture
def head(s3: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    with head_in(tmp_path) as environment:
        yield environment


def test_a_submitted_night_on_three_nodes_is_whole_though_one_is_lost(
    s3: str, head: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    wait_until_up(head)
    store = Store(s3)
    store.write(f"in/date={DAY}/a.jsonl", SAMPLE.read_bytes() * AGAIN)
    (tmp_path / "night.toml").write_text(
        f'engine = "ray"\n[score]\ninput = "{s3}/in/date={{date}}/"\noutput = "{s3}/scored/{{date}}"\n'
        f'model = "{tiny_model}"\ndtype = "float32"\nunit_rows = 10\ndevice = "cpu"\nkeep_text = true\n'
        f'[mine]\noutput = "{s3}/pairs/{{date}}"\n[label]\noutput = "{s3}/labels/{{date}}"\ntemperature = 1\n'
        f'[report]\n[gate]\nmin_pairs = 100\n[publish]\nto = "{s3}/published"\n'
    )
    joining = (f"--address={head['RAY_ADDRESS']}", "--num-cpus=2", "--num-gpus=1")
    with node(head, tmp_path / "stays.log", *joining), node(head, tmp_path / "lost.log", *joining) as lost:
        options = ("--date", DAY, "--replicas", "5", "--gpus-per-replica", "1")
        night = submit(head, "jobs.nightly", str(tmp_path / "night.toml"), *options)
        read_until(night, "scoring on 5 replicas")

        def works() -> bool:
            tasks = set(map(task_of, descendants(lost.pid)))
            return "Replica" in tasks and len(store.list_names(f"scored/{DAY}/_commits")) >= 3

        wait_until(night, works)
        kill(descendants(lost.pid))
        told = night.communicate(timeout=600)[0]
    assert night.returncode == 0, told
    latest = store.read_json("published/LATEST.json") or {}
    assert latest["totals"]["scored"] == 260 * AGAIN
    assert latest["totals"]["mine_rows"] == 130
    assert verify_output(f"{s3}/scored/{DAY}")[1] == []
    assert len(rows_in(f"{s3}/pairs/{DAY}")) == 130
    assert len(rows_in(f"{s3}/labels/{DAY}")) == 260 * AGAIN
