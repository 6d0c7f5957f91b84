"""A judge file that cannot mean what it says is refused before any work, with the file, the key and what to write."""

import pickle
import re
from pathlib import Path

import pytest

from armo_ray.errors import ConfigError
from armo_ray.judging.calls import calls_of
from armo_ray.judging.judge import BUILT_IN, load_judge
from armo_ray.judging.verdicts import judged
from tests.judging.examples import BEST, PAIR, RATING, judge, reply, row
from tests.support.paths import ROOT

_JSON = RATING.replace(
    "kind = \"number\"\npattern = 'Score: (\\d+)'", 'kind = "json"\nkeys = ["accuracy", "style"]'
)
_TOKENS = RATING.replace(
    "kind = \"number\"\npattern = 'Score: (\\d+)'", 'kind = "tokens"\nvalues = { Yes = 1, No = 0 }'
).replace("scale = [1, 5]\n", "")

WRONG = {
    "no-toml": ("judge]", "", "", "not valid TOML"),
    "other-table": (RATING + "[other]\n", "", "", "one table [judge], found other"),
    "unknown-key": (
        RATING,
        "[judge]\n",
        "[judge]\nsample = 2\n",
        "[judge] sample: unknown key; did you mean samples?",
    ),
    "unknown-parse-key": (
        RATING,
        "pattern =",
        "patern =",
        "[judge.parse] patern: unknown key; did you mean pattern?",
    ),
    "key-of-other-kind": (
        RATING,
        "[judge.parse]\n",
        "[judge.parse]\nkeys = ['a']\n",
        "[judge.parse] keys: kind number has only",
    ),
    "unit": (RATING, '"one"', '"two"', "[judge] unit is 'two': expected one of one, pair, list"),
    "no-unit": (RATING, 'unit = "one"\n', "", "[judge] unit is missing: expected one of one, pair, list"),
    "no-messages": (
        "[judge]\nunit = 'one'\n",
        "",
        "",
        "[judge] messages is missing: expected one [[judge.messages]]",
    ),
    "no-role": (RATING, 'role = "user"\n', "", "[judge.messages 1] role is missing: expected a text"),
    "placeholder": (
        RATING,
        "{response}",
        "{respnse}",
        "{respnse}: unknown placeholder; did you mean {response}?",
    ),
    "not-shown": (RATING, " | {response}", "", "{response} is missing: a judge of unit one must show it"),
    "b-not-shown": (PAIR, " | {b}", "", "{b} is missing: a judge of unit pair must show it"),
    "a-in-one": (RATING, "{prompt}", "{a}", "{a}: a judge of unit one shows responses by {response}"),
    "response-in-pair": (
        PAIR,
        "{prompt}",
        "{response}",
        "{response}: a judge of unit pair shows responses by {a}, {b}",
    ),
    "gap": (BEST, "{list}", "{a} {c}", "expected {a}, {b} and so on, without gaps"),
    "prefill": (
        RATING,
        "[judge.parse]",
        '[[judge.messages]]\nrole = "assistant"\ntext = "{prompt}"\n[judge.parse]',
        "{prompt}: the last message begins the judge's own reply",
    ),
    "no-rule": (RATING.split("[judge.parse]")[0], "", "", "[judge.parse] kind is missing"),
    "pattern": (RATING, "(\\d+)", "(\\d+", "pattern is 'Score: (\\\\d+': expected a regular expression"),
    "no-group": (RATING, "(\\d+)", "\\d+", "expected a group in parentheses around the verdict"),
    "unnamed-groups": (
        RATING,
        'kind = "number"',
        'kind = "numbers"',
        "expected a named group for every reward",
    ),
    "number-of-pair": (
        PAIR,
        'kind = "choice"',
        'kind = "number"',
        "[judge.parse] values: kind number has only",
    ),
    "no-scale": (
        RATING,
        "scale = [1, 5]\n",
        "",
        "[judge] scale is missing: expected the lowest and the highest",
    ),
    "scale": (
        RATING,
        "[1, 5]",
        "[5, 1]",
        "[judge] scale is [5, 1]: expected the lowest and the highest rating",
    ),
    "scale-values": (
        _TOKENS,
        'unit = "one"',
        'unit = "one"\nscale = [2, 3]',
        "a scale that holds all of [judge.parse] values",
    ),
    "value": (PAIR, '"tie"', '"draw"', "expected first, second or tie for each verdict"),
    "no-second": (PAIR, '"second"', '"tie"', "expected a verdict for first and one for second"),
    "uncovered": (PAIR, "A|B|C", "A|B|C|D", "expected one for D too, which the pattern finds"),
    "unreachable": (PAIR, "A|B|C", "A|B", "expected no C, which the pattern cannot find"),
    "places": (BEST, "3 = 3", "3 = 4", "expected a verdict for each of the places 1 to 3"),
    "json-keys": (
        _JSON,
        '"style"',
        '"a style"',
        "names of letters, digits and _, as they become columns, not 'a style'",
    ),
    "only-token": (
        _TOKENS,
        "[judge.parse]",
        "[judge.parse]\nwhere = 'only'",
        "where is 'only': expected first or last",
    ),
    "one-label": (_TOKENS, ", No = 0", "", "expected two verdicts or more, with different numbers"),
    "weights": (
        _JSON,
        "scale",
        "weights = { accuracy = 1 }\nscale",
        "expected a weight for each of accuracy, style",
    ),
    "quorum": (
        RATING,
        "scale",
        "quorum = 0\nscale",
        "[judge] quorum is 0: expected a share above 0 and up to 1",
    ),
    "samples": (RATING, "scale", "samples = 3\nscale", "at 0 all samples are the same"),
    "sum-of-wins": (PAIR, 'unit = "pair"', 'unit = "pair"\naggregate = "sum"', "a share of wins has no sum"),
    "order-of-one": (RATING, "scale", 'orders = "both"\nscale', "a single response has no order"),
    "rubric": (
        RATING,
        "scale",
        'rubric = "be brief"\nscale',
        "expected {rubric} in a message, which shows it",
    ),
    "item": (RATING, "scale", 'item = "{response}"\nscale', 'expected unit = "list"'),
    "item-field": (
        BEST,
        'unit = "list"',
        'unit = "list"\nitem = "{name}: {response}"',
        "expected {number} or {letter}, and",
    ),
    "sampling": (
        RATING + "[judge.sampling]\ntemprature = 1\n",
        "",
        "",
        "temprature: unknown key; did you mean temperature?",
    ),
    "temperature": (
        RATING + "[judge.sampling]\ntemperature = 3\n",
        "",
        "",
        "temperature is 3: expected a number from 0 to 2",
    ),
    "max-tokens": (
        RATING + "[judge.sampling]\nmax_tokens = '9'\n",
        "",
        "",
        "max_tokens is '9': expected int",
    ),
    "logprobs": (
        RATING + "[judge.sampling]\ntop_logprobs = 5\n",
        "",
        "",
        "expected nothing, or [judge.parse] kind",
    ),
    "tie-break": (
        _JSON,
        "keys =",
        'tie_break = "r"\nmiddle = 3\nkeys =',
        "expected nothing, or a pair whose two scores",
    ),
}


