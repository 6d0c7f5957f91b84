"""What belongs to a conversation is read from every shard, or the run or the row is refused: never left out."""

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.errors import ConfigError
from armo_ray.evaluate import command as evaluate
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.explain.find import find
from armo_ray.explain.show import lines as explained
from armo_ray.outputs.scores import open_scores
from armo_ray.outputs.text import find_sources, read_text
from armo_ray.plan.estimate import estimate
from armo_ray.plan.options import PlanOptions
from armo_ray.plan.show import lines
from armo_ray.score import trial
from armo_ray.score.config import ScoreConfig
from armo_ray.score.job import prepare, prepare_dataset
from armo_ray.score.kept_columns import Seen
from armo_ray.score.survey import survey
from armo_ray.storage.shards import find_shards
from armo_ray.storage.units import cut
from armo_ray.tiny.families import write_family
from tests.support.local import config_for, rejects_of, rows_of, score_locally
from tests.support.shards import KINDS, Rows, conversation, layout_of, read_shards, write_shard

SYSTEM = "Answer only in Welsh, or say nothing."
PLAIN = {"question": "Name a lake.", "chosen": "Titicaca.", "rejected": "Bread."}
DOLLY = {
    "instruction": "Who lost the sandwiches?",
    "context": "Gulls took the sandwiches of a teacher.",
    "response": "A teacher.",
    "category": "closed_qa",
}


def said(folder: Path, **options: Any) -> list[str]:
    return [conversation(c) for c in read_shards(folder, layout_of(folder, **options))]


@pytest.mark.parametrize(
    "kinds", [("parquet",) * 2, ("jsonl",) * 2, ("jsonl", "parquet"), ("parquet", "jsonl")]
)
def test_a_system_prompt_that_only_the_second_shard_has_is_read(
    kinds: tuple[str, str], tmp_path: Path
) -> None:
    write_shard(tmp_path, kinds[0], [PLAIN], "a")
    write_shard(tmp_path, kinds[1], [{**PLAIN, "system": SYSTEM}], "b")
    plain, other = said(tmp_path)[::2]
    assert plain == "user: Name a lake.\nchosen: Titicaca."
    assert other == f"system: {SYSTEM}\n{plain}"


