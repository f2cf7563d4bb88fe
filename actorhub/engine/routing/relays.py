"""Links that go through another runner, between processes that cannot reach each other.

The network may be cut between two processes that both reach a third one, or one of them advertises an address where
nobody finds it. Then one of the two opens a link through a runner that both have a direct link to. To the rest of the
engine it is a link like any other: calls, replies, streams, cancellations, announcements and deadlines need nothing
more, and it breaks once and for good, like any other.

Frames are passed on only between direct links, so a frame is passed on once and never in a circle. Each link is bound
to one direct link on either side: its frames keep their order, and it ends with the first of the two that breaks.
"""

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from typing_extensions import override

from actorhub.core.address import RunnerAddress
from actorhub.core.clock import Clock
from actorhub.core.envelope import Envelope, Hello, Relayed, decode_frame, encode_frame
from actorhub.core.errors import ActorhubError, MalformedMessage, RunnerUnavailable
from actorhub.core.logger import get_logger
from actorhub.engine.routing.peers import MAX_QUEUED_BYTES, Peer, Peers
from actorhub.transport.handshake import check_hello
from actorhub.transport.link import QueuedLink
from actorhub.transport.outbox import LinkLimits
from actorhub.transport.ports import Acceptor, Transport
from actorhub.transport.statistics import Counters

_log: Final = get_logger("actorhub.peers")

WINDOW_BYTES: Final = 8 << 20
"""Bytes of a link that may be under way: more waits at its sender, not at the runner in between."""
MAX_CARRIED: Final = 4096
"""Links of one peer that a runner passes frames on for."""
_MARGIN_BYTES: Final = 4096
"""Room that a frame within a frame leaves for the outer one."""
_UNUSED_POLL: Final = 0.02
"""Seconds between two looks whether a link still goes through this process."""


class RelayStatistics(msgspec.Struct, frozen=True):
    """The links that go through another runner."""

    links: int
    """Links of this process that go through others."""
    carried: int
    """Links between other processes that go through this one."""
    frames_carried: int
    """How many frames this process has passed on since its start."""


class RelayedLink(QueuedLink):
    """One end of a link that goes through the peer `via`."""

    def __init__(self, link_id: str, peer: Hello, via: Peer, relays: "Relays") -> None:
        super().__init__(peer, relays.limits, relays.counters)
        self.id = link_id
        self.via = via
        self._relays = relays
        self._is_known_there = False
        """Whether the other end is to be told when this one breaks."""
        self._under_way = 0
        """Bytes that were sent and that the other end has not taken yet."""
        self._taken = 0
        """Bytes that were taken here and that the other end has not been told of."""
        self.is_done_there = False
        """Whether the other end makes no more calls over this link, and has had the answers to those that it made."""

    def start(self, rest: "list[Envelope]") -> None:
        """Begin to move frames, `rest` first: what came with the peer's `Hello`."""
        self._is_known_there = True
        self._idle = True
        if self._outbox:
            self._idle = False
            self._wake()
        if rest:
            self._soon(self._deliver, rest)

    def take_in(self, piece: Relayed) -> None:
        """Take a piece of the link from the runner in between."""
        if piece.taken:
            self._under_way = max(0, self._under_way - piece.taken)
            self._wake()
        if piece.frame:
            self._taken += len(piece.frame)
            if self._taken >= WINDOW_BYTES // 4:
                self.via.link.send(Relayed(self.id, taken=self._taken))
                self._taken = 0
            try:
                self._receive(piece.frame)
            except MalformedMessage as exc:
                self._break(f"the peer sent a malformed frame: {exc}")
        if piece.done:
            self.is_done_there = True
        if piece.ended:
            self.lost(piece.ended)

    def say_done(self) -> None:
        """Tell the other end that no more calls are made from here, and that those that were made are answered."""
        self.via.link.send(Relayed(self.id, done=True))

    def lost(self, reason: str, unsent: Iterable[bytes] = ()) -> None:
        """Break; the other end knows, or cannot be told. Frames that have not left this process count as unsent."""
        self._is_known_there = False
        left = [envelope for frame in unsent for envelope in decode_frame(frame)] + self._outbox.remove_all()
        for envelope in left:
            self._outbox.put(envelope)
        self._break(reason)

    async def finish(self) -> None:
        """Flush the queue, then end the link."""
        self._stop_taking()
        await self.drain()
        self._break("closed")

    @override
    def _wake(self) -> None:
        self._soon(self._flush)

    def _flush(self) -> None:
        while self._outbox and not self._broken.done() and self._under_way < WINDOW_BYTES:
            if frame := self._take_frame():
                self._under_way += len(frame)
                self.via.link.send(Relayed(self.id, frame))
            self._frame_written()
        # Where the window is full, the peer's next piece wakes it.
        self._idle = not self._outbox

    @override
    def _break(self, reason: str) -> None:
        if self._is_known_there and not self._broken.done():
            # Behind the frames that were handed over, so that these arrive first.
            self.via.link.send(Relayed(self.id, ended=reason))
        super()._break(reason)
        self._relays.forget(self)


