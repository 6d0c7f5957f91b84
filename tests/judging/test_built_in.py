"""Built-in judges: prompts are their authors', byte for byte, and rules read what their authors' rules read.

Each rule of the authors is written down here in plain words. Where ours differs, it gives no verdict; it never gives
another one.
"""

import hashlib
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armo_ray.errors import ConfigError
from armo_ray.judging.authors import VARIABLE
from armo_ray.judging.calls import calls_of
from armo_ray.judging.judge import BUILT_IN, load_judge
from armo_ray.judging.judge_file import judge_of
from armo_ray.judging.reading import Unparsable, written
from tests.judging.examples import ask, built_in, row

OWN = ("pair", "rating", "rubric", "nemotron-genrm")  # without texts of others
OTHERS = sorted(set(BUILT_IN) - set(OWN))


def said(name: str, text: str) -> float | None:
    """The first response's value as the built-in judge reads it."""
    asked = built_in(name)
    try:
        return written(asked, text, asked.size or 2)[0]
    except Unparsable:
        return None


def place(name: str, text: str) -> int | None:
    """The place of the response that a reply prefers."""
    asked = built_in(name)
    try:
        return written(asked, text, asked.size or 2).index(1.0)
    except Unparsable:
        return None


VERDICTS = st.lists(
    st.sampled_from(["[[A]]", "[[B]]", "[[C]]", "[[D]]", "[A]", "[[", "A", "]]", "<answer>", " ", "\n"]),
    max_size=6,
).map("".join)


@given(VERDICTS)
def test_rm_r1_reads_the_one_verdict_that_the_reply_has_anywhere(text: str) -> None:
    has_a, has_b = "[[A]]" in text, "[[B]]" in text
    theirs = None if has_a == has_b else 0 if has_a else 1  # both: an error
    assert place("rm-r1-instruct", text) == theirs
    assert place("rm-r1-reasoning", text) == theirs


@given(VERDICTS)
def test_rewardbench_tests_the_letters_in_turn_and_here_two_letters_are_no_verdict(text: str) -> None:
    for name, letters in (("rewardbench", "AB"), ("rewardbench2-four", "ABCD")):
        found = [k for k, letter in enumerate(letters) if f"[[{letter}]]" in text]
        theirs = found[0] if found else None
        assert place(name, text) == (theirs if len(found) < 2 else None)
        own = _entries(name)
        as_theirs = judge_of({"judge": own | {"parse": own["parse"] | {"where": "priority"}}}, name)
        try:
            assert written(as_theirs, text, len(letters)).index(1.0) == theirs
        except Unparsable:
            assert theirs is None


def _entries(name: str) -> dict[str, Any]:
    text = files("armo_ray.judging").joinpath(f"built_in/{name}.toml").read_text("utf-8")
    entries: dict[str, Any] = tomllib.loads(text)["judge"]
    del entries["origin"]
    shown = "{a} {b}" if entries["unit"] == "pair" else "{a} {b} {c} {d}"
    return entries | {"messages": [{"role": "user", "text": shown}]}


ENDS = st.tuples(
    st.sampled_from(["Good. ", "", "Rated\n\n", "It is ", "3 of 4. ", "**"]),
    st.sampled_from(["9", "10", "9/10", "7.5", "8.", "0", "11", "010", "**8**", "ten", "-3", "1 0"]),
    st.sampled_from(["", "\n", "  ", " stars"]),
).map("".join)


@given(ENDS)
def test_rewardbench_2_rates_by_the_number_that_ends_the_reply(text: str) -> None:
    theirs = None
    for number in map(
        str, range(1, 11)
    ):  # a number that ends the reply and does not go on to the left as a word
        whole = text.strip()
        if whole.endswith(number) and not re.search(r"\w$", whole[: -len(number)]):
            theirs = float(number)
    ours = said("rewardbench2-ratings", text)
    assert ours == theirs or ours is None
    if theirs is not None and re.search(r"(^|\s)\d+\s*$", text):
        assert ours == theirs


