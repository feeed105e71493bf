"""The two commands set everything up; where they cannot, they say in one sentence what to install."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the set-up reads, and nothing else."""
    (tmp_path / ".ci").mkdir()
    for name in (".ci/venv", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def set_up(clone: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Run the set-up with nothing but coreutils and this Python."""
    tools = clone / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "cat", "cksum", "dirname"):
        if not (tools / name).exists():
            (tools / name).symlink_to(shutil.which(name) or name)
    return subprocess.run(
        [".ci/venv"], cwd=clone, env={"PATH": str(tools), "PYTHON": python}, capture_output=True, text=True, check=False
    )


def fake_python(clone: Path, refuses: str) -> str:
    """A Python that is new enough, but fails at what `refuses` names."""
    path = clone / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{refuses}*) exit 1;; esac\nexit 0\n')
    path.chmod(0o755)
    return str(path)


def test_a_python_without_ensurepip_gets_the_name_of_its_package(clone: Path) -> None:
    done = set_up(clone, fake_python(clone, "ensurepip"))
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "apt-get install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_machine_without_a_new_enough_python_is_told_so(clone: Path) -> None:
    done = set_up(clone, fake_python(clone, "version_info"))
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_environment_that_is_up_to_date_is_left_alone(clone: Path) -> None:
    stamp = subprocess.run(
        ["sh", "-c", "cat pyproject.toml requirements-dev.lock | cksum"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").write_text(f"{stamp} requirements-dev.lock\n")
    assert set_up(clone, "/nonexistent").returncode == 0


def test_the_locks_pin_every_package_with_hashes_and_name_no_host() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
