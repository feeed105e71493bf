"""The scripted agent: a real process that speaks the Agent Client Protocol and does what a script says.

It stands in for a coding CLI in demos and tests: Parallax starts it, watches it and stops it through the same client as
every real one, and it really edits the files and runs the commands. Started as `parallax-scripted-agent --script FILE`
by `clis/scripted.py`. Standard library only, and even that sparingly: it starts in a few tens of milliseconds.

A script maps roles to rules. A rule has `when` (texts that must all occur in the prompt; absent = always), optionally
`unless` (none of them may), and `do`, a list of actions of one key each: see `ACTIONS`. The first rule that fits the
prompt wins. A rule sees nothing but the prompt, because agents are killed and started again in mid-work.

Environment: PARALLAX_ROLE names the role, PARALLAX_LEDGER a file that gets one line at the start and the end of each
turn, which is how a test counts the turns without believing Parallax. PARALLAX_MODEL_URL and _TOKEN are the door that
`model` asks: with it a script is quiet and alive, or quiet and refused, as real agents are.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

VERSION: Final = "1"
MCP_VERSION: Final = "2025-06-18"
CHUNK: Final = 64  # characters of one streamed piece of text
MODES: Final = ("default", "plan", "acceptEdits")
STOPS: Final = ("end_turn", "refusal", "max_tokens", "max_turn_requests")

# Every action with the type of its value and, for a mapping, its keys: those with `!` are required.
ACTIONS: Final[dict[str, tuple[tuple[type, ...], tuple[str, ...]]]] = {
    "say": ((str,), ()),
    "think": ((str,), ()),
    "edit": ((dict,), ("path!", "content", "replace", "with", "append")),
    "run": ((list,), ()),
    "begin": ((dict,), ("title!", "kind")),  # a tool call that never comes back
    "model": ((dict,), ("seconds", "retry")),  # ask the model, for so long; with retry: after each refusal, so soon
    "permission": ((dict,), ("title!", "kind", "denied")),
    "ask": ((dict,), ("text!", "options", "topic", "save")),
    "tool": ((dict,), ("name!", "arguments", "save")),  # call a team tool over MCP
    "usage": ((dict,), ("input", "output", "cached", "cost")),
    "plan": ((list,), ()),
    "wait": ((int, float), ()),
    "hang": ((bool, str), ()),  # `deaf`: does not even hear session/cancel and SIGTERM
    "flood": ((int, dict), ("bytes!", "as")),  # as: text, line (one line without an end), stderr
    "crash": ((int,), ()),
    "kill": ((bool,), ()),
    "garbage": ((str, dict), ("text", "hex", "newline")),
    "close": ((bool,), ()),  # close standard output, and live on
    "daemon": ((int, float), ()),  # leave a process behind that lives on for so many seconds in a session of its own
    "fail": ((dict,), ("message!", "code", "kind")),  # answer the prompt with a JSON-RPC error
    "stop": ((str,), ()),
    "answer": ((dict,), ("value!", "confidence", "verdict")),
}


class ScriptError(Exception):
    """The script has a mistake; the message says where."""


class _Cancelled(Exception):
    """The client sent session/cancel."""


class _Failed(Exception):
    """The turn ends with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": data}


# --- the script -------------------------------------------------------------------------------------------------------


