"""Links inside one process, with the promises of real ones and faults on demand.

Frames are really encoded and decoded, and the event loop delivers them in a fixed order: the same program gives the
same run.
"""

import asyncio
from collections import deque

import msgspec
from typing_extensions import override

from actorhub.core.envelope import Hello, decode_frame, encode_frame
from actorhub.core.errors import ActorhubError, ConfigurationError, MalformedMessage, RunnerUnavailable
from actorhub.transport.handshake import check_hello
from actorhub.transport.link import CLOSED_BY_PEER, QueuedLink
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Acceptor, Transport
from actorhub.transport.statistics import Counters, TransportStatistics


class Route:
    """The way from one process to another, and what is wrong with it."""

    def __init__(self) -> None:
        self.cut = False
        self.loses_next = False
        self.delay_seconds = 0.0
        self.passable = asyncio.Event()
        """Cleared while frames are held back."""
        self.passable.set()


class MemoryNetwork:
    """What connects memory transports, which it knows by name: the address that one listens at, or its incarnation."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], Route] = {}
        self.listeners: dict[str, tuple[MemoryTransport, Acceptor]] = {}
        """Who listens at which address."""
        self.links: dict[MemoryLink, None] = {}
        """Both ends of every link that still may deliver something, oldest first."""

    def route(self, source: str, target: str) -> Route:
        """Return the one way between two processes."""
        return self._routes.setdefault((source, target), Route())

    def cut(self, a: str, b: str) -> None:
        """Break the links between two processes, and refuse new ones until `heal`; what was under way is lost."""
        self.route(a, b).cut = self.route(b, a).cut = True
        self._sever({link for link in self.links if {link.source, link.target} == {a, b}}, f"{a} and {b} were cut off")

    def heal(self, a: str, b: str) -> None:
        """Undo `cut`, `hold` and `delay` between two processes, in both directions."""
        for source, target in ((a, b), (b, a)):
            self.route(source, target).cut = False
            self.delay(source, target, seconds=0)
            self.release(source, target)

    def drop(self, name: str) -> None:
        """Let a process vanish: its links break at both ends, and nobody listens at its address."""
        self.listeners.pop(name, None)
        self._sever({link for link in self.links if name in {link.source, link.target}}, f"{name} is gone")

    def hold(self, source: str, target: str) -> None:
        """Keep back what `source` sends to `target`, without a sign, until `release`."""
        self.route(source, target).passable.clear()

    def release(self, source: str, target: str) -> None:
        """Deliver what was held back, in order."""
        self.route(source, target).passable.set()
        for link in self.links:
            if (link.source, link.target) == (source, target):
                link.resume()

    def delay(self, source: str, target: str, *, seconds: float) -> None:
        """Let each frame from `source` to `target` take a time on its way."""
        self.route(source, target).delay_seconds = seconds

    def lose_next(self, source: str, target: str) -> None:
        """Lose the next frame that `source` hands over for `target`, and its link with it: sent, but not received."""
        self.route(source, target).loses_next = True

    def _sever(self, links: "set[MemoryLink]", reason: str) -> None:
        for link in [link for link in self.links if link in links]:
            link.sever(reason)


class MemoryLink(QueuedLink):
    """One end of a link in memory."""

    def __init__(self, peer: Hello, transport: "MemoryTransport", target: str) -> None:
        super().__init__(peer, transport.limits, transport.counters)
        self.source = transport.name
        self.target = target
        self._network = transport.network
        self._route = transport.network.route(self.source, target)
        self._under_way: deque[bytes | None] = deque()
        """Frames between the two ends; None is the end of the link, behind its last frame."""
        self._other: MemoryLink | None = None

    def join(self, other: "MemoryLink") -> None:
        """Begin to move frames to `other`; what was sent before, and the end if this end broke already, comes first."""
        self._other = other
        self._network.links[self] = None
        self._idle = True
        if self._broken.done():
            self._carry(None)
        elif self._outbox:
            self._idle = False
            self._wake()

    def sever(self, reason: str) -> None:
        """Break this end alone and lose what is under way."""
        self._under_way.clear()
        self._other = None
        self._network.links.pop(self, None)
        self._break(reason)

    def resume(self) -> None:
        """Deliver what was held back, from the loop's next turn."""
        for _ in self._under_way:
            self._soon(self._arrive)

    async def finish(self) -> None:
        """Flush the queue, then end the link; what was flushed arrives before the end does."""
        self._stop_taking()
        await self.drain()
        self._break("closed")

    @override
    def _wake(self) -> None:
        self._soon(self._flush)

    def _flush(self) -> None:
        if self._broken.done():
            return
        if frame := self._take_frame():
            self._carry(frame)
        self._frame_written()
        if self._outbox:
            self._wake()
        else:
            self._idle = True

    def _carry(self, item: bytes | None) -> None:
        if self._other is None:
            return
        if item is not None and self._route.loses_next:
            self._route.loses_next = False
            self._other.sever("the connection was lost")
            self.sever("the connection was lost")
            return
        self._under_way.append(item)
        if self._route.delay_seconds:
            self._loop.call_later(self._route.delay_seconds, self._arrive, context=self._context)
        elif self._route.passable.is_set():
            self._soon(self._arrive)

    def _arrive(self) -> None:
        # Which frame was meant does not matter, the oldest one arrives: a delay that was shortened while frames were
        # under way must not let a later frame overtake an earlier one.
        if self._other is None or not self._under_way or not self._route.passable.is_set():
            return
        item = self._under_way.popleft()
        if item is None:
            self._network.links.pop(self, None)
        self._other.take_in(item)

    def take_in(self, item: bytes | None) -> None:
        """Take a frame, or the end, from the other end."""
        if item is None:
            self._break(CLOSED_BY_PEER)
        if item is None or self._broken.done():
            return
        try:
            self._receive(item)
        except MalformedMessage as exc:
            self._counters.frames_malformed += 1
            self._break(f"the peer sent a malformed frame: {exc}")

    @override
    def _break(self, reason: str) -> None:
        if not self._broken.done():
            # The end travels behind the frames that were handed over, so that these arrive first.
            self._carry(None)
        super()._break(reason)


