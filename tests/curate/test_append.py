"""--append: the increments of a dataset together are one run over everything, wherever a command was killed."""

import json
import logging
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.curate import job
from armo_ray.outputs.dataset import names_in
from armo_ray.outputs.increments import Increment, Making, growing_output
from armo_ray.storage import lock
from armo_ray.storage.store import Store
from tests.support.growing_outputs import copied, hide, reveal, rows_in, units_of, write_shards
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import commit_again, score_synthetically, with_columns

ROWS = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:30]
SFT = ["label", "--shape", "sft", "--no-text", "--min-candidates", "2"]
CASES = [
    ["mine", "--strategy", "all-above-margin", "--test-fraction", "0.3", "--decontaminate", "benchmark.txt"],
    ["label", "--shape", "pairs", "--temperature", "0.2", "--task-rows", "50"],
]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six units with text; most prompts recur."""
    folder = tmp_path_factory.mktemp("growing")
    (folder / "benchmark.txt").write_text(f"{ROWS[3]['prompt']}\n{ROWS[8]['prompt']}\n")
    shards = write_shards(folder / "in", ROWS, 6)
    return score_synthetically(folder / "scores", shards, keep_text=True)


def run(command: list[str], scores: Path | str, output: Path | str, whole: Path, *more: str) -> int:
    name, *options = [str(whole.parent / word) if word.endswith(".txt") else word for word in command]
    return main([name, str(scores), "--output", str(output), *options, *more])


def nights(whole: Path, seed: int) -> list[list[str]]:
    """All units, in three nights of a random order, or in two."""
    rng, units = random.Random(seed), units_of(whole)
    rng.shuffle(units)
    cuts = sorted(rng.sample(range(1, len(units)), 1 if seed else 2))
    return [units[i:j] for i, j in pairwise([0, *cuts, len(units)])]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_increments_together_are_one_run_over_everything(case: int, whole: Path, tmp_path: Path) -> None:
    command, out = CASES[case], tmp_path / "out"
    for night in nights(whole, case):
        reveal(whole, tmp_path / "scores", night)
        assert run(command, tmp_path / "scores", out, whole, "--append") == 0
    assert run(command, whole, tmp_path / "one", whole) == 0
    assert rows_in(out) == rows_in(tmp_path / "one") != []
    if case == 0:
        listed = (out / "contaminated.jsonl").read_text("utf-8")
        assert listed == (tmp_path / "one" / "contaminated.jsonl").read_text("utf-8") != ""
    done = json.loads((out / "_SUCCESS").read_text())["increments"]
    assert [one["units"] for one in done] == [len(night) for night in nights(whole, case)]
    assert sum(one["counts"]["rows replaced"] for one in done) > 0
    assert done[0]["counts"]["prompts done again"] == 0 < done[-1]["counts"]["prompts done again"]


@pytest.mark.parametrize("piece_bytes", [1 << 30, 10])
def test_near_duplicates_are_those_of_all_increments(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_PIECE_BYTES", piece_bytes)
    first = "one two three four five six seven eight nine ten eleven twelve"
    second, third = f"{first} thirteen", f"{first} fourteen"
    options = ["--near-duplicates", "0.5", "--max-length-ratio", "1.5"]
    (tmp_path / "in").mkdir()

    def night(name: str, rows: dict[str, list[str]]) -> list[str]:
        """The prompts with pairs after one more night."""
        lines = [json.dumps({"prompt": prompt, "responses": said}) for prompt, said in rows.items()]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        whole = score_synthetically(tmp_path / name, tmp_path / "in", keep_text=True)
        reveal(whole, tmp_path / "scores", units_of(whole)[-1:])
        assert (
            main(["mine", str(tmp_path / "scores"), "--output", str(tmp_path / "out"), *options, "--append"])
            == 0
        )
        return [
            json.loads(row.partition(" ")[2])["prompt"][0]["content"] for row in rows_in(tmp_path / "out")
        ]

    responses = ["yes, so it is", "no, it is not"]
    assert night("a", {second: responses}) == [second]
    assert night("b", {first: responses, third: responses}) == [first]  # it has the smallest id
    # the best and the worst are then of other lengths: without a pair, it is no longer compared
    (left,) = night("c", {first: ["yes " * (10 << k) for k in range(6)]})
    assert left in (second, third)
    assert main(["mine", str(tmp_path / "c"), "--output", str(tmp_path / "one"), *options]) == 0
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "one")


@pytest.mark.nightly  # by day other commands run by both engines
def test_an_increment_on_ray_is_that_of_duckdb(local_ray: str, whole: Path, tmp_path: Path) -> None:
    units = units_of(whole)
    reveal(whole, tmp_path / "scores", units[:4])
    assert run(SFT, tmp_path / "scores", tmp_path / "out", whole, "--append") == 0
    reveal(whole, tmp_path / "scores", units[4:])
    assert run(SFT, tmp_path / "scores", tmp_path / "out", whole, "--append", "--engine", "ray") == 0
    assert run(SFT, whole, tmp_path / "one", whole) == 0
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "one")
    assert not [name for name in names_in(Store(str(tmp_path / "out"))) if name.startswith("_work")]


@pytest.fixture(scope="session")
def grown(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of two nights, in two outputs; a dataset of the first, one of both increments, and one of one run."""
    folder = tmp_path_factory.mktemp("grown")
    units = units_of(whole)
    reveal(whole, folder / "first", units[:4])
    reveal(whole, folder / "second", units[4:])
    assert run(SFT, folder / "first", folder / "out", whole, "--append") == 0
    copied(folder / "out", folder / "both")
    assert extend(folder, folder / "both") == 0
    assert run(SFT, whole, folder / "one", whole) == 0
    return folder


