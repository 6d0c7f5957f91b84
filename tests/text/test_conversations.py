"""Rows of every layout become candidates; one that cannot be scored says why and does not affect the others."""

import gzip
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armo_ray.outputs.schema import REJECT_REASONS
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.layouts import Layout
from tests.support.paths import ROOT

Message = dict[str, str]
Row = dict[str, Any]

HH_HARMLESS = ROOT.parent / "shared" / "data" / "hh_harmless" / "test-half.jsonl.gz"
HH_NAMES = {"user": "Human", "assistant": "Assistant"}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def of(row: Row) -> list[Candidate]:
    return candidates_of(row, detect(row))


Q, A, B = user("q"), assistant("a"), assistant("b")
HISTORY = [user("hi"), assistant("hello")]
BE = system("be brief")
PAIR = [("chosen", [Q], "a"), ("rejected", [Q], "b")]
LONG_PAIR = [("chosen", [*HISTORY, Q], "a"), ("rejected", [*HISTORY, Q], "b")]
BRIEF_PAIR = [("chosen", [BE, Q], "a"), ("rejected", [BE, Q], "b")]
ROLLOUTS = [("response", [Q], "a"), ("response", [Q], "b")]
ONE = [("response", [Q], "a")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR, id="trl-explicit-strings"),
        pytest.param({"prompt": [Q], "chosen": [A], "rejected": [B]}, PAIR, id="trl-explicit-messages"),
        pytest.param({"prompt": [Q], "chosen": A, "rejected": B}, PAIR, id="message-dicts"),
        pytest.param({"prompt": [Q], "chosen": "a", "rejected": [B]}, PAIR, id="mixed-answers"),
        pytest.param(
            {"prompt": [*HISTORY, Q], "chosen": [A], "rejected": [B]},
            LONG_PAIR,
            id="trl-explicit-several-turns",
        ),
        pytest.param(
            {"chosen": [*HISTORY, Q, A], "rejected": [*HISTORY, Q, B]}, LONG_PAIR, id="trl-implicit-prompt"
        ),
        pytest.param(
            {"chosen": [BE, Q, A], "rejected": [BE, Q, B]},
            BRIEF_PAIR,
            id="trl-implicit-prompt-with-a-system-message",
        ),
        pytest.param(
            {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]}, PAIR, id="ultrafeedback-prompt-repeated"
        ),
        pytest.param(
            {"prompt": "", "chosen": [Q, A], "rejected": [Q, B]}, PAIR, id="empty-prompt-beside-all"
        ),
        pytest.param({"prompt": [], "chosen": [Q, A], "rejected": [Q, B]}, PAIR, id="no-messages-beside-all"),
        pytest.param(
            {"prompt": [user(" ")], "chosen": [Q, A], "rejected": [Q, B]}, PAIR, id="blank-message-beside-all"
        ),
        pytest.param(
            {"prompt": " q\r\n", "chosen": [Q, A], "rejected": [Q, B]},
            PAIR,
            id="prompt-repeated-but-for-spaces",
        ),
        pytest.param(
            {"prompt": "Cafe\u0301  au lait?", "chosen": [user("Caf\u00e9 au lait?"), A], "rejected": "b"},
            [
                ("chosen", [user("Caf\u00e9 au lait?")], "a"),
                ("rejected", [user("Cafe\u0301  au lait?")], "b"),
            ],
            id="prompt-repeated-in-another-normal-form",
        ),
        pytest.param(
            {"prompt": [BE, *HISTORY, Q], "chosen": [*HISTORY, Q, A], "rejected": [B]},
            [(role, [BE, *prompt], answer) for role, prompt, answer in LONG_PAIR],
            id="prompt-messages-repeated-without-their-system-message",
        ),
        pytest.param(
            {"prompt": [BE], "chosen": [Q, A], "rejected": [Q, B]},
            BRIEF_PAIR,
            id="a-system-message-as-prompt-column",
        ),
        pytest.param(
            {"prompt": "q", "chosen": [BE, Q, A], "rejected": [BE, Q, B]},
            BRIEF_PAIR,
            id="prompt-repeated-after-a-system-message",
        ),
        pytest.param(
            {"prompt": "q", "chosen": [*HISTORY, Q, A], "rejected": [*HISTORY, Q, B]},
            LONG_PAIR,
            id="prompt-repeated-as-the-last-question",
        ),
        pytest.param(
            {"prompt": "hi", "chosen": [*HISTORY, Q, A], "rejected": [*HISTORY, Q, B]},
            LONG_PAIR,
            id="prompt-repeated-as-the-first-question",
        ),
        pytest.param(
            {"prompt": HISTORY[:1], "chosen": [*HISTORY, Q, A], "rejected": [*HISTORY, Q, B]},
            LONG_PAIR,
            id="prompt-message-repeated-in-a-long-conversation",
        ),
        pytest.param(
            {"prompt": [*HISTORY, Q], "chosen": [*HISTORY, Q, A], "rejected": [*HISTORY, Q, B]},
            LONG_PAIR,
            id="prompt-messages-repeated",
        ),
        pytest.param(
            {"prompt": "hi", "chosen": [HISTORY[1], Q, A], "rejected": [HISTORY[1], Q, B]},
            LONG_PAIR,
            id="prompt-continued-for-several-turns",
        ),
        pytest.param(
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant: a",
                "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant: b",
            },
            LONG_PAIR,
            id="hh-transcripts",
        ),
        pytest.param(
            {
                "chosen": "\n\nHuman: q\n\nAssistant: a\n\nwith paragraphs\n\nHumans: no turn",
                "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: what?\n\nAssistant: b",
            },
            [
                ("chosen", [Q], "a\n\nwith paragraphs\n\nHumans: no turn"),
                ("rejected", [*HISTORY, user("what?")], "b"),
            ],
            id="hh-transcripts-with-other-histories",
        ),
        pytest.param(
            {
                "prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant:",
                "chosen": "a",
                "rejected": "b",
            },
            LONG_PAIR,
            id="hh-transcript-as-prompt",
        ),
        pytest.param(
            {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"]},
            [*PAIR, ("rejected", [Q], "c"), ("rejected", [Q], "d")],
            id="rewardbench-2",
        ),
        pytest.param({"prompt": "q", "all_generated_responses": ["a", "b"]}, ROLLOUTS, id="simpo-rollouts"),
        pytest.param({"instruction": "q", "responses": ["a", "b"]}, ROLLOUTS, id="magpie-rollouts"),
        pytest.param({"prompt": [Q], "completions": [A, B]}, ROLLOUTS, id="rollouts-of-message-dicts"),
        pytest.param({"prompt": [Q], "completions": [[A], [B]]}, ROLLOUTS, id="rollouts-of-message-lists"),
        pytest.param({"prompt": "q", "response": "a"}, ONE, id="one-candidate-per-row"),
        pytest.param({"prompt": "q", "completion": [A]}, ONE, id="one-message-list-per-row"),
        pytest.param({"messages": [Q, A]}, ONE, id="messages"),
        pytest.param(
            {"messages": [BE, *HISTORY, Q, A]}, [("response", [BE, *HISTORY, Q], "a")], id="long-messages"
        ),
        pytest.param(
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ONE,
            id="sharegpt",
        ),
        pytest.param(
            {
                "messages": [
                    {"from": None, "value": "", "role": "user", "content": "q"},
                    {"from": "gpt", "value": "a", "role": None, "content": None},
                ]
            },
            ONE,
            id="a-union-of-sharegpt-and-openai",
        ),
        pytest.param(
            {"messages": [{"from": "human", "value": "q", "role": "user", "content": "q"}, A]},
            ONE,
            id="both-keys-say-the-same",
        ),
        pytest.param(
            {
                "prompt": "q",
                "chosen": {"role": None, "content": "a"},
                "rejected": {"from": None, "value": "b"},
            },
            PAIR,
            id="message-dicts-with-a-null-role",
        ),
        pytest.param(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "what "}, {"type": "text", "text": "now"}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
                ]
            },
            [("response", [user("what now")], "a")],
            id="openai-content-parts",
        ),
        pytest.param(
            {"messages": [system(""), Q, A]},
            [("response", [system(""), Q], "a")],
            id="an-explicit-empty-system-message-stays",
        ),
        pytest.param({"messages": [BE, A]}, [("response", [BE], "a")], id="a-system-message-as-prompt"),
        pytest.param(
            {"messages": [Q, {"role": "tool", "content": "42"}, A]},
            [("response", [Q, {"role": "tool", "content": "42"}], "a")],
            id="a-tool-turn",
        ),
        pytest.param(
            {"system": "be brief", "prompt": "q", "chosen": "a", "rejected": "b"},
            BRIEF_PAIR,
            id="system-column",
        ),
        pytest.param(
            {"system": "be brief", "chosen": [Q, A], "rejected": [Q, B]},
            BRIEF_PAIR,
            id="system-column-and-implicit-prompt",
        ),
        pytest.param(
            {"system": "be brief", "prompt": "q", "chosen": [Q, A], "rejected": [BE, Q, B]},
            BRIEF_PAIR,
            id="system-column-and-repeated-prompt",
        ),
        pytest.param(
            {"system": " be\u00a0brief\n", "prompt": "q", "chosen": [BE, Q, A], "rejected": [BE, Q, B]},
            BRIEF_PAIR,
            id="system-column-repeated-but-for-spaces",
        ),
        pytest.param(
            {"system": "", "prompt": "q", "chosen": "a", "rejected": "b"}, PAIR, id="empty-system-column"
        ),
        pytest.param(
            {"prompt": "q", "response": "\u200b\ufeff"}, [("response", [Q], "\u200b\ufeff")], id="zero-width"
        ),
        pytest.param(
            {"system": None, "prompt": "q", "chosen": "a", "rejected": "b"}, PAIR, id="null-system-column"
        ),
        pytest.param(
            {"prompt": " q\n", "response": "\ta  "},
            [("response", [user(" q\n")], "\ta  ")],
            id="outer-white-space-stays",
        ),
        pytest.param(
            {"prompt": "q\0", "response": "\0a"},
            [("response", [user("q\0")], "\0a")],
            id="nul-characters-are-text",
        ),
        pytest.param(
            {"prompt": [user(""), Q], "response": "a"}, [("response", [user(""), Q], "a")], id="empty-turn"
        ),
        pytest.param(
            {"prompt": [A, Q], "response": "b"}, [("response", [A, Q], "b")], id="the-assistant-opens"
        ),
    ],
)
def test_a_row_becomes_its_candidates(row: Row, expected: list[tuple[str, list[Message], str]]) -> None:
    candidates = of(row)
    assert [(c.role, c.prompt, c.response) for c in candidates] == expected
    assert [c.index for c in candidates] == list(range(len(candidates)))
    assert {(c.reason, c.detail) for c in candidates} == {(None, None)}


