"""`armo-ray embed`: every candidate of every layout gets its hidden state once, however the work is cut and resumed."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from armo_ray.cli.main import main
from armo_ray.embed.options import EmbedOptions
from armo_ray.errors import ConfigError
from armo_ray.outputs.hidden import HiddenOutputs, labels_of, open_hidden, read_hidden
from armo_ray.outputs.scores import open_scores
from armo_ray.score.card import Card
from armo_ray.score.config import options_by_model
from armo_ray.score.job import prepare
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from armo_ray.text.named_layouts import NAMED
from armo_ray.tiny.armorm import write_tiny_model
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.score.test_bad_input import good, poison_token, write_jsonl
from tests.support.invariants import check_equal, check_whole
from tests.support.local import embed_locally, embed_options, rejects_of, rows_of, score_locally
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import commits_of, finish, kill_run, start, wait_for_commits
from tests.support.shards import write_shard

pytest_plugins = ("tests.support.s3_server",)

TURNS = [
    [{"role": "user", "content": f"Why {i}?"}, {"role": "assistant", "content": f"Because {i}."}]
    for i in range(4)
]
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "preference": [{"prompt": f"Why {i}?", "chosen": f"Because {i}.", "rejected": "No."} for i in range(4)],
    "rollouts": [{"prompt": f"Why {i}?", "responses": [f"Because {i}.", "No.", "Who?"]} for i in range(4)],
    "messages": [{"messages": turns} for turns in TURNS],
    "pairs": [
        {"prompt": f"Why {i}?", "response_a": f"Because {i}.", "response_b": "No.", "winner": "model_a"}
        for i in range(4)
    ],
}
States = Mapping[str, tuple[Any, Any]]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "qwen2"
    write_family(path, "dpo", "qwen2")
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the sample's pairs, in three shards."""
    folder = tmp_path_factory.mktemp("few")
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    for i in range(3):
        (folder / f"{i}.jsonl").write_text("".join(lines[7 * i : 7 * i + 7]), "utf-8")
    return folder


def states_of(opened: HiddenOutputs) -> dict[str, tuple[Any, Any]]:
    """The states of every candidate and of its prompt, by row id."""
    found: dict[str, tuple[Any, Any]] = {}
    for unit in opened.units:
        hidden = read_hidden(unit)
        ids = hidden.table["row_id"].to_pylist()
        rows = zip(ids, hidden.last, hidden.gate[hidden.gate_of], strict=True)
        found |= {name: (last, gate) for name, last, gate in rows}
    assert len(found) == opened.rows
    return found


def embedded(model: Path, inputs: Any, output: Path, **options: Any) -> dict[str, tuple[Any, Any]]:
    embed_locally(model, inputs, output, **options)
    check_whole(output)
    return states_of(open_hidden([str(output)]))


def check_same(states: States, others: States) -> None:
    assert states.keys() == others.keys()
    for name, (last, gate) in states.items():
        np.testing.assert_allclose(last, others[name][0], atol=1e-5)
        np.testing.assert_allclose(gate, others[name][1], atol=1e-5)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_a_row_for_each_response_and_one_state_for_each_prompt(
    layout: str, kind: str, language_model: Path, tmp_path: Path
) -> None:
    write_shard(tmp_path / "in", kind, LAYOUTS[layout])
    states = embedded(language_model, tmp_path / "in", tmp_path / "out")
    responses = {"preference": 8, "rollouts": 12, "messages": 4, "pairs": 8}[layout]
    assert len(states) == responses
    prompts = pq.read_table(tmp_path / "out" / "prompts")
    assert prompts.num_rows == len({row["prompt_id"] for row in rows_of(tmp_path / "out", "hidden")}) == 4
    rows = rows_of(tmp_path / "out", "hidden")
    assert [len(row["hidden_last"]) for row in rows] == [64 * 4] * responses
    assert {"score", "rewards", "gating"}.isdisjoint(rows[0])
    assert not (tmp_path / "out" / "scores").exists()


def test_units_packs_formats_and_partitions_change_nothing(
    tiny_model: Path, few: Path, tmp_path: Path
) -> None:
    whole = embedded(tiny_model, few, tmp_path / "whole")
    assert len(whole) == 42
    changes: dict[str, dict[str, Any]] = {
        "units": {"unit_rows": 5},
        "packs": {"token_budget": 600},
        "partitions": {"unit_rows": 20, "partition_by": ["subset"], "keep": ["id"], "keep_text": True},
    }
    for name, options in changes.items():
        check_same(embedded(tiny_model, few, tmp_path / name, **options), whole)
    paths = [part.path for unit in open_hidden([str(tmp_path / "partitions")]).units for part in unit.rows]
    assert all(re.match("hidden/subset=[^/]+/part-", path) for path in paths)