@pytest.mark.parametrize(("text", "theirs"), [("9/10", 10.0), ("7.5", 5.0), ("8.", None)])
def test_rewardbench_2_misreads_some_ratings_that_are_rejected_here(text: str, theirs: float | None) -> None:
    found = re.search(r"\b(10|[1-9])\s*$", text)
    assert (float(found[1]) if found else None) == theirs
    assert said("rewardbench2-ratings", text) is None


# The kinds of replies in the tests of prometheus-eval, with what these expect.
ABSOLUTE = {
    "The reference is (Score 5), this one [RESULT] 3": 3,
    "The reference is (Score 5), but no rating": None,
    "Fine. [RESULT] 5 out of 5": 5,
    "Bad. [RESULT] score of 1": 1,
    "Fine. [Result] 3": 3,
    "So so. [Result] Score: 2": 2,
    "Fine. [Result] Result: 4": 4,
    "So so. [Result] 4/5": 4,
    "Fine. (Score 5)": 5,
    "Fine. [Score 4]": 4,
    "Fine. score: 3": 3,
    "Fine. score of 1": 1,
    "Fine. [RESULT] (5)": 5,
    "The score cannot be 3.": None,
    "I give it a 10!": None,
    "Score: 2.5": None,
    "Result: A": None,
    "Fine. [RESULT] 6": None,
    "": None,
}
RELATIVE = {
    "[Response B is worse. [RESULT] A": 0,
    "Result A or B, no verdict": None,
    "Better is response A. [RESULT] A": 0,
    "Better is B. [RESULT] B": 1,
    "Feedback: alike... [Response B]": 1,
    "Feedback: clear... [Result] Response B": 1,
    "Feedback: clear... Response B Response A": None,
    "Feedback: clear... [RESULT: B]": 1,
    "Feedback: clear... [Result: B]": 1,
    "So I take Response B.": None,
    "Maybe B, maybe A?": None,
    "": None,
}


@pytest.mark.parametrize(("text", "theirs"), ABSOLUTE.items())
def test_prometheus_reads_ratings_as_its_authors_do(text: str, theirs: int | None) -> None:
    assert said("prometheus-absolute", text) == theirs


@pytest.mark.parametrize(("text", "theirs"), RELATIVE.items())
def test_prometheus_reads_the_better_response_as_its_authors_do(text: str, theirs: int | None) -> None:
    assert place("prometheus-relative", text) == theirs


def test_of_two_verdicts_prometheus_takes_the_first_and_here_they_are_no_verdict() -> None:
    assert place("prometheus-relative", "[RESULT] A\n[RESULT] B") is None


@given(
    st.lists(
        st.sampled_from(["<feedback>", "</feedback>", "<score>", "</score>", "3", "12", " ", "\n", "x"]),
        max_size=9,
    )
)
def test_flow_judge_needs_feedback_and_takes_the_first_score(pieces: list[str]) -> None:
    text = "".join(pieces)
    opened, _, rest = text.partition("<feedback>")
    has_feedback = opened != text and "</feedback>" in rest
    scores = [piece.strip() for piece in re.findall(r"<score>([^<]*)</score>", text)]
    numbers = [int(score) for score in scores if score.isdecimal()]
    theirs = numbers[0] if has_feedback and numbers else None
    on_scale = theirs if theirs is not None and 1 <= theirs <= 5 else None
    assert said("flow-judge", text) == on_scale


def test_nemotron_prefers_the_higher_score_and_breaks_ties_by_the_ranking() -> None:
    def first(text: str) -> float | None:
        return said("nemotron-genrm", text)

    assert first('{"score_1": 4, "score_2": 3, "ranking": 6}') == 1.0
    assert [first(f'{{"score_1": 3, "score_2": 3, "ranking": {n}}}') for n in (1, 3, 4, 6)] == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]
    assert first('draft {"score_1": 1, "score_2": 5} then {"score_1": 5, "score_2": 1}') == 1.0
    assert first('{"score_1": 5}') is None  # theirs: 3 stands for the missing one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Good.\nRating: 7", 7.0),
        ("**Rating: 8/10**", 8.0),
        ("Rating: 3\nNo:\nRating: 4.5", 4.5),
        ("Rating: 11", None),
        ("7", None),
        ("A rating: 7 of them", None),
        ("Rating: 7 or 8", None),
    ],
)
def test_our_own_judge_reads_the_last_line_that_rates(text: str, expected: float | None) -> None:
    assert said("rating", text) == expected


