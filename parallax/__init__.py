"""Parallax: teams of AI coding agents. A repository and a goal in the evening, tested branches in the morning.

The public face is lazy: `import parallax` (and with it `parallax --help`) imports no server code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallax._version import __version__

if TYPE_CHECKING:
    from parallax.app import Parallax
    from parallax.config import Settings

__all__ = ["Parallax", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Parallax":
        from parallax.app import Parallax

        return Parallax
    if name == "Settings":
        from parallax.config import Settings

        return Settings
    raise AttributeError(f"module 'parallax' has no attribute {name!r}")
