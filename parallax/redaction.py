"""Secrets that do not print, and one redactor for everything that leaves the process.

Everyone who holds a token wraps it in `Secret`; logs, events, errors and agent output pass through `Redactor`. The
type is the first net, the redactor the second: transformed values can escape a redactor, so no secret is given to
an agent in the first place.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Final
from urllib.parse import quote

# Token formats that are recognised without knowing the value (2026). GitHub's `ghs_` may be about 520 characters.
TOKEN_FORMATS: Final = re.compile(
    r"""
      gh[opsur]_[A-Za-z0-9._]{36,}
    | github_pat_[A-Za-z0-9_]{22,}
    | gl(?:pat|rt|dt|cbt|ptt)-[A-Za-z0-9_.-]{20,}
    | plx_[A-Za-z0-9_-]{32,}
    | sk-[A-Za-z0-9_-]{20,}
    | AKIA[0-9A-Z]{16}
    | xox[abeprs]-[A-Za-z0-9-]{10,}
    | npm_[A-Za-z0-9]{36}
    | hf_[A-Za-z0-9]{30,}
    | pypi-[A-Za-z0-9_-]{50,}
    | AIza[0-9A-Za-z_-]{35}
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    """,
    re.VERBOSE,
)
MASK: Final = "[redacted]"
SHORTEST: Final = 8
HELD: Final = 4096  # characters of a word that is held back in a stream: no token is as long


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
    """Masks known secret values and token formats in text. One per process, fed by whoever makes a secret.

    A known value is also found in base64 (at any offset), hexadecimal, URL and JSON writing; a key line by line.
    """

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._pattern: re.Pattern[str] | None = None

    def learn(self, secret: Secret) -> None:
        """From now on the secret's value is masked. Values under 8 characters are too common to mask."""
        if len(value := secret.reveal()) >= SHORTEST:
            self._known[value] = _writings(value)
            self._pattern = None

    def forget(self, secret: Secret) -> None:
        """The secret is dead."""
        if self._known.pop(secret.reveal(), None) is not None:
            self._pattern = None

    def __call__(self, text: str) -> str:
        if self._known:
            if self._pattern is None:
                every = sorted({form for forms in self._known.values() for form in forms}, key=len, reverse=True)
                self._pattern = re.compile("|".join(map(re.escape, every)))
            text = self._pattern.sub(MASK, text)
        return TOKEN_FORMATS.sub(MASK, text)

    def cut(self, text: str, end: int) -> int:
        """Where a text may be cut, at `end` or before it, without cutting a known value that has white space in it."""
        for value in [value for value in self._known if any(c.isspace() for c in value)]:
            for start in range(max(0, end - len(value) + 1), end):
                if value.startswith(text[start : start + len(value)]):
                    end = start
                    break
        return end

    def stream(self) -> Masking:
        """For a text that comes in pieces."""
        return Masking(self)


class Masking:
    """Masks a text that comes in pieces: what may be the beginning of a secret is held back until it is known."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be shown after this piece: all but the last word, which may be half a token."""
        text = self._held + piece
        end = self._redactor.cut(text, max(_last_space(text), len(text) - HELD))
        self._held = text[end:]
        return self._redactor(text[:end])

    def close(self) -> str:
        """The rest."""
        rest, self._held = self._held, ""
        return self._redactor(rest)


def _last_space(text: str) -> int:
    """Where the last word begins."""
    match = re.search(r"\S*\Z", text)
    return match.start() if match else len(text)


def _writings(value: str) -> set[str]:
    """The ways in which a value may be written."""
    raw = value.encode()
    forms = {value, quote(value, safe=""), json.dumps(value)[1:-1], raw.hex(), raw.hex().upper()}
    for offset in range(3):
        text = base64.b64encode(bytes(offset) + raw).decode()
        # Only the characters that the value alone decides: its neighbours share the first and the last one.
        sure = text[-(-8 * offset // 6) : 8 * (offset + len(raw)) // 6]
        forms |= {sure, sure.replace("+", "-").replace("/", "_")}
    if "PRIVATE KEY" in value:
        forms |= {line for line in value.splitlines() if len(line) >= 40 and not line.startswith("-----")}
    return {form for form in forms if len(form) >= SHORTEST}
