"""The singleton that the benchmarks lead, and the orders for its `run` from the process of the benchmark."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from actorhub import Hub, Singleton, current, handler

ROW: Final = "insert into {} (number, data) values ($1, $2)"
TABLE: Final = "create table {} (number bigint not null, data bytea not null)"
_DATA: Final = b"x" * 100


class Leading(msgspec.Struct, frozen=True):
    """The runner that answers, and whether its `run` has committed something."""

    incarnation: str
    works: bool


class Cursor(msgspec.Struct):
    """The state of the singleton."""

    number: int = 0


class Desk:
    """A queue of orders from the benchmark to the `run` in its own process."""

    def __init__(self) -> None:
        self.table = ""
        """Name of the table for steps with SQL."""
        self._orders: asyncio.Queue[tuple[str, int, asyncio.Future[float]]]

    def open(self) -> None:
        """Start on the running event loop."""
        self._orders = asyncio.Queue()

    @property
    def is_open(self) -> bool:
        """Whether this process runs a benchmark."""
        return hasattr(self, "_orders")

    async def rate(self, kind: str, count: int) -> float:
        """Order `count` steps of a kind, one after the other. Return how many are done per second."""
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._orders.put_nowait((kind, count, done))
        return count / await done

    async def next(self) -> tuple[str, int, "asyncio.Future[float]"]:
        """Return the next order."""
        return await self._orders.get()


desk: Final = Desk()


class Worker(Singleton[Cursor], name="worker"):
    """Shows by its first step that it leads, then carries out orders."""

    def __init__(self) -> None:
        self._works = False

    async def run(self) -> None:
        await current().step(f"lead {current().epoch}", _number, 0)
        self._works = True
        await self.save(Cursor(self.state.number + 1))
        kinds: dict[str, Callable[[int], Awaitable[object]]] = {
            "step": self._step,
            "step_with_sql": self._step_with_sql,
            "save": self._save,
        }
        while desk.is_open:
            kind, count, done = await desk.next()
            act = kinds[kind]
            begin = time.perf_counter()
            for number in range(count):
                await act(number)
            done.set_result(time.perf_counter() - begin)
            await self._save(0)

    @handler(readonly=True)
    async def leading(self) -> Leading:
        return Leading(current().incarnation, self._works)

    async def _step(self, number: int) -> int:
        return await current().step(f"s{number}", _number, number)

    async def _step_with_sql(self, number: int) -> int:
        return await current().step(f"s{number}", _insert, number)

    async def _save(self, _: int) -> None:
        await self.save(Cursor(self.state.number + 1))


async def _number(number: int) -> int:
    return number


async def _insert(number: int) -> int:
    async with current().transaction() as sql:
        await sql.execute(ROW.format(desk.table), number, _DATA)
    return number


hub: Final = Hub()
hub.register(Worker)
