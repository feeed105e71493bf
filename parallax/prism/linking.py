"""The modules of one run: an import runs a module once, and binds names to what it exported.

Generated code calls the functions of `LINKED` by name; `machine` makes one `Linking` for each run. An import that leads
back to a module that still runs finds what that has exported so far, and null for the rest (section 12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import PrismError, PrismLimitError
from .host import Host
from .limits import Limits, exceeded
from .modules import Program, resolve
from .values import Meter, Value, fail

LINKED = ("check_export", "import_module", "imported", "export", "export_all")
Module = tuple[str, dict[str, Value]]  # its path, and what it exports


class Linking:
    """What a run knows of its modules. `main` gives the code of a module as a function of the call depth."""

    def __init__(
        self,
        program: Program,
        limits: Limits,
        meter: Meter,
        host: Host | None,
        main: Callable[[str], Callable[[int], Any]],
    ) -> None:
        self.program = program
        self.limits = limits
        self.meter = meter
        self.host = host
        self.main = main
        self.modules: dict[str, dict[str, Value]] = {}
        self.importing: list[str] = []

    def check_export(self) -> None:
        if self.host is None:
            raise fail("Export statements require a module system")

    def import_module(self, importer: str, specifier: str) -> Any:
        """A coroutine of the module; without a host there are none."""
        if self.host is None:
            raise fail("Import statements require a module system")
        return self._loaded(importer, specifier)

    async def _loaded(self, importer: str, specifier: str) -> Module:
        path = resolve(specifier, importer, self.program.bundle)
        if path in self.modules:
            return path, self.modules[path]
        if len(self.modules) >= self.limits.modules:
            exceeded("modules", self.limits.modules, len(self.modules) + 1)
        if len(self.importing) >= self.limits.import_depth:
            exceeded("import depth", self.limits.import_depth, len(self.importing) + 1)
        try:
            self.program.tree_of(path, self.limits)
        except PrismLimitError:
            raise
        except PrismError as error:
            raise fail(f"Failed to load module {path}: {error.message}") from None
        exports = self.modules[path] = {}
        self.importing.append(path)
        try:
            await self.main(path)(0)
        finally:
            self.importing.pop()
        return path, exports

    def imported(self, module: Module, what: str) -> Value:
        path, exports = module
        if what == "*":
            return self.meter.object(exports)
        name = "default" if what == "default" else what[1:]
        if name in exports:
            return exports[name]
        if path in self.importing:
            return None
        missing = "default export" if what == "default" else f"export named '{name}'"
        raise fail(f"Module {path} has no {missing}")

    def export(self, path: str, name: str, value: Value) -> None:
        self.modules.setdefault(path, {})[name] = value

    def export_all(self, path: str, module: Module, names: tuple[tuple[str, str], ...] | None) -> None:
        source, exports = module
        pairs = [(k, k) for k in exports if k != "default"] if names is None else names
        for name, alias in pairs:
            if name not in exports and source not in self.importing:
                raise fail(f"Module {source} has no export named '{name}'")
            self.export(path, alias, exports.get(name))
