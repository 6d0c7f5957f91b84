"""Tools, calls of them and reasoning: read from every form that data sets have, and written as text on request.

The text is what Qwen2.5's template, and Hermes' before it, makes of them, so that a model whose own template knows
no tools reads them in the form that is most often written:

    system     {its text}\\n\\n# Tools\\n\\nYou may call one or more ... <tools>\\n{schema}\\n</tools> ...
    assistant  <think>\\n{reasoning}\\n</think>\\n\\n{its text}\\n<tool_call>\\n{call as JSON}\\n</tool_call>
    user       <tool_response>\\n{text of a tool's turn}\\n</tool_response>
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from armo_ray.model.chat import Messages
from armo_ray.text.paths import Rejected, decoded, kind_of

_CALL_KEYS = {"id", "type", "index", "function", "name", "arguments", "parameters"}
_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def is_absent(value: Any) -> bool:
    """Whether a key holds nothing: null, no text, or lists and structs of these, as Parquet has for absent keys."""
    if isinstance(value, dict):
        return all(map(is_absent, value.values()))
    return all(map(is_absent, value)) if isinstance(value, list) else value is None or value == ""


def calls_of(message: Mapping[str, Any], flags: set[str]) -> list[Any]:
    """The calls of a message in OpenAI's form, their arguments as objects where they are such or JSON of one.

    Raises Rejected where one is no call, or `function_call` is another than `tool_calls`.
    """
    calls = _decoded(message.get("tool_calls"), "tool_calls")
    calls = [
        _call(call, flags) for call in (calls if isinstance(calls, list) else [calls]) if not is_absent(call)
    ]
    if is_absent(message.get("function_call")):
        return calls
    older = _call(message["function_call"], flags)
    if calls and [call["function"] for call in calls] != [older["function"]]:
        raise Rejected("malformed_row", "tool_calls and function_call of a message differ")
    return calls or [older]


def tools_of(value: Any, flags: set[str]) -> list[Any] | None:
    """The schemas of tools, None where there are none; given as a list of objects or JSON, or as JSON of that."""
    tools = _decoded(value, "tools")
    tools = [
        _decoded(tool, "tools")
        for tool in (tools if isinstance(tools, list) else [tools])
        if not is_absent(tool)
    ]
    if wrong := [tool for tool in tools if not isinstance(tool, dict)]:
        raise Rejected("malformed_row", f"a tool is {kind_of(wrong[0])}, expected its schema")
    return [_without_nulls(tool, flags) for tool in tools] or None


def as_text(messages: Messages, tools: list[Any] | None) -> Messages:
    """The messages as role and text alone, with all else written into the text."""
    found: Messages = []
    for message in messages:
        if message["role"] != "tool":
            found.append({"role": message["role"], "content": _written(message)})
        elif found and found[-1]["role"] == "user" and found[-1]["content"].endswith("</tool_response>"):
            found[-1] = {"role": "user", "content": f"{found[-1]['content']}\n{_written(message)}"}
        else:
            found.append({"role": "user", "content": _written(message)})
    if not tools:
        return found
    told = _TOOLS.format(schemas="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if found[0]["role"] == "system":
        return [{"role": "system", "content": f"{found[0]['content']}\n\n{told}"}, *found[1:]]
    return [{"role": "system", "content": told}, *found]


def _written(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if message["role"] == "tool":
        return f"<tool_response>\n{content}\n</tool_response>"
    if thought := message.get("reasoning_content"):
        content = f"<think>\n{thought}\n</think>\n\n{content}"
    calls = [call["function"] for call in message.get("tool_calls", ())]
    told = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    return "\n".join([content, *told] if content else told)


def _call(call: Any, flags: set[str]) -> dict[str, Any]:
    call = _decoded(call, "a tool call")
    if not isinstance(call, dict):
        raise Rejected("malformed_row", f"a tool call is {kind_of(call)}, expected name and arguments")
    if call.get("type") not in (None, "function"):
        raise Rejected("unsupported_content", f"a tool call is of type {call['type']!r}, not function")
    function = call if is_absent(call.get("function")) else call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Rejected("malformed_row", "a tool call has no name")
    for key, held in (call | function).items():
        if key not in _CALL_KEYS and not is_absent(held):
            raise Rejected("unsupported_content", f"a tool call has {key} beside its name and arguments")
    given = function.get("arguments")
    given = function.get("parameters") if given is None else given
    known = {
        "type": "function",
        "function": {"name": function["name"], "arguments": _arguments(given, flags)},
    }
    return known | ({"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {})


def _arguments(given: Any, flags: set[str]) -> Any:
    """The arguments of a call: an object, or text that is not JSON of one, as it is."""
    if isinstance(given, str) and given.strip():
        parsed = _exactly(given)
        return parsed if isinstance(parsed, dict) else given
    if given is None or isinstance(given, str):
        return {}
    if not isinstance(given, dict):
        raise Rejected(
            "malformed_row", f"the arguments of a tool call are {kind_of(given)}, expected an object"
        )
    return _without_nulls(given, flags)


def _without_nulls(value: Any, flags: set[str]) -> Any:
    """A struct of Parquet holds null for every key that another row has: such keys are absent."""
    if isinstance(value, list):
        return [_without_nulls(entry, flags) for entry in value]
    if not isinstance(value, dict):
        return value
    if None in value.values():
        flags.add("nulls_dropped")
    return {key: _without_nulls(held, flags) for key, held in value.items() if held is not None}


def _decoded(value: Any, what: str) -> Any:
    """A value that may be given as JSON."""
    return decoded(value, what) if isinstance(value, str) and value.strip() else value


def _exactly(text: str) -> Any:
    """What JSON says, or None where reading it would lose something: keys given twice, numbers beyond floats."""

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in entries}) < len(entries):
            raise ValueError("a key twice")
        return dict(entries)

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError("beyond floats")
        return float(digits)

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError):
        return None