def load_script(path: str) -> dict[str | None, list[dict[str, Any]]]:
    """Read and check a script: the rules of each role, those for any role under None."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs 5 ms of start time
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: cannot read the script: {error}") from None
    try:
        document = _parse(path, text)
    except ValueError as error:
        raise ScriptError(f"{path}: {error}") from None
    if not isinstance(document, dict) or not document.keys() & {"roles", "rules"}:
        raise ScriptError(f"{path}: a script is a mapping with 'roles' or 'rules'")
    if unknown := document.keys() - {"roles", "rules"}:
        raise ScriptError(f"{path}: unknown key '{min(map(str, unknown))}', expected 'roles' or 'rules'")
    roles = document.get("roles") or {}
    if not isinstance(roles, dict):
        raise ScriptError(f"{path}: 'roles' must map role names to lists of rules")
    script: dict[str | None, list[dict[str, Any]]] = {
        str(role): _rules(f"{path}: role '{role}'", rules) for role, rules in roles.items()
    }
    script[None] = _rules(f"{path}: 'rules'", document.get("rules") or [])
    return script


def _parse(path: str, text: str) -> Any:
    if not path.endswith((".yaml", ".yml")):
        return json.loads(text)
    import yaml  # here, because it costs 30 ms that a JSON script does not pay

    try:
        # The C loader where it is built in: ten times as fast, the same safe constructor.
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _rules(place: str, rules: Any) -> list[dict[str, Any]]:
    if not isinstance(rules, list):
        raise ScriptError(f"{place}: the rules must be a list")
    for number, rule in enumerate(rules, 1):
        here = f"{place}, rule {number}"
        if not isinstance(rule, dict) or not isinstance(rule.get("do"), list):
            raise ScriptError(f"{here}: a rule is a mapping with a list 'do', and optionally 'when' and 'unless'")
        if unknown := rule.keys() - {"when", "unless", "do"}:
            raise ScriptError(f"{here}: unknown key '{min(map(str, unknown))}', expected 'when', 'unless' or 'do'")
        for key in ("when", "unless"):
            if not all(isinstance(text, str) for text in _texts(rule.get(key))):
                raise ScriptError(f"{here}: '{key}' must be a text or a list of texts")
        for step, action in enumerate(rule["do"], 1):
            _check_action(f"{here}, action {step}", action)
    return rules


def _check_action(place: str, action: Any) -> None:
    if not isinstance(action, dict) or len(action) != 1:
        raise ScriptError(f"{place}: an action is a mapping with exactly one key")
    name, value = next(iter(action.items()))
    if name not in ACTIONS:
        raise ScriptError(f"{place}: unknown action '{name}', expected one of {', '.join(ACTIONS)}")
    types, keys = ACTIONS[name]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ScriptError(f"{place}: '{name}' takes {' or '.join(t.__name__ for t in types)}, not {value!r}")
    if isinstance(value, dict) and keys:
        if unknown := value.keys() - {key.rstrip("!") for key in keys}:
            raise ScriptError(f"{place}: '{name}' has no key '{min(map(str, unknown))}'")
        for key in keys:
            if key.endswith("!") and key[:-1] not in value:
                raise ScriptError(f"{place}: '{name}' needs '{key[:-1]}'")
    if name == "edit" and sum(way <= value.keys() for way in ({"content"}, {"append"}, {"replace", "with"})) != 1:
        raise ScriptError(f"{place}: 'edit' needs one of 'content', 'append', or 'replace' together with 'with'")
    if name == "stop" and value not in STOPS:
        raise ScriptError(f"{place}: 'stop' takes one of {', '.join(STOPS)}, not {value!r}")
    if name == "run" and not (value and all(isinstance(part, str) for part in value)):
        raise ScriptError(f"{place}: 'run' takes a list of texts: the program and its arguments")


def _texts(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def choose(script: dict[str | None, list[dict[str, Any]]], role: str, prompt: str) -> list[dict[str, Any]] | None:
    """The actions for a prompt: the role's own rules first, then those for any role; None when no rule fits."""
    for rule in [*script.get(role, ()), *script[None]]:
        if all(text in prompt for text in _texts(rule.get("when"))) and not any(
            text in prompt for text in _texts(rule.get("unless"))
        ):
            return list(rule["do"])
    return None


# --- the protocol -----------------------------------------------------------------------------------------------------


