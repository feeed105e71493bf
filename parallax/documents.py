"""Reads YAML and JSON documents with the place of every key and value, so that a mistake can be shown where it is.

YAML by its 1.2 core rules (`no` is text, `010` is ten), without aliases, anchors, tags, merge keys or duplicate keys,
bounded in size and depth. JSON is read by the same reader, being YAML. Called by `patterns` and `workspaces.profile`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

from parallax.errors import Mistake, UsageError

Path: TypeAlias = tuple[str | int, ...]

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
MAX_NODES: Final = 100_000

_INT: Final = re.compile(r"[-+]?[0-9]+")
_OCT: Final = re.compile(r"0o[0-7]+")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, Any]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


class DocumentError(UsageError):
    """A document that cannot be read; `mistakes` has the places."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


@dataclass(frozen=True, slots=True)
class Place:
    """Line from 1, column from 0."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """A value and where its parts stand. `keys` has the place of a mapping's key, `values` of the value itself."""

    path: str
    value: Any
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path, *, key: bool = False) -> Place:
        """The place of a part, or of the nearest part around it."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Place(1, 0))

    def mistake(
        self, path: Path, message: str, *, key: bool = False, hint: str | None = None, severity: str = "error"
    ) -> Mistake:
        """A mistake at a part of the document."""
        place = self.place(path, key=key)
        return Mistake(
            path=self.path, line=place.line, column=place.column, message=message, hint=hint, severity=severity
        )


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean 'x'?`, when something known is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None


def read(text: str, path: str) -> Document:
    """Read one document. Raises DocumentError."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise DocumentError([Mistake(path=path, line=1, column=0, message=f"larger than {MAX_BYTES // 1024} KiB")])
    reader = _Reader(path)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column) if mark else (1, 0)
        words = error.problem or error.context or "not YAML"
        raise DocumentError([Mistake(path=path, line=place[0], column=place[1], message=words)]) from None
    except yaml.YAMLError as error:
        raise DocumentError([Mistake(path=path, line=1, column=0, message=str(error).splitlines()[0])]) from None
    if reader.mistakes:
        raise DocumentError(reader.mistakes)
    return reader.document


class _Reader:
    """Builds the value from parse events: no recursion, so depth and size are ours to bound."""

    def __init__(self, path: str) -> None:
        self.document = Document(path, None)
        self.mistakes: list[Mistake] = []
        self._stack: list[_Open] = []
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        mark: Any = event.start_mark  # always there: we read from text
        place = Place(mark.line + 1, mark.column)
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self._refuse(place, "a second document in one file; keep one")
            case yaml.AliasEvent():
                self._refuse(place, f"aliases are not allowed (*{event.anchor})")
            case yaml.ScalarEvent():
                self._check(event, place)
                plain = event.style is None or event.style == ""
                self._put(_scalar(event.value) if plain and event.implicit[0] else event.value, event.value, place)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._check(event, place)
                container: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                here = self._put(container, None, place)
                self._stack.append(_Open(container, here))
                if len(self._stack) > MAX_DEPTH:
                    raise DocumentError([self._mistake(place, f"nested deeper than {MAX_DEPTH} levels")])
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._stack.pop()
            case _:
                pass

    def _check(self, event: Any, place: Place) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise DocumentError([self._mistake(place, f"more than {MAX_NODES} values")])
        if event.anchor is not None:
            self._refuse(place, f"anchors are not allowed (&{event.anchor})")
        if event.tag is not None:
            self._refuse(place, f"tags are not allowed ({event.tag})")

    def _put(self, value: Any, raw: str | None, place: Place) -> Path:
        if not self._stack:
            self.document.value = value
            self.document.values[()] = place
            return ()
        top = self._stack[-1]
        if isinstance(top.container, list):
            here: Path = (*top.path, len(top.container))
            top.container.append(value)
            self.document.values[here] = place
            return here
        if not top.has_key:
            self._take_key(top, raw, place)
            return top.path
        here = (*top.path, top.key)
        top.container[top.key] = value
        self.document.values[here] = place
        top.has_key = False
        return here

    def _take_key(self, top: _Open, raw: str | None, place: Place) -> None:
        if raw is None:
            self._refuse(place, "a key must be plain text")
            raw = f"<{place.line}>"
        if raw == "<<":
            self._refuse(place, "merge keys are not allowed (<<)")
        if raw in top.container:
            first = self.document.keys[(*top.path, raw)]
            self._refuse(place, f"the key '{raw}' stands twice (first in line {first.line})")
        top.key, top.has_key = raw, True
        self.document.keys[(*top.path, raw)] = place

    def _mistake(self, place: Place, message: str) -> Mistake:
        return Mistake(path=self.document.path, line=place.line, column=place.column, message=message)

    def _refuse(self, place: Place, message: str) -> None:
        self.mistakes.append(self._mistake(place, message))


@dataclass(slots=True)
class _Open:
    container: Any
    path: Path
    key: str = ""
    has_key: bool = False


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) < 300:
        return int(text)
    if _OCT.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
