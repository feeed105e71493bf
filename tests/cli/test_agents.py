"""`parallax agents` from a second terminal: what each agent does, and what keeps it."""

from __future__ import annotations

import time
from typing import Any

from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish

PATTERN = """
org({engineer: {max: 2}})
const made = parallel([
    () => assign("engineer", "one", {id: "one"}),
    () => assign("engineer", "two", {id: "two"}),
])
return "done"
"""


def agents_where(world: World, wanted: int) -> list[dict[str, Any]]:
    """The agents, once so many of them are kept from working."""
    deadline = time.monotonic() + 40
    while True:
        done = world.inside("agents", "--json")
        kept = [a for a in done.json["agents"] if a["state"] in {"parked", "asking"}] if done.code == 0 else []
        if len(kept) == wanted:
            return kept
        assert time.monotonic() < deadline, done.err
        time.sleep(0.05)


def test_agents_that_are_kept_from_working_are_listed_with_the_reason() -> None:
    at = int(time.time()) + 3600
    limited = {"fail": {"message": f"usage limit reached|{at}", "kind": "rate_limit"}}
    login = {"fail": {"message": "Authentication required", "code": -32000}}
    script = {"rules": [{"when": "one", "do": [limited]}, {"do": [login]}]}
    with new_world(agents=script) as world:
        path = world.place / "two.prism"
        path.write_text(PATTERN)
        process = world.start("run", str(path), "--agent", "scripted", "--yes", "--json")
        kept = {agent["state"]: agent for agent in agents_where(world, 2)}
        assert kept["parked"]["until"] == at
        assert kept["parked"]["pid"] is None
        lines = world.inside("agents").out.splitlines()
        assert lines[0].split() == ["AGENT", "EXECUTION", "TYPE", "STATE", "SINCE", "WHY"]
        parked = next(line for line in lines if "parked until" in line)
        assert f"parked until {time.strftime('%H:%M', time.localtime(at))}" in parked
        assert "usage limit reached" in parked
        (asking,) = [line for line in lines if " asking " in line]
        assert "not logged in" in asking
        shown = world.inside("questions").out
        assert "scripted cannot go on" in shown
        assert "retry | end" in shown
        assert world.inside("stop", kept["parked"]["id"]).code == 0
        assert world.inside("cancel").code == 0
        assert finish(process).code == 1
