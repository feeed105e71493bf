"""The word `llm`: one question to a model, without an agent around it.

It goes through the gateway's door as every agent's call does: same accounts, same pace, same budget, same books. The
answer is a claim: without a confidence of its own (`CONFIDENCE: 0.8` as its last line) it counts as 0.5. Called by
`host`, which journals the answer, so that no replay asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from parallax.agents.clients.report import read_report
from parallax.errors import AgentCrashed, AgentError, ProviderLimited, StepFailed
from parallax.execution.budget import Meter
from parallax.execution.resilience import RetryPolicy
from parallax.models import Execution, Json
from parallax.ports import AgentSession, Doors, ModelDoor

ROLE: Final = "llm"
CALL_S: Final = 120.0
MAX_TOKENS: Final = 4096
PRIOR: Final = 0.5
JSON_ONLY: Final = "\n\nAnswer with one JSON value and nothing else."
MODELS: Final[Mapping[str, str]] = {"anthropic": "claude-sonnet-4-5", "openai": "gpt-5", "gemini": "gemini-2.5-pro"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered. `content` is text, or JSON where that was asked for."""

    content: Json
    confidence: float
    model: str
    provider: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wire:
    """How a question is put to a provider and its answer is read."""

    path: Callable[[str], str]
    header: str
    body: Callable[[str, str, Mapping[str, Any]], dict[str, Any]]
    text: Callable[[Any], Any]


def _anthropic(model: str, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {"temperature": options.get("temperature"), "top_p": options.get("topP")}
    return {"model": model, "max_tokens": _most(options), "messages": [{"role": "user", "content": prompt}], **named}


def _openai(model: str, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {"temperature": options.get("temperature"), "top_p": options.get("topP")}
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "max_completion_tokens": _most(options), "messages": messages, **named}


def _gemini(model: str, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    del model  # it is in the path
    config = {"maxOutputTokens": _most(options), "temperature": options.get("temperature"), "topP": options.get("topP")}
    return {
        "contents": [{"role": "user", "parts": [{"text": prompt}]}],
        "generationConfig": {name: value for name, value in config.items() if value is not None},
    }


def _most(options: Mapping[str, Any]) -> int:
    return int(options.get("maxTokens") or MAX_TOKENS)


_WIRES: Final[Mapping[str, _Wire]] = {
    "anthropic": _Wire(
        path=lambda _: "anthropic/v1/messages",
        header="x-api-key",
        body=_anthropic,
        text=lambda answer: "".join(block.get("text", "") for block in answer["content"]),
    ),
    "openai": _Wire(
        path=lambda _: "openai/v1/chat/completions",
        header="x-api-key",
        body=_openai,
        text=lambda answer: answer["choices"][0]["message"]["content"],
    ),
    "gemini": _Wire(
        path=lambda model: f"gemini/v1beta/models/{model}:generateContent",
        header="x-goog-api-key",
        body=_gemini,
        text=lambda answer: "".join(part.get("text", "") for part in answer["candidates"][0]["content"]["parts"]),
    ),
}


class ModelAgents:
    """Asks models in the name of one execution."""

    def __init__(self, execution: Execution, doors: Doors, meter: Meter, retry: RetryPolicy, homes: Path) -> None:
        self._execution = execution
        self._doors = doors
        self._meter = meter
        self._retry = retry
        self._homes = homes
        self._numbers = itertools.count(1)

    async def ask(self, key: str, prompt: str, options: Mapping[str, Any]) -> Reply:
        """One answer. Raises StepFailed, AgentError (tried often enough), BudgetExhausted."""
        agent_id = f"{self._execution.id}.{ROLE}.{next(self._numbers)}"
        place = self._homes / self._execution.id / ROLE
        session = AgentSession(
            agent_id=agent_id, execution=self._execution.id, role=ROLE, type=ROLE, home=place, tree=place
        )
        door = await self._doors.open_session(session)
        try:
            provider = _provider(options.get("provider"), door)
            async with self._meter.turn(
                agent_id=agent_id, role=ROLE, step_key=key, task=f"{self._execution.id}/{key}"
            ) as turn:
                answer = await self._tried(door, provider, prompt, options)
            return _reply(answer, provider, options, turn.used.tokens)
        finally:
            await self._doors.close_session(agent_id)

    async def _tried(self, door: ModelDoor, provider: str, prompt: str, options: Mapping[str, Any]) -> Any:
        """The one retry layer around a call: a limit is waited out, what may pass is tried again."""
        attempt = parks = 0
        while True:
            try:
                return await _call(door, provider, prompt, options)
            except ProviderLimited as error:
                parks += 1
                if error.resets_at is None or not self._retry.parks(parks, error):
                    raise
                await asyncio.sleep(max(0.0, error.resets_at - time.time()))
            except AgentError as error:
                attempt += 1
                wait_s = self._retry.wait_s(error, attempt)
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)


def _provider(wanted: str | None, door: ModelDoor) -> str:
    if wanted is not None and wanted not in door.providers:
        raise StepFailed(f"LLM provider '{wanted}' not found")
    known = [name for name in _WIRES if name in door.providers]
    if not known:
        raise StepFailed("No LLM provider configured")
    return wanted or known[0]


def _model(provider: str, options: Mapping[str, Any]) -> str:
    return str(options.get("model") or MODELS[provider])


async def _call(door: ModelDoor, provider: str, prompt: str, options: Mapping[str, Any]) -> Any:
    wire, model = _WIRES[provider], _model(provider, options)
    asked = prompt + JSON_ONLY if options.get("structuredOutput") else prompt
    body = {name: value for name, value in wire.body(model, asked, options).items() if value is not None}
    headers = {wire.header: door.token.reveal(), "Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    timeout_s = float(options["timeout"]) / 1000 if options.get("timeout") else CALL_S
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as http,
            http.post(f"{door.url}/model/{wire.path(model)}", data=orjson.dumps(body), headers=headers) as reply,
        ):
            answer = await reply.read()
            if reply.status != 200:
                raise _failure(reply.status, reply.headers.get("Retry-After", ""), answer)
    except TimeoutError:
        raise AgentCrashed(f"no answer within {timeout_s:.0f} s") from None
    except aiohttp.ClientError as error:
        raise AgentCrashed(f"the answer broke off: {type(error).__name__}") from None
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise AgentCrashed("the answer is not JSON") from None


def _failure(status: int, retry_after: str, answer: bytes) -> Exception:
    try:
        told = str(orjson.loads(answer)["error"]["message"])[:500]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        told = f"the provider answered {status}"
    if status in {429, 529}:
        return ProviderLimited(told, time.time() + float(retry_after) if retry_after.isdigit() else None)
    return AgentCrashed(told) if status >= 500 else StepFailed(told)


def _reply(answer: Any, provider: str, options: Mapping[str, Any], tokens: int) -> Reply:
    try:
        text = _WIRES[provider].text(answer)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise StepFailed("the model's answer holds no text") from None
    if not isinstance(text, str) or not text.strip():
        raise StepFailed("the model's answer holds no text")
    content: Json = text
    reported = read_report(text, None).confidence
    if options.get("structuredOutput"):
        try:
            content = orjson.loads(text.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
        except orjson.JSONDecodeError:
            raise StepFailed("the model's answer is not JSON, as structuredOutput wants it") from None
    return Reply(
        content=content,
        confidence=PRIOR if reported is None else reported,
        model=_model(provider, options),
        provider=provider,
        tokens=tokens,
    )
