"""The first draft of a profile: look at the files of a repository, guess set-up and checks, write commented YAML.

Called by `parallax init`, and silently by `run` where there is no `.parallax.yaml`. Nothing is run here; whether the
guesses are right is tried out afterwards (`CheckRunner.try_out`). Only file names and the usual manifests are read.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import yaml

from parallax.workspaces.profile import Check, Command, Defaults, Profile

_MAX_B: Final = 256 * 1024
_SKIPPED: Final = frozenset({"node_modules", ".git", ".venv", "venv", "target", "build", "dist", "vendor", ".tox"})
_NPM_PLACEHOLDER: Final = "no test specified"
_NODE_LOCKS: Final = {
    "pnpm-lock.yaml": ("pnpm", "pnpm install --frozen-lockfile"),
    "yarn.lock": ("yarn", "yarn install --frozen-lockfile"),
    "bun.lock": ("bun", "bun install --frozen-lockfile"),
    "bun.lockb": ("bun", "bun install --frozen-lockfile"),
    "package-lock.json": ("npm", "npm ci"),
}
_PROTECTED: Final = {
    ".github": ".github/workflows/**",
    ".gitlab-ci.yml": ".gitlab-ci.yml",
    ".circleci": ".circleci/**",
    "azure-pipelines.yml": "azure-pipelines.yml",
    "Jenkinsfile": "Jenkinsfile",
    ".travis.yml": ".travis.yml",
}


class _Draft:
    """What has been found so far. The first language that names itself is the main one; others add their checks."""

    def __init__(self) -> None:
        self.language: str | None = None
        self.package_manager: str | None = None
        self.setup: list[Command] = []
        self.checks: dict[str, Check] = {}

    def found(self, language: str, package_manager: str | None) -> None:
        if self.language is None:
            self.language, self.package_manager = language, package_manager

    def check(self, name: str, run: str) -> None:
        if name in self.checks:
            name = f"{name}-{run.split()[0].rpartition('/')[2]}"
        self.checks.setdefault(name, Check(run=run))


def detect(root: Path) -> Profile:
    """Look at a repository and draft its profile."""
    draft = _Draft()
    for look in (_python, _node, _go, _rust, _jvm, _make):
        look(root, draft)
    tests = [name for name in draft.checks if name.startswith("test")]
    quick = tests[:1] or list(draft.checks)[:1]
    return Profile(
        language=draft.language,
        package_manager=draft.package_manager,
        setup=tuple(draft.setup),
        checks=draft.checks,
        defaults=Defaults(quick=tuple(quick), full=tuple(draft.checks)),
        copy=tuple(_copies(root)),
        protected=tuple(glob for name, glob in _PROTECTED.items() if (root / name).exists()),
    )


def monorepo_hints(root: Path) -> list[str]:
    """What says that several projects live in this repository; `init` shows it, a person decides."""
    hints = []
    package = _json(root / "package.json")
    if package.get("workspaces"):
        hints.append("package.json names workspaces")
    tools = ("pnpm-workspace.yaml", "lerna.json", "nx.json", "turbo.json", "go.work")
    hints += [f"{name} is there" for name in tools if (root / name).is_file()]
    if "workspace" in _toml(root / "Cargo.toml"):
        hints.append("Cargo.toml names a workspace")
    if "workspace" in _table(_toml(root / "pyproject.toml"), "tool", "uv"):
        hints.append("pyproject.toml names a uv workspace")
    manifests = ("package.json", "pyproject.toml", "go.mod", "Cargo.toml", "pom.xml")
    below = sorted(
        f"{folder.name}/{name}" for folder in _folders(root) for name in manifests if (folder / name).is_file()
    )
    if len(below) > 1:
        hints.append(f"several projects: {', '.join(below[:5])}")
    return hints


def _python(root: Path, draft: _Draft) -> None:
    project = _toml(root / "pyproject.toml")
    requirements = [name for name in ("requirements.txt", "requirements-dev.txt") if (root / name).is_file()]
    tests = list(_python_tests(root))
    if not (project or requirements or tests or (root / "setup.py").is_file() or (root / "Pipfile").is_file()):
        return
    if (root / "uv.lock").is_file():
        manager, setup, prefix = "uv", ["uv sync"], "uv run "
    elif (root / "poetry.lock").is_file() or "poetry" in _table(project, "tool"):
        manager, setup, prefix = "poetry", ["poetry install --no-interaction"], "poetry run "
    elif requirements or "project" in project or (root / "setup.py").is_file():
        wanted = [f"-r {name}" for name in requirements] + ["-e ."] * bool("project" in project and not requirements)
        has_needs = bool(requirements) or bool(_table(project, "project").get("dependencies"))
        manager = "pip"
        setup = ["python3 -m venv .venv", f".venv/bin/python -m pip install -q {' '.join(wanted)}"] if has_needs else []
        prefix = ".venv/bin/" if has_needs else ""
    else:
        manager, setup, prefix = "", [], ""
    draft.found("python", manager or None)
    draft.setup += setup
    python = f"{prefix}python" if prefix else "python3"
    if _uses_pytest(root, project, requirements, tests):
        draft.check("test", f"{python} -m pytest -q")
    elif tests:
        draft.check("test", _unittest(root, python))
    if "ruff" in _table(project, "tool") or (root / "ruff.toml").is_file():
        draft.check("lint", f"{prefix}ruff check .")
    if "mypy" in _table(project, "tool") or (root / "mypy.ini").is_file():
        draft.check("types", f"{prefix}mypy .")
    if (root / "tox.ini").is_file() and not draft.checks:
        draft.check("test", f"{prefix}tox -q")


def _python_tests(root: Path) -> Iterator[Path]:
    for folder in (root, root / "tests", root / "test"):
        yield from islice(sorted([*folder.glob("test_*.py"), *folder.glob("*_test.py")]), 50)


def _uses_pytest(root: Path, project: dict[str, Any], requirements: list[str], tests: list[Path]) -> bool:
    if "pytest" in _table(project, "tool") or any((root / name).is_file() for name in ("pytest.ini", "conftest.py")):
        return True
    named = [project.get("project"), project.get("dependency-groups"), _table(project, "tool", "poetry")]
    if "pytest" in json.dumps(named, default=str) or any("pytest" in _text(root / name) for name in requirements):
        return True
    return any(re.search(r"^\s*(import|from) pytest\b|^def test_", _text(path), re.MULTILINE) for path in tests[:10])


def _unittest(root: Path, python: str) -> str:
    for folder in ("tests", "test"):
        if any((root / folder).glob("test_*.py")):
            top = " -t ." if (root / folder / "__init__.py").is_file() else ""
            return f"{python} -m unittest discover -s {folder}{top}"
    return f"{python} -m unittest"


def _node(root: Path, draft: _Draft) -> None:
    package = _json(root / "package.json")
    if not package:
        return
    manager, setup = "npm", "npm install"
    for lock, found in _NODE_LOCKS.items():
        if (root / lock).is_file():
            manager, setup = found
            break
    else:
        named = str(package.get("packageManager", "")).partition("@")[0]
        if named in {"pnpm", "yarn", "bun"}:
            manager, setup = named, f"{named} install"
    draft.found("typescript" if (root / "tsconfig.json").is_file() else "javascript", manager)
    if any(package.get(key) for key in ("dependencies", "devDependencies", "workspaces")):
        draft.setup.append(setup)
    scripts = package.get("scripts")
    scripts = scripts if isinstance(scripts, dict) else {}
    for check, names in (
        ("test", ("test",)),
        ("lint", ("lint",)),
        ("types", ("typecheck", "type-check", "check-types")),
    ):
        name = next((name for name in names if isinstance(scripts.get(name), str)), None)
        if name and _NPM_PLACEHOLDER not in scripts[name]:
            draft.check(check, f"{manager} run {name}")


def _go(root: Path, draft: _Draft) -> None:
    if (root / "go.mod").is_file() or (root / "go.work").is_file():
        draft.found("go", "go")
        if (root / "go.sum").is_file():
            draft.setup.append("go mod download")
        draft.check("test", "go test ./...")
        draft.check("lint", "go vet ./...")


def _rust(root: Path, draft: _Draft) -> None:
    if (root / "Cargo.toml").is_file():
        draft.found("rust", "cargo")
        draft.setup.append("cargo fetch")
        draft.check("test", "cargo test --quiet")


def _jvm(root: Path, draft: _Draft) -> None:
    if (root / "pom.xml").is_file():
        draft.found("java", "maven")
        draft.check("test", f"{'./mvnw' if (root / 'mvnw').is_file() else 'mvn'} -q -B test")
    elif any((root / name).is_file() for name in ("build.gradle", "build.gradle.kts", "settings.gradle.kts")):
        draft.found("java", "gradle")
        draft.check("test", f"{'./gradlew' if (root / 'gradlew').is_file() else 'gradle'} --console=plain test")


def _make(root: Path, draft: _Draft) -> None:
    """A Makefile's targets, where no manifest named the same check."""
    makefile = next((root / name for name in ("Makefile", "makefile", "GNUmakefile") if (root / name).is_file()), None)
    if makefile is None:
        return
    targets = set(re.findall(r"^([A-Za-z][\w-]*)\s*:(?!=)", _text(makefile), re.MULTILINE))
    for check, names in (("test", ("test", "check")), ("lint", ("lint",))):
        name = next((name for name in names if name in targets), None)
        if name and check not in draft.checks:
            draft.check(check, f"make {name}")