def test_a_column_that_first_appears_after_the_sample_rejects_its_row_and_names_the_option(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = [*[PLAIN] * 1005, {**PLAIN, "system": SYSTEM}]
    write_shard(tmp_path / "in", "jsonl", rows)
    options = {"max_length": 64, "unit_rows": 4096}
    layout = layout_of(tmp_path / "in")
    last = read_shards(tmp_path / "in", layout)[-1]
    assert last.reason == "unread_column"
    assert "--column system=system" in (last.detail or "")
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", **options)
    assert rejects_of(tmp_path / "out") == [(1005, None, "unread_column")]
    again = read_shards(tmp_path / "in", layout_of(tmp_path / "in", column={"system": "system"}))
    assert conversation(again[-2]) == f"system: {SYSTEM}\nuser: Name a lake.\nchosen: Titicaca."
    assert conversation(again[0]) == "user: Name a lake.\nchosen: Titicaca."
    aside = read_shards(tmp_path / "in", layout_of(tmp_path / "in", ignore=("system",)))
    assert conversation(aside[-2]) == "user: Name a lake.\nchosen: Titicaca."


def test_the_only_prompt_cannot_be_ignored(tiny_model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Name a lake."}]
    answers = {name: [*turns, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    write_shard(tmp_path / "whole", "parquet", [{**PLAIN, **answers}])
    assert said(tmp_path / "whole", ignore=["question"])[0] == "user: Name a lake.\nchosen: chosen"
    write_shard(tmp_path / "in", "parquet", [PLAIN])
    config = config_for(tiny_model, tmp_path / "in", tmp_path / "out", ignore=["question"])
    job, spans = prepare(config, write=False)
    with pytest.raises(ConfigError, match="--ignore question must not leave out the only prompt"):
        trial.check(job, spans, config)


def test_what_is_ignored_is_in_no_prompt_of_shards_and_of_a_dataset(tiny_model: Path, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in", "parquet", [DOLLY])
    assert said(tmp_path / "in", ignore=("context",)) == [
        "user: Who lost the sandwiches?\nresponse: A teacher."
    ]
    seen = [Seen("block", list(DOLLY), pq.read_schema(path))]
    for name, message in (("response", "reads response as the response"), ("contxt", "did you mean context")):
        config = config_for(tiny_model, path, tmp_path / "out", ignore=[name])
        for refused in (lambda one=config: prepare(one), lambda one=config: prepare_dataset(one, seen)):
            with pytest.raises(ConfigError, match=message):
                refused()
    config = config_for(tiny_model, path, tmp_path / "out", ignore=["context"], keep=["context"])
    job, _ = prepare(config)
    assert job.layout == prepare_dataset(config, seen).layout
    assert job.layout.columns == {"prompt": "instruction", "response": "response"}
    assert job.carried == {"context": "context"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "written"),
    [
        pytest.param(
            [
                {"instruction": "Sum up.", "input": "The ferry was late.", "output": "Late."},
                {"instruction": "Name a prime.", "input": "", "output": "43"},
                {"instruction": "Name a hill.", "input": None, "output": "Box Hill."},
            ],
            [
                "user: Sum up.\nThe ferry was late.\nresponse: Late.",
                "user: Name a prime.\nresponse: 43",
                "user: Name a hill.\nresponse: Box Hill.",
            ],
            id="alpaca",
        ),
        pytest.param(
            [{"instruction": "Sum up.", "input": "A\nB", "chosen": "x", "rejected": "y", "id": 1}],
            ["user: Sum up.\nA\nB\nchosen: x", "user: Sum up.\nA\nB\nrejected: y"],
            id="ranking",
        ),
        pytest.param(
            [{"instruction": "And?", "input": "", "output": "z", "history": [["a", "b"], ["c", "d"]]}],
            ["user: a\nassistant: b\nuser: c\nassistant: d\nuser: And?\nresponse: z"],
            id="history",
        ),
        pytest.param(
            [{"query": "And?", "response": "z", "history": [["a", "b"]], "system": "S"}],
            ["system: S\nuser: a\nassistant: b\nuser: And?\nresponse: z"],
            id="swift-history",
        ),
        pytest.param(
            [{**DOLLY}, {**DOLLY, "context": ""}],
            [
                "user: Who lost the sandwiches?\n\nGulls took the sandwiches of a teacher.\nresponse: A teacher.",
                "user: Who lost the sandwiches?\nresponse: A teacher.",
            ],
            id="dolly",
        ),
        pytest.param([{"input": "a", "output": "b"}], ["user: a\nresponse: b"], id="input-alone"),
    ],
)
def test_what_a_prompt_consists_of_is_joined(
    rows: Rows, written: list[str], kind: str, tmp_path: Path
) -> None:
    write_shard(tmp_path, kind, rows)
    assert said(tmp_path) == written


TOOL = {"type": "function", "function": {"name": "tide_table"}}
MESSAGES = [{"role": "user", "content": "High water?"}, {"role": "assistant", "content": "06:12."}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("row", "told"),
    [
        pytest.param(
            {"question": "q", "context": "c", "answer": "a"}, "input=context.*--ignore context", id="context"
        ),
        pytest.param(
            {"prompt": "p", "input": "i", "response": "r"}, "input=input.*--ignore input", id="input"
        ),
        pytest.param(
            {"question": "q", "Context": "c", "answer": "a"}, "input=Context.*--ignore Context", id="capital"
        ),
        pytest.param(
            {"prompt": "p", "chatHistory": "c", "response": "a"}, "history=chatHistory", id="camel-case"
        ),
        pytest.param(
            {"prompt": "p", "SYSTEM PROMPT": "c", "response": "a"}, "system='SYSTEM PROMPT'", id="space"
        ),
        pytest.param({"prompt": "p", "response": "r", "thinking": "t"}, "--ignore thinking", id="thinking"),
        pytest.param({"prompt": "p", "response": "r", "images": [b"x"]}, "--ignore images", id="images"),
        pytest.param(
            {"messages": MESSAGES, "documents": [{"title": "t", "text": "x"}]},
            "--ignore documents",
            id="documents",
        ),
        pytest.param(
            {"prompt": "p", "chosen": "a", "rejected": "b", "rejected_response": "c"},
            "rejected=rejected_response",
            id="rejected",
        ),
        pytest.param(
            {"prompt": "p", "response": "r", "system": "s", "system_prompt": "t"},
            "system=system_prompt",
            id="second-system",
        ),
    ],
)
def test_a_column_that_may_belong_to_the_conversation_stops_the_run(
    row: dict[str, Any], told: str, kind: str, tmp_path: Path
) -> None:
    if kind == "jsonl":
        row = {
            name: [v.decode() for v in value] if name == "images" else value for name, value in row.items()
        }
    write_shard(tmp_path, kind, [row])
    with pytest.raises(ConfigError, match=told) as refused:
        layout_of(tmp_path)
    words = shlex.split(str(refused.value))
    assert said(tmp_path, ignore=(words[words.index("--ignore") + 1],))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["", None, "[]", " ", "null"])
def test_an_empty_column_stops_nothing(value: Any, kind: str, tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "thinking": value, "documents": []}
    write_shard(tmp_path, kind, [row, {**row, "thinking": ""}, {**row, "thinking": "{}"}])
    assert said(tmp_path) == ["user: p\nresponse: r"] * 3


def test_statistics_that_are_missing_are_made_up_for_by_reading(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["p"] * 9, "response": ["r"] * 9, "context": [""] * 9})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, write_statistics=False)
    assert len(said(tmp_path)) == 9
    table = table.set_column(2, "context", [["", *[None] * 7, "Read me."]])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, write_statistics=False)
    with pytest.raises(ConfigError, match="context"):
        layout_of(tmp_path)


