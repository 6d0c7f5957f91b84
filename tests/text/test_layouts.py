"""The columns determine the layout; if they do not, the error lists them."""

from typing import Any

import pytest

from armo_ray.errors import ConfigError
from armo_ray.text.conversations import candidates_of
from armo_ray.text.detect import detect
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
