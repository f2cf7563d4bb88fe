"""Filters and handlers of the program's logging may raise: whoever logs goes on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from actorhub import Entity, HandlerFailed, Hub, Retry, handler
from actorhub.testing import MemoryCluster
from tests.support.gates import all_items, failure


class Careless(logging.Filter):
    """Looks into errors without care."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.asked = 0
        self._error = error

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise."""
        self.asked += 1
        raise self._error("in the filter")


class Shop(Entity):
    async def sell(self) -> None:
        raise KeyError("ada")

    @handler(durable=True, retry=Retry(attempts=1))
    async def sell_for_good(self) -> None:
        raise KeyError("ada")

    async def items(self) -> AsyncIterator[int]:
        yield 0
        raise KeyError("ada")

    async def ping(self) -> int:
        return 1


hub = Hub()
hub.register(Shop)


@pytest.fixture(params=[ValueError, RecursionError, SystemExit, GeneratorExit, asyncio.CancelledError])
def careless(request: pytest.FixtureRequest) -> Iterator[Careless]:
    """A filter at the handlers of the root logger."""
    made = Careless(request.param)
    handlers = list(logging.getLogger().handlers)
    for one in handlers:
        one.addFilter(made)
    yield made
    for one in handlers:
        one.removeFilter(made)


async def test_a_handler_that_fails_is_answered_although_its_failure_cannot_be_logged(
    careless: Careless, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its turn comes back, whatever kind of handler it is; standard error says that something was not logged."""
    async with MemoryCluster(hub) as memory:
        shop = (await memory.start_runner()).client(Shop)("a")
        for call in (shop.sell(), shop.sell_for_good(), all_items(shop.items())):
            error = await failure(call)
            assert isinstance(error, HandlerFailed)
            assert error.type == "KeyError"
            assert await shop.ping() == 1
    assert careless.asked
    assert "a filter or handler of logger actorhub.results raised" in capsys.readouterr().err