def test_our_own_pair_judge_knows_ties() -> None:
    assert [
        said("pair", f"So.\n{line}") for line in ("Better: A", "**Better: b.**", "Better: TIE", "Better: C")
    ] == [*(1.0, 0.0, 0.5, None)]


@pytest.mark.parametrize("name", OWN)
def test_judges_without_texts_of_others_load_and_judge(name: str) -> None:
    asked = load_judge(name)
    calls = calls_of(asked, "k", row("x", "y"), {"rubric": "be brief"})
    shown = str(calls[0].messages)
    assert all(text in shown for text in ("Why?", "x"))
    assert ask(asked, row("x", "y"), lambda _: "?")[0].reason == "unparsable"


@pytest.mark.parametrize("name", OTHERS)
def test_a_prompt_of_others_is_asked_for_with_the_command_that_gets_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(
        ConfigError, match=rf"judge {name}: .*Apache-2.0.*{VARIABLE} is not set. Run: git clone https://"
    ):
        load_judge(name)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=rf"{tmp_path} has no "):
        load_judge(name)


SOURCE = '''
"""Prompts."""
import never_imported
HEAD = "Rate " "it: "
PROMPTS = {"user": HEAD + """
{question} | {answer} {{"x": 1}}
""".strip(), "number": 3}
'''


def _file_of_others(tmp_path: Path, sha256: str, fields: str) -> Path:
    (tmp_path / "name" / "src").mkdir(parents=True, exist_ok=True)
    (tmp_path / "name" / "src" / "prompts.py").write_text(SOURCE, "utf-8")
    file = tmp_path / "mine.toml"
    file.write_text(
        f"""
[judge]
unit = "one"
scale = [1, 5]
[judge.origin]
repository = "owner/name"
commit = "0123456789abcdef"
path = "src/prompts.py"
license = "MIT"
[[judge.messages]]
role = "user"
authors = "PROMPTS.user"
sha256 = "{sha256}"
fields = {fields}
[judge.parse]
kind = "number"
pattern = '(\\d)'
""",
        "utf-8",
    )
    return file


def test_a_prompt_of_others_is_read_unchanged_from_a_copy_of_their_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = 'Rate it: {question} | {answer} {{"x": 1}}'
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    fields = '{ question = "{prompt}", answer = "<{response}>" }'
    asked = load_judge(str(_file_of_others(tmp_path, sha256, fields)))
    assert calls_of(asked, "k", row("{x}"), {})[0].messages[0]["content"] == 'Rate it: Why? | <{x}> {"x": 1}'
    assert asked.source == "https://github.com/owner/name/blob/0123456789abcdef/src/prompts.py"
    assert asked.license == "MIT"
    with pytest.raises(ConfigError, match=r"PROMPTS\.user is not the one that this judge was made for"):
        load_judge(str(_file_of_others(tmp_path, "0" * 64, fields)))
    with pytest.raises(ConfigError, match=r"it has the field \{answer\}, which fields does not name"):
        load_judge(str(_file_of_others(tmp_path, sha256, '{ question = "{prompt}" }')))


@pytest.mark.nightly
@pytest.mark.parametrize("name", OTHERS)
def test_the_prompts_of_others_have_their_hashes(name: str) -> None:
    try:
        asked = load_judge(name)
    except ConfigError as error:
        if "which is read from a copy" in str(error):
            pytest.skip(f"no copy of the authors' repository: set {VARIABLE}")
        raise
    assert asked.license == "Apache-2.0"