def test_tools_are_a_part_of_the_layout(tmp_path: Path) -> None:
    for kind in KINDS:
        write_shard(tmp_path / kind, kind, [{"tools": [TOOL], "messages": MESSAGES}])
        assert layout_of(tmp_path / kind).columns == {"messages": "messages", "tools": "tools"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("row", "told"),
    [
        pytest.param(
            {"prompt": "p", "drafts": 1, "completions": [{"draft": "x", "mark": 2}]},
            r"responses=completions\[\]\.FIELD",
            id="unknown-field",
        ),
        pytest.param(
            {"question": "p", "answers": [{"text": "x", "id": 2}]}, r"responses=answers\[\]\.text", id="text"
        ),
        pytest.param({"prompt": {"body": "x"}, "response": "r"}, r"prompt=prompt\.FIELD", id="prompt"),
        pytest.param(
            {"prompt": "p", "chosen": {"text": "x"}, "rejected": {"text": "y"}},
            r"chosen=chosen\.text",
            id="chosen",
        ),
        pytest.param(
            {"messages": [{"speaker": "user", "text": "q"}]},
            r"objects with speaker, text, .*: a message has role and content.*: rename",
            id="turns",
        ),
        pytest.param(
            {"prompt": [{"speaker": "user", "text": "q"}], "response": "r"},
            "role and content",
            id="prompt-turns",
        ),
    ],
)
def test_answers_that_are_objects_of_an_unknown_form_are_refused_with_the_option(
    row: dict[str, Any], told: str, kind: str, tmp_path: Path
) -> None:
    write_shard(tmp_path, kind, [row])
    with pytest.raises(ConfigError, match=told):
        layout_of(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_lead_to_nested_columns_lists_and_json_in_texts(kind: str, tmp_path: Path) -> None:
    row = {
        "q": {"full.text": "unread", "full": {"text": "Why?"}},
        "made": [{"said": {"text": "A."}}, {"said": {"text": "B."}}],
        "kept": json.dumps({"turns": [{"system": "S"}]}),
        "a.b": "real",
        "a": {"b": "nested"},
    }
    write_shard(tmp_path, kind, [row])
    column = {"prompt": "q.full.text", "responses": "made[].said.text", "system": "kept.turns[0].system"}
    expected = ["system: S\nuser: Why?\nresponse: A.", "system: S\nuser: Why?\nresponse: B."]
    assert said(tmp_path, column=column) == expected
    real = said(tmp_path, column={"prompt": "a.b", "response": "made[1].said.text"})
    assert real == ["user: real\nresponse: B."]
    if kind == "parquet":  # other rows of JSON lines may have the path
        with pytest.raises(ConfigError, match=r"no such path; did you mean made\[\]\.said\.text"):
            layout_of(tmp_path, column={"prompt": "q.full.text", "responses": "made[].sad.text"})
    with pytest.raises(ConfigError, match=r"prompt=nosuch\.x: no column nosuch"):
        layout_of(tmp_path, column={"prompt": "nosuch.x", "response": "a"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_tells_which_of_two_answers_is_preferred(kind: str, tmp_path: Path) -> None:
    rows = [
        {"ask": f"{verdict}?", "a": "A.", "b": "B.", "best": verdict}
        for verdict in ("left", "right", "none", "odd")
    ]
    write_shard(tmp_path, kind, rows)
    options: dict[str, Any] = {"column": {"prompt": "ask", "first": "a", "second": "b", "winner": "best"}}
    with pytest.raises(ConfigError, match="--winner VALUE=first"):
        layout_of(tmp_path, **options)
    winner = {"left": "first", "right": "second", "none": "tie"}
    *told, odd = read_shards(tmp_path, layout_of(tmp_path, winner=winner, **options))
    assert [conversation(c) for c in told] == [
        "user: left?\nchosen: A.",
        "user: left?\nrejected: B.",
        "user: right?\nchosen: B.",
        "user: right?\nrejected: A.",
        "user: none?\nresponse (tie): A.",
        "user: none?\nresponse (tie): B.",
    ]
    assert (odd.reason, "--winner odd=" in (odd.detail or "")) == ("malformed_row", True)


def test_a_shard_that_lacks_a_needed_column_is_refused_by_name(tmp_path: Path) -> None:
    write_shard(tmp_path, "parquet", [PLAIN], "a")
    write_shard(tmp_path, "parquet", [{"question": "q", "chosen": "c"}], "b")
    with pytest.raises(
        ConfigError, match=r"b\.parquet: no column rejected, which the layout preference needs"
    ):
        layout_of(tmp_path)
    pq.write_table(pa.table({"other": pa.array([], pa.string())}), tmp_path / "b.parquet")
    assert len(said(tmp_path)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_shards_with_and_without_a_prompt_of_their_own_are_read(kind: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Name a lake."}, {"role": "assistant", "content": "Titicaca."}]
    write_shard(tmp_path, kind, [{"chosen": turns, "rejected": turns}], "a")
    write_shard(tmp_path, kind, [{"prompt": "Name a lake.", "chosen": turns, "rejected": turns}], "b")
    assert len(set(said(tmp_path))) == 2


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    names = ["prompt", "chosen", "rejected", "prompt"]
    table = pa.Table.from_arrays([pa.array([x]) for x in ("right", "a", "b", "WRONG")], names)
    pq.write_table(table, tmp_path / "b.parquet")
    write_shard(tmp_path, "parquet", [{"prompt": "p", "chosen": "a", "rejected": "b"}], "a")
    with pytest.raises(ConfigError, match=r"b\.parquet: it has 2 columns prompt"):
        survey(find_shards([str(tmp_path)]))


def test_footers_are_read_once(tmp_path: Path) -> None:
    write_shard(tmp_path, "parquet", [PLAIN])
    shards = find_shards([str(tmp_path)])
    seen = survey(shards)
    (tmp_path / "a.parquet").unlink()
    (span,) = cut(shards, "", 2048, {"chosen": False}, seen.footers)
    assert [unit.num_rows for unit in span.units] == [1]


def planned(tmp_path: Path, model: Path) -> dict[str, Any]:
    return estimate(config_for(model, tmp_path / "in", tmp_path / "out"), PlanOptions.model_validate({}))


def test_columns_that_are_not_read_are_told_by_the_log_and_the_plan(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "in", "jsonl", [{**PLAIN, "year": 1999, "note": "n"}])
    with caplog.at_level("INFO"):
        told = planned(tmp_path, tiny_model)
    assert "columns that are not read: note, year" in caplog.text
    assert told["layout"]["read"] == {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}
    assert told["layout"]["unread"] == ["note", "year"]
    assert json.loads(json.dumps(told))["layout"] == told["layout"]
    assert any("columns that are not read: note, year" in line for line in lines(told))


def test_a_preview_tells_the_columns_that_are_not_read_of_all_shards(
    tmp_path: Path, tiny_model: Path
) -> None:
    write_shard(tmp_path / "in" / "a", "parquet", [PLAIN])
    write_shard(tmp_path / "in" / "b", "jsonl", [{**PLAIN, "year": 1999}])
    config = config_for(tiny_model, tmp_path / "in", tmp_path / "out")
    told = estimate(config, PlanOptions.model_validate({"show": 1}))
    assert told["preview"]["unread"] == ["year"]


@pytest.mark.parametrize(("family", "end"), [("prm-mistral", " ки\n"), ("prm-skywork", "\n")])
def test_a_list_of_steps_is_one_answer_for_a_process_model(family: str, end: str, tmp_path: Path) -> None:
    write_family(tmp_path / "model", family, "llama", 0)
    asked = "A crate holds 12 jars; how many in 3 crates?"
    steps = ["One crate holds 12.", "Three hold 3 * 12 = 36.", "The answer is 36."]
    write_shard(tmp_path / "steps", "jsonl", [{"prompt": asked, "completions": steps, "labels": [True] * 3}])
    write_shard(tmp_path / "whole", "jsonl", [{"prompt": asked, "response": end.join(steps)}])
    rows = []
    for name in ("steps", "whole"):
        score_locally(tmp_path / "model", tmp_path / name, tmp_path / f"out-{name}", family=family)
        rows += rows_of(tmp_path / f"out-{name}")
    assert len(rows) == 2
    assert len(rows[0]["step_scores"]) == 3
    assert rows[0]["step_scores"] == rows[1]["step_scores"]


ARENA = [
    {"prompt": f"Name lake {i}.", "response_a": f"Lake {i} A.", "response_b": "Bread, B.", "winner": winner}
    for i, winner in enumerate(["model_a", "model_b", "tie", "model_a"])
]


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_read_again_as_it_was_scored_and_ties_are_left_out_of_accuracy(
    kind: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in", kind, ARENA)
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out")
    score_locally(tiny_model, tmp_path / "in", tmp_path / "kept", keep_text=True)
    rows = rows_of(tmp_path / "kept")
    assert [(r["source_row"], r["role"], r["flags"]) for r in rows[2:6]] == [
        (1, "chosen", []),
        (1, "rejected", []),
        (2, "response", ["tie"]),
        (2, "response", ["tie"]),
    ]
    scores = open_scores([str(tmp_path / "out")])
    (source,) = find_sources(scores).values()
    again = [row for table in read_text(source, set(range(4))) for row in table.to_pylist()]
    assert [(r["prompt"], r["response"]) for r in again] == [(r["prompt"], r["response"]) for r in rows]
    given = {"scores": str(tmp_path / "out"), "output": str(tmp_path / "tables")}
    evaluate.run(EvaluateOptions.model_validate(given))
    found = json.loads((tmp_path / "tables" / "evaluation.json").read_text())
    assert (found["items"], found["ties"]) == (3, 1)
    assert "1 rows are ties" in capsys.readouterr().out
    by_row = {(r["source_row"], r["role"]): r["score"] for r in rows}
    right = sum(by_row[i, "chosen"] > by_row[i, "rejected"] for i in (0, 1, 3))
    assert found["subsets"]["all"]["accuracy"] == pytest.approx(right / 3)
    told = explained(find(str(tmp_path / "out"), rows[2]["row_id"]), None, False)
    assert any("Bread, B." in line for line in told)


def test_all_ties_are_told(tmp_path: Path, tiny_model: Path) -> None:
    write_shard(tmp_path / "in", "jsonl", [{**row, "winner": "tie"} for row in ARENA])
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out")
    with pytest.raises(ConfigError, match="all of its 4 rows are ties"):
        evaluate.run(EvaluateOptions.model_validate({"scores": str(tmp_path / "out")}))


def test_options_of_reading_are_checked() -> None:
    given: dict[str, Any] = {"input": "a", "output": "/tmp/x", "model": "m"}
    config = ScoreConfig.model_validate(
        {**given, "winner": ["model_a=first", "x=tie"], "ignore": ["context"]}
    )
    assert (dict(config.winner), config.ignore) == ({"model_a": "first", "x": "tie"}, ("context",))
    with pytest.raises(ValueError, match="unknown verdict best"):
        ScoreConfig.model_validate({**given, "winner": {"a": "best"}})
    with pytest.raises(ValueError, match="unknown name winners"):
        ScoreConfig.model_validate({**given, "column": {"winners": "a"}})


def test_bytes_of_utf8_are_text_and_others_are_rejected(tiny_model: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": pa.array(["\u00e9?".encode(), b"?"], pa.binary()),
            "responses": pa.array([[b"yes", b"no"], [b"\xff", b"no"]], pa.list_(pa.large_binary())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    score_locally(tiny_model, tmp_path / "a.parquet", tmp_path / "out", keep_text=True)
    rows = rows_of(tmp_path / "out")
    assert [row["prompt"][0]["content"] for row in rows] == ["\u00e9?"] * 2
    assert [row["response"][0]["content"] for row in rows] == ["yes", "no"]
    assert rejects_of(tmp_path / "out") == [(1, None, "malformed_row")]
