"""The four wire dialects of the scripted model: what a request offers and has seen, and how an answer looks.

Each dialect turns its request into tools and a count of tool results, and a `Move` into a whole answer or a stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

IN, OUT = 100, 20  # tokens that every call uses


@dataclass
class Tool:
    """A tool that a request offers. `custom`: it takes free text."""

    schema: dict[str, Any]
    custom: bool = False


@dataclass
class Call:
    """A tool call of the model; without a name it is text."""

    arguments: Any
    name: str = ""
    custom: bool = False

    @property
    def text(self) -> str | None:
        """The text, if it is one."""
        return None if self.name else self.arguments


Event = tuple[str | None, dict[str, Any] | str]


class Anthropic:
    """Messages."""

    def tools(self, body: Any) -> dict[str, Tool]:
        """By name."""
        return {tool["name"]: Tool(tool.get("input_schema") or {}) for tool in body.get("tools") or ()}

    def results(self, body: Any) -> int:
        """Tool results since the last message of the user that holds none."""
        results = 0
        for message in body["messages"]:
            if message["role"] == "user":
                blocks = message["content"] if isinstance(message["content"], list) else []
                here = sum(block.get("type") == "tool_result" for block in blocks)
                results = results + here if here else 0
        return results

    def whole(self, call: Call, number: int, model: str) -> dict[str, Any]:
        """The answer as a document."""
        block: dict[str, Any] = {"type": "text", "text": call.arguments}
        if call.name:
            block = {"type": "tool_use", "id": f"toolu_{number}", "name": call.name, "input": call.arguments}
        return {
            "id": f"msg_{number}", "type": "message", "role": "assistant", "model": model, "content": [block],
            "stop_reason": "tool_use" if call.name else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": IN, "output_tokens": OUT},
        }  # fmt: skip

    def stream(self, whole: dict[str, Any]) -> Iterator[Event]:
        """The same as events."""
        (block,) = whole["content"]
        start = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": IN, "output_tokens": 1}}
        yield _typed("message_start", message=start)
        if block["type"] == "text":
            yield _typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
            deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
        else:
            yield _typed("content_block_start", index=0, content_block={**block, "input": {}})
            pieces = _pieces(json.dumps(block["input"]))
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        for delta in deltas:
            yield _typed("content_block_delta", index=0, delta=delta)
        yield _typed("content_block_stop", index=0)
        stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield _typed("message_delta", delta=stop, usage={"output_tokens": OUT})
        yield _typed("message_stop")

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:
        """The body of an error."""
        return {"type": "error", "error": {"type": kind, "message": message}}


class Responses:
    """OpenAI Responses, as Codex speaks it."""

    def tools(self, body: Any) -> dict[str, Tool]:
        """Wherever this version of Codex puts them: in the request, its input, or a namespace."""
        given = list(body.get("tools") or ())
        for item in body["input"]:
            given += item.get("tools") or () if item.get("type") == "additional_tools" else ()
        for tool in list(given):
            given += tool.get("tools") or ()
        return {
            tool.get("name") or tool["type"]: Tool(tool.get("parameters") or {}, custom=tool["type"] == "custom")
            for tool in given
            if tool["type"] != "namespace"
        }

    def results(self, body: Any) -> int:
        """Outputs of calls since the user's last word."""
        results = 0
        for item in body["input"]:
            if item.get("role") == "user":
                results = 0
            elif item.get("type") in {"function_call_output", "custom_tool_call_output", "local_shell_call_output"}:
                results += 1
        return results

    def whole(self, call: Call, number: int, model: str) -> dict[str, Any]:
        """The answer as a document."""
        if not call.name:
            content = [{"type": "output_text", "text": call.arguments, "annotations": []}]
            item: dict[str, Any] = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": content}
        elif call.custom:
            item = {"type": "custom_tool_call", "call_id": f"call_{number}", "name": call.name, "input": call.arguments}
        else:
            arguments = json.dumps(call.arguments)
            item = {"type": "function_call", "call_id": f"call_{number}", "name": call.name, "arguments": arguments}
        usage = {
            "input_tokens": IN, "input_tokens_details": {"cached_tokens": 10}, "output_tokens": OUT,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": IN + OUT,
        }  # fmt: skip
        return {
            "id": f"resp_{number}", "object": "response", "status": "completed", "model": model, "output": [item],
            "usage": usage,
        }  # fmt: skip

    def stream(self, whole: dict[str, Any]) -> Iterator[Event]:
        """The same as events."""
        (item,) = whole["output"]
        yield _typed("response.created", response={**whole, "status": "in_progress", "output": []})
        if item["type"] == "message":
            yield _typed("response.output_item.added", output_index=0, item={**item, "content": []})
            for piece in _pieces(item["content"][0]["text"]):
                yield _typed(
                    "response.output_text.delta", item_id=item["id"], output_index=0, content_index=0, delta=piece
                )
        yield _typed("response.output_item.done", output_index=0, item=item)
        yield _typed("response.completed", response=whole)

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:
        """The body of an error."""
        return {"error": {"type": kind, "message": message, "code": kind}}


