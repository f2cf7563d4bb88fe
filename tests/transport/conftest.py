"""The world of the gRPC tests; a module with another transport has a fixture of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.transport.grpc_world import GrpcWorld


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run gRPC's tests on both event loops that users have."""
    if item.path.name == "test_grpc.py":
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def world() -> AsyncIterator[GrpcWorld]:
    world = GrpcWorld()
    yield world
    await world.aclose()
