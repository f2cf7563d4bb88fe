"""The entities that the benchmarks call, and the closed loop that calls them."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from statistics import median
from typing import Any, Final

import msgspec

from actorhub import Entity, Hub, handler
from actorhub.cluster import cluster_of_handler

_LONG: Final = timedelta(hours=1)


class Payload(msgspec.Struct, frozen=True):
    """About 100 bytes."""

    order_id: str
    sku: str
    quantity: int
    note: str


PAYLOAD: Final = Payload("o-1", "tea", 2, "x" * 82)
ENCODED: Final = msgspec.msgpack.encode((PAYLOAD,))


class Echo(Entity, name="echo", max_idle=_LONG):
    """An entity without state."""

    async def echo(self, payload: Payload) -> Payload:
        return payload


class Count(msgspec.Struct):
    number: int = 0
    last: Payload | None = None


class Counter(Entity[Count], name="counter", max_idle=_LONG):
    """An entity with a state of about 100 bytes."""

    async def add(self, payload: Payload) -> int:
        self.state.number += 1
        self.state.last = payload
        return self.state.number

    async def add_later(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.state.number += 1
        return self.state.number

    async def add_after_computing(self, seconds: float) -> int:
        time.sleep(seconds)  # noqa: ASYNC251 - on purpose: it computes, so a freeze comes first
        self.state.number += 1
        return self.state.number

    @handler(readonly=True)
    async def where(self) -> str:
        runner = cluster_of_handler().runner
        return runner.incarnation if runner is not None else ""


class Source(Entity, name="source", max_idle=_LONG):
    """An entity with a stream."""

    async def items(self, count: int) -> AsyncIterator[Payload]:
        for _ in range(count):
            yield PAYLOAD


hub: Final = Hub()
hub.register(Echo)
hub.register(Counter)
hub.register(Source)

Ask = Callable[[int], Awaitable[object]]


async def throughput(ask: Ask, asks: int, in_flight: int) -> float:
    """Return the asks per second of a closed loop of `in_flight` callers. `ask` gets a running number."""

    async def call(caller: int) -> None:
        for step in range(asks // in_flight):
            await ask(caller * 7 + step)

    gc.collect()
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for caller in range(in_flight):
            tasks.create_task(call(caller))
    return asks // in_flight * in_flight / (time.perf_counter() - begin)


async def timings(ask: Ask, asks: int, in_flight: int) -> list[float]:
    """Return the duration of each ask of such a loop, in seconds."""
    taken: list[float] = []
    clock = time.perf_counter

    async def call(caller: int) -> None:
        for step in range(asks // in_flight):
            begin = clock()
            await ask(caller * 7 + step)
            taken.append(clock() - begin)

    gc.collect()
    async with asyncio.TaskGroup() as tasks:
        for caller in range(in_flight):
            tasks.create_task(call(caller))
    return taken


async def interleave(rounds: int, sides: Mapping[str, Callable[[], Awaitable[float]]]) -> dict[str, list[float]]:
    """Measure the sides in turn (A B A B …), `rounds` times after a warm-up. Return all figures but the warm-up's."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, measure in sides.items():
            figure = await measure()
            if number:
                found[side].append(figure)
    return found


def compared(samples: Mapping[str, Sequence[float]], unit: str, limit: str = "limit") -> dict[str, Any]:
    """Return the median of each side, the ratio of its median to `limit`, and the spread of the ratio over rounds."""
    result: dict[str, Any] = {f"{side}_{unit}": round(median(values), 1) for side, values in samples.items()}
    for side, values in samples.items():
        if side != limit:
            ratios = [value / of for value, of in zip(values, samples[limit], strict=True)]
            result[f"{side}_of_{limit}"] = round(median(values) / median(samples[limit]), 3)
            result[f"{side}_of_{limit}_by_round"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return result
