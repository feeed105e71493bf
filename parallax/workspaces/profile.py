"""`.parallax.yaml`: what a repository is, so that patterns can speak of "the checks" of any repository.

Written by the repository's owner (`parallax init` makes the first draft, see `detection`), read from the base commit
and never from an agent's tree: an agent must not choose the checks that judge it. Commands are the owner's own text;
nothing is ever put into them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr, ValidationError
from pydantic_core import ErrorDetails

from parallax import documents
from parallax.errors import Mistake, ProfileError

FILE: Final = ".parallax.yaml"
_KINDS: Final = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_CHECK_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9 ._-]{0,62}")
_FIXED: Final = frozenset({"PATH", "HOME", "CI"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _kind(value: Any) -> str:
    return "nothing" if value is None else _KINDS.get(type(value), type(value).__name__)


def _as_command(value: Any) -> Any:
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, str) and "\0" not in part for part in value):
        return tuple(value)
    shown = "an empty one" if value in ("", [], ()) else _kind(value)
    raise ValueError(f"expected a command, as text for the shell or as a list of arguments, got {shown}")


def _as_check(value: Any) -> Any:
    return value if isinstance(value, (dict, Check)) else {"run": _as_command(value)}


def _as_seconds(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    if isinstance(value, str) and (match := _SPAN.fullmatch(value.strip())) and float(match[1]) > 0:
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError(f"expected seconds as a number, or a time such as 90s or 5m, got {value!r}")


def _as_names(value: Any) -> Any:
    value = [value] if isinstance(value, str) else value
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise ValueError(f"expected a name or a list of names, got {_kind(value)}")


def _as_copy(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected a path, or `from -> to`, got {_kind(value)}")  # noqa: TRY004 - pydantic's protocol
    for part in value.split(" -> "):
        path = PurePosixPath(part.strip())
        if (
            path.is_absolute()
            or not path.parts
            or ".." in path.parts
            or ".git" in path.parts
            or value.count(" -> ") > 1
        ):
            raise ValueError(f"expected a path inside the repository, or `from -> to`, got '{value}'")
    return value


def _as_pattern(value: Any) -> Any:
    try:
        groups = re.compile(value).groupindex
    except (re.error, TypeError) as error:
        raise ValueError(f"expected a regular expression, got {value!r} ({error})") from None
    if not {"passed", "failed"} <= set(groups):
        raise ValueError("expected the groups (?P<passed>...) and (?P<failed>...) in the pattern")
    return value


def _as_variable(value: Any) -> Any:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        raise ValueError(f"expected the name of an environment variable that is given a free port, got {value!r}")
    return value


Command: TypeAlias = Annotated[str | tuple[str, ...], BeforeValidator(_as_command)]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_names)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Check(_Part):
    """A named check: a command whose exit code 0 means that the work is good."""

    run: Command
    timeout: Annotated[float, BeforeValidator(_as_seconds)] | None = None
    score_pattern: Annotated[str, BeforeValidator(_as_pattern)] | None = None


class Defaults(_Part):
    """Which checks judge an attempt (`quick`) and a merge (`full`), where a pattern names none."""

    quick: Names = ()
    full: Names = ()


class Profile(_Part):
    """The whole file. Every field may be left out."""

    version: Literal[1] = 1
    language: StrictStr | None = None
    package_manager: StrictStr | None = None
    setup: tuple[Command, ...] = ()
    locks: tuple[StrictStr, ...] = ()
    checks: dict[str, Annotated[Check, BeforeValidator(_as_check)]] = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=Defaults)
    copy_files: tuple[Annotated[str, BeforeValidator(_as_copy)], ...] = Field(default=(), alias="copy")
    env: dict[str, StrictStr] = Field(default_factory=dict)
    network: Literal["none", "gateway", "open"] = "gateway"
    ports: tuple[Annotated[str, BeforeValidator(_as_variable)], ...] = ()
    protected: tuple[StrictStr, ...] = ()
    known_red: tuple[StrictStr, ...] = ()
    flaky: tuple[StrictStr, ...] = ()
    budget: Annotated[float, Field(ge=0, strict=True)] | None = None

    def copies(self) -> list[tuple[str, str]]:
        """What `copy` lists, as pairs of source and target."""
        pairs = [entry.partition(" -> ") for entry in self.copy_files]
        return [(source.strip(), (target or source).strip()) for source, _, target in pairs]

    def default_checks(self, which: Literal["quick", "full"]) -> tuple[str, ...]:
        """The checks to run where nobody named any: those of `defaults`, else all for full and the first for quick."""
        if named := (self.defaults.quick if which == "quick" else self.defaults.full):
            return named
        return tuple(self.checks) if which == "full" else tuple(self.checks)[:1]


def matching(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The paths that a pattern covers: `*` within a name, `**` across folders, a folder all that is in it, and a name
    without a slash wherever it stands."""
    expressions = [_expression(pattern) for pattern in patterns]
    return [path for path in paths if any(expression.fullmatch(path) for expression in expressions)]


