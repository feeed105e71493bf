"""The sandbox's shape: which command puts an agent into a place of its own, and what it finds there.

A user, process, mount, IPC and host-name namespace by bubblewrap, no capability, no new privileges; the system
read-only by allow-list, the agent's tree and home writable, everything else is not there. Without a network the relay
(`agents/relay.py`) is all that leads out. Used by `local`, which starts what `command` returns.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from parallax.agents import relay
from parallax.agents.runtimes import visible
from parallax.agents.runtimes.visible import Shown
from parallax.models import LaunchSpec, Limits
from parallax.ports import AgentSession

TREE: Final = Path("/workspace")
HOME: Final = Path("/home/agent")
OBJECTS: Final = Path("/mirror/objects")
SOCKET: Final = "/run/gateway.sock"
RELAY: Final = "/run/relay.py"
PORT: Final = 8899
DOOR_URL: Final = f"http://127.0.0.1:{PORT}"
UID: Final = 1000
TMP: Final = "/tmp"  # noqa: S108 - the sandbox's own, gone with it
TMP_B: Final = 2 * 1024**3
# Programs and what they need to run; nothing of it is this user's own. What is missing is left out.
SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
CONFIGURATION: Final = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "fonts", "java", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "perl", "pki/ca-trust", "pki/tls/cert.pem",
    "pki/tls/certs", "pki/tls/openssl.cnf", "protocols", "python3", "services", "ssl/cert.pem", "ssl/certs",
    "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip
_OWN: Final = {
    "passwd": f"root:x:0:0:root:/root:/bin/sh\nagent:x:{UID}:{UID}:Agent:{HOME}:/bin/sh\n",
    "group": f"root:x:0:\nagent:x:{UID}:\n",
    "hosts": "127.0.0.1 localhost agent\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Builds commands. `etc` is a directory with the few files of /etc that are the sandbox's own; `hidden` are
    directories that no allow-list may show by accident: the user's home, the server's data.
    """

    program: str
    etc: Path
    hidden: tuple[Path, ...]

    def inside(self, session: AgentSession) -> AgentSession:
        """The names in here."""
        door = session.door
        if door is not None and door.socket is not None:
            door = replace(door, url=DOOR_URL)
        objects = None if session.objects is None else OBJECTS
        return replace(session, tree=TREE, home=HOME, objects=objects, door=door, shut_in=True)

    def command(self, spec: LaunchSpec, program: str, control: int) -> list[str]:
        """What to execute, with an environment that holds nothing; `control` is the descriptor of the relay's socket.

        Whoever starts it must start it with an environment that holds nothing of the agent's or the server's: some
        variables change what a program does, and everything in the sandbox can read what its process 1 started with.
        """
        command = [
            self.program, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try",
            "--uid", str(UID), "--gid", str(UID), "--hostname", "agent",
            "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        ]  # fmt: skip
        if spec.network != "open":
            command.append("--unshare-net")
        command += [*self._system(spec), *self._places(spec), *self._programs(spec, program)]
        command += ["--ro-bind", relay.__file__, RELAY, "--chdir", str(TREE), "--remount-ro", "/"]
        return [*command, "--", interpreter(), "-I", "-S", RELAY, str(control)]

    def _system(self, spec: LaunchSpec) -> list[str]:
        command = ["--proc", "/proc", "--dev", "/dev", "--size", str(TMP_B), "--tmpfs", TMP]
        command += ["--dir", "/var", "--symlink", f"..{TMP}", f"/var{TMP}"]
        for name in SYSTEM:
            if (path := Path(name)).is_symlink():
                command += ["--symlink", os.readlink(path), name]  # noqa: PTH115 - as it is written
            elif path.is_dir():
                command += ["--ro-bind", name, name]
        for name in CONFIGURATION:
            if (path := Path("/etc", name)).exists():
                command += ["--ro-bind", str(path.resolve()), str(path)]
        names = dict.fromkeys(_OWN)
        if spec.network == "open":
            del names["hosts"]
            for name in ("hosts", "resolv.conf"):
                command += ["--ro-bind-try", str(Path("/etc", name).resolve()), f"/etc/{name}"]
        for name in names:
            command += ["--ro-bind", str(self.etc / name), f"/etc/{name}"]
        return command

    def _places(self, spec: LaunchSpec) -> list[str]:
        command = ["--bind", str(spec.cwd), str(TREE)]
        command += ["--bind", str(spec.home), str(HOME)] if spec.home is not None else ["--tmpfs", str(HOME)]
        if spec.objects is not None:
            # Also at its own path: that is what the alternates of the tree's throw-away repository name.
            for place in (OBJECTS, spec.objects):
                command += ["--ro-bind", str(spec.objects), str(place)]
        for name, path in spec.shared:
            root, _, rest = name.partition("/")
            command += ["--ro-bind", str(path), str((TREE if root == "tree" else HOME) / rest)]
        if spec.gateway is not None and spec.network == "gateway":
            command += ["--bind", str(spec.gateway), SOCKET]
        return command

    def _programs(self, spec: LaunchSpec, program: str) -> list[str]:
        home = Path.home()
        wanted = visible.program(Path(program))
        wanted += visible.program(Path(interpreter()))
        for path in spec.readable:
            wanted += visible.program(path)
        wanted += _toolchains(spec.env.get("PATH", ""), home)
        system = [Path(name) for name in SYSTEM if Path(name).is_dir() and not Path(name).is_symlink()]
        system += [Path(name) for name in SYSTEM if Path(name).is_symlink()]
        command: list[str] = []
        for item in visible.plan(wanted, system, self.hidden):
            if item.link is None:
                command += ["--ro-bind", str(item.path), str(item.path)]
            else:
                command += ["--symlink", item.link, str(item.path)]
        for path in spec.writable:
            command += ["--bind", str(path), str(path)]
        return command


@functools.lru_cache(maxsize=64)
def _toolchains(path: str, home: Path) -> list[Shown]:
    found = visible.managers(home)
    for name in path.split(os.pathsep):
        directory = Path(name)
        if directory.is_absolute() and directory.is_dir():
            found += visible.on_path(directory, home)
    return found


def interpreter() -> str:
    """The Python that runs the relay: ours, without the virtual environment around it."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def limits(asked: Limits) -> dict[str, int]:
    """Resource limits by the kernel's names. Those on processes count a whole sandbox, with all threads."""
    cores = os.cpu_count() or 1
    found = {
        "CORE": 0,
        "NOFILE": asked.files or 4096,
        "FSIZE": asked.file_b or 5 * 1024**3,
        "NPROC": asked.processes or max(256, 128 * cores),
    }
    if asked.memory_b is not None:  # as data: a JavaScript engine reserves far more address space than it uses
        found["DATA"] = asked.memory_b
    return found


def prepare(etc: Path, hidden: tuple[Path, ...]) -> Bubblewrap | None:
    """Write the sandbox's own files; None when bubblewrap is not installed."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    etc.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in _OWN.items():
        (etc / name).write_text(text)
    return Bubblewrap(program, etc, tuple(path for item in hidden for path in {item, item.resolve()}))
