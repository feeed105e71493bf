"""The scripted agent of `agents/scripted_agent.py`, for demos and tests: no account, no model."""

from __future__ import annotations

from pathlib import Path

from parallax.agents import scripted_agent
from parallax.agents.clis.base import Dialect, base_env
from parallax.models import LaunchSpec
from parallax.ports import AgentSession, Quirks

AGENT = Path(scripted_agent.__file__)


class ScriptedCLI(Dialect):
    """Every agent of one server reads the same script, by its role; `ledger` is where it counts its turns."""

    type = "scripted"
    quirks = Quirks(resume="load")

    def __init__(self, script: Path, ledger: Path | None = None) -> None:
        self.script = script
        self.ledger = ledger

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """`program` is a Python. The agent is run as a file: importing the package would cost start time for nothing.

        -P keeps the agent's directory off Python's path: a `json.py` in the user's repository is not the agent's.
        """
        more = {} if self.ledger is None else {"PARALLAX_LEDGER": str(self.ledger)}
        secrets = {}
        if (door := session.model_door) is not None:
            more["PARALLAX_MODEL_URL"] = f"{door.url}/model/anthropic"
            secrets["PARALLAX_MODEL_TOKEN"] = door.token
        return LaunchSpec(
            argv=(program, "-P", str(AGENT), "--script", str(self.script)),
            cwd=session.tree,
            env=base_env(session, **more),
            secrets=secrets,
            home=session.home,
            readable=(AGENT, self.script),
            writable=() if self.ledger is None else (self.ledger,),
            sandbox="auto",  # it is ours, and demos and tests run where there is no sandbox
            labels={"agent": session.agent_id},
        )
