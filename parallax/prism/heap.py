"""How much a run holds at this moment, for the limit on the live heap.

The meter counts what is made and asks here only when much was made since the last time. Values are found from the
frames of the run: variables, arguments, half-built results, closures and waiting branches. A value that only an
operand stack holds is missed until the next count.
"""

from __future__ import annotations

import types
from functools import partial
from typing import Any

from .values import SLOT, STRING_OVERHEAD, Array, Confident, Function, Object, Promise

_LEAVES = (float, bool, int, type(None))
_PLAIN = (list, tuple, set)


def live_size(frame: types.FrameType | None, roots: list[Any]) -> int:
    """The size of everything reachable from a frame, those below it, and the roots."""
    stack: list[Any] = list(roots)
    depth = 0
    while frame is not None and depth < 4_000:
        stack.append(frame)
        frame, depth = frame.f_back, depth + 1
    seen: set[int] = set()
    total = 0
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind in _LEAVES or id(item) in seen:
            continue
        seen.add(id(item))
        if kind is str:
            total += len(item) + STRING_OVERHEAD
        elif kind is Array or kind in _PLAIN:
            total += SLOT * len(item) + STRING_OVERHEAD
            stack.extend(each for each in item if type(each) not in _LEAVES)
        elif kind is Object or kind is dict:
            total += 4 * SLOT * len(item) + 2 * STRING_OVERHEAD
            stack.extend(each for each in item.values() if type(each) not in _LEAVES)
        elif kind is Confident or kind is Promise:
            stack.append(item.value)
        else:
            stack.extend(_inside(item))
    return total


def _inside(item: Any) -> list[Any]:
    """What a function, a frame or something waiting holds."""
    match item:
        case Function():
            return [item.call]
        case partial():
            return [item.func, *item.args]
        case types.FunctionType():
            return [cell.cell_contents for cell in item.__closure__ or () if _filled(cell)]
        case types.MethodType():
            return []
        case types.FrameType():
            return list(item.f_locals.values()) if _ours(item.f_code) else []
        case types.GeneratorType():
            return [item.gi_frame]
        case types.CoroutineType():
            return [item.cr_frame, item.cr_await]
    return []


def _ours(code: types.CodeType) -> bool:
    return code.co_filename.startswith("<prism>") or "/prism/" in code.co_filename


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
