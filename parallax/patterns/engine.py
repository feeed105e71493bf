"""PatternEngine: finds patterns by name or path, reads and checks them, and hands out compiled, pinned programs.

Called by `execution` when something is submitted and by the doors for lists, checks and the compiled Prism. Patterns
of the user's directory come before the shipped ones of the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from parallax import prism
from parallax.documents import Document, DocumentError, did_you_mean, read
from parallax.errors import Mistake, NotFoundError, PatternError, UsageError
from parallax.models import Json
from parallax.patterns.chart_model import ChartModel, FieldModel, unwrapped
from parallax.patterns.org_chart import compile_chart

FORMATS: Final = {".prism": "prism", ".yaml": "org-chart", ".yml": "org-chart", ".json": "org-chart"}
_TAG: Final = re.compile(r"^[ \t*/]*@(?P<name>[A-Za-z]+)[ \t]+(?P<value>.*\S)\s*$", re.MULTILINE)
_PYTHON: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,), "array": (list,),
    "object": (dict,),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A pattern, compiled. `source` is the text as written, `prism` the program it became, `hash` its pin."""

    name: str
    version: str
    format: str
    description: str
    source: str
    origin: str
    path: str
    program: prism.Program
    input_schema: Mapping[str, Json]
    metadata: Mapping[str, Json] = field(default_factory=dict)
    warnings: tuple[Mistake, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 over every module of the program."""
        return self.program.hash

    @property
    def prism(self) -> str:
        """The program as text."""
        return self.program.source


class PatternEngine:
    """The patterns of this installation: `directories` are (origin, path), the first that has a name wins."""

    def __init__(self, directories: Sequence[tuple[str, Path]]) -> None:
        self._directories = tuple(directories)
        self._cache: dict[tuple[str, Path], tuple[tuple[int, int], Pattern]] = {}

    def files(self) -> dict[str, tuple[str, Path]]:
        """Every pattern file by the name that finds it: its file name without the ending."""
        found: dict[str, tuple[str, Path]] = {}
        for origin, directory in self._directories:
            if not directory.is_dir():
                continue
            for path in sorted(directory.iterdir()):
                if path.suffix in FORMATS and path.is_file():
                    found.setdefault(path.stem, (origin, path))
        return found

    def all(self) -> tuple[list[Pattern], list[PatternError]]:
        """Every pattern that loads, and the errors of those that do not."""
        good, bad = [], []
        for origin, path in self.files().values():
            try:
                good.append(self._load(origin, path))
            except PatternError as error:
                bad.append(error)
        return good, bad

    def get(self, name: str) -> Pattern:
        """A pattern by name, or by path when the name has a slash or an ending. Raises NotFoundError, PatternError."""
        given = Path(name).expanduser()
        if given.suffix in FORMATS or "/" in name:
            if not given.is_file():
                raise NotFoundError(f"there is no pattern file '{name}'")
            return self._load("file", given.absolute())
        files = self.files()
        if name in files:
            return self._load(*files[name])
        hint = did_you_mean(name, files) or f"known are {', '.join(sorted(files)) or 'none'}"
        raise NotFoundError(f"there is no pattern '{name}': {hint} (a path such as ./team.yaml works as well)")

    def _load(self, origin: str, path: Path) -> Pattern:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._cache.get((origin, path))
        if known is None or known[0] != stamp or known[1].format == "prism":  # a script's imports may have changed
            known = (stamp, load(path, origin))
            self._cache[origin, path] = known
        return known[1]


def load(path: Path, origin: str = "file") -> Pattern:
    """Read and compile one pattern file. Raises PatternError with every mistake and its place."""
    shown = _shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PatternError(f"{shown}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise PatternError(f"{shown}: {error.strerror}") from None
    if path.suffix == ".prism":
        return _script(path, shown, text, origin)
    return _chart(path, shown, text, origin)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# -- scripts -----------------------------------------------------------------------------------------------------------


def _script(path: Path, shown: str, text: str, origin: str) -> Pattern:
    try:
        program = prism.compile_file(path, path.parent)
    except prism.PrismError as error:
        mistake = Mistake(
            path=error.path or shown, line=error.line or 1, column=error.column or 0, message=error.message
        )
        raise PatternError(f"{shown} is not a valid pattern:", (mistake,)) from None
    tags = _tags(text)
    schema = _tag_schema(tags.get("input"), shown)
    return Pattern(
        name=tags.get("name", path.stem),
        version=tags.get("version", "1.0.0"),
        format="prism",
        description=tags.get("description", ""),
        source=text,
        origin=origin,
        path=str(path),
        program=program,
        input_schema=schema,
        metadata={key: value for key, value in tags.items() if key not in {"name", "version", "description", "input"}},
    )


def _tags(text: str) -> dict[str, str]:
    """The `@name value` lines of the leading comment."""
    head = re.match(r"\s*(/\*.*?\*/|(?://[^\n]*\n\s*)+)", text, re.DOTALL)
    return {m["name"]: m["value"] for m in _TAG.finditer(head[1])} if head else {}


def _tag_schema(text: str | None, shown: str) -> dict[str, Json]:
    if text is None:
        return {}
    try:
        fields = json.loads(text)
        return {name: FieldModel.model_validate(_field(entry)).as_schema() for name, entry in fields.items()}
    except (ValueError, AttributeError) as error:
        raise PatternError(f"{shown}: @input is not an object of fields: {str(error).splitlines()[0]}") from None


def _field(entry: Any) -> Any:
    return {"type": entry} if isinstance(entry, str) else entry


# -- org charts --------------------------------------------------------------------------------------------------------


def _chart(path: Path, shown: str, text: str, origin: str) -> Pattern:
    try:
        document = read(text, shown)
    except DocumentError as error:
        raise PatternError(f"{shown} cannot be read:", error.mistakes) from None
    if not isinstance(document.value, dict):
        raise PatternError(f"{shown} is not a valid pattern:", (document.mistake((), "expected keys and values"),))
    flat, wrappers = unwrapped(document.value)
    if "roles" not in flat:
        mistake = document.mistake(
            (), "no 'roles': an org chart needs roles and steps (see docs/patterns/org-charts.md)"
        )
        raise PatternError(f"{shown} is not a valid pattern:", (mistake,))
    if isinstance(flat.get("input"), dict):
        flat["input"] = {name: _field(entry) for name, entry in flat["input"].items()}
    try:
        model = ChartModel.model_validate(flat)
    except ValidationError as error:
        raise PatternError(f"{shown} is not a valid pattern:", _mistakes(document, error, wrappers)) from None
    compiled, mistakes = compile_chart(document, model)
    if compiled is None:
        raise PatternError(f"{shown} is not a valid pattern:", tuple(mistakes))
    program_path = f"{path.stem}.prism"
    try:
        program = prism.compile(prism.unparse(compiled.tree), path=program_path)
    except prism.PrismError as error:
        raise PatternError(f"{shown} compiles to Prism that does not: {error.message} ({error.excerpt})") from None
    return Pattern(
        name=model.name or path.stem,
        version=model.version,
        format="org-chart",
        description=model.description.strip(),
        source=text,
        origin=origin,
        path=str(path),
        program=program,
        input_schema=compiled.input_schema,
        metadata=model.metadata,
        warnings=compiled.warnings,
    )


def _mistakes(document: Document, error: ValidationError, wrappers: Mapping[str, str]) -> tuple[Mistake, ...]:
    """Pydantic's errors at their places in the document."""
    found = []
    for entry in error.errors():
        loc = tuple(part for part in entry["loc"] if not (isinstance(part, str) and "[" in part))
        path = (wrappers[str(loc[0])], *loc) if loc and str(loc[0]) in wrappers else loc
        if entry["type"] == "extra_forbidden":
            key = str(path[-1])
            known = _known_keys(loc)
            hint = did_you_mean(key, known) or (f"known here: {', '.join(sorted(known))}" if known else None)
            found.append(document.mistake(path, f"unknown key '{key}'", key=True, hint=hint))
        elif entry["type"] == "missing":
            found.append(document.mistake(path[:-1], f"'{path[-1]}' is missing"))
        else:
            found.append(document.mistake(path, _words(entry)))
    return tuple(dict.fromkeys(found))


def _words(entry: Any) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ")
    shown = entry.get("input")
    if isinstance(shown, str | int | float | bool) and "a step of type" not in message:
        return f"{message[0].lower()}{message[1:]}, got {shown!r}"
    return f"{message[0].lower()}{message[1:]}"


def _known_keys(loc: Sequence[Any]) -> list[str]:
    model: Any = ChartModel
    for part in loc[:-1]:
        if not isinstance(part, str):
            continue
        for candidate in _models_below(model):
            if part in candidate:
                model = candidate[part]
                break
    fields_of = getattr(model, "model_fields", {})
    return [entry.alias or name for name, entry in fields_of.items()]


def _models_below(model: Any) -> list[dict[str, Any]]:
    from parallax.patterns import chart_model as c

    below: dict[Any, dict[str, Any]] = {
        c.ChartModel: {
            "roles": c.RoleModel, "routing": c.RoutingModel, "escalation": c.EscalationModel, "input": c.FieldModel,
            "steps": c.StepModel,
        },
        c.StepModel: {
            "steps": c.StepModel, "then": c.StepModel, "else": c.StepModel, "high": c.StepModel,
            "medium": c.StepModel, "low": c.StepModel, "default": c.StepModel, "review": c.ReviewModel,
        },
    }  # fmt: skip
    return [below.get(model, {})]


# -- input -------------------------------------------------------------------------------------------------------------


def check_input(pattern: Pattern, given: Mapping[str, Json]) -> dict[str, Json]:
    """The input with defaults filled in. Raises UsageError that names every wrong, missing or unknown key."""
    schema, wrong = pattern.input_schema, []
    for key in given:
        if schema and key not in schema:
            hint = did_you_mean(key, schema) or f"inputs: {', '.join(schema)}"
            wrong.append(f"unknown input '{key}' ({hint})")
    complete = dict(given)
    for name, entry in schema.items():
        if name not in given:
            if entry.get("default") is not None or not entry.get("required", True):
                complete[name] = entry.get("default")
            else:
                about = f" ({entry['description']})" if entry.get("description") else ""
                way = f'`parallax run {pattern.name} "..."` or ' if name == "goal" else ""
                wrong.append(f"missing input '{name}'{about}: give it with {way}--input {name}=...")
            continue
        value = given[name]
        fits = isinstance(value, _PYTHON[entry["type"]]) and not (
            isinstance(value, bool) and entry["type"] != "boolean"
        )
        if not fits:
            wrong.append(f"input '{name}' must be of type {entry['type']}, got {json.dumps(value)[:60]}")
        elif entry.get("enum") and value not in entry["enum"]:
            wrong.append(f"input '{name}' must be one of {', '.join(map(str, entry['enum']))}, got {value!r}")
    if wrong:
        raise UsageError(f"pattern '{pattern.name}': " + "; ".join(wrong))
    return complete