@pytest.mark.parametrize(
    ("row", "reasons"),
    [
        pytest.param(
            {"prompt": None, "chosen": "a", "rejected": "b"}, ["empty_prompt"] * 2, id="null-prompt"
        ),
        pytest.param(
            {"prompt": None, "chosen": [Q, A], "rejected": "b"}, [None, "empty_prompt"], id="one-has-its-own"
        ),
        pytest.param({"prompt": " \n", "responses": ["a", "b"]}, ["empty_prompt"] * 2, id="blank-prompt"),
        pytest.param({"prompt": [], "responses": ["a"]}, ["empty_prompt"], id="prompt-without-messages"),
        pytest.param({"prompt": [user(" ")], "responses": ["a"]}, ["empty_prompt"], id="blank-user-message"),
        pytest.param(
            {"prompt": [*HISTORY, user("")], "response": "a"}, ["empty_prompt"], id="blank-last-turn"
        ),
        pytest.param(
            {"prompt": None, "system": "be", "response": "a"}, ["empty_prompt"], id="system-for-no-prompt"
        ),
        pytest.param(
            {"prompt": "", "system": "be", "response": "a"}, ["empty_prompt"], id="system-for-empty-prompt"
        ),
        pytest.param(
            {"prompt": [], "system": "be", "response": "a"}, ["empty_prompt"], id="system-for-no-messages"
        ),
        pytest.param({"chosen": "a", "rejected": "b"}, ["empty_prompt"] * 2, id="answers-alone"),
        pytest.param(
            {"chosen": [A], "rejected": [Q, B]}, ["empty_prompt", None], id="only-an-assistant-turn"
        ),
        pytest.param({"messages": [system(""), A]}, ["empty_prompt"], id="only-an-empty-system-message"),
        pytest.param(
            {"prompt": "q", "chosen": "a", "rejected": None}, [None, "empty_response"], id="null-answer"
        ),
        pytest.param(
            {"prompt": "q", "responses": ["", "a", "\u3000"]},
            ["empty_response", None, "empty_response"],
            id="blank",
        ),
        pytest.param(
            {"prompt": "q", "chosen": [], "rejected": ["a"]}, ["empty_response", None], id="no-chosen"
        ),
        pytest.param({"messages": []}, ["empty_response"], id="no-messages"),
        pytest.param({"messages": [Q, assistant("")]}, ["empty_response"], id="empty-last-turn"),
        pytest.param(
            {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q"},
            ["empty_response", "no_answer_turn"],
            id="transcripts-without-an-answer",
        ),
        pytest.param({"chosen": [Q, A], "rejected": [Q]}, [None, "no_answer_turn"], id="no-assistant-turn"),
        pytest.param({"messages": [Q, A, Q]}, ["no_answer_turn"], id="the-user-has-the-last-word"),
        pytest.param(
            {"prompt": 3, "chosen": "a", "rejected": "b"}, ["malformed_row"] * 2, id="number-as-prompt"
        ),
        pytest.param(
            {"prompt": "q", "responses": [1.5, "a", True]},
            ["malformed_row", None, "malformed_row"],
            id="numbers",
        ),
        pytest.param({"prompt": "q", "system": 3, "response": "a"}, ["malformed_row"], id="number-as-system"),
        pytest.param({"messages": [Q, "a"]}, ["malformed_row"], id="text-among-messages"),
        pytest.param(
            {"messages": [Q, {"role": "assistant", "content": None}]}, ["malformed_row"], id="null-content"
        ),
        pytest.param({"messages": [Q, {"role": "assistant"}]}, ["malformed_row"], id="no-content"),
        pytest.param(
            {"messages": [user("q"), {"role": "assistant", "content": [{"type": "image", "url": "x"}]}]},
            ["unsupported_content"],
            id="an-image-part",
        ),
        pytest.param(
            {"messages": [user("q"), {"role": "assistant", "content": [{"type": "text", "text": None}]}]},
            ["malformed_row"],
            id="a-null-text-part",
        ),
        pytest.param(
            {"messages": [{"role": "judge", "content": "q"}, A]}, ["malformed_row"], id="unknown-role"
        ),
        pytest.param(
            {"messages": [{"role": ["user"], "content": "q"}, A]},
            ["malformed_row"],
            id="role-of-another-type",
        ),
        pytest.param(
            {"system": "x", "prompt": [BE, Q], "response": "a"}, ["malformed_row"], id="two-systems"
        ),
        pytest.param(
            {"prompt": [system("x"), Q], "chosen": [BE, Q, A], "rejected": [Q, B]},
            ["malformed_row", None],
            id="other-system-message-than-the-prompt",
        ),
        pytest.param(
            {"messages": [{"role": "user", "from": "gpt", "content": "q"}, A]},
            ["malformed_row"],
            id="role-and-from-differ",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "q", "value": "other"}, A]},
            ["malformed_row"],
            id="content-and-value-differ",
        ),
        pytest.param({"messages": [{"content": "q"}, A]}, ["malformed_row"], id="no-role"),
        pytest.param(
            {"prompt": "q", "chosen": [user("else"), A], "rejected": [Q, B]},
            ["malformed_row", None],
            id="other-prompt",
        ),
        pytest.param(
            {"prompt": "q", "responses": ["a", "\ud800", "b"]},
            [None, "malformed_row", None],
            id="lone-surrogate",
        ),
        pytest.param(
            {"prompt": "q\udfff", "responses": ["a", "b"]},
            ["malformed_row"] * 2,
            id="lone-surrogate-in-prompt",
        ),
    ],
)
def test_a_candidate_that_cannot_be_scored_says_why_and_the_others_are_scored(
    row: Row, reasons: list[str | None]
) -> None:
    candidates = of(row)
    assert [c.reason for c in candidates] == reasons
    assert [c.index for c in candidates] == list(range(len(candidates)))
    assert all(bool(c.role) and bool(c.response) == (c.reason is None) == (not c.detail) for c in candidates)


