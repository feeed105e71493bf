"""Fork: a new execution that shares the beginning of another one's journal.

`history` copies what `prefix` keeps. Everything that does not come after the step stays: what was finished before it,
and what branches beside it have finished, wherever they stood. The step itself, what follows in its branch and what
follows the outermost join around it are done anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from parallax.errors import NotFoundError
from parallax.execution.replay import Chain, Recorded, recorded_effects
from parallax.models import Json, Usage, hash12
from parallax.storage.statements import JournalEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What a fork shares: entries to copy, and where the result stood (None: at the base)."""

    at: str
    entries: tuple[JournalEntry, ...]
    steps: tuple[str, ...]
    result_head: str | None


def prefix(entries: Sequence[JournalEntry], at: str) -> Prefix:
    """The part of a journal that does not come after the step `at`, its key or its short id. Raises NotFoundError."""
    effects = recorded_effects(entries)
    key = _named(entries, effects, at)
    chain = effects[key].chain if key in effects else _chain_of_intent(entries, key)
    begun = min(entry.seq for entry in entries if _step_of(entry.step_key) == key)
    kept = {
        effect.key
        for effect in effects.values()
        if effect.key != key and (effect.seq < begun or _beside(effect.chain, chain))
    }
    finished = [entry for entry in entries if _step_of(entry.step_key) in kept and entry.kind != "signal"]
    return Prefix(
        at=key,
        entries=tuple(finished),
        steps=tuple(effect for effect in effects if effect in kept),
        result_head=_result_head(entries, finished, key, begun),
    )


def copied(entry: JournalEntry, old: str, new: str) -> JournalEntry:
    """An entry as the fork keeps it: its agents are the fork's own, and what it cost was paid by the other one."""
    body = entry.body
    if isinstance(body, dict):
        if isinstance(body.get("step"), dict):
            body = body | {"step": _step_copied(body["step"], old, new)}
        if isinstance(body.get("merged"), dict):
            merged = {key: _step_copied(step, old, new) for key, step in body["merged"].items()}
            body = body | {"merged": merged}
    return replace(entry, execution=new, epoch=0, body=body, blob=None, seq=0)


def _step_copied(step: Json, old: str, new: str) -> Json:
    agent = step.get("agent_id")
    if isinstance(agent, str) and agent.startswith(f"{old}."):
        agent = f"{new}{agent.removeprefix(old)}"
    return step | {"agent_id": agent, "usage": asdict(Usage())}


def _named(entries: Sequence[JournalEntry], effects: dict[str, Recorded], at: str) -> str:
    keys = [*effects, *dict.fromkeys(entry.step_key for entry in entries if entry.kind == "intent")]
    known = list(dict.fromkeys(key for key in keys if "/candidate[" not in key))
    for key in known:
        if at in (key, hash12(key)):
            return key
    listed = ", ".join(known[-10:]) or "none yet"
    raise NotFoundError(f"the journal has no step '{at}' (steps: {listed}; `parallax show --journal` lists all)")


def _step_of(key: str) -> str:
    """Candidates of a `fanout` go with it."""
    return key.partition("/candidate[")[0]


def _chain_of_intent(entries: Sequence[JournalEntry], key: str) -> Chain:
    body = next(entry.body for entry in entries if entry.kind == "intent" and _step_of(entry.step_key) == key)
    return tuple((join, index) for join, index in body.get("branch", ()))


def _beside(one: Chain, other: Chain) -> bool:
    """Whether two places lie in different branches of the same join."""
    for (join, index), (other_join, other_index) in zip(one, other, strict=False):
        if join != other_join:
            return False
        if index != other_index:
            return True
    return False


def _result_head(entries: Sequence[JournalEntry], finished: Sequence[JournalEntry], key: str, begun: int) -> str | None:
    """The head of the result when the step began: its own intent says it, else the newest entry before it."""
    for entry in entries:
        if entry.kind == "intent" and _step_of(entry.step_key) == key:
            head: str | None = entry.body.get("result_head")
            return head
    heads = [entry.body["result_head"] for entry in finished if entry.seq < begun and "result_head" in entry.body]
    return heads[-1] if heads else None
