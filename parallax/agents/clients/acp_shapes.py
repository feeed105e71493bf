"""From the Agent Client Protocol's shapes to ours and back. Pure; used by `acp`.

Updates are read from plain JSON: every agent sends a few kinds or fields that the schema of the day does not know, and
an unknown one is a sign of life, not an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from parallax.agents.clients.failures import short
from parallax.models import Json, Progress

Tokens: TypeAlias = tuple[int, int, int]  # input, output, cached

OUTPUT_SHOWN: Final = 4_000  # characters of a tool's output that are passed on: its end
COST_LIMIT: Final = 100_000.0  # dollars; what claims more is nonsense
_YES: Final = frozenset({"allow", "yes", "y", "approve", "ok", "accept", "true"})


def progress_of(update: Mapping[str, Any]) -> Progress | None:
    """What a session update shows, or None."""
    match update.get("sessionUpdate"):
        case "agent_message_chunk":
            return Progress(kind="output", text=_text(update.get("content")), data={"message": update.get("messageId")})
        case "agent_thought_chunk":
            return Progress(kind="thought", text=_text(update.get("content")))
        case "tool_call" | "tool_call_update":
            return _tool(update)
        case "plan":
            entries = [entry for entry in listed(update.get("entries")) if isinstance(entry, dict)]
            text = "\n".join(f"{entry.get('status', 'pending')}: {entry.get('content', '')}" for entry in entries)
            return Progress(kind="plan", text=text, data=entries)
        case "usage_update":
            data = {key: update[key] for key in ("used", "size") if isinstance(update.get(key), int)}
            cost = dollars(update.get("cost"))
            return Progress(kind="usage", data=data if cost is None else {**data, "cost": cost})
    return None


def _tool(update: Mapping[str, Any]) -> Progress:
    data: dict[str, Json] = {"id": str(update.get("toolCallId", "")), "status": update.get("status")}
    if update.get("kind") is not None:
        data["kind"] = str(update["kind"])
    if update.get("rawInput") is not None:
        data["input"] = bounded(update["rawInput"])
    content = [item for item in listed(update.get("content")) if isinstance(item, dict)]
    if output := "\n".join(filter(None, (_text(item.get("content")) for item in content))):
        data["output"] = output[-OUTPUT_SHOWN:]
    if files := [str(item["path"]) for item in content if item.get("type") == "diff" and item.get("path")]:
        data["files"] = files
    raw = update.get("rawOutput")
    if isinstance(raw, dict):
        code = next((raw[key] for key in ("exitCode", "exit_code") if isinstance(raw.get(key), int)), None)
        if code is not None:
            data["exit_code"] = code
    return Progress(kind="tool", text=str(update.get("title") or ""), data=data)


def tokens_of(usage: Any, meta: Any) -> Tokens | None:
    """Input, output and cached tokens of a turn: where the protocol has them, or where Gemini CLI puts them."""
    if usage is not None:
        return usage.input_tokens, usage.output_tokens, usage.cached_read_tokens or 0
    counts = mapping(mapping(mapping(meta).get("quota")).get("token_count"))
    found = _count(counts.get("input_tokens")), _count(counts.get("output_tokens")), 0
    return found if any(found) else None


def call_tokens(update: Mapping[str, Any]) -> Tokens | None:
    """The tokens of one model call, as Qwen Code tells them beside an empty piece of text."""
    counts = mapping(mapping(update.get("_meta")).get("usage"))
    cached = _count(counts.get("cachedReadTokens"))
    found = max(0, _count(counts.get("inputTokens")) - cached), _count(counts.get("outputTokens")), cached
    return found if any(found) else None


def added(first: Tokens, second: Tokens) -> Tokens:
    """Both together."""
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object; whatever else stands in its place is an empty one."""
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else 0


def bounded(raw: Any) -> Json:
    """A tool's input as people look at it: the text of a whole file in it is cut, deeper structure is left out."""
    if isinstance(raw, str):
        return raw[:OUTPUT_SHOWN]
    if isinstance(raw, dict):
        return {str(key)[:200]: _flat(value) for key, value in list(raw.items())[:50]}
    return _flat(raw)


def _flat(value: Any) -> Json:
    if isinstance(value, str):
        return value[:OUTPUT_SHOWN]
    if isinstance(value, dict | list):
        text = json.dumps(value)
        return value if len(text) <= OUTPUT_SHOWN else text[:OUTPUT_SHOWN]
    return value


