"""Room on the disk of the data directory: a low-water mark for new work, and a ballast for the work that runs.

`intake` asks `check` before it takes an execution in, `writer` lets the ballast go when a commit does not fit, and
`housekeeping` takes it up again when there is room. The ballast is a file of an eighth of the mark: what is finished on
a full disk, and the record that something failed, still find their place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from parallax.errors import StorageFull

MIB: Final = 1024 * 1024


class Space:
    """The file system that holds a directory. `low_b` is the free space, in bytes, below which nothing new begins."""

    def __init__(self, directory: Path, low_b: int) -> None:
        self._directory = directory
        self._ballast = directory / "ballast"
        self.low_b = low_b
        self.ballast_b = low_b // 8

    def free_b(self) -> int:
        """What is free for this user now."""
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    @property
    def scarce(self) -> bool:
        """Whether even what runs may soon find no room."""
        return self.free_b() < self.ballast_b

    def check(self) -> None:
        """Raise StorageFull when the free space is below the mark."""
        free = self.free_b()
        if free < self.low_b:
            raise StorageFull(
                f"only {free // MIB} MB are free for {self._directory}, and new work needs {self.low_b // MIB} MB "
                "(PARALLAX_MIN_FREE_MB): make room; what runs goes on"
            )

    def hold(self) -> None:
        """Take the ballast up, when there is room for it above the mark."""
        if not self._ballast.exists() and self.free_b() > self.low_b + self.ballast_b:
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, max(1, self.ballast_b))
            finally:
                os.close(descriptor)

    def release(self) -> bool:
        """Let the ballast go; whether there was one."""
        try:
            self._ballast.unlink()
        except FileNotFoundError:
            return False
        return True
