"""Programs and their modules (section 12): what is pinned, where an import leads, and code compiled once.

A `Program` is a source with every module it can reach, so an import at run time reads the bundle and never the disk.
Made by `compile` and `compile_file`, run by `runtime`.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, MappingProxyType

from . import nodes as n
from .errors import PrismError, PrismRuntimeError
from .limits import DEFAULT, Limits, exceeded
from .rules import enforce
from .statements import parse_program


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A checked program and its bundle: path to text, the main module included."""

    source: str
    path: str
    bundle: Mapping[str, str]
    hash: str
    tree: n.Program
    trees: dict[str, n.Program] = field(default_factory=dict, compare=False, repr=False)
    codes: dict[tuple[str, bool, bool], CodeType] = field(default_factory=dict, compare=False, repr=False)

    def tree_of(self, path: str, limits: Limits = DEFAULT) -> n.Program:
        tree = self.tree if path == self.path else self.trees.get(path)
        if tree is None:
            tree = self.trees[path] = checked_tree(self.bundle[path], path, limits)
        return tree


def checked_tree(source: str, path: str, limits: Limits = DEFAULT) -> n.Program:
    """Parse and check; an error leaves with its source line."""
    try:
        tree = parse_program(source, path, limits=limits)
        enforce(tree)
    except PrismError as error:
        show_line(error, source, path)
        raise
    return tree


def show_line(error: PrismError, source: str, path: str) -> None:
    from .errors import Span

    if error.path is None:
        error.place(Span(path, 1, 0))
    error.place(Span(error.path or path, error.line, error.column), source)


def bundle_hash(bundle: Mapping[str, str]) -> str:
    text = json.dumps(sorted(bundle.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def make_program(
    source: str,
    *,
    path: str = "main.prism",
    bundle: Mapping[str, str] | None = None,
    tree: n.Program | None = None,
    limits: Limits = DEFAULT,
) -> Program:
    texts = {**(bundle or {}), path: source}
    if tree is None:
        tree = checked_tree(source, path, limits)
    return Program(source=source, path=path, bundle=MappingProxyType(texts), hash=bundle_hash(texts), tree=tree)


def candidates(specifier: str, importer: str) -> list[str]:
    """The paths an import may mean, in order; none if it leaves the pattern directory."""
    if not specifier.startswith(("./", "../")) or "\\" in specifier or "\0" in specifier:
        return []
    target = posixpath.normpath(posixpath.join(posixpath.dirname(importer), specifier))
    if target.startswith(("../", "/")) or target in ("..", "."):
        return []
    return [target, f"{target}.prism", f"{target}/index.prism"] if not target.endswith(".prism") else [target]


def resolve(specifier: str, importer: str, bundle: Mapping[str, str]) -> str:
    for path in candidates(specifier, importer):
        if path in bundle:
            return path
    raise PrismRuntimeError(f"Cannot resolve module '{specifier}' from {importer}")


def imports_of(tree: n.Program) -> list[str]:
    return [node.source for node in n.walk(tree) if isinstance(node, n.Import | n.Export) and node.source is not None]


def gather(path: Path, root: Path, limits: Limits = DEFAULT) -> tuple[str, dict[str, str]]:
    """The main path inside the root, and the text of every module reached from it."""
    base = root.resolve()
    main = _inside(path if path.is_absolute() else root / path, base)
    if main is None:
        raise PrismRuntimeError(f"Cannot resolve module '{path}' in {root}")
    name = (path if path.is_absolute() else base / path).absolute()
    start = name.relative_to(base).as_posix() if name.is_relative_to(base) else main.relative_to(base).as_posix()
    bundle: dict[str, str] = {}
    todo = [start]
    while todo:
        current = todo.pop()
        if current in bundle:
            continue
        if len(bundle) >= limits.modules:
            exceeded("modules", limits.modules, len(bundle) + 1)
        bundle[current] = (base / current).read_text(encoding="utf-8")
        try:
            wanted = imports_of(parse_program(bundle[current], current, limits=limits))
        except PrismError:
            if current == start:
                raise
            continue  # told when the import runs
        for specifier in wanted:
            for candidate in candidates(specifier, current):
                if _inside(base / candidate, base) is not None:
                    todo.append(candidate)
                    break
    return start, bundle


def _inside(path: Path, base: Path) -> Path | None:
    """The real file, if there is one and no link leads out of the root."""
    real = path.resolve()
    return real if real.is_file() and real.is_relative_to(base) else None
