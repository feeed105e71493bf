"""`parallax init`: looks, tries, writes one file, and says in five lines what it found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import git, make_repository
from tests.e2e.processes import World

PYTHON = {
    "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n',
    "shop/__init__.py": "",
    "tests/__init__.py": "",
    "tests/test_shop.py": "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_it(self):\n        pass\n",
}
NODE = {
    "package.json": '{"name": "shop", "version": "1.0.0", "scripts": {"test": "node --test"}}\n',
    "shop.test.js": "require('node:test')('it', () => {})\n",
}


def five_lines(world: World, repo: Path, *args: str) -> list[str]:
    """Run init; what it printed."""
    done = world.inside("init", *args, cwd=repo)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == ["language", "set-up", "checks", "judged", "wrote"]
    return lines


def test_a_python_repository(world: World) -> None:
    repo = make_repository(world.place / "python", PYTHON)
    lines = five_lines(world, repo)
    assert "python" in lines[0]
    assert "unittest" in lines[2]
    assert "passes" in lines[2]
    profile = yaml.safe_load((repo / ".parallax.yaml").read_text())
    assert profile["language"] == "python"
    assert git(repo, "status", "--porcelain") == "?? .parallax.yaml", "nothing else is written"


@pytest.mark.skipif(shutil.which("node") is None, reason="tries the checks of a Node repository, and there is no Node")
def test_a_node_repository(world: World) -> None:
    repo = make_repository(world.place / "node", NODE)
    lines = five_lines(world, repo)
    assert "javascript" in lines[0]
    assert "npm" in lines[2]
    assert git(repo, "status", "--porcelain") == "?? .parallax.yaml"


def test_several_projects_in_one_repository_are_said(world: World) -> None:
    files = PYTHON | {
        "shop/pyproject.toml": "[project]\nname = 'shop'\n",
        "till/pyproject.toml": "[project]\nname = 'till'\n",
    }
    repo = make_repository(world.place / "several", files)
    first = five_lines(world, repo, "--no-try")[0]
    assert "several projects: shop/pyproject.toml, till/pyproject.toml" in first


def test_as_json(world: World) -> None:
    repo = make_repository(world.place / "python", PYTHON)
    done = world.inside("init", "--json", "--repo", str(repo))
    assert done.json["profile"] == str(repo / ".parallax.yaml")
    assert done.json["language"] == "python"
    assert done.err == ""


def test_a_profile_that_is_there_is_not_written_over(world: World) -> None:
    profile = world.repo / ".parallax.yaml"
    before = profile.read_text()
    done = world.inside("init")
    assert done.code == 2
    assert str(profile) in done.sentence
    assert "--force" in done.sentence
    assert profile.read_text() == before
    assert world.inside("init", "--force", "--no-try").code == 0
    assert profile.read_text() != before


def test_what_is_no_repository_is_said(world: World) -> None:
    done = world.inside("init", "--repo", str(world.place))
    assert done.code == 2
    assert "git" in done.sentence
    assert not (world.place / ".parallax.yaml").exists()
