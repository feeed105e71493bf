"""The live view on a terminal of 80 columns: one line per agent, and told lines that end at the edge."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from tests.e2e.conftest import new_world

COLUMNS = 80


def test_an_agent_has_one_line_with_state_step_elapsed_and_confidence() -> None:
    with new_world(wait=0.6) as world:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "parallax", "run", str(world.place / "duo.yaml"), "make " * 60, "--agent", "scripted",
             "--yes"],
            cwd=world.repo, env=world.env(TERM="xterm"), stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    agents = [line for line in lines if re.match(r"^\S +engineer\.\d ", line)]
    assert any(re.search(r"engineer\.\d +busy +first +\d+s", line) for line in agents)
    assert any(re.search(r"engineer\.\d +\w+ +(left|right) +\d+s +[01]\.\d\d", line) for line in agents), agents[-1]
    told = [line for line in lines if re.match(r"^ +\d+\.\ds  ", line)]
    assert told
    assert max(len(line) for line in [*agents, *told]) <= COLUMNS