@pytest.mark.parametrize(
    ("columns", "row", "reason", "detail"),
    [
        ("prompt responses", {"prompt": "q", "responses": None}, "malformed_row", "null"),
        ("prompt responses", {"prompt": "q", "responses": "a"}, "malformed_row", "str"),
        ("prompt responses", {"prompt": "q", "responses": {"0": "a"}}, "malformed_row", "dict"),
        (
            "prompt responses",
            {"prompt": "q", "responses": []},
            "empty_response",
            "list of responses is empty",
        ),
        (
            "prompt responses",
            {"prompt": "q", "text": "a"},
            "malformed_row",
            "no column responses.*prompt, text",
        ),
        ("prompt responses", {}, "malformed_row", "no column prompt, responses"),
        ("prompt responses", {"\ud800": "a"}, "malformed_row", "no column prompt, responses"),
        ("messages", {"messages": None}, "malformed_row", "null"),
        ("messages", {"messages": 7}, "malformed_row", "int"),
    ],
    ids=[
        *(
            "null-list",
            "text-for-a-list",
            "object-for-a-list",
            "empty-list",
            "a-column-is-missing",
            "no-columns",
        ),
        *("a-column-that-is-not-text", "null-messages", "number-for-messages"),
    ],
)
def test_a_row_that_cannot_be_parsed_is_one_reject(columns: str, row: Row, reason: str, detail: str) -> None:
    (candidate,) = candidates_of(row, detect(columns.split()))
    assert candidate == Candidate(None, None, [], "", reason, candidate.detail)
    assert re.search(detail, candidate.detail or "")
    assert (candidate.detail or "").encode()  # can be written as text


