"""The columns determine the layout; if they do not, the error lists them."""

from typing import Any

import pytest

from armo_ray.errors import ConfigError
from armo_ray.text.conversations import candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import of_names, of_rows
from armo_ray.text.layouts import Layout

NAMES = {
    "prompt": "prompt instruction question query",
    "system": "system system_prompt",
    "responses": "responses completions all_generated_responses generations candidates outputs answers",
    "response": "response completion generation output answer",
    "messages": "messages conversation conversations",
}
# The other columns that a shard needs for a layout with this column role.
COMPANIONS = {"prompt": ["response"], "system": ["chosen", "rejected"], "messages": []}
MESSAGE = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, names in NAMES.items() for name in names.split()]
)
def test_a_column_role_is_detected_under_every_name_that_datasets_use(part: str, name: str) -> None:
    layout = detect(["id", name, *COMPANIONS.get(part, ["prompt"])])
    assert layout.columns[part] == name


@pytest.mark.parametrize(
    ("columns", "kind", "parts"),
    [
        pytest.param("prompt chosen rejected", "preference", "prompt chosen rejected", id="explicit-prompt"),
        pytest.param("chosen rejected", "preference", "chosen rejected", id="implicit-prompt"),
        pytest.param(
            "chosen rejected system", "preference", "chosen rejected system", id="implicit-prompt-system"
        ),
        pytest.param("prompt responses", "rollouts", "prompt responses", id="rollouts"),
        pytest.param(
            "prompt response system", "rollouts", "prompt response system", id="one-candidate-per-row"
        ),
        pytest.param("messages", "messages", "messages", id="messages"),
        pytest.param("messages prompt", "messages", "messages", id="messages-with-a-prompt"),
        pytest.param(
            "id score prompt chosen source rejected", "preference", "prompt chosen rejected", id="others"
        ),
    ],
)
def test_the_layout_is_detected_from_the_columns(columns: str, kind: str, parts: str) -> None:
    assert detect(columns.split()) == Layout(kind, {part: part for part in parts.split()})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param("", "unknown layout.*\\(none\\)", id="no-columns"),
        pytest.param("text label", "unknown layout.*label, text", id="nothing-known"),
        pytest.param("prompt score", "unknown layout.*prompt, score", id="only-a-prompt"),
        pytest.param("prompt chosen", "unknown layout.*chosen, prompt", id="only-chosen"),
        pytest.param(
            "chosen rejected messages",
            "ambiguous layout.*preference.*chosen.*rejected.*messages",
            id="two-layouts",
        ),
        pytest.param(
            "prompt response responses", "ambiguous layout.*prompt, response, responses", id="one-or-many"
        ),
        pytest.param(
            "question query response", "ambiguous layout.*question and query.*prompt", id="two-prompts"
        ),
        pytest.param(
            "prompt outputs answers", "ambiguous layout.*outputs and answers.*responses", id="two-lists"
        ),
    ],
)
def test_an_unknown_or_ambiguous_layout_is_refused_with_the_columns(columns: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(columns.split())


@pytest.mark.parametrize(
    ("columns", "overrides", "kind"),
    [
        pytest.param("q a b", {"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", id="own-names"),
        pytest.param("question query response", {"prompt": "query"}, "rollouts", id="two-prompts"),
        pytest.param(
            "prompt query response", {"prompt": "query"}, "rollouts", id="instead-of-the-usual-name"
        ),
        pytest.param("prompt response responses", {"responses": "responses"}, "rollouts", id="many"),
        pytest.param("prompt response responses", {"response": "response"}, "rollouts", id="one"),
        pytest.param(
            "prompt chosen rejected drafts", {"responses": "drafts"}, "rollouts", id="another-layout"
        ),
        pytest.param(
            "messages chosen rejected", {"prompt": "messages"}, "preference", id="a-name-of-another-part"
        ),
    ],
)
def test_a_column_option_decides(columns: str, overrides: dict[str, str], kind: str) -> None:
    layout = detect(columns.split(), overrides=overrides)
    assert layout.kind == kind
    assert overrides.items() <= dict(layout.columns).items()


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        pytest.param(
            "auto", {"prompt": "query"}, "prompt=query.*chosen, prompt, rejected", id="no-such-column"
        ),
        pytest.param(
            "rollouts", {}, "rollouts: prompt \\+ responses or prompt \\+ response", id="no-such-layout"
        ),
        pytest.param("preference", {"responses": "chosen"}, "unknown layout", id="a-part-of-another-layout"),
    ],
)
def test_options_that_do_not_fit_the_columns_are_refused(
    kind: str, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(["prompt", "chosen", "rejected"], kind, overrides)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("preference", "prompt chosen rejected"), ("rollouts", "prompt responses"), ("messages", "messages")],
)
def test_the_layout_option_chooses_among_several(kind: str, parts: str) -> None:
    columns = ["prompt", "chosen", "rejected", "all_generated_responses", "messages"]
    layout = detect(columns, kind)
    assert (layout.kind, set(layout.columns)) == (kind, set(parts.split()))


