"""`.parallax.yaml`: what it may say, what it says when it is wrong, and the first draft of it."""

from __future__ import annotations

import json

import pytest

from parallax.errors import ProfileError
from parallax.workspaces.detection import detect, dump, monorepo_hints
from parallax.workspaces.profile import Check, load

from .conftest import write

FULL = """\
version: 1
language: python
package_manager: uv
setup:
  - uv sync
  - [npm, ci]
checks:
  test: uv run pytest -q
  slow:
    run: [make, slow]
    timeout: 5m
    score_pattern: '(?P<passed>\\d+) ok, (?P<failed>\\d+) bad'
defaults: {quick: test, full: [test, slow]}
copy: [.env.example -> .env, local.cfg]
env: {TZ: UTC}
network: none
ports: [PORT]
protected: ['.github/workflows/**']
known_red: [tests/test_old.py]
flaky: []
budget: 12.5
"""


def test_everything_a_profile_can_say():
    profile = load(FULL)
    assert profile.setup == ("uv sync", ("npm", "ci"))
    assert profile.checks["test"] == Check(run="uv run pytest -q")
    assert profile.checks["slow"].timeout == 300.0
    assert profile.default_checks("quick") == ("test",)
    assert profile.copies() == [(".env.example", ".env"), ("local.cfg", "local.cfg")]
    assert load(dump(profile)) == profile


def test_an_empty_profile_is_a_profile():
    assert load("") == load("# nothing\n")
    assert load("checks: {a: x, b: y}").default_checks("quick") == ("a",)
    assert load("checks: {a: x, b: y}").default_checks("full") == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chekcs: {}", "1:1: unknown key 'chekcs' (did you mean 'checks'?)"),
        ("checks:\n  unit:\n    runn: x", "3:5: unknown key 'runn' (did you mean 'run'?)"),
        ("checks:\n  unit:\n    timeout: 5", "the key 'run' is missing in checks.unit"),
        ("checks:\n  unit: 5", "2:9: checks.unit: expected a command, as text for the shell or as a list"),
        ("checks:\n  unit: []", "as a list of arguments, got an empty one"),
        ("setup: pip install", "1:8: setup: expected a list, got text"),
        ("network: opne", "1:10: network: expected 'none', 'gateway' or 'open', got 'opne' (did you mean 'open'?)"),
        ("env: {DEBUG: 1}", "1:14: env.DEBUG: expected text (quote numbers and true/false), got a number"),
        ("env: {PATH: x}", "'PATH' cannot be set here"),
        ("version: 2", "1:10: version: expected 1, got 2"),
        ("checks: {unit: x}\ndefaults: {quick: uint}", "2:19: there is no check 'uint' (did you mean 'unit'?)"),
        ("copy: [../secret]", "expected a path inside the repository"),
        ("copy: [a -> /etc/x]", "expected a path inside the repository"),
        ("copy: [a -> .git/config]", "expected a path inside the repository"),
        ("checks: {a: {run: x, timeout: soon}}", "expected seconds as a number, or a time such as 90s or 5m"),
        ("checks: {a: {run: x, score_pattern: '(x'}}", "expected a regular expression"),
        ("checks: {a: {run: x, score_pattern: 'x'}}", "expected the groups (?P<passed>...) and (?P<failed>...)"),
        ("budget: lots", "1:9: budget: expected a number, got text"),
        ("budget: -1", "expected a number of at least 0"),
        ("language: no\nlanguage: yes", "2:1: the key 'language' stands twice (first in line 1)"),
        ("setup: &a [x]", "anchors are not allowed"),
        ("language: !!python/object:os.system x", "tags are not allowed"),
        ("- a", "1:1: expected a mapping of settings, got a list"),
        ("checks: {a: [", "2:1: "),
    ],
)
def test_a_mistake_is_shown_where_it_is_with_what_was_expected(text, said):
    with pytest.raises(ProfileError) as caught:
        load(text + "\n", "dir/.parallax.yaml")
    assert f"dir/.parallax.yaml:{said}" in str(caught.value) or said in str(caught.value)


def test_words_of_yaml_1_1_are_text():
    assert load("language: no").language == "no"


PYTEST = {"pyproject.toml": "[project]\nname='x'\n[tool.pytest.ini_options]\n[tool.ruff]\n", "uv.lock": ""}


@pytest.mark.parametrize(
    ("files", "language", "manager", "setup", "checks"),
    [
        (PYTEST, "python", "uv", ("uv sync",), {"test": "uv run python -m pytest -q", "lint": "uv run ruff check ."}),
        (
            {"calc.py": "", "tests/test_calc.py": "import unittest\n"},
            "python",
            None,
            (),
            {"test": "python3 -m unittest discover -s tests"},
        ),
        ({"calc.py": "", "test_calc.py": "def test_x(): pass\n"}, "python", None, (), {"test": "python3 -m pytest -q"}),
        (
            {"requirements.txt": "pytest\n", "tests/test_a.py": ""},
            "python",
            "pip",
            ("python3 -m venv .venv", ".venv/bin/python -m pip install -q -r requirements.txt"),
            {"test": ".venv/bin/python -m pytest -q"},
        ),
        (
            {
                "package.json": json.dumps(
                    {"scripts": {"test": "jest", "lint": "eslint ."}, "devDependencies": {"j": "1"}}
                ),
                "pnpm-lock.yaml": "",
                "tsconfig.json": "{}",
            },
            "typescript",
            "pnpm",
            ("pnpm install --frozen-lockfile",),
            {"test": "pnpm run test", "lint": "pnpm run lint"},
        ),
        (
            {"package.json": json.dumps({"scripts": {"test": 'echo "Error: no test specified" && exit 1'}})},
            "javascript",
            "npm",
            (),
            {},
        ),
        ({"go.mod": "module x\n"}, "go", "go", (), {"test": "go test ./...", "lint": "go vet ./..."}),
        ({"Cargo.toml": "[package]\n"}, "rust", "cargo", ("cargo fetch",), {"test": "cargo test --quiet"}),
        ({"pom.xml": "", "mvnw": ""}, "java", "maven", (), {"test": "./mvnw -q -B test"}),
        ({"build.gradle.kts": ""}, "java", "gradle", (), {"test": "gradle --console=plain test"}),
        ({"Makefile": "X := 1\ntest:\n\ttrue\n"}, None, None, (), {"test": "make test"}),
        ({"README.md": ""}, None, None, (), {}),
        ({"package.json": "[" * 5000, "pyproject.toml": "= broken"}, None, None, (), {}),
    ],
)
def test_detect_looks_at_the_repository(tmp_path, files, language, manager, setup, checks):
    root = tmp_path / "r"
    root.mkdir()
    write(root, files)
    profile = detect(root)
    assert (profile.language, profile.package_manager, profile.setup) == (language, manager, setup)
    assert {name: check.run for name, check in profile.checks.items()} == checks
    assert load(dump(profile)) == profile


def test_detect_protects_ci_and_offers_the_example_environment(tmp_path):
    root = tmp_path / "r"
    write(root, {".github/workflows/ci.yml": "", ".env.example": "A=1", "a/package.json": "{}", "b/go.mod": ""})
    profile = detect(root)
    assert profile.protected == (".github/workflows/**",)
    assert profile.copies() == [(".env.example", ".env")]
    assert monorepo_hints(root) == ["several projects: a/package.json, b/go.mod"]
    assert "# never list secrets" not in dump(profile)
    assert "never list secrets" in dump(profile)