def test_a_row_may_lack_the_system_column() -> None:
    layout = Layout("rollouts", {"prompt": "prompt", "response": "response", "system": "system"})
    assert candidates_of({"prompt": "q", "response": "a"}, layout) == [Candidate(0, "response", [Q], "a")]


TEXT = st.text(st.characters(), max_size=5) | st.sampled_from(
    ["q", "\n\nHuman: q\n\nAssistant: a", "\n\nHuman:"]
)
ROLE = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt"]) | TEXT | st.none()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.fixed_dictionaries(
            {}, optional={"role": ROLE, "content": inner, "type": st.just("text"), "text": inner}
        )
        | st.fixed_dictionaries({}, optional={"from": ROLE, "value": inner})
    ),
    max_leaves=12,
)
LAYOUTS = [
    "prompt system chosen rejected",
    "chosen rejected",
    "prompt responses",
    "prompt response system",
    "messages",
]


@pytest.mark.parametrize("columns", LAYOUTS)
@given(data=st.data())
def test_every_candidate_of_any_row_is_text_or_has_a_reason(columns: str, data: st.DataObject) -> None:
    layout = detect(columns.split())
    row = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(columns.split(), VALUES)))
    candidates = candidates_of(row, layout)
    assert candidates
    for candidate in candidates:
        texts = [candidate.response, candidate.detail or "", *(m["content"] for m in candidate.prompt)]
        assert all(text.encode() is not None for text in texts)
        if candidate.reason is None:
            assert candidate.response.strip()
            assert any(m["content"].strip() for m in candidate.prompt)
        else:
            assert candidate.reason in REJECT_REASONS


@pytest.mark.skipif(not HH_HARMLESS.exists(), reason="needs shared/data")
def test_real_transcripts_are_parsed_without_loss() -> None:
    with gzip.open(HH_HARMLESS) as stream:
        rows = [json.loads(line) for line in stream]
    candidates = [(row[c.role or ""], c) for row in rows for c in of(row)]
    scored = [(text, c) for text, c in candidates if c.reason is None]
    assert len(candidates) == 2 * len(rows)
    assert len(scored) > 0.99 * len(candidates)
    for text, c in scored:
        turns = [*c.prompt, assistant(c.response)]
        spoken = "".join(f"{HH_NAMES[turn['role']]}:{turn['content']}" for turn in turns)
        assert "".join(spoken.split()) == "".join(text.split())
