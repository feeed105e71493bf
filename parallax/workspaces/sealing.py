"""Sealing: a secret that must be kept is kept encrypted (AES-256-GCM), bound to the row it lies in.

The key comes from the environment or a file, else it is made once beside the database. Whoever steals the database
alone has nothing; whoever copies a sealed value into another row has nothing either. Called by `credentials`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from parallax.errors import ConfigurationError
from parallax.redaction import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_B: Final = 32
_NONCE_B: Final = 12


class Sealer:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.key_id = hashlib.sha256(key).hexdigest()[:8]  # in every sealed value: which key it needs

    @classmethod
    def load(cls, key: str | None, path: Path | None, data: Path) -> Self:
        """With the key given, else the one in the file, else one of the data directory's own, made at the first call.

        Raises ConfigurationError for what is no key.
        """
        if key is not None:
            return cls(_decoded(key, "PARALLAX_ENCRYPTION_KEY"))
        if path is not None:
            try:
                return cls(_decoded(path.read_text(), f"PARALLAX_ENCRYPTION_KEY_PATH ({path})"))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"PARALLAX_ENCRYPTION_KEY_PATH: {path} cannot be read ({error})") from None
        own = data / "encryption.key"
        if not own.exists():
            descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(secrets.token_bytes(_KEY_B)))
                file.flush()
                os.fsync(file.fileno())
        return cls(_decoded(own.read_text(), str(own)))

    @cached_property
    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # here: a quiet start has nothing to seal

        return AESGCM(self._key)

    def seal(self, row: str, secret: Secret) -> str:
        """The secret as text for the row of this id alone."""
        nonce = secrets.token_bytes(_NONCE_B)
        sealed = self._cipher.encrypt(nonce, secret.reveal().encode(), row.encode())
        return f"{self.key_id}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, row: str, sealed: str) -> Secret | None:
        """The secret again; None where another key sealed it, or it was meant for another row, or was changed."""
        from cryptography.exceptions import InvalidTag

        key_id, _, text = sealed.partition(":")
        try:
            raw = base64.b64decode(text, validate=True)
            if key_id != self.key_id:
                return None
            return Secret(self._cipher.decrypt(raw[:_NONCE_B], raw[_NONCE_B:], row.encode()).decode())
        except (binascii.Error, InvalidTag, ValueError):
            return None


def _decoded(text: str, where: str) -> bytes:
    text = text.strip()
    try:
        raw = bytes.fromhex(text) if len(text) == 2 * _KEY_B else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _KEY_B:
        raise ConfigurationError(
            f"{where} is no key of {_KEY_B} bytes in base64 or hexadecimal: make one with `openssl rand -base64 32`"
        )
    return raw