def _text(content: Any) -> str:
    if isinstance(content, dict):
        return str(content.get("text") or "")
    return ""


def listed(value: Any) -> list[Any]:
    """A JSON array; whatever else stands in its place is an empty one."""
    return value if isinstance(value, list) else []


def dollars(cost: Any) -> int | None:
    """A claimed cost in micro-dollars; None unless it is a sane number of dollars."""
    amount = cost.get("amount") if isinstance(cost, dict) else cost
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        return None
    if not math.isfinite(amount) or not 0 <= amount <= COST_LIMIT:
        return None
    return round(amount * 1_000_000)


def permission_text(title: str | None, raw: Any) -> str:
    """What a person needs to decide on: the title and, where it says more, what exactly is to be done."""
    detail = ""
    if isinstance(raw, dict):
        command = raw.get("command")
        if isinstance(command, list):
            command = " ".join(map(str, command))
        detail = str(command or raw.get("file_path") or raw.get("path") or raw.get("url") or "")
    text = title or "Use a tool"
    return text if not detail or detail in text else f"{text}: {short(detail)}"


def chosen_option(options: list[tuple[str, str, str]], answer: str) -> str | None:
    """The id of the permission option that an answer means; of (id, label, kind). None: leave the tool call.

    An id or a label is taken as it is; any word of assent takes the first that allows, all else the first that rejects.
    """
    wanted = answer.strip().lower()
    for identifier, label, _ in options:
        if wanted in {identifier.lower(), label.lower()}:
            return identifier
    prefix = "allow" if wanted in _YES else "reject"
    return next((identifier for identifier, _, kind in options if kind.startswith(prefix)), None)


def form_options(schema: Json) -> tuple[Mapping[str, str], ...]:
    """The answers that a form with a single field offers."""
    fields = _fields(schema)
    return _field_options(next(iter(fields.values()))) if len(fields) == 1 else ()


def _field_options(field: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    source = field.get("items") if field.get("type") == "array" else field
    source = source if isinstance(source, dict) else {}
    titled = listed(source.get("oneOf")) or listed(source.get("anyOf"))
    if titled:
        return tuple(
            {"id": str(option["const"]), "label": str(option.get("title") or option["const"])}
            for option in titled
            if isinstance(option, dict) and "const" in option
        )
    if field.get("type") == "boolean":
        return ({"id": "true", "label": "yes"}, {"id": "false", "label": "no"})
    return tuple({"id": str(value), "label": str(value)} for value in listed(source.get("enum")))


def form_text(message: str, schema: Json) -> str:
    """The question as a person reads it: with the names of its fields when there are several."""
    fields = _fields(schema)
    if len(fields) < 2:
        return message
    lines = []
    for name, field in fields.items():
        offered = ", ".join(option["label"] for option in _field_options(field))
        title = field.get("title") or field.get("description") or ""
        lines.append(f"- {name}: {title}" + (f" ({offered})" if offered else ""))
    return "\n".join([message, *lines])


def form_content(schema: Json, answer: str) -> dict[str, Any]:
    """A form filled with an answer: a JSON object as it is, else the text in the first required (or first) field."""
    fields = _fields(schema)
    if answer.lstrip().startswith("{"):
        try:
            value = json.loads(answer)
        except ValueError:
            value = None
        if isinstance(value, dict) and value.keys() & fields.keys():
            return {name: item for name, item in value.items() if name in fields}
    required = [name for name in listed(schema.get("required")) if name in fields]
    name = next(iter([*required, *fields]), None)
    return {} if name is None else {name: _field_value(fields[name], answer)}


def _fields(schema: Json) -> dict[str, dict[str, Any]]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return {name: field for name, field in (properties or {}).items() if isinstance(field, dict)}


def _field_value(field: Mapping[str, Any], answer: str) -> Any:
    for option in _field_options(field):
        if answer.strip().lower() == option["label"].lower():
            answer = option["id"]
    match field.get("type"):
        case "boolean":
            return answer.strip().lower() in _YES
        case "integer" | "number":
            try:
                number = float(answer)
            except ValueError:
                return answer
            return int(number) if field["type"] == "integer" or number.is_integer() else number
        case "array":
            return [part.strip() for part in answer.split(",")]
    return answer
