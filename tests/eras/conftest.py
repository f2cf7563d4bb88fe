"""Servers of these tests."""

from collections.abc import Iterator

import pytest

from tests.support.postgres_server import PostgresServer
from tests.support.standby import BaseBackup


@pytest.fixture
def standby(own_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A standby that follows `own_postgres`."""
    server = PostgresServer(BaseBackup(own_postgres, is_standby=True))
    yield server
    server.close()