class _Opening:
    """A link that is being opened from here."""

    def __init__(self, via: Peer, runner: RunnerAddress) -> None:
        self.via = via
        self.runner = runner
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(RunnerUnavailable(f"through {self.via.runner.address}: {reason}"))


class Relays:
    """Opens and takes such links for this process, and passes frames on between others."""

    def __init__(
        self, *, transport: Transport, peers: Peers, acceptor: Acceptor, clock: Clock, max_message_bytes: int
    ) -> None:
        """Prepare.

        Args:
            transport: Knows what this process says of itself.
            peers: The open links.
            acceptor: Asked who listens to a link that comes or was opened through another runner.
            clock: Source of the ids of links.
            max_message_bytes: Largest body.
        """
        self._transport = transport
        self._peers = peers
        self._acceptor = acceptor
        self._clock = clock
        self.limits = LinkLimits(max_message_bytes=max_message_bytes, margin_bytes=(1 << 20) - _MARGIN_BYTES)
        self.counters = Counters()
        self._links: dict[str, RelayedLink] = {}
        """Links that end here, by id."""
        self._opening: dict[str, _Opening] = {}
        self._carried: dict[str, tuple[Peer, Peer]] = {}
        """Links that go through here, by id: who opened it, and where it leads."""
        self._frames_carried = 0
        self._turns = itertools.count()

    def statistics(self) -> RelayStatistics:
        """Return the counters as they are now."""
        return RelayStatistics(len(self._links), len(self._carried), self._frames_carried)

    def candidates(self, incarnation: str, most: int) -> list[Peer]:
        """Return some runners that a link to another one may go through. They take turns."""
        direct = [
            peer
            for peer in self._peers.runners()
            if peer.via is None and peer.link.peer.relays and peer.runner.incarnation != incarnation
        ]
        fit = [peer for peer in direct if not peer.is_leaving]
        first = next(self._turns) % len(fit) if fit else 0
        return [*fit[first:], *fit[:first]][:most]

    async def connect(self, via: Peer, runner: RunnerAddress, deadline: float) -> None:
        """Open a link to `runner` through `via`. The acceptor has been asked when this returns.

        Raises:
            RunnerUnavailable: There is no way there, no answer in time, or one of the two ends refuses.
        """
        link_id = self._clock.token()
        opening = self._opening[link_id] = _Opening(via, runner)
        via.link.send(Relayed(link_id, encode_frame([self._transport.hello]), target=runner.incarnation))
        try:
            async with asyncio.timeout(deadline):
                await opening.answer
        except TimeoutError as exc:
            raise RunnerUnavailable(f"through {via.runner.address}: no answer within {deadline:g} s") from exc
        finally:
            if self._opening.pop(link_id, None) is not None:
                via.link.send(Relayed(link_id, ended="it was given up"))

    def on_piece(self, peer: Peer, piece: Relayed) -> None:
        """Take a piece of a link that comes from `peer`, over a direct link."""
        if (link := self._links.get(piece.link)) is not None:
            if link.via is peer:
                link.take_in(piece)
        elif (ends := self._carried.get(piece.link)) is not None:
            if peer in ends:
                self._pass_on(piece, ends[0] if peer is ends[1] else ends[1])
        elif (opening := self._opening.get(piece.link)) is not None:
            if opening.via is peer:
                del self._opening[piece.link]
                self._on_answer(opening, piece)
        elif piece.ended:
            pass  # Both ends ended it at the same time.
        elif not piece.target:
            peer.link.send(Relayed(piece.link, ended="the link is over"))
        elif piece.target == self._transport.hello.incarnation:
            self._take(peer, piece)
        else:
            self._carry(peer, piece)

    def on_link_lost(self, peer: Peer, unsent: Sequence[Envelope]) -> None:
        """End what goes through a link that has ended; `unsent` has not left this process."""
        for link in [link for link in self._links.values() if link.via is peer]:
            frames = [piece.frame for piece in unsent if isinstance(piece, Relayed) and piece.link == link.id]
            reason = f"the link to {peer.runner}, through which it went, is closed"
            link.lost(reason, [frame for frame in frames if frame])
        for link_id in [link_id for link_id, opening in self._opening.items() if opening.via is peer]:
            self._opening.pop(link_id).fail("the link to it broke")
        for link_id, ends in [(link_id, ends) for link_id, ends in self._carried.items() if peer in ends]:
            other = ends[0] if peer is ends[1] else ends[1]
            self._end_carried(link_id, other, f"its link to {peer.runner.address or 'the caller'} is closed")

    def forget(self, link: RelayedLink) -> None:
        """Forget a link that has ended."""
        if self._links.get(link.id) is link:
            del self._links[link.id]

    async def until_unused(self, limit: float) -> None:
        """Wait, for at most `limit` seconds, until no link between others goes through this process."""
        until = self._clock.monotonic() + limit
        while self._carried and self._clock.monotonic() < until:  # noqa: ASYNC110 - once per life
            await asyncio.sleep(_UNUSED_POLL)

    async def aclose(self, grace: float) -> None:
        """Flush and end the links of this process, within `grace` seconds for all of them."""
        try:
            async with asyncio.timeout(grace), asyncio.TaskGroup() as tasks:
                for link in list(self._links.values()):
                    tasks.create_task(link.finish())
        except TimeoutError:
            for link in list(self._links.values()):
                link.close("closed; its queue could not be flushed in time")

    def _take(self, via: Peer, piece: Relayed) -> None:
        """Take a link that another process has opened to this one."""
        try:
            first = decode_frame(piece.frame)
            hello = check_hello(first, self._transport.hello)
            if not via.is_runner or not piece.source or hello.incarnation != piece.source:
                raise MalformedMessage(f"{via.runner} passed on the Hello of somebody else")
            link = RelayedLink(piece.link, hello, via, self)
            # Queued before the acceptor is asked, so that our Hello leads whatever the acceptor sends.
            link.send(self._transport.hello)
            link.offer_to(self._acceptor)
        except ActorhubError as error:
            via.link.send(Relayed(piece.link, ended=f"the runner refused the link: {error}"))
            return
        self._links[piece.link] = link
        link.start(first[1:])

    def _on_answer(self, opening: _Opening, piece: Relayed) -> None:
        via = opening.via
        if piece.ended:
            opening.fail(piece.ended)
            return
        try:
            first = decode_frame(piece.frame)
            hello = check_hello(first, self._transport.hello)
            if hello.incarnation != opening.runner.incarnation:
                raise MalformedMessage(f"{hello.address} answered, in another incarnation")
            link = RelayedLink(piece.link, hello, via, self)
            link.offer_to(self._acceptor)
        except ActorhubError as error:
            via.link.send(Relayed(piece.link, ended=f"the caller refused the link: {error}"))
            opening.fail(str(error))
            return
        self._links[piece.link] = link
        link.start(first[1:])
        if not opening.answer.done():
            opening.answer.set_result(None)

    def _carry(self, peer: Peer, piece: Relayed) -> None:
        """Begin to pass on the frames of a link between a peer and another one."""
        target = self._peers.direct(piece.target)
        if target is None or not target.is_runner:
            problem = "there is no link to the runner from here either"
        elif not target.link.peer.relays:
            problem = "the release of the runner takes no links through others"
        elif sum(ends[0] is peer for ends in self._carried.values()) >= MAX_CARRIED:
            problem = f"{MAX_CARRIED} links of the caller already go through here"
        else:
            self._carried[piece.link] = (peer, target)
            source = peer.runner.incarnation
            target.link.send(Relayed(piece.link, piece.frame, target=piece.target, source=source))
            return
        peer.link.send(Relayed(piece.link, ended=problem))

    def _pass_on(self, piece: Relayed, to: Peer) -> None:
        self._frames_carried += 1
        if piece.ended:
            self._end_carried(piece.link, to, piece.ended)
        elif to.link.queued_bytes > MAX_QUEUED_BYTES:
            # Further frames would come to a queue that breaks a link that others use, too.
            for end in self._carried[piece.link]:
                self._end_carried(piece.link, end, f"too much waits to be sent to {to.runner}")
        else:
            to.link.send(Relayed(piece.link, piece.frame, taken=piece.taken, done=piece.done))

    def _end_carried(self, link_id: str, tell: Peer, reason: str) -> None:
        self._carried.pop(link_id, None)
        tell.link.send(Relayed(link_id, ended=reason))
