"""The worlds of these tests; what they are is told in tests/e2e."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import new_world
from tests.e2e.processes import World


@pytest.fixture
def world() -> Iterator[World]:
    """A world of this test alone."""
    with new_world() as made:
        yield made
