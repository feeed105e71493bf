"""The one place that makes HTTP clients, so that the library can be swapped in one line.

httpx serves what is not hot (the command line, GitHub, webhooks); the gateway has aiohttp of its own.
"""

from __future__ import annotations

from typing import Any

import httpx


def client(base_url: str = "", *, timeout_s: float = 30.0, **options: Any) -> httpx.AsyncClient:
    """A client that follows no redirect and takes no proxy from the environment."""
    return httpx.AsyncClient(
        base_url=base_url, timeout=httpx.Timeout(timeout_s), follow_redirects=False, trust_env=False, **options
    )