@pytest.mark.parametrize(("text", "old", "new", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_with_its_name_the_key_and_the_fix(
    text: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    assert old in text
    file.write_text(text.replace(old, new, 1) if old else text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_judge(str(file))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"judge {file}: ")


def test_an_unknown_judge_is_told_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown judge ratting: expected one of .*rating.* or a file that ends"
    ):
        load_judge("ratting")
    with pytest.raises(ConfigError, match=r"mine.toml: cannot be read: No such file"):
        load_judge(str(tmp_path / "mine.toml"))


def test_a_file_is_read_as_it_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        _JSON.replace("scale", "samples = 2\nweights = { style = 1, accuracy = 3 }\nscale"), "utf-8-sig"
    )
    file.write_text(file.read_text("utf-8") + "[judge.sampling]\ntemperature = 1\n", "utf-8")
    found = load_judge(str(file))
    assert (found.name, found.samples, found.scale) == ("mine", 2, (1.0, 5.0))
    assert (found.reward_names, found.weights) == (("accuracy", "style"), (3.0, 1.0))
    assert dict(found.sampling) == {"temperature": 1, "max_tokens": 2048}
    assert pickle.loads(pickle.dumps(found)) == found


def test_the_columns_are_those_that_messages_show() -> None:
    text = RATING.replace("{prompt}", "{column:b} {column:a} {rubric}")
    assert judge(text).columns == ("a", "b", "rubric")
    assert judge(text, rubric="be brief").columns == ("a", "b")


def test_rewards_are_named_after_what_is_read() -> None:
    assert judge(RATING).reward_names == ("rating",)
    assert judge(PAIR).reward_names == ("win_rate_first", "win_rate_second")
    assert judge(PAIR, orders="hash").reward_names == ("win_rate",)
    assert judge(BEST).reward_names == ("win_rate",)
    two = RATING.replace('"number"', '"numbers"').replace("(\\d+)", "(?P<x>\\d) (?P<y>\\d)")
    assert judge(two).reward_names == ("x", "y")


def test_a_fingerprint_changes_with_all_that_changes_an_answer_or_its_reading_and_nothing_else() -> None:
    same = judge(RATING).fingerprint
    assert judge("# a comment\n" + RATING, description="another").fingerprint == same
    changed = [
        judge(RATING, scale=[0, 5]),
        judge(RATING, strip="think"),
        judge(RATING, parse__where="last"),
        judge(RATING, sampling__temperature=1),
        judge(RATING, sampling__seed=False),
        judge(RATING.replace("{prompt} |", "{prompt}  |")),
        judge(RATING.replace('role = "user"', 'role = "system"')),
    ]
    reordered = PAIR.replace('A = "first", B = "second"', 'B = "second", A = "first"')
    assert judge(PAIR).fingerprint == judge(reordered).fingerprint
    priority = judge(PAIR, parse__where="priority").fingerprint
    assert priority != judge(reordered, parse__where="priority").fingerprint
    prints = [each.fingerprint for each in changed]
    assert len({same, *prints}) == 1 + len(changed)


def test_every_built_in_judge_is_listed_with_one_line() -> None:
    assert {"rating", "rubric", "pair", "nemotron-genrm", "rm-r1-instruct", "flow-judge"} <= set(BUILT_IN)
    assert all(line and "\n" not in line for line in BUILT_IN.values())


def test_the_examples_of_the_readme_are_judges(tmp_path: Path) -> None:
    text, tokens = re.findall(
        r"```toml\n(.*?)```", (ROOT / "armo_ray" / "judging" / "README.md").read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "tokens.toml").write_text(tokens, "utf-8")
    assert load_judge(str(tmp_path / "tokens.toml")).scale == (1, 5)
    (tmp_path / "support.toml").write_text(text, "utf-8")
    found = load_judge(str(tmp_path / "support.toml"))
    assert found.columns == ("manual",)
    calls = calls_of(found, "k", row("x"), {"manual": "m"})
    [rated] = judged(found, 1, calls, [reply('{"accuracy": 1, "tone": 1} rather {"accuracy": 5, "tone": 3}')])
    assert [rated.score, *rated.rewards] == pytest.approx([4.4, 5, 3])
