"""The first process inside a sandbox: it joins the agent to the gateway, starts it, and ends with it.

`runtimes/local.py` starts it as `python -I -S relay.py FD`, as process 1 of a namespace without a network: when it
ends, the kernel ends every other process there. What it shall do comes through the control socket FD, so that no secret
ever stands in a command line, and no variable of the agent's reaches the program that builds the sandbox: a document
(four bytes of length, then JSON) with `argv`, `env`, `limits` and, where there is a gateway, the path of its unix
socket and the port of loopback on which it is to be found.

After that the server sends single bytes, each the number of a signal for every process in here; when the socket ends,
the server is gone and everything is killed. Back go one byte when we are there (0), one when the agent is (0: it runs;
1: it could not be started, and why), and at the end its wait status. Standard library only: nothing else may be there.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from typing import Any, Final, NoReturn

HIGH_WATER: Final = 262_144  # bytes that wait for a slow reader before the other side is read no further
OOM_SCORE: Final = "500"  # when memory runs out, an agent goes before the server does


def main() -> NoReturn:
    """Read what to do, start the agent, forward until it has ended."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    control.sendall(b"\0")
    document = json.loads(_exactly(control, struct.unpack(">I", _exactly(control, 4))[0]))
    selector = selectors.DefaultSelector()
    if document.get("gateway"):
        _Door(selector, document["gateway"], document["port"])
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for forwarded in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(forwarded, lambda number, _: _signal_all(number))
    try:
        agent = _start(document["argv"], document["env"], document["limits"])
    except OSError as error:
        control.sendall(b"\1" + str(error.strerror or error).encode()[:500])
        sys.exit(127)
    control.sendall(b"\0")
    selector.register(control, selectors.EVENT_READ, lambda _: _obey(control))
    selector.register(woken, selectors.EVENT_READ, lambda _: os.read(woken, 4096))
    while (status := _reap(agent)) is None:
        for key, events in selector.select():
            key.data(events)
    with contextlib.suppress(OSError):
        control.sendall(struct.pack(">I", status))
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _reap(agent: int) -> int | None:
    """The agent's status once it has ended. As the first process in here we also collect what others left behind."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == agent:
            return status
        if not ended:
            return None


def _exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = control.recv(size - len(data))
        if not chunk:
            sys.exit(1)  # the server went away before it said what to do
        data += chunk
    return data


def _start(argv: list[str], env: dict[str, str], limits: dict[str, int]) -> int:
    """Fork and execute; raises OSError when the program cannot be executed. One thread, so forking is safe."""
    failed, fail = os.pipe()  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python; a program may count on them
                signal.signal(ignored, signal.SIG_DFL)
            _limit(limits)
            os.execvpe(argv[0], argv, env)  # noqa: S606 - an argument list, no shell
        except OSError as error:
            os.write(fail, struct.pack(">I", error.errno or 0))
        finally:
            os._exit(127)
    os.close(fail)
    number = os.read(failed, 4)
    os.close(failed)
    if number:
        os.waitpid(pid, 0)
        code = struct.unpack(">I", number)[0]
        raise OSError(code, os.strerror(code))
    return pid


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - start time
        file.write(OOM_SCORE)


def _obey(control: socket.socket) -> None:
    """Signals from the server; its end is everybody's end."""
    try:
        numbers = control.recv(64)
    except OSError:
        numbers = b""
    for number in numbers or bytes([signal.SIGKILL]):
        _signal_all(number)
    if not numbers:
        os._exit(137)


def _signal_all(number: int) -> None:
    """To every process of this namespace but ourselves, whatever session or group it went to."""
    with contextlib.suppress(OSError):
        os.kill(-1, number)


class _Door:
    """Joins each connection to loopback with one to the gateway's unix socket."""

    def __init__(self, selector: selectors.BaseSelector, path: str, port: int) -> None:
        self._selector = selector
        self._path = path
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(128)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            near = self._listener.accept()[0]
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(self._path)
        except OSError:  # the session has ended: the caller is told by the end of its connection
            near.close()
            far.close()
            return
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one, other = _Side(self._selector, near), _Side(self._selector, far)
        one.other, other.other = other, one
        one.watch()
        other.watch()


class _Side:
    """One end of a joined connection: what it reads, the other end writes."""

    other: _Side

    def __init__(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._selector = selector
        self._socket = connection
        self._waiting = bytearray()  # to be written here
        self._ended = False  # nothing more is to be read here
        self._shut = False  # nothing more is to be written here
        self._watched = 0

    def watch(self) -> None:
        """Wait for what can be done now; close both ends when nothing is left to do."""
        reads = not self._ended and len(self.other._waiting) < HIGH_WATER
        events = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if self._waiting else 0)
        if events == self._watched:
            return
        if not self._watched:
            self._selector.register(self._socket, events, self._act)
        elif events:
            self._selector.modify(self._socket, events, self._act)
        else:
            self._selector.unregister(self._socket)
        self._watched = events

    def _act(self, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._read()
            if events & selectors.EVENT_WRITE:
                self._write()
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            self.other._close()
            return
        if self._shut and self.other._shut:
            self._close()
            self.other._close()
            return
        self.watch()
        self.other.watch()

    def _read(self) -> None:
        data: Any = self._socket.recv(65_536)
        if data:
            self.other._waiting += data
        else:
            self._ended = True
            self.other._finish()

    def _write(self) -> None:
        del self._waiting[: self._socket.send(self._waiting)]
        self._finish()

    def _finish(self) -> None:
        """Pass the end on once everything before it has been written."""
        if self.other._ended and not self._waiting and not self._shut:
            self._shut = True
            self._socket.shutdown(socket.SHUT_WR)

    def _close(self) -> None:
        if self._watched:
            self._selector.unregister(self._socket)
            self._watched = 0
        self._socket.close()


if __name__ == "__main__":
    main()
