"""Tools, tool calls and reasoning: parsed from the forms that data sets use, and written as text on request.

The text has the form of Qwen2.5's template, which comes from Hermes. It is the most common one, for models whose own
template does not support tools:

    system     {its text}\\n\\n# Tools\\n\\nYou may call one or more ... <tools>\\n{schema}\\n</tools> ...
    assistant  <think>\\n{reasoning}\\n</think>\\n\\n{its text}\\n<tool_call>\\n{call as JSON}\\n</tool_call>
    user       <tool_response>\\n{text of a tool's turn}\\n</tool_response>
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from armo_ray.model.messages import Messages
from armo_ray.storage.json_files import unique_keys
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
    """Whether a value is null, empty, or a list or struct of such values, as Parquet has for absent keys."""
    if isinstance(value, dict):
        return all(map(is_absent, value.values()))
    return all(map(is_absent, value)) if isinstance(value, list) else value is None or value == ""


def calls_of(message: Mapping[str, Any], flags: set[str]) -> list[Any]:
    """The tool calls of a message in OpenAI's form, with arguments parsed if they are the JSON of an object.

    Raises Rejected if an entry is not a call, or if `function_call` and `tool_calls` differ.
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
    """The schemas of tools, or None if there are none.

    `value` is a list of objects or of JSON texts, or that list as JSON. Raises Rejected if an entry is not an object.
    """
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
    """The messages as role and text only, with tools, tool calls and reasoning written into the text."""
    turns: Messages = []
    for message in messages:
        if message["role"] != "tool":
            turns.append({"role": message["role"], "content": _written(message)})
        elif turns and turns[-1]["role"] == "user" and turns[-1]["content"].endswith("</tool_response>"):
            turns[-1] = {"role": "user", "content": f"{turns[-1]['content']}\n{_written(message)}"}
        else:
            turns.append({"role": "user", "content": _written(message)})
    if not tools:
        return turns
    instructions = _TOOLS.format(schemas="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{instructions}"}, *turns[1:]]
    return [{"role": "system", "content": instructions}, *turns]


def _written(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if message["role"] == "tool":
        return f"<tool_response>\n{content}\n</tool_response>"
    if thought := message.get("reasoning_content"):
        content = f"<think>\n{thought}\n</think>\n\n{content}"
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return "\n".join([content, *calls] if content else calls)


def _call(call: Any, flags: set[str]) -> dict[str, Any]:
    call = _decoded(call, "a tool call")
    if not isinstance(call, dict):
        raise Rejected("malformed_row", f"a tool call is {kind_of(call)}, expected name and arguments")
    if call.get("type") not in (None, "function"):
        raise Rejected("unsupported_content", f"a tool call is of type {call['type']!r}, not function")
    function = call if is_absent(call.get("function")) else call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Rejected("malformed_row", "a tool call has no name")
    for key, value in (call | function).items():
        if key not in _CALL_KEYS and not is_absent(value):
            raise Rejected(
                "unsupported_content", f"a tool call has {key} in addition to its name and arguments"
            )
    arguments = function.get("arguments")
    arguments = function.get("parameters") if arguments is None else arguments
    openai_call = {
        "type": "function",
        "function": {"name": function["name"], "arguments": _arguments(arguments, flags)},
    }
    return openai_call | ({"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {})


def _arguments(value: Any, flags: set[str]) -> Any:
    """The arguments of a call as an object; text that is not the JSON of an object stays as it is."""
    if isinstance(value, str) and value.strip():
        parsed = _parse_exactly(value)
        return parsed if isinstance(parsed, dict) else value
    if value is None or isinstance(value, str):
        return {}
    if not isinstance(value, dict):
        raise Rejected(
            "malformed_row", f"the arguments of a tool call are {kind_of(value)}, expected an object"
        )
    return _without_nulls(value, flags)


def _without_nulls(value: Any, flags: set[str]) -> Any:
    """The value without null fields: a struct in Parquet has a null for every key that only other rows have."""
    if isinstance(value, list):
        return [_without_nulls(entry, flags) for entry in value]
    if not isinstance(value, dict):
        return value
    if None in value.values():
        flags.add("nulls_dropped")
    return {key: _without_nulls(entry, flags) for key, entry in value.items() if entry is not None}


def _decoded(value: Any, what: str) -> Any:
    """The value, parsed if it is JSON text."""
    return decoded(value, what) if isinstance(value, str) and value.strip() else value


def _parse_exactly(text: str) -> Any:
    """JSON text parsed, or None if parsing would lose data: duplicate keys, numbers too large for a float."""

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError("too large for a float")
        return float(digits)

    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError):
        return None
