"""Only what needs an id depends on a clock that ids can be made with."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from actorhub import Entity, Hub
from actorhub.core.errors import ConfigurationError
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.support.parts import host_of


class Echo(Entity):
    """Answers."""

    async def say(self, text: str) -> str:
        return text


hub = Hub()
hub.register(Echo)


@pytest.fixture
def clock() -> SteppedClock:
    """A clock of a year before the first id."""
    return SteppedClock(datetime(2024, 2, 29, tzinfo=UTC))


@pytest.fixture
async def memory(clock: SteppedClock) -> AsyncIterator[MemoryCluster]:
    """A cluster in memory, in that year."""
    async with MemoryCluster(hub, clock=clock) as made:
        yield made


async def test_calls_that_need_no_id_work_while_the_clock_is_out_of_range(
    memory: MemoryCluster, clock: SteppedClock
) -> None:
    """A machine whose clock was not set yet joins the cluster and answers; ids are made once the clock is right."""
    runner, client = await memory.start_runner(), await memory.client()
    for cluster in (runner, client):
        assert await cluster.client(Echo)("one").say("hello") == "hello"
        with pytest.raises(ConfigurationError, match="2025 to 2094"):
            cluster.snowflake()
    clock.set(datetime(2026, 3, 1, tzinfo=UTC))
    await until(lambda: host_of(runner).server.now() > clock.time() - 1, "a heartbeat has told the time")
    for cluster in (runner, client):
        assert cluster.snowflake().parts().timestamp.year == 2026
