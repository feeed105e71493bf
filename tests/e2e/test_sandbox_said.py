"""Which way agents run is said: in a line of `run`, and by `doctor`."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.e2e.processes import World

RUN = ("run", "--agent", "scripted", "--yes")


def test_without_a_sandbox_it_is_said_and_everything_works(world: World) -> None:
    done = world.run(*RUN, str(world.place / "duo.yaml"), "make it", PARALLAX_SANDBOX="off")
    assert done.code == 0, done.err
    assert done.err.count("no sandbox: agents run with all rights of your own") == 1
    found = json.loads(world.inside("doctor", "--json", PARALLAX_SANDBOX="off").out)["machine"]
    (sandbox,) = [finding for finding in found if finding["part"] == "sandbox"]
    assert (sandbox["state"], sandbox["found"][:5]) == ("warn", "none ")


def test_with_a_sandbox_it_is_said_once(world: World) -> None:
    if shutil.which("bwrap") is None:
        assert not os.environ.get("PARALLAX_REQUIRE_SANDBOX"), "PARALLAX_REQUIRE_SANDBOX is set, but there is no bwrap"
        pytest.skip("bubblewrap is not installed")
    done = world.run(*RUN, str(world.place / "duo.yaml"), "make it", PARALLAX_SANDBOX="require")
    assert done.code == 0, done.err
    assert done.err.count("agents and checks run in a sandbox (bubblewrap)") == 1
    found = json.loads(world.inside("doctor", "--json").out)["machine"]
    assert [finding["state"] for finding in found if finding["part"] == "sandbox"] == ["ok"]
