"""The data directory: made, owned by one process at a time, with the key and the name of this installation.

`app` takes the lock; the command line reads who holds it and where that process is reached. Light on purpose: every
command needs it, and none should import the server for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from parallax.errors import ConfigurationError
from parallax.redaction import Secret

SOCKET_ROOT: Final = 70  # bytes: a socket's path may have about 100, and the names below this directory take 23


def data_directory(path: Path) -> Path:
    """Make it (0700). Raises ConfigurationError that says what to do."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = path / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {path} cannot be written ({error.strerror}): "
            "set PARALLAX_DATA_DIR to a directory of yours"
        ) from None
    return path


# A write-ahead log needs memory that processes share: on these it is not there, or not to be relied on.
_FOREIGN: Final = ("nfs", "cifs", "smb", "fuse", "9p", "virtiofs", "afs", "ceph", "gluster", "lustre")


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on, such as ext4; empty where the kernel does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    place, best, found = str(path.resolve()), "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = before.split()[4].replace("\\040", " ")
        below = place == mount or place.startswith(mount.rstrip("/") + "/")
        if below and len(mount) >= len(best):  # the last mount on a place is the one that is seen
            best, found = mount, after.split()[0]
    return found


def foreign(kind: str) -> bool:
    """Whether a file system of this type is another machine's or another program's, unfit for the database."""
    return kind.startswith(_FOREIGN)


def refuse_foreign(data: Path) -> None:
    """Raises ConfigurationError when the data directory does not lie on a disk of this machine."""
    if foreign(kind := file_system(data)):
        raise ConfigurationError(
            f"the data directory {data} lies on {kind}, where a database can be damaged: "
            "set PARALLAX_DATA_DIR to a directory on a local disk"
        )


def private_file(path: Path) -> None:
    """Make a file (0600), or take from others what they may do with it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def key_of(data: Path) -> Secret:
    """The key of this server's API: made once, readable by its owner alone."""
    path = data / "key"
    try:
        return Secret(path.read_text().strip())
    except FileNotFoundError:
        key = f"plx_{secrets.token_urlsafe(32)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key)
        return Secret(key)


def owner_of(data: Path) -> str:
    """A name for this data directory that its processes carry."""
    path = data / "owner"
    if not path.exists():
        path.write_text(secrets.token_hex(8))
    return path.read_text().strip()


@contextmanager
def socket_directory(data: Path) -> Iterator[Path]:
    """A directory (0700) for unix sockets, empty at first and gone at the end: in the data directory, unless its path
    is too long for sockets; then in the runtime directory of the user or of the system.
    """
    path = data / "run"
    shutil.rmtree(path, ignore_errors=True)  # of a former life that was ended by force
    if len(os.fsencode(path)) > SOCKET_ROOT:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        path = Path(tempfile.mkdtemp(prefix="px-", dir=runtime if 0 < len(runtime) < SOCKET_ROOT - 12 else "/tmp"))  # noqa: S108 - 0700, and its name is random
    else:
        path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class LockFile:
    """One owner of a data directory. The kernel lets go of the lock when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise _held_by_another(self._path) from None
        self.write({"pid": os.getpid()})
        return self

    def write(self, content: dict[str, Any]) -> None:
        """Replace what the lock file says."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


class Residence:
    """A server's place in a directory that it may share with others."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except OSError:
            self.alone = False
            self.share()

    def share(self) -> None:
        """Let others in. Who comes while one is still alone there waits for this."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)


@contextmanager
def living_in(directory: Path) -> Iterator[Residence]:
    """Live in a directory that other servers may share. Who finds it empty is alone until `share`, and may tidy up."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "servers.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield Residence(descriptor)
    finally:
        os.close(descriptor)


def read_lock(path: Path) -> dict[str, Any]:
    """What the holder of a lock wrote."""
    try:
        content = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def refuse_held(lock: Path) -> None:
    """Raise ConfigurationError, which names the holder, when a live process holds the lock."""
    if held(lock):
        raise _held_by_another(lock)


def _held_by_another(lock: Path) -> ConfigurationError:
    return ConfigurationError(
        f"another Parallax (process {read_lock(lock).get('pid', 'unknown')}) owns {lock.parent}: "
        "use it (commands find it by themselves), stop it, or set another PARALLAX_DATA_DIR"
    )


def held(lock: Path) -> bool:
    """Whether a live process holds the lock. Raises ConfigurationError when it cannot be read."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigurationError(f"{lock} cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def existing_key(data: Path) -> str | None:
    """The key of the API, if there is one here."""
    try:
        return (data / "key").read_text().strip()
    except OSError:
        return None