class Wire:
    """Newline-delimited JSON-RPC on file descriptors 0 and 1.

    A thread reads, so that the end of standard input is seen in the middle of anything: the server is gone then, and
    so are we, at once. Requests come out of `inbox` one after another; answers and cancels are handled as they come.
    """

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.children: set[int] = set()
        self._replies: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._lock = threading.Lock()
        self._last_id = 0

    def listen(self) -> None:
        """Read until the end of standard input, then end the process."""
        for line in sys.stdin.buffer:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if not isinstance(message, dict):
                continue
            if message.get("method") == "session/cancel":
                self.cancelled.set()
                for reply in list(self._replies.values()):
                    reply.put(None)
            elif "method" in message:
                self.inbox.put(message)
            elif reply_to := self._replies.get(message.get("id", -1)):
                reply_to.put(message)
        if self.children and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # a command runs: it, its children and ourselves at one blow
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def raw(self, data: bytes) -> None:
        """Write all bytes to standard output."""
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(1, view[: 1 << 20]) :]

    def send(self, message: dict[str, Any]) -> None:
        """One frame."""
        self.raw(json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n")

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """Ask the client and wait; raises `_Cancelled` when the turn is cancelled meanwhile."""

        def ask(number: int, _reply: queue.SimpleQueue[dict[str, Any] | None]) -> None:
            self.send({"id": number, "method": method, "params": params})

        return self.awaited(ask).get("result") or {}

    def awaited(self, begin: Callable[[int, queue.SimpleQueue[dict[str, Any] | None]], None]) -> dict[str, Any]:
        """Begin something that has a reply, under a number of its own, and wait; raises `_Cancelled`."""
        self._last_id += 1
        reply = self._replies[self._last_id] = queue.SimpleQueue()
        begin(self._last_id, reply)
        message = reply.get()
        del self._replies[self._last_id]
        if message is None:
            raise _Cancelled
        return message


class TeamTools:
    """Calls of the team tools: the little of MCP over HTTP that it takes, by the standard library."""

    def __init__(self, server: dict[str, Any]) -> None:
        scheme, _, rest = server["url"].partition("://")
        host, _, path = rest.partition("/")
        if scheme != "http":
            raise ValueError(f"no http address: {server['url']}")
        self.host, self.path = host, f"/{path}"
        self.headers = {header["name"]: header["value"] for header in server["headers"]}
        self.greeted = False

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """Text of the answer, and whether the tool refused."""
        if not self.greeted:
            client = {"name": "parallax-scripted-agent", "version": VERSION}
            self._post("initialize", {"protocolVersion": MCP_VERSION, "capabilities": {}, "clientInfo": client}, 1)
            self._post("notifications/initialized", {}, None)
            self.greeted = True
        answer = self._post("tools/call", {"name": name, "arguments": arguments}, 2)
        if "error" in answer:
            return str(answer["error"].get("message")), True
        result = answer.get("result") or {}
        text = "\n".join(block.get("text", "") for block in result.get("content") or ())
        return text, bool(result.get("isError"))

    def _post(self, method: str, params: dict[str, Any], number: int | None) -> dict[str, Any]:
        import http.client  # here, because it costs 15 ms that only scripts with tools need

        message = {"jsonrpc": "2.0", "method": method, "params": params, **({} if number is None else {"id": number})}
        headers = {
            **self.headers, "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": MCP_VERSION,
        }  # fmt: skip
        connection = http.client.HTTPConnection(self.host)
        try:
            connection.request("POST", self.path, json.dumps(message).encode(), headers)
            answer = connection.getresponse()
            if answer.status not in (200, 202):
                raise OSError(f"the team tools answered {answer.status}")
            return {} if number is None else _first_message(answer)
        finally:
            connection.close()


def _first_message(answer: Any) -> dict[str, Any]:
    """The JSON-RPC answer, whether it came as a document or as an event."""
    if "event-stream" not in (answer.getheader("Content-Type") or ""):
        return dict(json.loads(answer.read()))
    for line in answer:
        if line.startswith(b"data:") and b'"id"' in line:
            return dict(json.loads(line[5:]))
    raise OSError("the team tools ended without an answer")


class ScriptedAgent:
    """Answers the protocol's requests; the turns are done by `Turn`."""

    def __init__(self, script: dict[str | None, list[dict[str, Any]]], role: str, ledger: str | None) -> None:
        self.script = script
        self.role = role
        self.ledger = ledger
        self.wire = Wire()
        self.cwd = os.getcwd()  # noqa: PTH109
        self.elicitation = False
        self.tools: TeamTools | None = None
        self.cost = 0.0

    def serve(self) -> NoReturn:
        """Until standard input ends."""
        threading.Thread(target=self.wire.listen, daemon=True).start()
        while True:
            message = self.wire.inbox.get()
            try:
                reply = {"result": self.answer(message["method"], message.get("params") or {})}
            except _Failed as error:
                reply = {"error": error.error}
            if "id" in message:
                self.wire.send({"id": message["id"], **reply})

    def answer(self, method: str, params: dict[str, Any]) -> Any:
        """One request or notification."""
        modes = {"currentModeId": MODES[0], "availableModes": [{"id": mode, "name": mode} for mode in MODES]}
        match method:
            case "initialize":
                elicitation = (params.get("clientCapabilities") or {}).get("elicitation") or {}
                self.elicitation = elicitation.get("form") is not None
                return {
                    "protocolVersion": 1,
                    "agentCapabilities": {"loadSession": True, "mcpCapabilities": {"http": True}},
                    "agentInfo": {"name": "parallax-scripted-agent", "version": VERSION},
                    "authMethods": [],
                }
            case "session/new":
                self.enter(params)
                return {"sessionId": os.urandom(16).hex(), "modes": modes}
            case "session/load":
                self.enter(params)
                return {"modes": modes}
            case "session/set_mode" | "authenticate":
                return {}
            case "session/prompt":
                return Turn(self, params).play()
            case _:
                raise _Failed(-32601, f"Method not found: {method}", {"method": method})

    def enter(self, params: dict[str, Any]) -> None:
        """Where a session works, and which tools it has."""
        self.cwd = params.get("cwd") or self.cwd
        servers = [server for server in params.get("mcpServers") or () if server.get("type") == "http"]
        self.tools = TeamTools(servers[0]) if servers else None

    def note(self, task: str, event: str) -> None:
        """One line in the ledger, on the disk when this returns."""
        if not self.ledger:
            return
        line = json.dumps({"task": task, "event": event, "pid": os.getpid(), "at": time.time()}) + "\n"
        descriptor = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Turn:
    """One prompt: chooses the rule and plays its actions."""

    def __init__(self, agent: ScriptedAgent, params: dict[str, Any]) -> None:
        self.agent = agent
        self.wire = agent.wire
        self.session = params.get("sessionId")
        self.task = str((params.get("_meta") or {}).get("parallax.task", ""))
        self.prompt = "\n".join(block.get("text", "") for block in params.get("prompt") or [])
        self.saved: dict[str, str] = {}
        self.spent: dict[str, int] | None = None
        self.reason = "end_turn"
        self.ended = False
        self.refused = False
        self.messages = 0
        self.tools = 0

    def play(self) -> dict[str, Any]:
        """Play the script; the ledger has both ends of it, unless the process dies between them."""
        self.wire.cancelled.clear()
        self.agent.note(self.task, "start")
        try:
            actions = choose(self.agent.script, self.agent.role, self.prompt)
            if actions is None:
                role = self.agent.role or "(none)"
                self.say(f"The script has no rule for the role {role} and the prompt: {self.prompt[:80]}")
                self.reason = "refusal"
            for action in actions or ():
                self.act(action)
                if self.ended:
                    break
        except _Cancelled:
            self.reason = "cancelled"
        finally:
            self.agent.note(self.task, "end")
        return {"stopReason": self.reason, **({"usage": self.spent} if self.spent else {})}

    def act(self, action: dict[str, Any]) -> None:
        """One action. A run or an edit right after a refused permission is what was refused: it is left out."""
        name, value = next(iter(action.items()))
        refused, self.refused = self.refused, False
        if refused and name in ("run", "edit"):
            return
        if self.wire.cancelled.is_set():
            raise _Cancelled
        getattr(self, name)(self.filled(value))

    def filled(self, value: Any) -> Any:
        """`{name}` in any text stands for what an earlier `ask` saved under that name."""
        if isinstance(value, str):
            for name, answer in self.saved.items():
                value = value.replace("{" + name + "}", answer)
            return value
        if isinstance(value, list):
            return [self.filled(item) for item in value]
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        return value

    def update(self, update: str, /, **fields: Any) -> None:
        """A session/update notification."""
        body = {"sessionUpdate": update, **fields}
        self.wire.send({"method": "session/update", "params": {"sessionId": self.session, "update": body}})

    # The actions, by their names in a script.

    def say(self, text: str) -> None:
        self.messages += 1
        for piece in _pieces(text):
            self.update(
                "agent_message_chunk", content={"type": "text", "text": piece}, messageId=f"{self.task}#{self.messages}"
            )

    def think(self, text: str) -> None:
        for piece in _pieces(text):
            self.update("agent_thought_chunk", content={"type": "text", "text": piece})

    def edit(self, edit: dict[str, Any]) -> None:
        path = os.path.join(self.agent.cwd, edit["path"])  # noqa: PTH118
        tool = self._tool(f"Edit {edit['path']}", "edit", edit, locations=[{"path": path}])
        try:
            old, new = _edited(path, edit)
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(new)
        except (OSError, ValueError) as error:
            self._tool_done(tool, "failed", str(error))
            return
        diff = {"type": "diff", "path": path, "oldText": old, "newText": new}
        self.update("tool_call_update", toolCallId=tool, status="completed", content=[diff])

    def run(self, argv: list[str]) -> None:
        import subprocess  # here, because it costs 8 ms that many scripts do not need

        tool = self._tool(" ".join(argv), "execute", {"command": argv})
        try:
            child = subprocess.Popen(
                argv,
                cwd=self.agent.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self._tool_done(tool, "failed", str(error), exit_code=127)
            return
        self.wire.children.add(child.pid)
        output = child.communicate()[0].decode("utf-8", "replace")
        self.wire.children.discard(child.pid)
        status = "completed" if child.returncode == 0 else "failed"
        self._tool_done(tool, status, output[-20_000:], exit_code=child.returncode)

    def begin(self, call: dict[str, Any]) -> None:
        self._tool(call["title"], call.get("kind", "other"), {})

    def model(self, how: dict[str, Any]) -> None:
        end = time.monotonic() + how.get("seconds", 0)
        while not self.wire.cancelled.is_set():
            self.saved["model"] = _ask_model()
            if self.saved["model"] != "200" and how.get("retry") is not None:
                self.wait(how["retry"])
            elif self.saved["model"] != "200" or time.monotonic() >= end:
                return
        raise _Cancelled

    def permission(self, permission: dict[str, Any]) -> None:
        self.tools += 1
        call = {
            "toolCallId": f"{self.task}/tool{self.tools}",
            "title": permission["title"],
            "kind": permission.get("kind", "other"),
            "status": "pending",
        }
        options = [
            {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
            {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
        ]
        params = {"sessionId": self.session, "toolCall": call, "options": options}
        outcome = self.wire.call("session/request_permission", params).get("outcome") or {}
        if outcome.get("optionId") != "allow":
            self.refused = True
            if denied := permission.get("denied"):
                self.say(denied)

    def ask(self, question: dict[str, Any]) -> None:
        options = [str(option) for option in question.get("options") or ()]
        if self.agent.elicitation:
            field: dict[str, Any] = {"type": "string", **({"enum": options} if options else {})}
            schema = {"type": "object", "properties": {"answer": field}, "required": ["answer"]}
            params = {"sessionId": self.session, "mode": "form", "message": question["text"], "requestedSchema": schema}
            if question.get("topic"):
                params["_meta"] = {"parallax.topic": question["topic"]}
            reply = self.wire.call("elicitation/create", params)
            answer = str((reply.get("content") or {}).get("answer", "")) if reply.get("action") == "accept" else ""
        else:  # a client that cannot be asked: say the question, go on with the first option
            self.say(question["text"])
            answer = options[0] if options else ""
        self.saved[question.get("save", "answer")] = answer

    def tool(self, call: dict[str, Any]) -> None:
        name, arguments = call["name"], call.get("arguments") or {}
        tool = self._tool(f"parallax: {name}", "other", arguments)

        def begin(_number: int, reply: queue.SimpleQueue[dict[str, Any] | None]) -> None:
            threading.Thread(target=lambda: reply.put(self._called(name, arguments)), daemon=True).start()

        reply = self.wire.awaited(begin)
        self._tool_done(tool, "failed" if reply["failed"] else "completed", reply["text"])
        self.saved[call.get("save", name)] = reply["text"]

    def _called(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self.agent.tools is None:
            return {"text": "there are no team tools in this session", "failed": True}
        try:
            text, failed = self.agent.tools.call(name, arguments)
        except (OSError, ValueError) as error:
            return {"text": f"the team tools cannot be reached: {error}", "failed": True}
        return {"text": text, "failed": failed}

    def plan(self, steps: list[Any]) -> None:
        entries = [{"content": str(step), "priority": "medium", "status": "pending"} for step in steps]
        self.update("plan", entries=entries)

    def usage(self, usage: dict[str, Any]) -> None:
        known = self.spent or {"totalTokens": 0, "inputTokens": 0, "outputTokens": 0, "cachedReadTokens": 0}
        read, written, cached = (usage.get(key, 0) for key in ("input", "output", "cached"))
        self.spent = {
            "totalTokens": known["totalTokens"] + read + written,
            "inputTokens": known["inputTokens"] + read,
            "outputTokens": known["outputTokens"] + written,
            "cachedReadTokens": known["cachedReadTokens"] + cached,
        }
        cost = usage.get("cost")
        if isinstance(cost, (int, float)):
            self.agent.cost += cost  # the protocol's cost is the session's so far
            cost = self.agent.cost
        priced = {} if cost is None else {"cost": {"amount": cost, "currency": "USD"}}
        self.update("usage_update", used=self.spent["totalTokens"], size=200_000, **priced)

    def wait(self, seconds: float) -> None:
        if self.wire.cancelled.wait(seconds):
            raise _Cancelled

    def hang(self, how: bool | str) -> None:
        if how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(3600)
        if how:
            self.wire.cancelled.wait()
            raise _Cancelled

    def flood(self, flood: int | dict[str, Any]) -> None:
        size, shape = (flood, "text") if isinstance(flood, int) else (flood["bytes"], flood.get("as", "text"))
        if shape == "text":
            for piece in _pieces("x" * size, 8192):
                self.update("agent_message_chunk", content={"type": "text", "text": piece})
            return
        block = b"x" * (1 << 16)
        for start in range(0, size, len(block)):
            if shape == "line":
                self.wire.raw(block[: size - start])
            else:
                os.write(2, block[: size - start])
        if shape == "line":
            self.wire.raw(b"\n")

    def crash(self, code: int) -> None:
        os.write(2, b"scripted crash\n")
        os._exit(code)

    def kill(self, really: bool) -> None:
        if really:
            os.kill(os.getpid(), signal.SIGKILL)

    def garbage(self, garbage: str | dict[str, Any]) -> None:
        if isinstance(garbage, str):
            garbage = {"text": garbage}
        data = bytes.fromhex(garbage["hex"]) if "hex" in garbage else str(garbage.get("text", "")).encode()
        self.wire.raw(data + (b"\n" if garbage.get("newline", True) else b""))

    def close(self, really: bool) -> None:
        if really:
            os.close(1)
            time.sleep(3600)

    def daemon(self, seconds: float) -> None:
        import subprocess

        subprocess.Popen(
            [sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def fail(self, failure: dict[str, Any]) -> None:
        kind = failure.get("kind")
        raise _Failed(failure.get("code", -32603), failure["message"], {"errorKind": kind} if kind else None)

    def stop(self, reason: str) -> None:
        self.reason = reason
        self.ended = True

    def answer(self, answer: dict[str, Any]) -> None:
        value = answer["value"]
        text = value if isinstance(value, str) else f"```json\n{json.dumps(value, ensure_ascii=False, indent=2)}\n```"
        if (confidence := answer.get("confidence")) is not None:
            text += f"\n\nCONFIDENCE: {confidence}"
        if verdict := answer.get("verdict"):
            text += f"\nVERDICT: {verdict}"
        self.say(text)

    def _tool(self, title: str, kind: str, raw: Any, **fields: Any) -> str:
        self.tools += 1
        tool = f"{self.task}/tool{self.tools}"
        self.update("tool_call", toolCallId=tool, title=title, kind=kind, status="in_progress", rawInput=raw, **fields)
        return tool

    def _tool_done(self, tool: str, status: str, text: str, exit_code: int | None = None) -> None:
        content = [{"type": "content", "content": {"type": "text", "text": text}}]
        raw = {} if exit_code is None else {"rawOutput": {"exitCode": exit_code, "output": text}}
        self.update("tool_call_update", toolCallId=tool, status=status, content=content, **raw)


def _ask_model() -> str:
    """One streamed call to the model behind the session's door, read to its end and to nobody; its status."""
    import http.client

    scheme, _, rest = os.environ["PARALLAX_MODEL_URL"].partition("://")
    host, _, path = rest.partition("/")
    if scheme != "http":
        raise ValueError(f"no http address: {scheme}")
    body = {"model": "scripted", "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "go"}]}
    headers = {
        "x-api-key": os.environ["PARALLAX_MODEL_TOKEN"], "anthropic-version": "2023-06-01",
        "Content-Type": "application/json",
    }  # fmt: skip
    connection = http.client.HTTPConnection(host)
    try:
        connection.request("POST", f"/{path}/v1/messages", json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)
    finally:
        connection.close()


def _pieces(text: str, size: int = CHUNK) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def _edited(path: str, edit: dict[str, Any]) -> tuple[str | None, str]:
    """A file's text before and after; ValueError when the text to replace is not there."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            old = file.read()
    except FileNotFoundError:
        old = None
    if "content" in edit:
        return old, edit["content"]
    if "append" in edit:
        return old, (old or "") + edit["append"]
    if old is None or edit["replace"] not in old:
        raise ValueError(f"{edit['path']} does not contain {edit['replace']!r}")
    return old, old.replace(edit["replace"], edit["with"], 1)


def main() -> None:
    """`parallax-scripted-agent --script FILE`."""
    arguments = sys.argv[1:]
    if len(arguments) == 1 and arguments[0].startswith("--script="):
        arguments = ["--script", arguments[0].partition("=")[2]]
    if len(arguments) != 2 or arguments[0] != "--script":
        sys.stderr.write("usage: parallax-scripted-agent --script FILE\n")
        sys.exit(2)
    try:
        script = load_script(arguments[1])
    except ScriptError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    try:
        ScriptedAgent(script, os.environ.get("PARALLAX_ROLE", ""), os.environ.get("PARALLAX_LEDGER")).serve()
    except BrokenPipeError:  # nobody reads us any more
        os._exit(0)


if __name__ == "__main__":
    main()
