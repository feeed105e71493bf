"""Prism 3: a small deterministic language in which every value may carry a confidence.

The public face of the room; `docs/prism.md` teaches the language. Text becomes tokens (`lexer`), a tree (`parser`,
`statements`, `nodes`), a code object (`compiler`, `patterns`, `codegen`) and a run (`runtime`). It imports nothing of
Parallax: a host hands in what effects mean (`Host`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import nodes as nodes
from .check import Diagnostic as Diagnostic
from .check import check as check
from .errors import PrismCancelled as PrismCancelled
from .errors import PrismError as PrismError
from .errors import PrismHostError as PrismHostError
from .errors import PrismLexError as PrismLexError
from .errors import PrismLimitError as PrismLimitError
from .errors import PrismParseError as PrismParseError
from .errors import PrismRuntimeError as PrismRuntimeError
from .errors import PrismThrow as PrismThrow
from .errors import Span as Span
from .explain import Why as Why
from .host import Effect as Effect
from .host import Host as Host
from .host import Json as Json
from .host import Outcome as Outcome
from .limits import Limits as Limits
from .machine import Evaluation as Evaluation
from .machine import TraceEvent as TraceEvent
from .modules import Program as Program
from .modules import checked_tree, gather, make_program
from .printer import unparse as unparse
from .runtime import PrismRuntime as PrismRuntime
from .runtime import evaluate as evaluate
from .runtime import prepare as prepare
from .statements import parse_program


def parse(source: str, *, path: str = "<source>") -> nodes.Program:
    """The tree of a source, checked; raises at the first mistake."""
    return checked_tree(source, path)


def format(source: str, *, path: str = "<source>") -> str:  # noqa: A001
    """The source in the house style, its comments kept."""
    checked_tree(source, path)
    return unparse(parse_program(source, path, comments=True))


def compile(source: str, *, path: str = "main.prism", bundle: Mapping[str, str] | None = None) -> Program:  # noqa: A001
    """A program ready to run, with the modules of its bundle."""
    return make_program(source, path=path, bundle=bundle)


def compile_file(path: str | Path, root: str | Path) -> Program:
    """A program from disk with every module it reaches inside the root."""
    start, bundle = gather(Path(path), Path(root))
    return make_program(bundle[start], path=start, bundle=bundle)