def _expression(pattern: str) -> re.Pattern[str]:
    anywhere = "" if "/" in pattern.rstrip("/") else "(?:.*/)?"
    parts = re.split(r"(\*\*/?|\*|\?)", pattern.strip("/"))
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(anywhere + "".join(words.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def load(text: str, path: str = FILE) -> Profile:
    """Read a profile; raises ProfileError that names every mistake with its place and what was expected there."""
    try:
        document = documents.read(text, path)
    except documents.DocumentError as error:
        raise _refusal(path, error.mistakes) from None
    value = {} if document.value is None else document.value
    if not isinstance(value, dict):
        raise _refusal(path, [document.mistake((), f"expected a mapping of settings, got {_kind(value)}")])
    try:
        profile = Profile.model_validate(value)
    except ValidationError as error:
        raise _refusal(path, [_mistake(document, details) for details in error.errors()]) from None
    if mistakes := [*_names(document, profile)]:
        raise _refusal(path, mistakes)
    return profile


def _refusal(path: str, mistakes: Iterable[Mistake]) -> ProfileError:
    return ProfileError("\n".join([f"{path} cannot be used:", *(f"  {mistake}" for mistake in mistakes)]))


def _names(document: documents.Document, profile: Profile) -> Iterable[Mistake]:
    """Names that must fit one another."""
    for name in profile.checks:
        if not _CHECK_NAME.fullmatch(name):
            yield document.mistake(("checks", name), f"'{name}' is no name for a check", key=True)
    for which, names in (("quick", profile.defaults.quick), ("full", profile.defaults.full)):
        for name in names:
            if name not in profile.checks:
                hint = documents.did_you_mean(name, profile.checks) or (
                    f"known checks: {', '.join(profile.checks) or 'none'}"
                )
                yield document.mistake(("defaults", which), f"there is no check '{name}'", hint=hint)
    for place, name in enumerate(profile.ports):
        if name in _FIXED or name in profile.env or name in profile.ports[:place]:
            yield document.mistake(("ports", place), f"'{name}' cannot be given a port: it has a value already")
    for name in profile.env:
        if not _VARIABLE.fullmatch(name) or name in _FIXED:
            yield document.mistake(("env", name), f"'{name}' cannot be set here", key=True)


def _mistake(document: documents.Document, details: ErrorDetails) -> Mistake:
    place = _place(document, details["loc"])
    name = ".".join(str(part) for part in place) or "the file"
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known(place[:-1])
        hint = documents.did_you_mean(str(place[-1]), known) or f"known here: {', '.join(known)}"
        return document.mistake(place, f"unknown key '{place[-1]}'", key=True, hint=hint)
    if kind == "missing":
        return document.mistake(place, f"the key '{details['loc'][-1]}' is missing in {name}")
    if kind == "value_error":
        return document.mistake(place, f"{name}: {context['error']}")
    if kind == "literal_error":
        near = documents.did_you_mean(str(details["input"]), re.findall(r"'(\w+)'", str(context["expected"])))
        words = f"{name}: expected {context['expected']}, got {details['input']!r}"
        return document.mistake(place, words, hint=near)
    wanted = {
        "string_type": "text (quote numbers and true/false)",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "float_type": "a number",
        "greater_than_equal": "a number of at least 0",
    }.get(kind, details["msg"])
    return document.mistake(place, f"{name}: expected {wanted}, got {_kind(details['input'])}")


def _place(document: documents.Document, location: tuple[str | int, ...]) -> documents.Path:
    """The part of the document that pydantic means: its locations also hold steps inside a type."""
    place: documents.Path = ()
    for part in location:
        if (*place, part) in document.values or (*place, part) in document.keys:
            place = (*place, part)
    return place


def _known(place: documents.Path) -> list[str]:
    match place:
        case ("checks", _):
            return list(Check.model_fields)
        case ("defaults",):
            return list(Defaults.model_fields)
        case _:
            return [field.alias or name for name, field in Profile.model_fields.items()]
