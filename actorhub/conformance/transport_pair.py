"""Two linked transports, and users of their links that keep what they are told: what the transport suite is made of."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Protocol, TypeVar

import msgspec
import pytest

from actorhub.core.envelope import PROTOCOL_VERSION, TELL, Envelope, Failure, Hello, Leaving, Reply, Request
from actorhub.core.errors import ActorhubError, RunnerUnavailable
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Link, LinkEvents, Transport
from actorhub.transport.statistics import TransportStatistics

PATIENCE_SECONDS = 10.0
"""How long a test waits for something that must happen."""

SMALL = LinkLimits(max_message_bytes=64 << 10, frame_bytes=16 << 10, max_queued_bytes=256 << 10)

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")
"""Who connects, listens or sends; every recorder notes whom it sees."""


class MeasuredTransport(Transport, Protocol):
    """A transport that counts."""

    def statistics(self) -> TransportStatistics:
        """Return the counts so far."""
        ...


class TransportWorld(Protocol):
    """Makes the transports of one test, which can reach each other, and closes them after it."""

    @property
    def dead_address(self) -> str:
        """An address at which nobody listens."""
        ...

    def listener(self, hello: Hello, limits: LinkLimits | None = None, address: str | None = None) -> MeasuredTransport:
        """Return a transport that can listen, at an address of the world's choice where none is given."""
        ...

    def client(self, hello: Hello, limits: LinkLimits | None = None) -> MeasuredTransport:
        """Return a transport that only connects."""
        ...


class Recorder:
    """A link's user that keeps what it is told; and the acceptor of that link, which says yes."""

    def __init__(self, *, first: Sequence[Envelope] = (), refusal: ActorhubError | None = None) -> None:
        """Prepare.

        Args:
            first: Sent over the link while it is accepted.
            refusal: Raised instead of taking the link.
        """
        self._first = first
        self._refusal = refusal
        self.links: list[Link] = []
        """Every link that this was asked about."""
        self.envelopes: list[Envelope] = []
        self.frames: list[int] = []
        """How many envelopes each frame held."""
        self.closings: list[tuple[str, list[Envelope]]] = []
        self.callers: set[str] = set()
        self.after_closed = 0
        self._changed = asyncio.Event()

    def accept(self, link: Link) -> LinkEvents:
        """Listen to the link."""
        self.callers.add(caller.get())
        self.links.append(link)
        for envelope in self._first:
            link.send(envelope)
        if self._refusal is not None:
            raise self._refusal
        return self

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Keep a frame."""
        self.after_closed += bool(self.closings)
        self.callers.add(caller.get())
        self.envelopes.extend(envelopes)
        self.frames.append(len(envelopes))
        self._changed.set()

    def closed(self, reason: str, unsent: Sequence[Envelope]) -> None:
        """Keep the end."""
        self.callers.add(caller.get())
        self.closings.append((reason, list(unsent)))
        self._changed.set()

    @property
    def unsent(self) -> list[Envelope]:
        """What the one `closed` reported."""
        [(_, unsent)] = self.closings
        return unsent

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until `happened`, or fail."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    async def until_received(self, count: int) -> None:
        """Wait for that many envelopes in all."""
        await self.until(lambda: len(self.envelopes) >= count)

    async def until_closed(self) -> None:
        """Wait for the end."""
        await self.until(lambda: bool(self.closings))


class Failing(Recorder):
    """A link's user that breaks its promise not to raise."""

    def received(self, envelopes: Sequence[Envelope]) -> None:
        """Raise."""
        raise ValueError(f"a bug in received() of {len(envelopes)}")


class RecordingAcceptor:
    """An acceptor of any number of links, which gives each a recorder of its own."""

    def __init__(self, *, first: Sequence[Envelope] = (), refusal: ActorhubError | None = None) -> None:
        """Prepare.

        Args:
            first: Sent over each link while it is accepted.
            refusal: Raised instead of taking a link.
        """
        self.links: list[Link] = []
        self.recorders: list[Recorder] = []
        self.make_recorder: Callable[[], Recorder] = partial(Recorder, first=first, refusal=refusal)

    def accept(self, link: Link) -> LinkEvents:
        """Take the link."""
        recorder = self.make_recorder()
        events = recorder.accept(link)
        self.links.append(link)
        self.recorders.append(recorder)
        return events


def hello(
    incarnation: str, *, namespace: str = "suite", protocol: int = PROTOCOL_VERSION, cluster: str = "", era: str = ""
) -> Hello:
    """Return what a process says of itself before it knows its address."""
    return Hello(protocol, namespace, "", incarnation, cluster=cluster, era=era)


def reply(number: int, size: int = 0) -> Reply:
    """Return an envelope that carries `number`."""
    return Reply(number, 0, bytes(size))


def request(number: int, size: int = 0) -> Request:
    """Return a request that carries `number`."""
    return Request(number, TELL, "orders", "ada", "process", bytes(size), 0)


EnvelopeT = TypeVar("EnvelopeT", bound=Envelope)


def unreadable(envelope: EnvelopeT, **fields: object) -> EnvelopeT:
    """Return `envelope` with fields that its receiver cannot decode."""
    return msgspec.structs.replace(envelope, **fields)


class OfTheFuture(Leaving, tag=999):
    """An envelope that only a later release knows."""


def numbers(envelopes: Sequence[Envelope]) -> list[int]:
    """Return what the envelopes carry, in order."""
    return [envelope.id for envelope in envelopes if isinstance(envelope, Reply | Request | Failure)]


async def both(one: Coroutine[object, object, None], other: Coroutine[object, object, None]) -> None:
    """Wait for two things at once."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one)
        tasks.create_task(other)


async def failing(attempt: Coroutine[object, object, object]) -> str:
    """Return with which text an attempt to connect fails."""
    with pytest.raises(RunnerUnavailable) as caught:
        await attempt
    return str(caught.value)


class Pair:
    """Two linked transports."""

    def __init__(
        self,
        world: TransportWorld,
        limits: LinkLimits | None = None,
        *,
        acceptor: RecordingAcceptor | None = None,
        near: Recorder | None = None,
    ) -> None:
        self.accepting = world.listener(hello("accepting"), limits)
        self.connecting = world.client(hello("connecting"), limits)
        self.address = ""
        """Where the accepting end listens, once it does."""
        self.acceptor = acceptor or RecordingAcceptor()
        self.near = near or Recorder()

    async def listen(self) -> str:
        """Let the accepting end listen; return its address."""
        self.address = await self.accepting.listen(self.acceptor)
        return self.address

    async def link(self) -> Link:
        """Connect, and return the connecting end."""
        await self.listen()
        return await self.connecting.connect(self.address, self.near, deadline=PATIENCE_SECONDS)

    def far(self) -> tuple[Link, Recorder]:
        """Return the accepting end of the newest link and its recorder; it was accepted before `connect` returned."""
        return self.acceptor.links[-1], self.acceptor.recorders[-1]
