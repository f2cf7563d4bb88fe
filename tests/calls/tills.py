"""Tills that take odd values: the program of the tests of wrong callers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Final

from actorhub import Entity, EntityError, Hub, MalformedMessage, Singleton, current, handler

hub = Hub()
acts: Final[list[Callable[[], Awaitable[None]]]] = []
"""What handlers are to do; a call has the number."""


class Refused(EntityError):
    """Somebody said no."""

    why: str


class Till(Entity[int], name="till"):
    """One till."""

    async def add(self, amount: int) -> int:
        """Take some money."""
        self.state += amount
        return self.state

    @handler(durable=True)
    async def book(self, amount: int) -> int:
        """Take it for certain."""
        self.state += amount
        return self.state

    async def watch(self, last: int) -> AsyncIterator[int]:
        """Count to three at most."""
        for number in range(min(last, 3)):
            yield number

    async def headers(self) -> dict[str, str]:
        """Return what came with the call."""
        return dict(current().headers)

    async def identity(self) -> tuple[str, str]:
        """Return its id, and the class of that."""
        return current().entity_id, type(current().entity_id).__name__

    @handler(durable=True)
    async def act(self, number: int) -> None:
        """Do what a test wants done."""
        await acts[number]()

    @handler(durable=True)
    async def misbehave(self, what: str) -> str:
        """Return what an act within a handler raises."""
        now = current()
        try:
            match what:
                case "sleep":
                    await now.sleep(5)  # type: ignore[arg-type]
                case "delay":
                    await now.tell(now.client(Till)("b").book(1), delay=5)  # type: ignore[arg-type]
                case "key":
                    await now.tell(now.client(Till)("b").book(1), key=5)  # type: ignore[arg-type]
                case "step":
                    await now.step(5, int)  # type: ignore[call-overload]
                case _:
                    now.client(5)  # type: ignore[arg-type]
        except (TypeError, MalformedMessage) as error:
            return str(error)
        return "nothing was raised"


class Clerk(Singleton, name="clerk"):
    """The one clerk."""

    async def greet(self) -> str:
        """Say hello."""
        return "hello"


hub.register(Till)
hub.register(Clerk)


class Id(StrEnum):
    """Ids as an enum of texts."""

    FIRST = "first"
