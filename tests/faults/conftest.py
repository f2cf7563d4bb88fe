"""Fixtures of the fault tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.cluster.processes import ClusterProcesses, cluster_processes
from tests.faults.durable.records import make_witness_table
from tests.support.postgres_server import PostgresServer


@pytest.fixture
async def processes(own_postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners on a Postgres of their own; none is started yet."""
    async with cluster_processes(own_postgres, tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def durable_processes(own_postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners of durable messages on a Postgres of their own; none is started yet."""
    async with cluster_processes(own_postgres, tmp_path, program="tests.faults.durable.program") as cluster:
        await make_witness_table(cluster)
        yield cluster


@pytest.fixture
async def nemesis_processes(own_postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[ClusterProcesses]:
    """Places for three runners of everything on a Postgres of their own; none is started yet."""
    async with cluster_processes(own_postgres, tmp_path, program="tests.faults.nemesis.program") as cluster:
        yield cluster
