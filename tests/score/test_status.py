"""How a run ended: its exit status in the last line of the log and in status.json."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.outputs.scores import open_scores
from armo_ray.score import status_file
from armo_ray.score.status import Status, of_error, of_totals
from armo_ray.signals import OutOfTime, limited, time_is_over
from armo_ray.storage import lock
from armo_ray.storage.records import Totals
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.local import config_for, score_locally
from tests.support.paths import SAMPLE

pytest_plugins = ("tests.support.s3_server",)


def scoring(model: Path, inputs: Path, output: Path) -> list[str]:
    given = ["--input", str(inputs), "--output", str(output), "--model", str(model), "--dtype", "float32"]
    return ["score", *given, "--gpus-per-replica", "0", "--replicas", "1"]


def rows(count: int, empty: int = 0) -> str:
    kept = SAMPLE.read_text("utf-8").splitlines(keepends=True)[:count]
    return "".join(kept) + '{"prompt": "a", "chosen": "", "rejected": "b"}\n' * empty


def recorded(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "status.json").read_text())
    return content


def test_a_run_records_its_status_and_says_it_last(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, out = tmp_path / "in", tmp_path / "out"
    shards.mkdir()
    (shards / "a.jsonl").write_text(rows(8), "utf-8")
    caplog.set_level("INFO", "armo_ray")
    score_locally(tiny_model, shards, out)
    assert main(scoring(tiny_model, shards, out)) == 0
    assert caplog.messages[-1] == "status 0: complete"
    found = recorded(out)
    assert found.pop("finished_at") > json.loads((out / "_SUCCESS").read_text())["finished_at"]
    assert found == {
        **{"command": "score", "status": 0, "meaning": "complete"},
        **{"scored": 16, "rejected": 0, "units": 1},
    }
    (shards / "b.jsonl").write_text(rows(2, empty=1), "utf-8")
    score_locally(tiny_model, shards, out)
    assert main(scoring(tiny_model, shards, out)) == 3
    assert caplog.messages[-1].startswith("status 3: complete, but 4.55 % of the candidates were rejected (")
    assert caplog.messages[-1] == f"status 3: {recorded(out)['meaning']}"
    assert [recorded(out)[name] for name in ("status", "scored", "rejected", "units")] == [3, 21, 1, 2]
    # readers do not see the file
    assert verify_output(str(out))[1] == []
    assert main(["mine", str(out), "--output", str(tmp_path / "pairs")]) == 0


def test_a_status_that_cannot_be_written_changes_nothing_else(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text(rows(2), "utf-8")
    score_locally(tiny_model, tmp_path / "a.jsonl", tmp_path / "out")
    (tmp_path / "out" / "status.json").mkdir()
    assert main(scoring(tiny_model, tmp_path / "a.jsonl", tmp_path / "out")) == 0
    assert any("status.json cannot be written" in message for message in caplog.messages)


def test_a_command_that_may_not_write_an_output_leaves_its_status_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(rows(2), "utf-8")
    score_locally(tiny_model, tmp_path / "a.jsonl", tmp_path / "out")
    with lock.held(Store(str(tmp_path / "out"))):
        assert main(scoring(tiny_model, tmp_path / "a.jsonl", tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "status.json").exists()


def test_a_status_is_written_to_an_object_store_and_removed_there(
    s3: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(rows(2), "utf-8")
    totals = Totals(**score_locally(tiny_model, tmp_path / "a.jsonl", f"{s3}/out")["totals"])
    store = Store(f"{s3}/out")
    status_file.write(store, "score", Status(0, "complete"), totals)
    assert (store.read_json("status.json") or {})["scored"] == 4
    assert verify_output(store.uri)[1] == []
    assert open_scores([store.uri]).rows == 4
    status_file.remove(store)
    assert "status.json" not in store.list_names("")


@pytest.mark.parametrize(
    ("totals", "status"),
    [
        (Totals(candidates=100, rejected={"too_long": 1}, shards=1), "status 0: complete"),
        (Totals(candidates=1000, rejected={"too_long": 21}), "2.1 % of the candidates were rejected (--max-reject"),
        (Totals(candidates=1000, rejected={"skipped": 500}), "status 0: complete"),
        (Totals(candidates=1000, rejected={"unreadable_shard": 2}, shards=4), "50 % of the shards were rejected"),
        (Totals(), "status 0: complete"),
    ],
)  # fmt: skip
def test_the_status_of_a_complete_run_says_what_was_rejected(totals: Totals, status: str) -> None:
    assert status in str(of_totals(totals, config_for("m", "in", "out")))


@pytest.mark.parametrize(
    ("error", "code", "meaning"),
    [
        (ConfigError("x"), 2, "wrong usage or configuration"),
        (RuntimeError("x"), 1, "failed; run the same command again to go on"),
        (KeyboardInterrupt(), 1, "stopped; run the same command again to go on"),
        (OutOfTime(), 5, "stopped by --max-runtime; run the same command again to go on"),
    ],
)
def test_the_status_of_a_run_that_stopped_says_how(error: BaseException, code: int, meaning: str) -> None:
    assert of_error(error) == (code, meaning)


def wait_until_stopped(found: list[int]) -> None:
    try:
        time.sleep(10)
    except KeyboardInterrupt as error:
        found.append(of_error(error).code)
        raise


def test_within_a_limit_the_end_of_the_time_is_told_from_a_stop() -> None:
    found: list[int] = []
    with pytest.raises(OutOfTime), limited(0.01):
        wait_until_stopped(found)
    assert found == [5]
    assert not time_is_over()
