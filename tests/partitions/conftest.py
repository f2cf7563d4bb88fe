"""Every test of this folder starts with its gates closed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.cluster.processes import ClusterProcesses, cluster_processes
from tests.support.gates import closed_gates
from tests.support.postgres_server import PostgresServer

__all__ = ["closed_gates"]


@pytest.fixture
async def processes(own_postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners on a Postgres of their own; none is started yet."""
    async with cluster_processes(own_postgres, tmp_path) as cluster:
        yield cluster
