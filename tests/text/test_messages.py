"""Messages with roles under every name, tools, calls and reasoning; nothing is dropped silently."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.errors import ConfigError
from armo_ray.outputs.scores import open_scores
from armo_ray.outputs.text import find_sources, read_text
from armo_ray.score.config import load_config
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import Reading, unread_keys
from tests.support.local import rejects_of, rows_of, score_locally
from tests.support.reference import Reference

Row = dict[str, Any]
MESSAGES = Layout("messages", {"messages": "messages", "tools": "tools"})
TEXT = Reading(tool_calls="text")
CALL = {"id": "c1", "type": "function", "function": {"name": "tide_table", "arguments": '{"port": "Cork"}'}}
CALLED = [{"type": "function", "id": "c1", "function": {"name": "tide_table", "arguments": {"port": "Cork"}}}]
TOOL = {"type": "function", "function": {"name": "tide_table", "description": "High water", "parameters": {}}}


def turns(*said: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def of(messages: list[Any], tools: Any = None, reading: Reading = Reading()) -> Candidate:  # noqa: B008
    (candidate,) = candidates_of({"messages": messages, "tools": tools}, MESSAGES, reading)
    return candidate


def answered(**answer: Any) -> Candidate:
    return of([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **answer}])


@pytest.mark.parametrize("name", ["User", "HUMAN", " human ", "prompter"])
def test_a_user_has_many_names(name: str) -> None:
    assert of([{"role": name, "content": "q"}, {"from": "gpt", "value": "a"}]).prompt == turns(("user", "q"))


@pytest.mark.parametrize("name", ["Assistant", "gpt", "model", "bot", "ChatGPT", "chatbot", "AI", "bing"])
def test_an_assistant_has_many_names(name: str) -> None:
    candidate = of([{"from": "human", "value": "q"}, {"from": name, "value": "a"}])
    assert (candidate.response, candidate.reason) == ("a", None)


@pytest.mark.parametrize(
    "name",
    ["tool", "function", "observation", "environment", "ipython", "function-response", "Tool Response"],
)
def test_a_tool_has_many_names(name: str) -> None:
    said = turns(("user", "q"), ("assistant", "let me see"), (name, "12:00"), ("assistant", "noon"))
    assert of(said).prompt[-1] == {"role": "tool", "content": "12:00"}


def test_developer_means_system() -> None:
    said = turns(("developer", "Be curt."), ("user", "q"), ("assistant", "a"))
    assert of(said).prompt[0] == {"role": "system", "content": "Be curt."}


def test_an_unknown_role_is_rejected_with_its_name_and_the_option_that_maps_it() -> None:
    said = turns(("Narrator", "q"), ("assistant", "a"))
    candidate = of(said)
    assert candidate.reason == "malformed_row"
    assert "unknown role 'Narrator': map it with --role Narrator=user" in (candidate.detail or "")
    assert of(said, reading=Reading({"narrator": "user"})).prompt == turns(("user", "q"))


def test_a_mapped_role_takes_precedence_over_the_usual_one() -> None:
    said = turns(("model", "q"), ("assistant", "a"))
    assert of(said, reading=Reading({"model": "user"})).prompt == turns(("user", "q"))


def test_a_role_can_only_be_mapped_to_one_of_four() -> None:
    given = {"input": ["x"], "output": "y", "model": "m"}
    assert load_config(None, given | {"role": ["narrator=user"]}).role == {"narrator": "user"}
    with pytest.raises(
        ConfigError, match=r"role: .*expected NAME=ROLE with one of system, user, assistant, tool"
    ):
        load_config(None, given | {"role": ["narrator=person"]})


@pytest.mark.parametrize(
    "given",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": [{"id": "c1", "name": "tide_table", "arguments": {"port": "Cork"}}]},
        {"tool_calls": [{**CALL, "function": {"name": "tide_table", "arguments": {"port": "Cork"}}}]},
        {"tool_calls": [{"id": "c1", "name": "tide_table", "parameters": {"port": "Cork"}}]},
        {"tool_calls": [CALL], "function_call": CALL["function"]},
        {"tool_calls": [CALL], "function_call": {"name": None, "arguments": None}},
    ],
)
def test_a_tool_call_is_read_in_every_form(given: Row) -> None:
    assert answered(**given).extra == {"tool_calls": CALLED}


def test_an_older_function_call_is_a_tool_call() -> None:
    candidate = answered(content=None, function_call=CALL["function"])
    assert (candidate.response, candidate.reason) == ("", None)
    assert candidate.extra == {"tool_calls": [{"type": "function", "function": CALLED[0]["function"]}]}


def test_a_sharegpt_turn_of_the_role_function_call_is_a_call() -> None:
    value = '{"name": "tide_table", "arguments": {"port": "Cork"}}'
    said = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    assert (of(said).extra or {})["tool_calls"][0]["function"] == CALLED[0]["function"]
    assert (
        of([*said, {"from": "observation", "value": "06:12"}, {"from": "gpt", "value": "a"}]).reason is None
    )


@pytest.mark.parametrize(
    "arguments", ["", "{}", None, {}, {"port": None}], ids=["blank", "json", "null", "empty", "null-struct"]
)
def test_arguments_that_are_absent_are_an_empty_object(arguments: Any) -> None:
    extra = answered(tool_calls=[{"function": {"name": "now", "arguments": arguments}}]).extra
    assert extra == {"tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}]}


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"a": 1e999}', '{"a": NaN}', "[1]", "port=Cork", '{"a": ']
)
def test_arguments_that_parsing_would_change_stay_text(text: str) -> None:
    extra = answered(tool_calls=[{"function": {"name": "f", "arguments": text}}]).extra or {}
    assert extra["tool_calls"][0]["function"]["arguments"] == text


def test_nulls_of_a_struct_are_dropped_with_a_flag_and_those_in_text_stay() -> None:
    candidate = answered(
        tool_calls=[{"function": {"name": "f", "arguments": {"a": None, "b": {"c": None, "d": 1}}}}]
    )
    assert (candidate.extra or {})["tool_calls"][0]["function"]["arguments"] == {"b": {"d": 1}}
    assert candidate.flags == ("nulls_dropped",)
    candidate = answered(tool_calls=[{"function": {"name": "f", "arguments": '{"a": null}'}}])
    assert (candidate.extra or {})["tool_calls"][0]["function"]["arguments"] == {"a": None}
    assert candidate.flags == ()


@pytest.mark.parametrize(
    "extra",
    [
        {"tool_calls": None},
        {"tool_calls": []},
        {"tool_calls": ""},
        {"tool_calls": [{"id": None, "type": None, "function": {"name": None, "arguments": None}}]},
        {"function_call": {"name": None, "arguments": None}},
        {"reasoning_content": ""},
        {"reasoning": None, "thinking": " \n"},
        {"refusal": None, "audio": None, "images": []},
        {"name": "Ann", "weight": 0.5, "id": "m1", "loss": True},
    ],
)
def test_null_and_empty_values_are_absent_and_metadata_is_not_content(extra: Row) -> None:
    candidate = answered(**extra)
    assert (candidate.response, candidate.extra, candidate.reason, candidate.flags) == ("a", None, None, ())


@pytest.mark.parametrize(
    ("extra", "detail"),
    [
        ({"refusal": "I will not."}, "refusal"),
        ({"images": ["a.png"]}, "images"),
        ({"audio": {"id": "x"}}, "audio"),
        ({"attachments": [{"file": "a.pdf"}]}, "attachments"),
        ({"documents": ["a text"]}, "documents"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type 'image_url'"),
        ({"content": [{"type": "tool_use", "name": "f", "input": {}}]}, "type 'tool_use'"),
        ({"content": [{"type": "text", "text": "a", "image_url": "x"}]}, "image_url in addition to its text"),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "x"}}]}, "type 'custom'"),
        ({"tool_calls": [{"name": "f", "arguments": {}, "result": "x"}]}, "result in addition"),
        ({"reasoning": [{"text": "hm"}]}, "reasoning of a message is list"),
    ],
)
def test_content_that_cannot_be_read_rejects_the_response_and_is_named(extra: Row, detail: str) -> None:
    candidate = answered(**extra)
    assert candidate.reason == "unsupported_content"
    assert detail in (candidate.detail or "")


@pytest.mark.parametrize(
    ("extra", "detail"),
    [
        ({"tool_calls": "now()"}, "not JSON"),
        ({"tool_calls": [{"arguments": {"a": 1}}]}, "has no name"),
        ({"tool_calls": [3]}, "a tool call is int"),
        ({"tool_calls": [CALL], "function_call": {"name": "other", "arguments": "{}"}}, "differ"),
        ({"reasoning": "one", "reasoning_content": "other"}, "differ"),
    ],
)
def test_an_invalid_or_contradictory_call_is_malformed(extra: Row, detail: str) -> None:
    candidate = answered(**extra)
    assert candidate.reason == "malformed_row"
    assert detail in (candidate.detail or "")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(key: str) -> None:
    assert answered(**{key: "2 and 2"}).extra == {"reasoning_content": "2 and 2"}


def test_blocks_of_content_are_text_or_thoughts() -> None:
    parts = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "a"}, "b"]
    candidate = answered(content=[*parts, {"type": "output_text", "text": "c", "image_url": None}])
    assert (candidate.response, candidate.extra) == ("abc", {"reasoning_content": "hm"})


@pytest.mark.parametrize("tools", [[TOOL], [json.dumps(TOOL)], json.dumps([TOOL]), json.dumps(TOOL)])
def test_tools_are_read_in_every_form(tools: Any) -> None:
    assert of(turns(("user", "q"), ("assistant", "a")), tools).tools == [TOOL]


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null", [None]])
def test_no_tools_are_none(tools: Any) -> None:
    assert of(turns(("user", "q"), ("assistant", "a")), tools).tools is None


def test_a_response_may_be_only_a_call_but_not_only_a_thought() -> None:
    assert answered(content="", tool_calls=[CALL]).reason is None
    assert answered(content="", reasoning="hm").reason == "empty_response"


@pytest.mark.parametrize(
    ("roles", "flags"),
    [
        ("user assistant user assistant", ()),
        ("system user assistant", ()),
        ("user assistant tool tool assistant", ()),
        ("user assistant assistant", ("odd_roles",)),
        ("user assistant assistant user assistant", ("odd_roles",)),
        ("user system assistant", ("odd_roles",)),
        ("system developer user assistant", ("odd_roles",)),
    ],
)
def test_roles_that_few_models_know_are_flagged(roles: str, flags: tuple[str, ...]) -> None:
    candidate = of(turns(*((role, "x") for role in roles.split())))
    assert (candidate.reason, candidate.flags) == (None, flags)


def test_keys_that_are_ignored_are_listed() -> None:
    said: list[Row] = [{"role": "user", "content": "q", "lang": "en", "weight": None, "tool_calls": []}]
    assert unread_keys(said) == {"lang"}
    assert unread_keys({"chosen": said}) == {"chosen"}


def test_calls_written_as_text_have_the_documented_form() -> None:
    said = [
        *turns(("system", "Be brief."), ("user", "q")),
        {"role": "assistant", "content": "I look.", "reasoning": "Ask.", "tool_calls": [CALL]},
        *turns(("tool", "06:12"), ("tool", "18:40")),
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    ]
    candidate = of(said, [TOOL], TEXT)
    call = '<tool_call>\n{"name": "tide_table", "arguments": {"port": "Cork"}}\n</tool_call>'
    system, *others = candidate.prompt
    assert system["content"].startswith("Be brief.\n\n# Tools\n\nYou may call")
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in system["content"]
    assert others == turns(
        ("user", "q"),
        ("assistant", f"<think>\nAsk.\n</think>\n\nI look.\n{call}"),
        ("user", "<tool_response>\n06:12\n</tool_response>\n<tool_response>\n18:40\n</tool_response>"),
    )
    assert (candidate.response, candidate.extra, candidate.tools) == (f"{call}\n{call}", None, None)
    assert candidate.flags == ("tool_calls_as_text",)
    assert of(turns(("user", "q"), ("assistant", "a")), reading=TEXT).flags == ()


# ---- through files


def write(path: Path, rows: list[Row]) -> Path:
    """A shard of rows, in the format of its file extension."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


