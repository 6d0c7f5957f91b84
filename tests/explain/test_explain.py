"""armo-ray explain: a row's tokens are those that the model read, and its contributions add up to its score."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from armo_ray.cli.main import main
from armo_ray.engine import RewardModel
from armo_ray.explain.find import find
from armo_ray.explain.show import ADVICE
from armo_ray.explain.tokens import trace
from armo_ray.model.families import FAMILIES
from armo_ray.outputs.schema import REJECT_REASONS
from armo_ray.storage.models import TOKENIZER_FILES
from armo_ray.storage.store import Store
from armo_ray.tiny.families import write_family
from tests.support import families
from tests.support.by_day import by_day
from tests.support.local import rows_of, score_locally
from tests.support.paths import SAMPLE
from tests.support.reference import GATE_PATTERN, load_head
from tests.support.synthetic_outputs import score_synthetically
from tests.test_architecture import modules_after

pytest_plugins = ("tests.support.s3_server",)

PAIRS = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()[:6]]


def explained(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["explain", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["explain", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def contributions(text: str) -> dict[str, tuple[float, float, float]]:
    """Reward, coefficient and contribution by name, in the order of the table."""
    number = r"(-?\d+\.\d+)"
    rows = re.findall(rf"^(\S+) +{number} +(?:-?\d+\.\d+|none) +{number} +{number}", text, re.M)
    return {name: (float(reward), float(weight), float(product)) for name, reward, weight, product in rows}


def printed_score(text: str) -> float:
    """The score below the table, whose line must say that it equals the stored one."""
    match = re.search(r"(-?\d+\.\d+)  as stored$", text, re.M)
    assert match, text
    return float(match[1])


def listed(text: str) -> dict[int, tuple[int, str]]:
    """The listed tokens: id and mark by position."""
    tokens = re.findall(r"^ +(\d+) +(\d+)  ['\"].*?(?:   <- (.*))?$", text, re.M)
    return {int(at): (int(token), mark) for at, token, mark in tokens}


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_contributions_are_rewards_times_weights_and_add_up_to_the_score(
    scored_pairs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transform = load_head(tiny_model)["reward_transform_matrix"].numpy()
    for row in rows_of(scored_pairs)[::61]:
        text = explained(capsys, scored_pairs, row["row_id"])
        table = contributions(text)
        rewards, gating = (np.array(list(row[name].values())) for name in ("rewards", "gating"))
        expected = dict(zip(row["rewards"], (rewards * (transform @ gating)).tolist(), strict=True))
        assert {name: product for name, (_, _, product) in table.items()} == pytest.approx(expected, abs=2e-6)
        assert list(table) == sorted(expected, key=lambda name: -expected[name])
        assert sum(product for _, _, product in table.values()) == pytest.approx(row["score"], abs=5e-5)
        assert printed_score(text) == pytest.approx(row["score"], abs=1e-6)


def test_the_tokens_equal_those_of_the_models_own_tokenizer(
    scored_pairs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = next(r for r in rows_of(scored_pairs) if r["flags"] == [] and r["role"] == "rejected")
    lines = Path(row["source"]).read_text("utf-8").splitlines()
    pair = json.loads(lines[row["source_row"]])
    messages = [
        {"role": "user", "content": pair["prompt"]},
        {"role": "assistant", "content": pair["rejected"]},
    ]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    text = explained(capsys, scored_pairs, row["row_id"], "--all-tokens")
    tokens = listed(text)
    assert [tokens[at][0] for at in range(len(ids))] == ids
    pattern = tokenizer.encode(GATE_PATTERN, add_special_tokens=False)
    gate = max(at for at in range(len(ids)) if ids[at : at + len(pattern)] == pattern)
    assert {at: mark for at, (_, mark) in tokens.items() if mark} == {
        gate: "read: gate, at the end of the last user turn",
        gate + len(pattern): "the response begins",
        len(ids) - 1: "read: rewards, at the last token",
    }
    assert (
        f"{row['num_prompt_tokens']:,} in the prompt and {row['num_response_tokens']:,} in the response, as stored"
        in text
    )
    assert gate + len(pattern) == row["num_prompt_tokens"]


def test_only_tokens_near_those_that_the_head_reads_are_listed_of_a_long_conversation(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "word " * 400, "response": "other " * 500}]
    score_locally(tiny_model, write_pairs(tmp_path / "in.jsonl", rows), tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    size, boundary = row["num_prompt_tokens"] + row["num_response_tokens"], row["num_prompt_tokens"]
    tokens = listed(explained(capsys, tmp_path / "out", row["row_id"]))
    assert len(tokens) < 60 < 900 < size
    assert {0, boundary, size - 1} <= tokens.keys()
    assert len(listed(explained(capsys, tmp_path / "out", row["row_id"], "--all-tokens"))) == size


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_text_comes_from_the_scores_or_from_the_unchanged_shard(
    kind: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / f"in.{kind}"
    if kind == "jsonl":
        write_pairs(shard, PAIRS)
    else:
        pq.write_table(pa.Table.from_pylist(PAIRS), shard, row_group_size=2)
    for name, keep in (("kept", True), ("not", False)):
        score_locally(tiny_model, shard, tmp_path / name, keep_text=keep, unit_rows=4)
    traced = {}
    for name in ("kept", "not"):
        for row in rows_of(tmp_path / name):
            result = trace(find(str(tmp_path / name), row["row_id"]), None)
            traced[name, row["row_id"]] = result.ids.tolist(), result.candidate
            pair = PAIRS[row["source_row"]]
            assert result.candidate.response == pair[row["role"]]
            assert result.num_tokens == (row["num_prompt_tokens"], row["num_response_tokens"])
    assert all(traced["kept", row_id] == t for (name, row_id), t in traced.items() if name == "not")
    assert len(traced) == 24
    shard.write_bytes(shard.read_bytes() + b" ")
    row_id = rows_of(tmp_path / "not")[0]["row_id"]
    assert listed(explained(capsys, tmp_path / "kept", row_id))
    text = explained(capsys, tmp_path / "not", row_id)
    assert "tokens     not shown: " in text
    assert "is gone or has changed since it was scored" in text
    assert len(contributions(text)) == 19


def test_a_row_of_an_output_with_directories_is_explained_with_their_values(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "out", partition_by=["role"])
    assert re.search(
        r"^row .*: (chosen|rejected), candidate", explained(capsys, tmp_path / "out", "highest"), re.M
    )


def test_the_tokenizer_of_a_moved_model_is_read_from_its_new_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("model", "other")):
        assert main(["tiny-model", str(tmp_path / name), "--seed", str(seed)]) == 0
    write_family(tmp_path / "stranger", "classifier")
    score_locally(tmp_path / "model", write_pairs(tmp_path / "in.jsonl", PAIRS[:1]), tmp_path / "out")
    (tmp_path / "model").rename(tmp_path / "moved")
    for weights in (tmp_path / "moved").glob("*.safetensors"):
        weights.unlink()  # a tokenizer is enough
    capsys.readouterr()
    text = explained(capsys, tmp_path / "out", "highest")
    assert "no such directory" in text
    assert "with --model DIR" in text
    assert listed(explained(capsys, tmp_path / "out", "highest", "--model", tmp_path / "moved"))
    text = explained(capsys, tmp_path / "out", "highest", "--model", tmp_path / "stranger")
    assert "not the one that the run used" in text


def test_output_shard_and_tokenizer_may_be_in_an_object_store(
    s3: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(s3)
    store.write("in/pairs.jsonl", write_pairs(tmp_path / "in.jsonl", PAIRS).read_bytes())
    for name in TOKENIZER_FILES:
        if (tiny_model / name).exists():
            store.write(f"model/{name}", (tiny_model / name).read_bytes())
    plan = [
        "plan",
        "--input",
        f"{s3}/in",
        "--output",
        f"{s3}/out",
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
    ]
    assert main([*plan, "--json"]) == 0
    assert Store(f"{s3}/out").find("") == []
    assert json.loads(capsys.readouterr().out)["to_do"]["candidates"] == [12, 12, 12]
    score_locally(tiny_model, f"{s3}/in", f"{s3}/out")
    row = rows_of(f"{s3}/out")[3]
    text = explained(capsys, f"{s3}/out", row["row_id"], "--model", f"{s3}/model", "--all-tokens")
    assert len(listed(text)) == row["num_prompt_tokens"] + row["num_response_tokens"]
    assert "no tokenizer.json" in explained(capsys, f"{s3}/out", row["row_id"], "--model", f"{s3}/none")


def test_a_reject_is_explained_with_its_reason_and_advice(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        *PAIRS[:1],
        {"prompt": "a", "chosen": "", "rejected": "b"},
        {"id": "broken"},
    ]
    rows.append({"prompt": "word " * 900, "chosen": "c", "rejected": "d"})
    score_locally(tiny_model, write_pairs(tmp_path / "in.jsonl", rows), tmp_path / "out", max_length=600)
    shard = rows_of(tmp_path / "out")[0]["row_id"].split(":")[0]
    text = explained(capsys, tmp_path / "out", f"{shard}:1:0")
    assert "rejected   candidate 0 of row 1 of " in text
    assert "empty_response: the response is empty" in text
    assert ADVICE["empty_response"] in text
    assert '"rejected": "b"' in text
    assert printed_score(explained(capsys, tmp_path / "out", f"{shard}:1")) == pytest.approx(
        rows_of(tmp_path / "out")[0]["score"], abs=1e-6
    )
    assert "malformed_row: no column" in explained(capsys, tmp_path / "out", f"{shard}:2")
    text = explained(capsys, tmp_path / "out", f"{shard}:3:1")
    assert "too_long: " in text
    assert "candidate 0" not in text
    assert "word word" in text  # its row, which only the first reject holds
    assert f"{ADVICE['too_long']}, or with --truncate left or middle" in text
    assert "score " in explained(capsys, tmp_path / "out", f"{shard}:1:1")
    text = explained(capsys, tmp_path / "out", "rejected")
    assert "rejects    6, of which one is picked at random: 4 too_long, " in text
    assert text.count("\nrejected ") == 1
    options = {"max_length": 60, "truncate": "left"}
    rows = [{"prompt": "a", "chosen": "word " * 900, "rejected": "d"}]
    score_locally(tiny_model, write_pairs(tmp_path / "long.jsonl", rows), tmp_path / "cut", **options)
    text = explained(capsys, tmp_path / "cut", "rejected")
    assert "there is not enough text to cut" in text


def test_there_is_advice_for_every_reason() -> None:
    assert ADVICE.keys() == set(REJECT_REASONS)


def test_only_committed_rows_are_explained(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scored_pairs, tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    rows = rows_of(scored_pairs)
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "_commits").iterdir()]
    last = max((r for r in records if r["source"] == rows[0]["source"]), key=lambda r: r["first_row"])
    (tmp_path / "out" / "_commits" / f"{last['unit']}.json").unlink()
    for row in (r for r in rows if r["source"] == rows[0]["source"]):
        if row["source_row"] >= last["first_row"]:
            lost = row["row_id"]
    assert "not among the rows of" in refused(capsys, tmp_path / "out", lost)
    assert len(contributions(explained(capsys, tmp_path / "out", rows[0]["row_id"]))) == 19
    left = [r for r in rows if r["source"] != last["source"] or r["source_row"] < last["first_row"]]
    for pick, best in (("highest", max), ("lowest", min)):
        expected = best(left, key=lambda r: r["score"])["row_id"]
        assert explained(capsys, tmp_path / "out", pick).split()[1] == f"{expected}:"
    assert explained(capsys, tmp_path / "out", "random").split()[1][:-1] in {r["row_id"] for r in left}


@pytest.mark.parametrize(
    "family",
    by_day(families.KINDS, {"armorm", "starling", "prm-mistral", "pairwise", "prm-qwen", "prm-shepherd"}),
)
def test_rows_of_every_kind_of_family_show_the_positions_that_its_head_reads(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "model", family)
    rows = [
        {"prompt": f"What is {k} + 2?", "chosen": f"Think.\n\nIt is {k + 2}.", "rejected": "?"}
        for k in range(3)
    ]
    options: dict[str, Any] = {"family": family} if families.asked(family) else {}
    score_locally(tmp_path / "model", write_pairs(tmp_path / "in.jsonl", rows), tmp_path / "out", **options)
    head = RewardModel.load(
        str(tmp_path / "model"), dtype="float32", device="cpu", family=options.get("family")
    ).head
    for row in rows_of(tmp_path / "out"):
        text = explained(capsys, tmp_path / "out", row["row_id"], "--all-tokens")
        tokens = listed(text)
        ids = np.array([token for token, _ in tokens.values()], np.int32)
        read = [at for at, (_, mark) in tokens.items() if "read: " in mark]
        assert read == sorted(set(head.positions(ids, row["num_prompt_tokens"])))
        if FAMILIES[family].text != "pairs":
            assert len(ids) == row["num_prompt_tokens"] + row["num_response_tokens"]
        assert "as stored" in text
        table = contributions(text)
        assert {name: reward for name, (reward, _, _) in table.items()} == pytest.approx(
            row["rewards"], abs=6e-5
        )
        assert sum(product for _, _, product in table.values()) == pytest.approx(row["score"], abs=5e-5)
        if FAMILIES[family].by_step:
            steps = re.findall(r"^step \d+ +(\d\.\d+)", text, re.M)
            assert [float(s) for s in steps] == pytest.approx(row["step_scores"], abs=6e-5)
            assert len(steps) == len(read)
        assert ("compared   2 times" in text) == (FAMILIES[family].text == "pairs")


def test_reweighed_scores_are_explained_by_their_new_formula(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--factor", "helpsteer_verbosity=3", "--mask", "code_style", "--length-penalty", "0.01"]
    assert main(["reweigh", str(scored_pairs), "--output", str(tmp_path / "out"), *options]) == 0
    old, row = rows_of(scored_pairs)[0], rows_of(tmp_path / "out")[0]
    capsys.readouterr()
    before = contributions(explained(capsys, scored_pairs, old["row_id"]))
    text = explained(capsys, tmp_path / "out", row["row_id"])
    after = contributions(text)
    assert after["helpsteer_verbosity"][2] == pytest.approx(3 * before["helpsteer_verbosity"][2], abs=3e-6)
    assert after["code_style"][2] == 0
    penalty = 0.01 * row["num_response_tokens"]
    assert re.search(rf"tokens, minus 0.01 each +-{penalty:.6f}$", text, re.M)
    assert sum(product for _, _, product in after.values()) - penalty == pytest.approx(row["score"], abs=5e-5)
    assert listed(text)


def test_scores_not_made_by_a_model_are_explained_without_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = score_synthetically(tmp_path / "out", write_pairs(tmp_path / "in.jsonl", PAIRS))
    row = max(rows_of(output), key=lambda row: row["score"])
    text = explained(capsys, output, "highest")
    assert "tokens     not shown: the output names no tokenizer" in text
    assert printed_score(text) == pytest.approx(row["score"], abs=1e-6)


@pytest.mark.parametrize("kind", ["mean", "min", "mean-std"])
def test_an_ensemble_is_explained_by_the_scores_of_its_models(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_pairs(tmp_path / "in.jsonl", PAIRS)
    for seed, name in enumerate(("a", "b")):
        assert main(["tiny-model", str(tmp_path / name), "--seed", str(seed)]) == 0
        score_locally(tmp_path / name, shard, tmp_path / f"out-{name}")
    outputs = [str(tmp_path / "out-a"), str(tmp_path / "out-b")]
    assert main(["reweigh", *outputs, "--output", str(tmp_path / "both"), "--ensemble", kind]) == 0
    capsys.readouterr()
    row = rows_of(tmp_path / "both")[0]
    text = explained(capsys, tmp_path / "both", row["row_id"])
    assert listed(text)
    assert printed_score(text) == pytest.approx(row["score"], abs=1e-6)
    for name, reward in row["rewards"].items():
        assert re.search(rf"^{name} +{reward:.4f}", text, re.M)
    if kind != "mean":
        penalized = ["--output", str(tmp_path / "less"), "--length-penalty", "0.01"]
        assert main(["reweigh", str(tmp_path / "both"), *penalized]) == 0
        less = rows_of(tmp_path / "less")[0]
        off = 0.01 * less["num_response_tokens"]
        capsys.readouterr()
        text = explained(capsys, tmp_path / "less", less["row_id"])
        line = rf"is {row['score']:.6f}, minus {off:.6f} for its length: {less['score']:.6f}  as stored"
        assert re.search(line, text), text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nonsense", "expected SHARD:ROW:CANDIDATE"),
        ("0123456789abcdef:0:0", "nothing is committed"),
        ("{shard}:0:99", "no such row or candidate"),
        ("{shard}:999999:0", "no such row or candidate"),
    ],
)
def test_a_row_that_does_not_exist_is_refused(
    row: str, message: str, scored_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = rows_of(scored_pairs)[0]["row_id"].split(":")[0]
    assert message in refused(capsys, scored_pairs, row.format(shard=shard))


def test_a_directory_that_is_not_an_output_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not an output of armo-ray score" in refused(capsys, tmp_path, "highest")


def test_text_in_the_data_cannot_control_the_terminal(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2Jgone\x9b31m\u202e"
    rows = [{"prompt": evil, "response": evil}, {"prompt": evil, "response": ""}]
    score_locally(tiny_model, write_pairs(tmp_path / "in.jsonl", rows), tmp_path / "out")
    row_id = rows_of(tmp_path / "out")[0]["row_id"]
    for asked in (row_id, f"{row_id.split(':')[0]}:1:0"):
        text = explained(capsys, tmp_path / "out", asked)
        assert "gone" in text
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}


def test_explaining_loads_neither_torch_nor_ray(scored_pairs: Path) -> None:
    command = ["explain", str(scored_pairs), "highest"]
    loaded = modules_after(f"from armo_ray.cli.main import main\nassert main({command!r}) == 0")
    assert not {"torch", "ray"} & loaded