class Chat:
    """OpenAI Chat Completions."""

    def tools(self, body: Any) -> dict[str, Tool]:
        """By name."""
        given = [tool["function"] for tool in body.get("tools") or ()]
        return {tool["name"]: Tool(tool.get("parameters") or {}) for tool in given}

    def results(self, body: Any) -> int:
        """Messages of tools since the user's last word."""
        results = 0
        for message in body["messages"]:
            results = 0 if message["role"] == "user" else results + (message["role"] == "tool")
        return results

    def whole(self, call: Call, number: int, model: str) -> dict[str, Any]:
        """The answer as a document."""
        message: dict[str, Any] = {"role": "assistant", "content": call.text}
        if call.name:
            function = {"name": call.name, "arguments": json.dumps(call.arguments)}
            message["tool_calls"] = [{"id": f"call_{number}", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if call.name else "stop"}
        usage = {"prompt_tokens": IN, "completion_tokens": OUT, "total_tokens": IN + OUT}
        return {
            "id": f"chatcmpl_{number}", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
            "usage": usage,
        }  # fmt: skip

    def stream(self, whole: dict[str, Any]) -> Iterator[Event]:
        """The same as chunks, the last one with what was used."""
        (choice,) = whole["choices"]
        message = choice["message"]
        if calls := message.get("tool_calls"):
            deltas: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": [{"index": 0, **calls[0]}]}]
        else:
            deltas = [{"role": "assistant", "content": piece} for piece in _pieces(message["content"])]
        chunk = {**whole, "object": "chat.completion.chunk", "usage": None}
        for delta in deltas:
            yield None, {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
        yield None, {**chunk, "choices": [end]}
        yield None, {**chunk, "choices": [], "usage": whole["usage"]}
        yield None, "[DONE]"

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:
        """The body of an error."""
        return {"error": {"type": kind, "message": message, "code": kind}}


class Gemini:
    """generateContent."""

    def tools(self, body: Any) -> dict[str, Tool]:
        """By name."""
        given = [tool for group in body.get("tools") or () for tool in group.get("functionDeclarations") or ()]
        schema = ("parametersJsonSchema", "parameters")
        return {tool["name"]: Tool(next((tool[key] for key in schema if key in tool), {})) for tool in given}

    def results(self, body: Any) -> int:
        """Answers of functions since the last content of the user that holds none."""
        results = 0
        for content in body["contents"]:
            if content.get("role") == "user":
                here = sum("functionResponse" in part for part in content["parts"])
                results = results + here if here else 0
        return results

    def whole(self, call: Call, number: int, model: str) -> dict[str, Any]:
        """The answer as a document."""
        part = {"functionCall": {"name": call.name, "args": call.arguments}} if call.name else {"text": call.arguments}
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        usage = {"promptTokenCount": IN, "candidatesTokenCount": OUT, "totalTokenCount": IN + OUT}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": f"r{number}"}

    def stream(self, whole: dict[str, Any]) -> Iterator[Event]:
        """The same as documents, one after another."""
        (candidate,) = whole["candidates"]
        (part,) = candidate["content"]["parts"]
        if "text" in part:
            *first, last = _pieces(part["text"])
            for piece in first:
                yield None, {"candidates": [{"content": {"role": "model", "parts": [{"text": piece}]}, "index": 0}]}
            candidate = {**candidate, "content": {"role": "model", "parts": [{"text": last}]}}
        yield None, {**whole, "candidates": [candidate]}

    def error(self, status: int, kind: str, message: str) -> dict[str, Any]:
        """The body of an error."""
        name = "RESOURCE_EXHAUSTED" if status == 429 else "INTERNAL"
        return {"error": {"code": status, "message": message, "status": name}}


Dialect = Anthropic | Responses | Chat | Gemini


def filled(schema: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a schema: what is given where it fits, the simplest value for what else is required."""
    properties: dict[str, Any] = schema.get("properties") or {}
    arguments = {name: value for name, value in given.items() if name in properties}
    for name in schema.get("required") or ():
        arguments.setdefault(name, _simplest(properties.get(name) or {}))
    return arguments


def _simplest(schema: dict[str, Any]) -> Any:
    if options := schema.get("enum"):
        return options[0]
    kind = schema.get("type")
    kind = str(kind[0] if isinstance(kind, list) else kind).lower()
    if kind == "object":
        return filled(schema, {})
    return {"boolean": False, "integer": 0, "number": 0, "array": []}.get(kind, "as asked")


def _typed(type_: str, **fields: Any) -> Event:
    return type_, {"type": type_, **fields}


def _pieces(text: str) -> list[str]:
    return [text[at : at + 12] for at in range(0, len(text), 12)]
