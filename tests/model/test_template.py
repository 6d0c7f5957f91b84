"""A chat template is someone else's program: if it fails or does too much, only its row or its model is refused."""

import json
import resource
import threading
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.template import render
from armo_ray.score.job import prepare
from armo_ray.tiny.armorm import LLAMA3_TEMPLATE, write_tiny_model
from tests.support.local import PAIR, config_for, rejects_of, rows_of, score_locally

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
STEPS, SIZE, NUMBER, WIDTH = "too many steps", "text or list that is too large", "number that is too", "width"
BIG = "{% set big = 'a' * 1000000 %}"
DOUBLE = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = "
BAD = {
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    "type": ("{{ messages[0] + 1 }}", "TypeError"),
    "undefined": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "refusal": ("{{ raise_exception('no system message') }}", "no system message"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", STEPS),
    "calls": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        STEPS,
    ),
    "filters": ("{% for i in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}", STEPS),
    "searches": (BIG + "{% for i in range(99999) %}{% if 'b' in big %}{% endif %}{% endfor %}", STEPS),
    "writing": ("{% for i in range(99999) %}{{ messages | string * 99 }}{% endfor %}", STEPS),
    "block": (BIG + "{% set x %}{% for i in range(99999) %}{{ big }}{% endfor %}{% endset %}", STEPS),
    "constants": (
        "{% set x %}{% for i in range(99999) %}" + "text" * 9999 + "{% endfor %}{% endset %}",
        STEPS,
    ),
    "doubled-text": (DOUBLE + "ns.s ~ ns.s %}{% endfor %}", SIZE),
    "doubled-sum": (DOUBLE + "ns.s + ns.s %}{% endfor %}", SIZE),
    "product": ("{{ 'a' * 10 ** 11 }}", SIZE),
    "list": ("{{ ([1] * 10 ** 11) | length }}", SIZE),
    "power": ("{{ 10 ** 99999999 }}", NUMBER),
    "squares": (DOUBLE.replace("'ab'", "3") + "ns.s * ns.s %}{% endfor %}", NUMBER),
    "filter-width": ("{{ 'a' | center(10 ** 11) }}", SIZE),
    "method-width": ("{{ 'a'.ljust(10 ** 11) }}", SIZE),
    "format": ("{{ '{:99999999999}'.format(1) }}", WIDTH),
    "percent": ("{{ '%99999999999d' % 1 }}", WIDTH),
    "percent-filter": ("{{ '%*d' | format(10 ** 11, 1) }}", SIZE),
    "replace": (BIG + "{{ big | replace('a', big) }}", SIZE),
    "replace-method": (BIG + "{{ big.replace('a', big) }}", SIZE),
    "join": (BIG + "{{ ([big] * 99999) | join }}", SIZE),
    "join-method": (BIG + "{{ ''.join([big] * 99999) }}", SIZE),
    "indent": (BIG + "{{ (big | replace('a', '\n')) | indent(99999) }}", SIZE),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("template", "reason"), BAD.values(), ids=BAD.keys())