class MemoryTransport(Transport):
    """One process's links in memory. Made inside a running event loop; ended by `aclose`."""

    def __init__(self, network: MemoryNetwork, hello: Hello, *, limits: LinkLimits | None = None) -> None:
        self.network = network
        self.name = hello.address or hello.incarnation
        """By which name the network knows this process."""
        self.limits = limits or LinkLimits()
        self.counters = Counters()
        self._hello = hello
        self._links: dict[MemoryLink, None] = {}
        self._closing = False

    @property
    @override
    def hello(self) -> Hello:
        return self._hello

    @override
    def enter(self, cluster: str, era: str) -> None:
        self._hello = msgspec.structs.replace(self._hello, cluster=cluster, era=era)

    @override
    def statistics(self) -> TransportStatistics:
        return self.counters.snapshot()

    @override
    async def listen(self, acceptor: Acceptor) -> str:
        if not self._hello.address or self._closing:
            raise ConfigurationError("this transport has nowhere to listen: give its Hello an address")
        if self.name in self.network.listeners:
            raise ConfigurationError(f"cannot listen on {self.name}: another process uses it: choose another --listen")
        self.network.listeners[self.name] = (self, acceptor)
        return self.name

    @override
    async def connect(self, address: str, acceptor: Acceptor, *, deadline: float) -> MemoryLink:
        self._check_open()
        there, back = await self._reach(address, deadline)
        self._check_open()
        found = self.network.listeners.get(address)
        if found is None or there.cut or back.cut:
            raise RunnerUnavailable(f"the runner at {address} cannot be reached")
        peer, their_acceptor = found
        theirs = peer.meet(self, their_acceptor)
        ours = MemoryLink(peer.hello, self, address)
        self.keep(ours)
        try:
            ours.offer_to(acceptor)
        except ActorhubError as exc:
            raise RunnerUnavailable(f"this process refused its link to the runner at {address}: {exc}") from exc
        finally:
            # Even if our acceptor refused: theirs has accepted, and is told that the link is gone.
            ours.join(theirs)
            theirs.join(ours)
        return ours

    @override
    async def identify(self, address: str, *, deadline: float) -> str | None:
        self._check_open()
        if any(way.cut for way in await self._reach(address, deadline)):
            raise RunnerUnavailable(f"the runner at {address} cannot be reached")
        found = self.network.listeners.get(address)
        return None if found is None else found[0].hello.incarnation

    def meet(self, caller: "MemoryTransport", acceptor: Acceptor) -> MemoryLink:
        """Return this process's end of a link from `caller`, which is to be joined with the other end.

        Raises:
            RunnerUnavailable: the link is refused.
        """
        try:
            link = MemoryLink(check_hello(decode_frame(encode_frame([caller.hello])), self._hello), self, caller.name)
            link.offer_to(acceptor)
        except ActorhubError as exc:
            self.counters.links_refused += 1
            raise RunnerUnavailable(f"the runner at {self.name} refused the link: {exc}") from exc
        self.keep(link)
        return link

    def keep(self, link: MemoryLink) -> None:
        """Remember a link until it is closed, for `aclose`."""
        self._links = {known: None for known in self._links if known.is_open} | {link: None}

    @override
    async def aclose(self, grace: float) -> None:
        self._closing = True
        if self.network.listeners.get(self.name, (None,))[0] is self:
            del self.network.listeners[self.name]
        for link in self._links:
            try:
                async with asyncio.timeout(grace):
                    await link.finish()
            except TimeoutError:
                link.close("closed; its queue could not be flushed in time")
        for link in self._links:
            await link.wait_reported()

    async def _reach(self, address: str, deadline: float) -> tuple[Route, Route]:
        """Return the ways there and back, once both let something pass."""
        there, back = self.network.route(self.name, address), self.network.route(address, self.name)
        try:
            async with asyncio.timeout(deadline):
                await asyncio.sleep(there.delay_seconds + back.delay_seconds)
                await there.passable.wait()
                await back.passable.wait()
        except TimeoutError as exc:
            raise RunnerUnavailable(f"the runner at {address} did not answer within {deadline:g} s") from exc
        return there, back

    def _check_open(self) -> None:
        if self._closing:
            raise RunnerUnavailable("this process is closing its links")
