"""Rows of public data sets are read into the conversations that a person would read from them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.text.conversations import candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import COLUMN_ROLE_OF, of_rows
from armo_ray.text.layouts import Layout
from armo_ray.text.named_layouts import NAMED
from tests.support.shards import KINDS, conversation, layout_of, read_shards, write_shard

STEP_END = "ки\n"  # the end of a step for a process model
ASKED = "user: Name a river in Ireland.\n"
PAIR = [f"{ASKED}chosen: The Shannon.", f"{ASKED}rejected: The Box."]
ANSWERS = [f"{ASKED}response: The Shannon.", f"{ASKED}response: The Box."]
ANSWER = ANSWERS[:1]
GREETED = "user: Hello.\nassistant: Hello!\n"
SUMMARY = "user: SUBREDDIT: r/travel\n\nTITLE: Late ferry\n\nPOST: It came at noon.\n\nTL;DR:\n"
BEGUN = "Step 1: 6 times 7 is 6 times 5 and 12.\nStep 2:"
TIMES = "user: What is 6 times 7?\n"
WRITTEN = {
    "alpaca": ["user: Sum up in three words.\nThe ferry came late.\nresponse: Ferry was late."],
    "dolly": ["user: Who was late?\n\nThe ferry came late.\nresponse: The ferry."],
    "llama-factory-ranking": [
        "user: Name a river in Ireland.\nIn the west.\nchosen: The Shannon.",
        "user: Name a river in Ireland.\nIn the west.\nrejected: The Box.",
    ],
    "sharegpt-ranking": PAIR,
    "sharegpt-functions": ANSWER,
    "ultrafeedback": ANSWERS,
    "ultrafeedback-binarized": PAIR,
    "nectar": ANSWERS,
    "helpsteer2": ANSWER,
    "helpsteer2-preference": [GREETED + text for text in PAIR],
    "helpsteer3": PAIR,
    "pku-saferlhf": PAIR,
    "beavertails": ANSWER,
    "prometheus-feedback": ANSWER,
    "code-ultrafeedback": ANSWERS,
    "armorm-multi-objective": ANSWER,
    "lmsys-arena": PAIR,
    "lmsys-arena-55k": [
        f"{GREETED}{PAIR[0]}",
        f"user: Hello.\nassistant: Hi!\n{PAIR[1]}",
    ],
    "arena-pairs": PAIR,
    "shp": PAIR,
    "webgpt": PAIR,
    "summarize-from-feedback": [f"{SUMMARY}chosen: Ferry late.", f"{SUMMARY}rejected: No ferry."],
    "stack-exchange-paired": PAIR,
    "judgelm": PAIR,
    "offsetbias": PAIR,
    "skywork-reward-preference": PAIR,
    "tulu-3-preference": PAIR,
    "hh-rlhf": PAIR,
    "distilabel-orca": [f"system: Be brief.\n{text}" for text in PAIR],
    "distilabel-capybara": PAIR,
    "distilabel-math": PAIR,
    "capybara": ANSWER,
    "ms-swift-conversation": [f"system: Be brief.\n{text}" for text in ANSWER],
    "ms-swift": PAIR,
    "ms-swift-messages": PAIR,
    "ms-swift-query": [GREETED + text for text in PAIR],
    "oasst-tree": ANSWERS,
    "glaive": [f"system: You are a helpful assistant.\n{text}" for text in ANSWER],
    "guanaco": ANSWER,
    "magpie": ANSWER,
    "magpie-dpo": PAIR,
    "ultrainteract-pair": PAIR,
    "math-step-dpo": [
        f"{TIMES}chosen: {BEGUN} That is 42.",
        f"{TIMES}rejected: {BEGUN} That is 41.",
    ],
    "simpo-seed": ANSWER,
    "trl-conversational": PAIR,
    "trl-completions": ANSWER,
    "trl-stepwise": [
        "user: A crate holds 12 jars; how many in 3?\nresponse: One holds 12. ки\nThree hold 36."
    ],
    "openai-preference": PAIR,
    "openai-batch": ANSWER,
    "vllm": ANSWER,
    "verl": ANSWER,
    "openrlhf": ANSWER,
    "nemo-rl-preference": PAIR,
    "nemo-rl-log": ANSWER,
    "skyrl": ANSWER,
    "verifiers": ANSWER,
    "prm800k": [f"{TIMES}response: 6 times 7 is 42."],
    "math-shepherd": [f"{TIMES}response: Step 1: 6 times 5 is 30. ки\nStep 2: The answer is: 42"],
    "processbench": [f"{TIMES}response: 6 times 5 is 30. ки\nThe answer is 41."],
    "rlhflow-prm": [f"{TIMES}response: Step 1: 6 times 5 is 30. ки\nStep 2: The answer is 42."],
}
REFUSED = {"openai-batch-output"}


def test_every_named_layout_has_an_expected_conversation_here() -> None:
    assert WRITTEN.keys() | REFUSED == NAMED.keys()


def chosen(name: str) -> str:
    return "auto" if NAMED[name].recognized else name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITTEN)
def test_the_example_of_a_layout_is_read_as_expected(name: str, kind: str, tmp_path: Path) -> None:
    write_shard(tmp_path, kind, [dict(NAMED[name].example)] * 2)
    layout = layout_of(tmp_path, chosen(name), STEP_END)
    assert layout.name == name
    candidates = [conversation(candidate) for candidate in read_shards(tmp_path, layout)]
    assert candidates == WRITTEN[name] * 2
    assert Layout.of_record(json.loads(json.dumps(layout.record()))) == layout


@pytest.mark.parametrize(
    "name", [name for name in WRITTEN if not NAMED[name].recognized and name != "guanaco"]
)
def test_rows_that_a_general_layout_reads_need_no_named_layout(name: str) -> None:
    example = NAMED[name].example
    layout = detect(of_rows([example]), step_end=STEP_END)
    if name == "rlhflow-prm":  # its turns look like those of any chat
        (refused,) = candidates_of(example, layout)
        assert refused.reason == "malformed_row"
        assert "--layout rlhflow-prm" in (refused.detail or "")
    else:
        assert [conversation(c) for c in candidates_of(example, layout)] == WRITTEN[name]


TIES: dict[str, dict[str, Any]] = {
    "helpsteer2-preference": {"preference_strength": 0},
    "helpsteer3": {"overall_preference": 0},
    "lmsys-arena": {"winner": "tie (bothbad)"},
    "lmsys-arena-55k": {"winner_model_a": 0, "winner_tie": 1},
    "arena-pairs": {"winner": "tie"},
    "webgpt": {"score_0": 0.0, "score_1": 0.0},
    "judgelm": {"score": [5, 5]},
    "nemo-rl-preference": {
        "completions": [
            {"rank": 0, "completion": [{"role": "assistant", "content": text}]} for text in ("a", "b")
        ]
    },
}


@pytest.mark.parametrize("name", TIES)
def test_both_responses_of_a_tie_are_read_with_a_flag(name: str) -> None:
    example = NAMED[name].example
    layout = detect(of_rows([example]))
    candidates = candidates_of({**example, **TIES[name]}, layout)
    assert [(c.role, c.flags, c.reason) for c in candidates] == [("response", ("tie",), None)] * 2
    decided = candidates_of(example, layout)
    assert [(c.role, c.flags) for c in decided] == [("chosen", ()), ("rejected", ())]
    if "completions" not in TIES[name]:
        assert {c.response for c in candidates} == {c.response for c in decided}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        pytest.param("pku-saferlhf", {"better_response_id": 2}, "'2'.*--winner 2=", id="unknown-value"),
        pytest.param("lmsys-arena", {"winner": None}, "'null'.*--winner null=", id="null"),
        pytest.param("judgelm", {"score": [5]}, "second_rating is None", id="no-rating"),
        pytest.param("lmsys-arena-55k", {"response_a": '["a"]'}, "2 turns.*1 replies", id="uneven-turns"),
        pytest.param("lmsys-arena-55k", {"response_a": "[oh"}, "not JSON", id="not-json"),
        pytest.param(
            "ultrafeedback", {"completions": "[1]"}, "found int, expected an object", id="not-objects"
        ),
        pytest.param("trl-stepwise", {"completions": ["a", ""]}, "a step is empty", id="empty-step"),
        pytest.param(
            "trl-stepwise", {"completions": ["a ки\nb"]}, "marks the end of a step", id="mark-in-step"
        ),
        pytest.param("guanaco", {"text": "Hello."}, "does not begin with ### Human", id="no-turns"),
        pytest.param("skyrl", {"input_prompt": "[INST] a [/INST]"}, "unknown chat template", id="template"),
        pytest.param(
            "skyrl",
            {"output_response": "a<|im_end|>\n<|im_start|>user\nb<|im_end|>"},
            "contains turns of a chat template",
            id="turns-in-answer",
        ),
        pytest.param("alpaca", {"input": ["a"]}, "input is list", id="input-no-text"),
        pytest.param(
            "nemo-rl-preference", {"completions": [{"rank": 0}]}, "two or more numbers", id="one-rank"
        ),
    ],
)
def test_a_row_without_the_format_is_rejected_with_the_reason(
    name: str, change: dict[str, Any], message: str
) -> None:
    example = NAMED[name].example
    layout = detect(of_rows([example]), chosen(name), step_end=STEP_END)
    candidates = candidates_of({**example, **change}, layout)
    assert candidates
    assert {c.reason for c in candidates} <= {"malformed_row", "empty_response"}
    assert all(re.search(message, c.detail or "") for c in candidates), candidates


def test_a_value_that_is_set_aside_is_a_reject_of_its_own() -> None:
    example = NAMED["lmsys-arena"].example
    layout = detect(of_rows([example]), winner={"model_a": "first", "model_b": "skip"})
    assert [c.reason for c in candidates_of(example, layout)] == ["skipped"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dolly", "alpaca"),
        ("helpsteer3", "pku-saferlhf"),
        ("ultrafeedback", "nectar"),
        ("offsetbias", "judgelm"),
        ("verl", "openrlhf"),
        ("ms-swift", "ms-swift-query"),
    ],
)
def test_rows_that_fit_two_layouts_are_refused_with_both_names(one: str, other: str) -> None:
    row = {**NAMED[one].example, **NAMED[other].example}
    with pytest.raises(ConfigError, match=r"ambiguous layout.*--layout") as error:
        detect(of_rows([row]))
    assert one in str(error.value)
    assert other in str(error.value)
    assert detect(of_rows([row]), one).name == one


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama-factory-ranking", {"output": "x"}),
        ("helpsteer2", {"chosen": "x", "rejected": "y"}),
        ("webgpt", {"messages": "x"}),
        ("verl", {"prompt": "x"}),
    ],
)
def test_a_named_layout_does_not_win_over_columns_that_it_leaves_unread(
    name: str, more: dict[str, str]
) -> None:
    row = {**NAMED[name].example, **more}
    with pytest.raises(ConfigError, match="ambiguous layout"):
        detect(of_rows([row]))
    assert detect(of_rows([row]), name).name == name


def test_a_layout_that_cannot_be_scored_says_why() -> None:
    with pytest.raises(ConfigError, match="has no prompts: join each row with its request"):
        detect(of_rows([NAMED["openai-batch-output"].example]))


def test_steps_are_refused_for_a_model_that_judges_whole_responses() -> None:
    with pytest.raises(ConfigError, match=r"process model.*--layout rollouts --column responses=completions"):
        detect(of_rows([NAMED["trl-stepwise"].example]))
    row = NAMED["trl-stepwise"].example
    layout = detect(of_rows([row]), "rollouts", {"responses": "completions"})
    assert [c.response for c in candidates_of(row, layout)] == row["completions"]


def test_a_list_of_steps_beside_a_prompt_is_a_response_unless_another_column_is_one() -> None:
    row: dict[str, Any] = {"prompt": "2 + 3?", "steps": ["2 + 3 is 5.", "So 5."]}
    layout = detect(of_rows([row]), step_end=" ки\n")
    assert (layout.kind, layout.columns) == ("rollouts", {"prompt": "prompt", "steps": "steps"})
    assert detect(of_rows([row | {"response": "5"}])).columns == {"prompt": "prompt", "response": "response"}
    with pytest.raises(ConfigError, match="process model"):
        detect(of_rows([row]))
    with pytest.raises(ConfigError, match="unknown layout"):
        detect(of_rows([{"prompt": "2 + 3?", "steps": 12}]))
    with pytest.raises(ConfigError, match="unknown layout"):
        detect(of_rows([row | {"chosen": "5"}]), step_end=" ки\n")


def test_a_chosen_layout_that_does_not_fit_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"layout webgpt: no question\.full_text and no answer_0"):
        detect(of_rows([{"prompt": "a", "response": "b"}]), "webgpt")
    with pytest.raises(ConfigError, match="unknown layout nosuch; expected auto, preference"):
        detect(of_rows([{"prompt": "a", "response": "b"}]), "nosuch")


def test_the_command_lists_every_layout_with_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layouts"]) == 0
    output = capsys.readouterr().out
    for name, layout in NAMED.items():
        assert f"\n{name} (" in f"\n{output}"
        assert json.dumps(layout.example, ensure_ascii=False) in output
    assert output.count("not verified") == sum(not layout.verified for layout in NAMED.values())
    assert main(["layouts", "webgpt"]) == 0
    assert capsys.readouterr().out.startswith("webgpt (pairs)\n")
    assert main(["layouts", "nosuch"]) == 2


TEXT = st.text('abc é日"\\', min_size=1, max_size=8).map(lambda text: f"<{text}>")


def texts_of(value: Any) -> set[str]:
    """The texts that a test put into a row."""
    if isinstance(value, str):
        return {value} if value.startswith("<") else set()
    if isinstance(value, dict):
        return set().union(*map(texts_of, value.values()))
    return set().union(*map(texts_of, value)) if isinstance(value, list) else set()


def retold(value: Any, draw: Any) -> Any:
    """A row of the same format with new random texts."""
    if isinstance(value, dict):
        keys = (
            "role",
            "from",
            "winner",
            "task",
            "prompt_id",
            "uuid",
            "id",
            "source",
            "model",
            "category",
            "Rating",
        )
        return {name: v if name in keys else retold(v, draw) for name, v in value.items()}
    if isinstance(value, list):
        return [retold(v, draw) for v in value]
    return f"<{draw(TEXT)}{draw(st.uuids())}>" if isinstance(value, str) else value


PLAIN = [
    name
    for name in WRITTEN
    if NAMED[name].shape is None and NAMED[name].recognized and name not in ("nectar", "ms-swift-query")
]


@given(data=st.data(), name=st.sampled_from(PLAIN))
def test_every_text_that_the_table_names_is_in_the_conversation_or_the_row_is_refused(
    data: st.DataObject, name: str
) -> None:
    example = NAMED[name].example
    row = retold(dict(example), data.draw)
    extra = data.draw(
        st.dictionaries(
            st.sampled_from([*COLUMN_ROLE_OF, "id", "note", "messages", "chosen", "response", "prompt"]),
            TEXT,
            max_size=2,
        )
    )
    row = {**extra, **row}
    try:
        layout = detect(of_rows([example, row]), "auto", step_end=STEP_END)
    except ConfigError:
        return
    candidates = candidates_of(row, layout)
    if any(c.reason for c in candidates):
        return
    read = {text for path in layout.sources for text in texts_of(row.get(path))}
    if layout.name:
        own = {p.split(".")[0].split("[")[0] for p in NAMED[layout.name].columns.values()}
        read |= {text for column in own for text in texts_of(row[column])}
    unread = set().union(
        *(texts_of(row[n]) for n in COLUMN_ROLE_OF.keys() & row.keys() if n not in layout.sources)
    )
    text = " ".join(conversation(c) for c in candidates)
    missing = {part for part in read if part not in text}
    assert not unread - texts_of([row[n] for n in layout.ignored if n in row])
    if name == "ultrafeedback-binarized":  # repeats the prompt
        return
    assert not missing