def test_a_template_that_fails_or_does_too_much_is_refused_with_the_reason(
    template: str, reason: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(jinja2.TemplateError, match=reason):
        render(template, QUESTION, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_template_has_the_same_limits_in_a_thread() -> None:
    actual: list[str] = []

    def work() -> None:
        actual.append(render(LLAMA3_TEMPLATE, QUESTION, {"bos_token": "<s>"}))
        with pytest.raises(jinja2.TemplateError, match=STEPS):
            render(BAD["loops"][0], QUESTION, {})
        actual.append("refused")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert actual == [render(LLAMA3_TEMPLATE, QUESTION, {"bos_token": "<s>"}), "refused"]


def test_a_long_conversation_of_long_messages_is_rendered() -> None:
    messages = [{"role": role, "content": "123456789 % {}\n" * 20_000} for role in ("user", "assistant")] * 40
    text = render(LLAMA3_TEMPLATE, messages, {"bos_token": "<s>"})
    assert len(text) > sum(len(message["content"].strip()) for message in messages)


def with_template(path: Path, template: str) -> Path:
    write_tiny_model(path)
    (path / "chat_template.jinja").write_text(template, "utf-8")
    return path


def test_a_model_with_such_a_template_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_template(tmp_path / "model", "{{ 1 / 0 }}")
    (tmp_path / "in.jsonl").write_bytes(PAIR)
    given = ["--model", str(model), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    assert main(["score", *given]) == 2
    assert f"{model}: chat template: ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_only_the_row_for_which_a_template_loops_or_fails_is_rejected(tmp_path: Path, suffix: str) -> None:
    bad = "{% if 'loop' in messages[0].content %}" + BAD["loops"][0] + "{% endif %}"
    bad += "{% if 'fail' in messages[0].content %}{{ 1 / 0 }}{% endif %}"
    model = with_template(tmp_path / "model", bad + LLAMA3_TEMPLATE)
    rows = [
        {"prompt": f"{word} on", "chosen": "b", "rejected": "c"} for word in ("go", "loop", "fail", "move")
    ]
    if suffix == ".jsonl":
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    score_locally(model, tmp_path / f"in{suffix}", tmp_path / "out")
    assert rejects_of(tmp_path / "out") == [(i, k, "malformed_row") for i in (1, 2) for k in (0, 1)]
    details = [reject["detail"] for reject in rows_of(tmp_path / "out", "rejects")][::2]
    assert STEPS in details[0]
    assert "division by zero" in details[1]
    assert [row["source_row"] for row in rows_of(tmp_path / "out")] == [0, 0, 3, 3]


DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "truncated": b'{"model_max_length": 8',
    "object": b"{}",
    "list": b"[]",
    "null": b"null",
    "binary": b"\x80\x04\xff\xfe\x00\x01",
}
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja")


@pytest.mark.parametrize("name", [*FILES, "model.safetensors.index.json", "special_tokens_map.json"])
def test_a_damaged_file_of_a_model_is_named(
    name: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_bytes(PAIR)
    for kind, content in DAMAGE.items():
        model = write_copy(tiny_model, tmp_path / kind)
        (model / name).write_bytes(content)
        given = ["--model", str(model), "--input", str(tmp_path / "in.jsonl"), "--dtype", "float32"]
        status = main(["plan", *given, "--output", str(tmp_path / "out")])
        error = capsys.readouterr().err
        if name == "special_tokens_map.json":  # is never read
            assert status == 0, error
            continue
        assert status == 2, (kind, error)
        assert str(model) in error
        assert "error: " in error.splitlines()[-1]


def write_copy(model: Path, copy: Path) -> Path:
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).symlink_to(file)
    for name in (*FILES, "model.safetensors.index.json", "special_tokens_map.json"):
        if (copy / name).exists():
            content = (copy / name).read_bytes()
            (copy / name).unlink()
            (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_max_length": "many"}, "model_max_length is 'many', not a number"),
        ({"bos_token": {"text": "<s>"}}, "bos_token is {'text': '<s>'}, not text"),
        ({"eos_token": 7}, "eos_token is 7, not text"),
        ({"chat_template": [{"template": "a"}, "b"]}, "no chat template"),
        ({"chat_template": {"default": "a"}}, "no chat template"),
    ],
)
def test_an_odd_option_of_a_tokenizer_is_named(
    options: dict[str, Any], reason: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = write_copy(tiny_model, tmp_path / "model")
    known = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps(known | options), "utf-8")
    with pytest.raises(ConfigError, match=reason):
        Chat.load(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", None), ("max_position_embeddings", "x"), ("hidden_size", []), ("num_objectives", None)],
)
def test_an_odd_value_of_a_configuration_is_named(
    name: str, value: Any, tiny_model: Path, tmp_path: Path
) -> None:
    model = write_copy(tiny_model, tmp_path / "model")
    known = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(known | {name: value}), "utf-8")
    (tmp_path / "in.jsonl").write_bytes(PAIR)
    with pytest.raises(ConfigError, match=f"{model}/config.json: "):
        prepare(config_for(model, tmp_path / "in.jsonl", tmp_path / "out"))