def test_fixed_packs_give_the_same_parts_to_the_bit(tiny_model: Path, few: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    for output in (first, again):
        embed_locally(tiny_model, few / "0.jsonl", output, unit_rows=6, fixed_packs=True)
    assert parts_of(first) == parts_of(again) != {}


def parts_of(output: Path) -> dict[str, bytes]:
    """The content of every part by its path."""
    return {
        str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("part-*.parquet"))
    }


def test_an_output_is_resumed_and_grows_with_its_input(tiny_model: Path, few: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("0", "1"):
        shutil.copy(few / f"{name}.jsonl", tmp_path / "in")
    embed_locally(tiny_model, tmp_path / "in", tmp_path / "out", unit_rows=6)
    before = commits_of(tmp_path / "out")
    lost = sorted(before)[0]
    (tmp_path / "out" / "_commits" / lost).unlink()
    shutil.copy(few / "2.jsonl", tmp_path / "in")
    embed_locally(tiny_model, tmp_path / "in", tmp_path / "out", unit_rows=6)
    after = commits_of(tmp_path / "out")
    assert {name: after[name] for name in before if name != lost} == {
        name: content for name, content in before.items() if name != lost
    }
    embed_locally(tiny_model, tmp_path / "in", tmp_path / "undisturbed", unit_rows=6)
    check_whole(tmp_path / "out")
    check_equal(tmp_path / "out", tmp_path / "undisturbed")


def test_another_model_type_or_command_cannot_go_on_with_an_output(
    tiny_model: Path, language_model: Path, tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["preference"])
    embed_locally(tiny_model, shard, tmp_path / "out")
    for run, model, dtype in (
        (embed_locally, language_model, "float32"),
        (embed_locally, tiny_model, "bfloat16"),
        (score_locally, tiny_model, "float32"),
    ):
        with pytest.raises(ConfigError, match="was started by another run"):
            run(model, shard, tmp_path / "out", dtype=dtype)
    score_locally(tiny_model, shard, tmp_path / "scores")
    with pytest.raises(ConfigError, match="keep_hidden was None, now True"):
        score_locally(tiny_model, shard, tmp_path / "scores", keep_hidden=True)


def test_a_state_that_is_not_finite_rejects_its_row_and_loses_no_other(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_tiny_model(model, hidden_size=256)
    poison_token(model, "Ð")  # the first byte of Ж
    rows = [good(1), good(2) | {"chosen": "Жуя"}, good(3), good(4) | {"prompt": "Ж?"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    states = embedded(model, tmp_path / "a.jsonl", tmp_path / "out")
    assert len(states) == 5
    reasons = [(1, 0, "non_finite_score"), (3, 0, "non_finite_score"), (3, 1, "non_finite_score")]
    assert rejects_of(tmp_path / "out") == reasons
    (detail,) = {row["detail"] for row in rows_of(tmp_path / "out", "rejects")}
    assert detail.startswith("a hidden state that the head reads is not finite")
    assert pq.read_table(tmp_path / "out" / "prompts").num_rows == 3


def test_scores_that_keep_states_are_those_that_do_not_and_give_the_same_states_as_embed(
    tiny_model: Path, few: Path, tmp_path: Path
) -> None:
    inputs = few / "0.jsonl"
    score_locally(tiny_model, inputs, tmp_path / "plain", unit_rows=6, fixed_packs=True)
    score_locally(tiny_model, inputs, tmp_path / "kept", unit_rows=6, fixed_packs=True, keep_hidden=True)
    check_whole(tmp_path / "kept")
    plain, kept = (rows_of(tmp_path / name) for name in ("plain", "kept"))
    assert plain == [{k: v for k, v in row.items() if k != "hidden_last"} for row in kept]
    states = states_of(open_hidden([str(tmp_path / "kept")]))
    check_same(embedded(tiny_model, inputs, tmp_path / "embedded"), states)


def test_a_model_without_gates_keeps_the_states_of_responses_alone(tmp_path: Path) -> None:
    write_family(tmp_path / "model", "classifier", "qwen2")
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    score_locally(tmp_path / "model", shard, tmp_path / "out", keep_hidden=True, truncate="left")
    check_whole(tmp_path / "out")
    opened = open_hidden([str(tmp_path / "out")])
    assert not opened.has_gates
    assert read_hidden(opened.units[0], gates=False).last.shape == (12, 64)
    with pytest.raises(ConfigError, match="has no gate"):
        read_hidden(opened.units[0])


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("armorm", {"truncate": "left"}, "truncate: a prompt that is cut for one response"),
        ("prm-qwen", {}, "keep-hidden: the family prm-qwen does not read one hidden state"),
        (
            "pairwise",
            {"family": "pairwise"},
            "keep-hidden: the family pairwise does not read one hidden state",
        ),
    ],
)
def test_states_that_cannot_be_kept_are_refused_before_the_run(
    family: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_family(tmp_path / "model", family)
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    with pytest.raises(ConfigError, match=message):
        score_locally(tmp_path / "model", shard, tmp_path / "out", keep_hidden=True, **options)
    assert not (tmp_path / "out").exists()


COMMANDS = {
    "mine": ["mine", "OUT", "--output", "NEW"],
    "label": ["label", "OUT", "--output", "NEW"],
    "filter": ["filter", "OUT", "--output", "NEW", "--where", "candidate = 0"],
    "reweigh": ["reweigh", "OUT", "--output", "NEW", "--length-penalty", "0.1"],
    "evaluate": ["evaluate", "OUT"],
    "compare": ["compare", "OUT", "OUT"],
    "report": ["report", "OUT"],
    "explain": ["explain", "OUT", "highest"],
    "explain-where": ["explain", "OUT", "--where", "candidate = 0"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_that_reads_scores_refuses_hidden_states_and_names_fit(
    words: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["preference"])
    out = tmp_path / "out"
    embed_locally(tiny_model, shard, out)
    before = sorted(out.rglob("*"))
    places = {"OUT": str(out), "NEW": str(tmp_path / "new")}
    assert main([places.get(word, word) for word in words]) == 2
    assert f"{out}: holds hidden states and no scores: armo-ray fit {out}" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before
    assert not (tmp_path / "new").exists()


def test_the_rows_of_a_selection_are_chosen_by_scores_not_by_states(tiny_model: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    embed_locally(tiny_model, shard, tmp_path / "states")
    options = {"only_where": "candidate = 0", "earlier": str(tmp_path / "states")}
    with pytest.raises(ConfigError, match="armo-ray fit"):
        embed_locally(tiny_model, shard, tmp_path / "some", **options)


def test_outputs_made_of_scores_leave_the_states_out(tiny_model: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    score_locally(tiny_model, shard, tmp_path / "kept", keep_hidden=True)
    score_locally(tiny_model, shard, tmp_path / "other", keep_hidden=True, dtype="bfloat16")
    for name, words in {
        "filtered": ["filter", "--where", "candidate < 2"],
        "lines": ["filter", "--where", "candidate < 2", "--format", "jsonl"],
        "reweighed": ["reweigh", "--length-penalty", "0.1"],
        "ensemble": ["reweigh", str(tmp_path / "other"), "--ensemble", "mean"],
    }.items():
        command, *options = words
        assert main([command, str(tmp_path / "kept"), *options, "--output", str(tmp_path / name)]) == 0
        assert not (tmp_path / name / "prompts").exists()
        if name != "lines":
            (uri,) = {part.uri for part in open_scores([str(tmp_path / name)]).parts}
            assert "hidden_last" not in pq.read_schema(uri).names
            assert verify_output(str(tmp_path / name))[1] == []
            with pytest.raises(ConfigError, match="holds no hidden states"):
                open_hidden([str(tmp_path / name)])
        else:
            line = next((tmp_path / name / "scores").rglob("*.jsonl")).read_text().splitlines()[0]
            assert "hidden_last" not in json.loads(line)


def test_verify_counts_prompts_and_names_what_is_missing_or_damaged(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    out = tmp_path / "out"
    embed_locally(tiny_model, shard, out, unit_rows=6)
    assert main(["verify", str(out)]) == 0
    assert (
        "2 units, 12 candidates, 12 scored, 0 rejected, 4 hidden states of prompts: whole"
        in capsys.readouterr().out
    )
    first, second = sorted((out / "prompts").iterdir())
    first.unlink()
    content = second.read_bytes()
    second.write_bytes(content[:-9] + b"x" + content[-8:])
    stray = out / "hidden" / "part-0123456789abcdef0123456789abcdef.parquet"
    stray.write_bytes(content)
    _, faults = verify_output(str(out))
    assert len(faults) == 3
    for name, what in (
        (first, "is missing"),
        (second, "not those that were committed"),
        (stray, "no commit names"),
    ):
        assert any(name.name in fault and what in fault for fault in faults)
    assert main(["verify", str(out), "--repair"]) == 0
    assert not stray.exists()
    embed_locally(tiny_model, shard, out, unit_rows=6)
    check_whole(out)


def test_verify_finds_prompts_that_a_commit_leaves_out(tiny_model: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    embed_locally(tiny_model, shard, tmp_path / "out")
    store = Store(str(tmp_path / "out"))
    (record,) = commits.read_commits(store)
    store.write(f"_commits/{record.unit}.json", replace(record, parts=record.parts[:1]).to_json())
    store.delete("_commits.parquet")
    _, faults = verify_output(store.uri)
    assert any(
        "0 hidden states of prompts, which are not those of its 4 prompts" in fault for fault in faults
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_card_says_what_a_row_is_and_its_lines_read_the_states(
    dtype: str, tiny_model: Path, tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "in", "jsonl", LAYOUTS["rollouts"])
    out = tmp_path / "out"
    embed_locally(tiny_model, shard, out, unit_rows=6, dtype=dtype)
    job, _ = prepare(embed_options(tiny_model, shard, out, unit_rows=6, dtype=dtype))
    Card(Store(str(out)), job, [str(shard)]).complete(commits.read_log(Store(str(out))))
    text = (out / "README.md").read_text()
    assert "# Hidden states by tiny" in text
    assert "One row per response, embedded by armo-ray" in text
    assert f"A hidden state is 64 numbers of {dtype}, little endian" in text
    assert "| `hidden_last` |" in text
    assert "scores" not in text.split("## Loading")[0]
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"OUT": str(out)}
    exec(code[code.index("import numpy") :], names)
    opened = open_hidden([str(out)])
    last = np.concatenate([read_hidden(unit).last for unit in opened.units])
    assert names["states"].shape == last.shape == (12, 64)
    np.testing.assert_array_equal(np.sort(names["states"].astype(np.float32), axis=0), np.sort(last, axis=0))


def test_every_model_of_several_has_an_output_of_its_own(
    tiny_model: Path, language_model: Path, tmp_path: Path
) -> None:
    values = {
        "input": [str(SAMPLE)],
        "output": str(tmp_path / "out"),
        "model": [str(tiny_model), str(language_model)],
    }
    first, second = options_by_model(EmbedOptions, None, values)
    assert (first.output, second.output) == (f"{tmp_path}/out/tiny", f"{tmp_path}/out/qwen2")
    with pytest.raises(ConfigError, match="dtype"):
        options_by_model(EmbedOptions, None, values | {"dtype": "fp8"})
    with pytest.raises(ConfigError, match="family: unknown option"):
        options_by_model(EmbedOptions, None, values | {"family": "armorm"})


@pytest.mark.nightly
def test_states_on_s3_are_those_on_a_disk(s3: str, tiny_model: Path, shards: Path, tmp_path: Path) -> None:
    S3FileSystem().put(f"{shards}/", f"{s3}/in/", recursive=True)
    embed_locally(tiny_model, f"{s3}/in", f"{s3}/out", unit_rows=60)
    embed_locally(tiny_model, shards, tmp_path / "out", unit_rows=60)
    check_whole(f"{s3}/out")
    remote, local = (
        np.concatenate([read_hidden(unit).last for unit in open_hidden([uri]).units])
        for uri in (f"{s3}/out", str(tmp_path / "out"))
    )
    np.testing.assert_allclose(remote, local, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_parts_to_the_bit(
    tiny_model: Path, shards: Path, tmp_path: Path
) -> None:
    options = ("--unit-rows", "4", "--fixed-packs", "--token-budget", "1024")
    out = tmp_path / "out"
    run = start(tiny_model, shards, out, *options, command="embed")
    wait_for_commits(run, out, 3)
    kill_run(run)
    seen = commits_of(out)
    errors = finish(start(tiny_model, shards, out, *options, command="embed"))
    assert "520 of 520 candidates embedded, 0 rejected" in errors
    assert {name: commits_of(out)[name] for name in seen} == seen
    finish(start(tiny_model, shards, tmp_path / "undisturbed", *options, command="embed"))
    check_whole(out)
    assert parts_of(out) == parts_of(tmp_path / "undisturbed")


def test_the_file_of_a_job_has_options_of_embed() -> None:
    (options,) = options_by_model(EmbedOptions, str(ROOT / "jobs" / "embed.toml"), {})
    assert options.dtype == "float32"
    assert all(Path(place).exists() for place in options.input)


def test_labels_of_a_public_data_set_are_read_unless_others_are_asked_for(
    language_model: Path, tmp_path: Path
) -> None:
    row = dict(NAMED["helpsteer2"].example)
    shard = write_shard(tmp_path / "in", "jsonl", [row, row | {"prompt": "Another?", "verbosity": None}])
    embed_locally(language_model, shard, tmp_path / "all")
    opened = open_hidden([str(tmp_path / "all")])
    assert opened.scales["verbosity"] == (0.0, 4.0)
    (unit,) = opened.units
    labels = labels_of(read_hidden(unit).table, ["verbosity", "helpfulness"])
    np.testing.assert_array_equal(
        labels, [[row["verbosity"], row["helpfulness"]], [np.nan, row["helpfulness"]]]
    )
    embed_locally(language_model, shard, tmp_path / "one", label={"help": "helpfulness"})
    assert open_hidden([str(tmp_path / "one")]).label_names == ("help",)
