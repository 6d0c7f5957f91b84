"""A template is accepted only if prompt and response, rendered separately, are what it renders; a refusal says why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.families import FAMILIES
from armo_ray.model.messages import Messages
from armo_ray.tiny.armorm import LLAMA3_TEMPLATE
from armo_ray.tiny.tokenizers import TEMPLATES, write_tokenizer

CONDITION = "{% if add_generation_prompt %}"
GATE_PATTERN = (128009, 128006, 78191, 128007, 271)  # in the released model
QUESTION = [{"role": "user", "content": " What is 2 + 2?\n"}]
CONVERSATIONS = [
    pytest.param(QUESTION, id="one-turn"),
    pytest.param([{"role": "system", "content": "Be brief."}, *QUESTION], id="system"),
    pytest.param([{"role": "system", "content": ""}, *QUESTION], id="empty-system"),
    pytest.param([*QUESTION, {"role": "assistant", "content": "Four."}, *QUESTION], id="two-turns"),
    pytest.param(
        [{"role": "user", "content": "<b>&'\"{{ x }}{% raw %}\0\u200b\U0001f469\u200d\U0001f467"}], id="odd"
    ),
]
ANSWERS = ["4", " \n4\n\nthat is,\n\u3000four. \t", "<|eot_id|>{{ bos_token }}", "\ufeff4\u2028"]


def edited(template: str, *edits: tuple[str, str]) -> str:
    """The template with each first text of `edits` replaced by the second."""
    for old, new in edits:
        assert old in template
        template = template.replace(old, new)
    return template


def checkpoint(model: Path, path: Path, **options: Any) -> Path:
    """A checkpoint like `model`, without weights, with `options` in its tokenizer_config.json; None drops one."""
    shutil.copy(model / "tokenizer.json", path)
    known = json.loads((model / "tokenizer_config.json").read_text("utf-8")) | options
    written = {name: value for name, value in known.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(written), "utf-8")
    return path


UNCONDITIONAL = edited(LLAMA3_TEMPLATE, (CONDITION, "{% if true %}"))


def test_the_released_vocabulary_gives_the_gate_pattern_of_the_released_code(llama3_chat: Chat) -> None:
    assert llama3_chat.response_pattern == GATE_PATTERN
    assert llama3_chat.encode(llama3_chat.response_end) == [128009]
    assert (llama3_chat.trims, llama3_chat.model_max_length) == ("white space", 8192)


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_model: Path) -> Any:
    auto: Any = AutoTokenizer
    return auto.from_pretrained(tiny_model)


@pytest.mark.parametrize("answer", ANSWERS, ids=["plain", "white-space", "special", "unicode"])
@pytest.mark.parametrize("prompt", CONVERSATIONS)
def test_prompt_and_response_are_what_transformers_renders(
    tiny_chat: Chat, tiny_tokenizer: Any, prompt: Messages, answer: str
) -> None:
    chat, tokenizer = tiny_chat, tiny_tokenizer
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    assert chat.render_prompt(prompt) + chat.render_response(answer) == whole
    assert chat.render_prompt(prompt) == tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("prompt", CONVERSATIONS)
def test_a_template_that_always_appends_the_generation_prompt_renders_the_same(
    tiny_chat: Chat, tiny_model: Path, tmp_path: Path, prompt: Messages
) -> None:
    chat = Chat.load(checkpoint(tiny_model, tmp_path, chat_template=UNCONDITIONAL))
    assert chat.render_prompt(prompt) == tiny_chat.render_prompt(prompt)
    assert [chat.render_response(a) for a in ANSWERS] == [tiny_chat.render_response(a) for a in ANSWERS]
    assert chat.response_pattern == tiny_chat.response_pattern


def test_a_template_file_takes_precedence_over_the_configuration(tiny_model: Path, tmp_path: Path) -> None:
    path = checkpoint(tiny_model, tmp_path, chat_template="not this")
    (path / "chat_template.jinja").write_text(LLAMA3_TEMPLATE, "utf-8")
    assert Chat.load(path).template == LLAMA3_TEMPLATE


def test_of_several_named_templates_the_default_is_used(tiny_model: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": LLAMA3_TEMPLATE}]
    assert Chat.load(checkpoint(tiny_model, tmp_path, chat_template=named)).template == LLAMA3_TEMPLATE


def test_special_tokens_may_be_written_as_objects(tiny_model: Path, tmp_path: Path) -> None:
    bos = {"__type": "AddedToken", "content": "<|begin_of_text|>", "special": True}
    chat = Chat.load(checkpoint(tiny_model, tmp_path, bos_token=bos))
    assert chat.render_prompt(QUESTION).startswith("<|begin_of_text|><|start_header_id|>")


@pytest.mark.parametrize(
    ("stated", "limit"), [(4096, 4096), (1e30, None), (None, None)], ids=["4096", "huge", "none"]
)
def test_a_length_limit_is_what_the_tokenizer_states(
    tiny_model: Path, tmp_path: Path, stated: float | None, limit: int | None
) -> None:
    assert Chat.load(checkpoint(tiny_model, tmp_path, model_max_length=stated)).model_max_length == limit


BOS = ("bos_token + content", "content")
TWO_BOS = ("bos_token + content", "bos_token + bos_token + content")
NO_END = (" + '<|eot_id|>'", "")
TWO_ENDS = ("'<|eot_id|>'", "'<|eot_id|><|end_of_text|>'")
TEXT_END = ("'<|eot_id|>'", "'</s>'")
UPPER = ("message['content'] | trim", "message['content'] | trim | upper")
UPPER_ANSWER = (
    "message['content'] | trim",
    "(message['content'] | trim | upper if message['role'] == 'assistant' else message['content'] | trim)",
)
ONE_NEWLINE = ("| trim", "| trim | replace('\n\n', '\n')")
NO_HEADER = (CONDITION, "{% if false %}")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(edited(LLAMA3_TEMPLATE, BOS), "exactly one BOS token, found 0", id="no-bos"),
        pytest.param(edited(LLAMA3_TEMPLATE, TWO_BOS), "exactly one BOS token, found 2", id="two-bos"),
        pytest.param(
            edited(LLAMA3_TEMPLATE, NO_END), "end in one end-of-turn token, not in ''", id="no-end-of-turn"
        ),
        pytest.param(
            edited(LLAMA3_TEMPLATE, TWO_ENDS), "end in one end-of-turn token", id="two-ends-of-turn"
        ),
        pytest.param(
            edited(LLAMA3_TEMPLATE, TEXT_END), "end-of-turn token, not in '</s>'", id="end-of-turn-as-text"
        ),
        pytest.param(edited(LLAMA3_TEMPLATE, UPPER_ANSWER), "changes a response", id="upper-case-answers"),
        pytest.param(edited(LLAMA3_TEMPLATE, UPPER), "changes a", id="upper-case"),
        pytest.param(edited(LLAMA3_TEMPLATE, ONE_NEWLINE), "changes a response", id="collapsed-newlines"),
        pytest.param(edited(LLAMA3_TEMPLATE, NO_HEADER), "generation prompt", id="no-generation-prompt"),
        pytest.param("{{ messages[0]['content'] }}", "exactly one BOS token, found 0", id="no-turns"),
        pytest.param("", "chat template", id="empty"),
        pytest.param("{% for %}", "chat template", id="not-jinja"),
        pytest.param(
            "{{ raise_exception('no system message') }}", "no system message", id="refuses-the-probe"
        ),
        pytest.param(None, "no chat template", id="none"),
        pytest.param(
            [{"name": "tool_use", "template": "no"}], "no chat template", id="no-default-among-several"
        ),
    ],
)
def test_an_unfit_template_is_refused_with_the_reason(
    tiny_model: Path, tmp_path: Path, template: Any, reason: str
) -> None:
    path = checkpoint(tiny_model, tmp_path, chat_template=template)
    with pytest.raises(ConfigError, match=reason) as refused:
        Chat.load(path)
    assert str(refused.value).startswith(str(path))


def test_a_gate_is_found_before_untrimmed_responses_that_merge_with_the_header(
    llama3_model: Path, tmp_path: Path
) -> None:
    path = checkpoint(llama3_model, tmp_path, chat_template=edited(LLAMA3_TEMPLATE, ("| trim", "")))
    chat = Chat.load(path)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    marks = [chat.encode(token)[0] for token in ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")]
    assert [i for i in chat.response_pattern if i in marks] == marks
    for answer in ("4", "\n\n4", "\n"):
        ids = chat.encode(chat.render_prompt(question)) + chat.encode(chat.render_response(answer))
        at = ids.index(marks[0])
        assert tuple(ids[at : at + len(chat.response_pattern)]) == chat.response_pattern


def test_a_template_that_ends_a_user_turn_where_none_is_has_no_gate(
    llama3_model: Path, tmp_path: Path
) -> None:
    example = "'<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi'"
    edit = ("bos_token + content", f"bos_token + {example} + content")
    path = checkpoint(llama3_model, tmp_path, chat_template=edited(LLAMA3_TEMPLATE, edit))
    with pytest.raises(ConfigError, match="the end of the user turn must occur once"):
        Chat.load(path)


def test_responses_that_no_special_token_separates_from_the_header_are_refused(
    llama3_model: Path, tmp_path: Path
) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
        "{{ '\n' if m['role'] == 'user' else '<|eot_id|>' }}{% endfor %}"
    )
    path = checkpoint(llama3_model, tmp_path, chat_template=template)
    with pytest.raises(ConfigError, match="no special token is between them"):
        Chat.load(path, FAMILIES["classifier"])


@pytest.fixture(scope="module", params=sorted(TEMPLATES.keys() - {"llama3-header"}))
def other_chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Chat, Any]:
    """A chat with another template, and the tokenizer of transformers for it."""
    path = tmp_path_factory.mktemp(request.param)
    write_tokenizer(path, request.param, 8192)
    auto: Any = AutoTokenizer
    family = FAMILIES["starling" if request.param == "yi" else "classifier"]
    return Chat.load(path, family), auto.from_pretrained(path)


@pytest.mark.parametrize("answer", [*ANSWERS, "<think>\nso\n</think>\n\n4"])
@pytest.mark.parametrize("prompt", CONVERSATIONS)
def test_other_templates_are_tokenized_as_transformers_does(
    other_chat: tuple[Chat, Any], prompt: Messages, answer: str
) -> None:
    chat, tokenizer = other_chat
    conversation = [*prompt, {"role": "assistant", "content": answer}]
    try:
        whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    except TemplateError as error:
        with pytest.raises(TemplateError, match=str(error)):
            chat.render_prompt(prompt)
        return
    said = chat.encode(chat.render_prompt(prompt)) + chat.encode(chat.render_response(answer))
    adds_bos = chat.encode(tokenizer.bos_token or "") == tokenizer("")["input_ids"] != []
    assert said == tokenizer(whole.removeprefix(tokenizer.bos_token) if adds_bos else whole)["input_ids"]


def test_a_template_that_names_a_missing_special_token_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bos_token"):
        Chat.load(checkpoint(tiny_model, tmp_path, bos_token=None))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_refused_by_its_name(tiny_model: Path, tmp_path: Path, name: str) -> None:
    path = checkpoint(tiny_model, tmp_path)
    (path / name).unlink()
    with pytest.raises(ConfigError, match=f"no {name}"):
        Chat.load(path)