@pytest.mark.parametrize(
    ("row", "count"),
    [
        pytest.param({"prompt": "q", "chosen": "a", "rejected": "b"}, 2, id="pair"),
        pytest.param({"prompt": "q", "chosen": [MESSAGE], "rejected": [MESSAGE]}, 2, id="pair-of-messages"),
        pytest.param({"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"]}, 4, id="lists-of-answers"),
        pytest.param(
            {"prompt": "q", "chosen": [[MESSAGE]] * 2, "rejected": [[MESSAGE]]}, 3, id="lists-of-lists"
        ),
        pytest.param({"prompt": "q", "chosen": None, "rejected": "b"}, 2, id="null"),
        pytest.param({"prompt": "q", "responses": ["a", None, "b"]}, 3, id="rollouts"),
        pytest.param({"prompt": "q", "responses": [MESSAGE] * 5}, 5, id="rollouts-of-messages"),
        pytest.param({"prompt": "q", "response": [MESSAGE]}, 1, id="one-candidate"),
        pytest.param({"messages": [{"role": "user", "content": "q"}, MESSAGE]}, 1, id="messages"),
    ],
)
def test_a_row_counts_as_many_candidates_as_it_is_parsed_into(row: dict[str, Any], count: int) -> None:
    layout = detect(row)
    assert layout.count(row) == len(candidates_of(row, layout)) == count


DOLLY = {"instruction": "Who was late?", "context": "The ferry came late.", "response": "The ferry."}
WHOLE = [{"role": "user", "content": "q"}, MESSAGE]


@pytest.mark.parametrize("kind", ["auto", "dolly", "rollouts"])
def test_a_column_that_is_ignored_is_no_part_of_the_prompt(kind: str) -> None:
    row = DOLLY | {"category": "qa", "system": "Be brief.", "tools": "[]"}
    layout = detect(of_rows([row]), kind, ignored=["context", "system", "tools"])
    assert (layout.columns, layout.ignored) == (
        {"prompt": "instruction", "response": "response"},
        ("context", "system", "tools"),
    )
    (candidate,) = candidates_of(row, layout)
    assert candidate.prompt == [{"role": "user", "content": "Who was late?"}]
    assert Layout.of_record(layout.record()) == layout


@pytest.mark.parametrize(
    ("row", "ignored", "name", "columns"),
    [
        pytest.param(
            {"instruction": "i", "input": "x", "history": [["a", "b"]], "output": "o"},
            ["input", "history"],
            "alpaca",
            {"prompt": "instruction", "response": "output"},
            id="optional-roles",
        ),
        pytest.param(
            {"query": "i", "input": "x", "response": "o"},
            ["input"],
            None,
            {"prompt": "query", "response": "response"},
            id="without-a-name",
        ),
        pytest.param(
            {"prompt": "p", "reward": 1.0, "input": "i", "output": "o"},
            ["input"],
            None,
            {"prompt": "prompt", "response": "output"},
            id="the-prompt-of-a-named-layout",
        ),
        pytest.param(
            {"input": "i", "output": "o", "reward": 1.0},
            ["reward"],
            "openrlhf",
            {"prompt": "input", "response": "output"},
            id="recognized-by-it",
        ),
        pytest.param(
            {"prompt": "p", "chosen": WHOLE, "rejected": WHOLE},
            ["prompt"],
            None,
            {"chosen": "chosen", "rejected": "rejected"},
            id="prompt-beside-whole-conversations",
        ),
        pytest.param(
            {**DOLLY, "answers": ["a"]},
            ["answers"],
            "dolly",
            {"prompt": "instruction", "input": "context", "response": "response"},
            id="what-made-it-ambiguous",
        ),
        pytest.param(
            {"prompt": "p", "response": "r", "output": "o"},
            ["response"],
            None,
            {"prompt": "prompt", "response": "output"},
            id="another-response",
        ),
        pytest.param(
            {"messages": WHOLE, "tools": "[]"}, ["tools"], None, {"messages": "messages"}, id="tools"
        ),
        pytest.param(
            {
                "input": {"messages": WHOLE[:1], "tools": []},
                "preferred_output": WHOLE,
                "a.b": 1,
                "a": {"b": 1},
            }
            | {"non_preferred_output": WHOLE},
            ["a"],
            "openai-preference",
            {
                "prompt": "input.messages",
                "chosen": "preferred_output",
                "rejected": "non_preferred_output",
                "tools": "input.tools",
            },
            id="paths-elsewhere",
        ),
    ],
)
def test_a_layout_goes_on_without_the_columns_that_are_ignored(
    row: dict[str, Any], ignored: list[str], name: str | None, columns: dict[str, str]
) -> None:
    layout = detect(of_rows([row]), ignored=ignored)
    assert (layout.name, layout.columns) == (name, columns)


@pytest.mark.parametrize(
    ("ignored", "options", "message"),
    [
        pytest.param(
            "response",
            {},
            r"--ignore: the layout dolly \(rollouts\) reads response as the response\. Without it: unknown layout: "
            r"the input has the columns context, instruction besides response",
            id="response",
        ),
        pytest.param("instruction", {}, r"reads instruction as the prompt", id="only-prompt"),
        pytest.param(
            "instruction",
            {"kind": "dolly"},
            r"the prompt.*layout dolly: no instruction; the input has",
            id="named",
        ),
        pytest.param("contxt", {}, r"--ignore contxt: no column contxt; did you mean context\?", id="typo"),
        pytest.param(
            "context",
            {"overrides": {"input": "context"}},
            r"--ignore context: --column input=context reads it",
            id="contradiction",
        ),
    ],
)
def test_a_column_that_cannot_be_ignored_is_refused(
    ignored: str, options: dict[str, Any], message: str
) -> None:
    for columns in (of_rows([DOLLY]), of_names(DOLLY)):
        with pytest.raises(ConfigError, match=message):
            detect(columns, ignored=[ignored], **options)


def test_a_column_that_only_rows_which_were_not_read_may_have_can_be_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert detect(of_rows([DOLLY]), ignored=["system"]).ignored == ("system",)
    assert "--ignore system: no row that was sampled has a column system" in caplog.text
    with pytest.raises(ConfigError, match="no column system"):
        detect(of_names(DOLLY), ignored=["system"])