FILES = pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet"])
QUESTION = {"role": "user", "content": "When is high water in Cork?"}
LOOK = {"role": "assistant", "content": "I will look it up."}


def call(name: str, **arguments: str) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@FILES
def test_a_column_with_two_sets_of_keys_is_read_in_both(name: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "Which tree?"}, {"from": "gpt", "value": "The oak."}]},
        {
            "conversations": [
                {"role": "user", "content": "Which?"},
                {"role": "assistant", "content": "A pine."},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "Which?"},
                {"role": "assistant", "content": "An elm."},
            ]
        },
    ]
    score_locally(tiny_model, write(tmp_path / name, rows), tmp_path / "out", keep_text=True)
    reference = Reference(tiny_model)
    candidate = rows_of(tmp_path / "out")
    assert [row["response"][0]["content"] for row in candidate] == ["The oak.", "A pine.", "An elm."]
    for row in candidate:
        assert abs(row["score"] - reference.score([*row["prompt"], *row["response"]])[0]) < 1e-5
    assert rejects_of(tmp_path / "out") == []


@FILES
def test_calls_that_the_template_leaves_out_are_rejected_or_written_as_text(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    calls = [call("tide_table", port="Cork"), call("delete_all_files", path="/")]
    rows: list[Row] = [{"messages": [QUESTION, {**LOOK, "tool_calls": [one]}]} for one in calls]
    rows.append({"messages": [QUESTION, {**LOOK, "tool_calls": None}]})
    rows.append({"messages": [QUESTION, {**LOOK, "content": None, "tool_calls": calls[:1]}]})
    rows.append({"messages": [QUESTION, {**LOOK, "tool_calls": calls[:1]}, {**LOOK, "role": "tool"}, LOOK]})
    shard = write(tmp_path / name, rows)
    score_locally(tiny_model, shard, tmp_path / "out")
    assert [row["source_row"] for row in rows_of(tmp_path / "out")] == [2]
    rejects = rows_of(tmp_path / "out", "rejects")
    assert {row["reason"] for row in rejects} == {"unsupported_content"}
    assert all(
        "tool calls of turn 2" in row["detail"] and "--tool-calls text" in row["detail"] for row in rejects
    )

    score_locally(tiny_model, shard, tmp_path / "text", tool_calls="text", keep_text=True)
    candidate, reference = rows_of(tmp_path / "text"), Reference(tiny_model)
    assert [row["flags"] for row in candidate] == [["tool_calls_as_text"]] * 2 + [[]] + [
        ["tool_calls_as_text"]
    ] * 2
    assert len({row["score"] for row in candidate}) == 5
    for row in candidate:
        assert abs(row["score"] - reference.score([*row["prompt"], *row["response"]])[0]) < 1e-5
    assert '"name": "delete_all_files", "arguments": {"path": "/"}' in candidate[1]["response"][0]["content"]


@FILES
def test_text_is_read_again_as_it_was_scored(name: str, tiny_model: Path, tmp_path: Path) -> None:
    said = [{"role": "Narrator", "content": "q"}, {**LOOK, "tool_calls": [call("now")]}]
    shard = write(tmp_path / name, [{"messages": said}])
    options: dict[str, Any] = {"role": {"Narrator": "user"}, "tool_calls": "text"}
    score_locally(tiny_model, shard, tmp_path / "kept", keep_text=True, **options)
    score_locally(tiny_model, shard, tmp_path / "out", **options)
    (kept,) = rows_of(tmp_path / "kept")
    (source,) = find_sources(open_scores([str(tmp_path / "out")])).values()
    (again,) = [row for table in read_text(source, {0}) for row in table.to_pylist()]
    assert (again["prompt"], again["response"]) == (kept["prompt"], kept["response"])
    assert "<tool_call>" in again["response"][0]["content"]


def test_an_output_keeps_the_options_for_reading_messages(tiny_model: Path, tmp_path: Path) -> None:
    shard = write(tmp_path / "in.jsonl", [{"messages": [QUESTION, LOOK]}])
    score_locally(tiny_model, shard, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"role.narrator was None, now 'user'"):
        score_locally(tiny_model, shard, tmp_path / "out", role={"narrator": "user"})
    with pytest.raises(ConfigError, match="tool_calls was None, now 'text'"):
        score_locally(tiny_model, shard, tmp_path / "out", tool_calls="text")


def test_odd_roles_are_scored_as_by_the_reference(tiny_model: Path, tmp_path: Path) -> None:
    rows = [turns(*((role, f"{role} says {i}") for i, role in enumerate(roles.split()))) for roles in ODD]
    score_locally(tiny_model, write(tmp_path / "in.jsonl", [{"messages": m} for m in rows]), tmp_path / "out")
    reference = Reference(tiny_model)
    for row, messages in zip(rows_of(tmp_path / "out"), rows, strict=True):
        assert row["flags"] == ["odd_roles"]
        assert abs(row["score"] - reference.score(messages)[0]) < 1e-5


ODD = ["user assistant assistant", "user system assistant", "user assistant system user assistant assistant"]