def extend(grown: Path, out: Path, *options: str) -> int:
    """Add what was scored in the second night."""
    first, second = str(grown / "first"), str(grown / "second")
    return main([SFT[0], first, second, "--output", str(out), *(options or SFT[1:]), "--append"])


def parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "data").rglob("part-*")}


def states(output: Path, copies: Path, patch: pytest.MonkeyPatch, command: Callable[[], int]) -> list[Path]:
    """Run a command; returns copies of its output as it was before each change: what a kill there leaves, but for the
    lock."""
    found: list[Path] = []
    one_at_a_time = threading.Lock()

    def copying(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(store: Store, name: str, *arguments: Any, **named: Any) -> Any:
            if name == lock.LOCK or store.root != str(output):  # a scratch file
                return change(store, name, *arguments, **named)
            with one_at_a_time:
                found.append(copied(output, copies / str(len(found))))
                (found[-1] / lock.LOCK).unlink()
                return change(store, name, *arguments, **named)

        return changed

    with patch.context() as patched:
        for name in ("write", "create", "delete"):
            patched.setattr(Store, name, copying(getattr(Store, name)))
        assert command() == 0
    return found


def test_an_increment_that_was_killed_anywhere_is_made_once(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, expected = copied(grown / "out", tmp_path / "out"), rows_in(grown / "one")
    found = states(out, tmp_path, monkeypatch, lambda: extend(grown, out))
    assert len(found) >= 6  # two parts, the commit, the card, the manifest, a part that is replaced
    for state in [*found, out, grown / "both"]:
        assert state in (out, grown / "both") or extend(grown, state) == 0
        assert rows_in(state) == expected
        assert parts(state) == parts(grown / "both")
        assert names_in(Store(str(state))) == names_in(Store(str(grown / "both")))


def test_a_first_increment_that_was_killed_anywhere_is_made_by_the_same_command(
    grown: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(output: Path) -> int:
        return run(SFT, grown / "first", output, whole, "--append")

    found = states(tmp_path / "out", tmp_path, monkeypatch, lambda: make(tmp_path / "out"))
    for state in found[2:]:  # before the first, nothing is there
        assert make(state) == 0
        assert parts(state) == parts(grown / "out")
        assert names_in(Store(str(state))) == names_in(Store(str(grown / "out")))


def test_an_increment_that_fails_leaves_the_dataset_as_it_was(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(grown / "out", tmp_path / "out")

    def fail(*_: Any) -> None:
        raise RuntimeError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("armo_ray.outputs.increments.Growing.commit", fail)
        assert extend(grown, out) == 1
    before = {name: Store(str(grown / "out")).read(name) for name in names_in(Store(str(grown / "out")))}
    assert before == {name: Store(str(out)).read(name) for name in names_in(Store(str(out)))}


def test_without_new_scores_nothing_changes(
    grown: Path, whole: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    out = copied(grown / "out", tmp_path / "out")
    before = {name: Store(str(out)).read(name) for name in names_in(Store(str(out)))}
    with caplog.at_level(logging.INFO):
        assert run(SFT, grown / "first", out, whole, "--append", "--task-rows", "9", "--threads", "1") == 0
    assert "no new scores since its last increment" in caplog.text
    assert before == {name: Store(str(out)).read(name) for name in names_in(Store(str(out)))}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["label", "--shape", "sft", "--no-text"], "--min-candidates was 2, now the default"),
        ([*SFT, "--best", "2"], "--best was the default, now 2"),
        (["mine"], "was made by armo-ray label"),
    ],
)
def test_what_decides_rows_stays_the_same(
    command: list[str], message: str, grown: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = parts(grown / "out")
    assert run(command, grown / "first", grown / "out", whole, "--append") == 2
    assert message in capsys.readouterr().err
    assert parts(grown / "out") == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["mine", "--length-control", "residual"], "--append does not work with --length-control residual"),
        (["label", "--scale", "standardized"], "--append does not work with --scale standardized"),
        (["label"], "--append needs --temperature"),
    ],
)
def test_options_that_depend_on_all_rows_are_refused(
    command: list[str], message: str, grown: Path, whole: Path, tmp_path: Path, capsys: Any
) -> None:
    assert run(command, grown / "first", tmp_path / "out", whole, "--append") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_that_are_gone_or_differ_are_refused(
    grown: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, out = copied(grown / "first", tmp_path / "scores"), tmp_path / "out"
    assert run(SFT, scores, out, whole, "--append") == 0
    assert run(SFT, grown / "second", out, whole, "--append") == 2
    assert f"has rows from {scores}: give these scores too" in capsys.readouterr().err
    with_columns(scores, tmp_path / "changed", other=1)
    copied(tmp_path / "changed", scores)
    commit_again(scores)
    assert run(SFT, scores, out, whole, "--append") == 2
    assert "has rows from 4 units that" in capsys.readouterr().err
    copied(grown / "first", scores)
    hide(scores, units_of(scores)[2])
    assert run(SFT, scores, out, whole, "--append") == 2
    assert f"has rows from 1 units that {scores} no longer holds" in capsys.readouterr().err


def test_a_dataset_made_without_append_does_not_grow(
    grown: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = parts(grown / "one")
    assert run(SFT, grown / "first", grown / "one", whole, "--append") == 2
    assert "holds a dataset that was made without --append" in capsys.readouterr().err
    assert run(SFT, grown / "first", grown / "out", whole) == 2
    assert "holds a dataset: delete it" in capsys.readouterr().err
    assert parts(grown / "one") == before


def test_of_two_increments_of_one_number_the_second_is_not_added(grown: Path, tmp_path: Path) -> None:
    out = copied(grown / "out", tmp_path / "out")
    made = json.loads((out / "_increments" / "made.json").read_text())
    making = Making(made["command"], made["settings"], made["state"])
    with growing_output(str(out), making) as growing:
        growing.commit(Increment({}, (), (), {"a": 1}))
        with pytest.raises(RuntimeError, match="another command added an increment"):
            growing.commit(Increment({}, (), (), {"a": 2}))


def test_the_card_tells_how_the_dataset_grew(grown: Path) -> None:
    card = (grown / "both" / "README.md").read_text("utf-8")
    manifest = json.loads((grown / "both" / "_SUCCESS").read_text())
    for number, one in enumerate(manifest["increments"], 1):
        counts = one["counts"]
        row = [
            number,
            one["finished_at"],
            one["units"],
            counts["prompts done again"],
            counts["rows replaced"],
        ]
        assert "| " + " | ".join(map(str, row)) + " |" in card
    assert sum(manifest["counts"].values()) == len(rows_in(grown / "both"))
    assert f"num_examples: {manifest['counts']['rows in train']}" in card
