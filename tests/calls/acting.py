"""An entity whose streams and handlers do what a test says, so that a test can bring about any moment."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from actorhub import Cluster, Entity, Hub, current, handler
from actorhub.cluster import part_of
from actorhub.engine.model.records import Cell
from actorhub.engine.runner import Runner
from actorhub.testing import until
from tests.support.gates import gates

Act = Callable[["Actor"], Awaitable[object]]

acts: dict[str, Act] = {}
"""What is done under a name; nothing under others."""
seen: defaultdict[str, list[object]] = defaultdict(list)
"""What acts noted."""


class Heard(Entity[list[str]]):
    """Told by acts."""

    async def add(self, text: str) -> None:
        self.state.append(text)

    async def read(self) -> list[str]:
        return self.state


class Actor(Entity[list[str]]):
    """Its state is a list of marks. Its streams are longer than a consumer's window, so they wait at a `yield`."""

    async def items(self, count: int = 1000) -> AsyncIterator[int]:
        try:
            for number in range(count):
                await self._act("step")
                if seen["returns"]:
                    return
                if number == 0:
                    self.state.append("item 0")
                yield number
        finally:
            await self._act("clean up")

    @handler(timeout=timedelta(milliseconds=60))
    async def limited(self, count: int = 1000) -> AsyncIterator[int]:
        try:
            for number in range(count):
                if number == 0:
                    self.state.append("item 0")
                await self._act("step")
                yield number
        finally:
            await self._act("clean up")

    @handler(readonly=True)
    async def looks(self, count: int = 1000) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
        finally:
            await self._act("clean up")

    @handler(reentrant=True)
    async def inner(self, count: int = 1000) -> AsyncIterator[int]:
        try:
            for number in range(count):
                await self._act("inner step")
                yield number
        finally:
            await self._act("clean up")

    async def stubborn(self, count: int = 1000) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
        finally:
            self.state.append("cleaned up")
            yield count

    async def unencodable(self) -> AsyncIterator[object]:
        try:
            self.state.append("item")
            yield object()
        finally:
            await self._act("clean up")

    async def do(self, name: str) -> None:
        await self._act(name)

    @handler(readonly=True)
    async def look(self, name: str = "") -> list[str]:
        await self._act(name)
        return self.state

    async def _act(self, name: str) -> None:
        act = acts.get(name)
        if act is not None:
            await act(self)


class Crowd(Entity, concurrency=2):
    """Handlers of one id run beside each other."""

    async def items(self) -> AsyncIterator[int]:
        try:
            for number in range(1000):
                yield number
        finally:
            seen["crowd"].append("closed")

    async def hold(self) -> None:
        await acts["hold"](self)  # type: ignore[arg-type]


hub = Hub()
hub.register(Actor)
hub.register(Heard)
hub.register(Crowd)


def mark(text: str) -> Act:
    """Return an act that adds `text` to the state."""

    async def act(me: Actor) -> None:
        me.state.append(text)

    return act


def note_state(name: str) -> Act:
    """Return an act that notes what the state is, and adds a mark."""

    async def act(me: Actor) -> None:
        seen[name].append(list(me.state))
        me.state.append(name)

    return act


async def tell(text: str) -> int:
    """Tell `Heard("h")` something as a part of what runs."""
    return await current().tell(current().client(Heard)("h").add(text))


async def heard(cluster: Cluster, expected: list[str]) -> None:
    """Return once exactly this was told."""
    told = cluster.client(Heard)("h")
    found = await told.read()
    for _ in range(200):
        if found == expected:
            break
        found = await told.read()
    assert found == expected


def cells(cluster: Cluster) -> list[Cell]:
    """The resident entities of a runner."""
    part = part_of(cluster)
    assert isinstance(part, Runner)
    return list(part.host.cells())


@pytest.fixture(autouse=True)
def new_acts() -> None:
    """Begin without acts."""
    acts.clear()
    seen.clear()


async def until_idle(cluster: Cluster) -> None:
    """Return once nothing runs or waits at a runner."""
    await until(lambda: all(cell.is_idle for cell in cells(cluster)), "an idle host", deadline=5)


async def hold(me: Actor) -> None:
    """Change half of the state, wait at a gate, and change the rest."""
    me.state.append("first half")
    await gates["hold"].pass_through()
    me.state.append("second half")


async def leave(stream: AsyncIterator[int]) -> None:
    """Stop consuming."""
    await stream.aclose()  # type: ignore[attr-defined]


async def rest(stream: AsyncIterator[int]) -> int:
    """Take what is left; return how many items that were."""
    return len([item async for item in stream])


async def begun(stream: AsyncIterator[int]) -> AsyncIterator[int]:
    """Return the stream, once its first item came and its generator is at a `yield`."""
    assert await anext(stream) == 0
    return stream
