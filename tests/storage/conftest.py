"""What tests of the storage share: a PostgreSQL of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import Cluster, cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One server for the session; every test takes a database of its own from it."""
    with cluster() as running:
        yield running
