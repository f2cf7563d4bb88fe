"""Runners in this very process, and channels to their ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import grpc.aio
import pytest

from actorhub import Cluster, Hub
from actorhub.transport.grpc._pb.admin_v1_pb2_grpc import AdminStub
from actorhub.transport.grpc._pb.client_v1_pb2_grpc import GatewayStub
from tests.ops import durable_shop
from tests.support import shop
from tests.support.parts import runner_of


class Port:
    """One runner and a channel to it."""

    def __init__(self, cluster: Cluster, channel: grpc.aio.Channel) -> None:
        self.cluster = cluster
        self.channel = channel
        self.admin = AdminStub(channel)
        self.gateway = GatewayStub(channel)

    @property
    def address(self) -> str:
        assert self.cluster.runner is not None
        return self.cluster.runner.address


class Ports:
    """The runners of one test on one database."""

    def __init__(self, url: str, hub: Hub) -> None:
        self._url = url
        self._hub = hub
        self.stack = AsyncExitStack()

    async def open(self, **settings: Any) -> Port:
        made = self._hub.runner(database_url=self._url, listen="127.0.0.1:0", **settings)
        cluster = await self.stack.enter_async_context(made)
        assert cluster.runner is not None
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(cluster.runner.address))
        return Port(cluster, channel)

    async def execute(self, sql: str) -> None:
        """Change the database behind the runners' backs."""
        connection = await asyncpg.connect(self._url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def open_two(self) -> tuple[Port, Port]:
        """Open two runners that share the shards evenly."""
        first, second = await self.open(), await self.open()
        async with asyncio.timeout(20):
            while {len(runner_of(port.cluster).ownership.owned) for port in (first, second)} != {150}:
                await asyncio.sleep(0.02)
        return first, second


@pytest.fixture
async def ports(postgres_url: str) -> AsyncIterator[Ports]:
    """Runners on an empty database, closed after the test."""
    made = Ports(postgres_url, shop.hub)
    async with made.stack:
        yield made


@pytest.fixture
async def durable_ports(postgres_url: str) -> AsyncIterator[Ports]:
    """The same with a hub whose handlers are durable."""
    made = Ports(postgres_url, durable_shop.hub)
    async with made.stack:
        yield made
