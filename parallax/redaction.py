"""Secrets that do not print, and one redactor for everything that leaves the process.

Everyone who holds a token wraps it in `Secret`; logs, events, errors and agent output pass through `Redactor`. The
type is the first net, the redactor the second: transformed values can escape a redactor, so no secret is given to
an agent in the first place.
"""

from __future__ import annotations

import re
from typing import Final

# Token formats that are recognised without knowing the value (2026). GitHub's `ghs_` may be about 520 characters.
TOKEN_FORMATS: Final = re.compile(
    r"""
      gh[opsur]_[A-Za-z0-9._]{36,}
    | github_pat_[A-Za-z0-9_]{22,}
    | glpat-[A-Za-z0-9_-]{20,}
    | plx_[A-Za-z0-9_-]{32,}
    | sk-[A-Za-z0-9_-]{20,}
    | AKIA[0-9A-Z]{16}
    | xox[abprs]-[A-Za-z0-9-]{10,}
    | AIza[0-9A-Za-z_-]{35}
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    """,
    re.VERBOSE,
)
MASK: Final = "[redacted]"


class Secret:
    """A value that neither prints nor pickles. `reveal()` is the only way out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself: only where it is handed to the one process that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret cannot be pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))


class Redactor:
    """Masks known secret values and token formats in text. One per process, fed by whoever makes a secret."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def learn(self, secret: Secret) -> None:
        """From now on the secret's value is masked. Values under 8 characters are too common to mask."""
        if len(value := secret.reveal()) >= 8:
            self._known.add(value)

    def forget(self, secret: Secret) -> None:
        """The secret is dead."""
        self._known.discard(secret.reveal())

    def __call__(self, text: str) -> str:
        for value in self._known:
            if value in text:
                text = text.replace(value, MASK)
        return TOKEN_FORMATS.sub(MASK, text)