def _copies(root: Path) -> Iterator[str]:
    """An example of an environment file holds test values: it stands in for the real one, whose secrets stay here."""
    for name in (".env.example", ".env.sample", ".env.test.example"):
        if (root / name).is_file():
            yield f"{name} -> .env"
            return


def _folders(root: Path) -> Iterator[Path]:
    """Folders one and two levels down, but none that tools fill."""
    first = [p for p in islice(sorted(root.iterdir()), 200) if p.is_dir() and not p.is_symlink()]
    for folder in first:
        if folder.name not in _SKIPPED:
            yield folder
            yield from (p for p in islice(folder.iterdir(), 100) if p.is_dir() and p.name not in _SKIPPED)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_B).decode("utf-8", "replace")
    except OSError:
        return ""


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError:
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _table(value: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        inner = value.get(name)
        value = inner if isinstance(inner, dict) else {}
    return value


_COMMENTS: Final = {
    "setup": "Run once for each state of the lock files; what it builds is there, read-only, for agents and checks.",
    "locks": "The files that say what `setup` builds, if not the usual lock files and manifests. `**` for all.",
    "checks": "Exit code 0 means good. A command is text for the shell, or a list of arguments.\n"
    "Long form: {run: ..., timeout: 5m, score_pattern: '(?P<passed>\\d+) passed, (?P<failed>\\d+) failed'}",
    "defaults": "quick judges every attempt, full judges the merged result.",
    "copy": "Files that git does not have but the work needs. `from -> to` renames; never list secrets.",
    "env": "Environment variables of checks, besides PATH, HOME, LANG and CI.",
    "network": "What set-up commands may reach: none, gateway or open. Checks reach nothing.",
    "ports": "Environment variables, such as PORT, that hold a free port of each workspace's own.",
    "protected": "Paths that no agent may change: work that does is sent back.",
    "known_red": "Checks, or tests by name, that fail already: they do not count against anybody's work.",
    "flaky": "Checks that sometimes fail for no reason: red and then green passes.",
    "budget": "The most that one run may cost, in dollars; `--budget` may set less.",
}


def dump(profile: Profile) -> str:
    """The profile as commented YAML; what is empty is shown commented out. `load(dump(p)) == p`."""
    values = profile.model_dump(by_alias=True, mode="json", exclude_none=True)
    values["checks"] = {
        name: check["run"] if list(check) == ["run"] else check for name, check in values["checks"].items()
    }
    lines = ["# What Parallax needs to know about this repository. Written by `parallax init`; edit as you like.", ""]
    for key in (field.alias or name for name, field in Profile.model_fields.items()):
        value = values.get(key)
        empty = value is None or value in ([], {}) or (key == "defaults" and not any(value.values()))
        lines += [f"# {line}" for line in _COMMENTS.get(key, "").splitlines()]
        text = yaml.safe_dump({key: value}, allow_unicode=True, sort_keys=False, width=10_000).rstrip("\n")
        lines += [f"# {key}:"] if empty else text.splitlines()
        if key in _COMMENTS or key == "package_manager":
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"
