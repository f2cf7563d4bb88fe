"""What goes on over the links: replies find their calls, requests find the host, news finds the routing table."""

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from actorhub.core.clock import Clock
from actorhub.core.codec import decode_error
from actorhub.core.envelope import (
    Cancel,
    Chunk,
    Credit,
    Envelope,
    Failure,
    Leaving,
    Members,
    NotOwner,
    Owners,
    Reply,
    Request,
)
from actorhub.engine.model.message import DONE, SENT, Message
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.router import Router

_log: Final = logging.getLogger("actorhub.exchange")


class News(Protocol):
    """What a process does with news that are not messages."""

    def peer_linked(self, peer: Peer) -> None:
        """A link is up."""
        ...

    def peer_lost(self, peer: Peer) -> None:
        """A link is gone; its calls are settled."""
        ...

    def owners(self, peer: Peer, news: Owners) -> None:
        """A runner says what it owns; the routing table knows already."""
        ...

    def members(self, peer: Peer, news: Members) -> None:
        """A runner says who is in the cluster."""
        ...


class Exchange:
    """Handles everything that links bring. A client's exchange has no inbound side and refuses requests."""

    def __init__(self, *, clock: Clock, news: News) -> None:
        self._monotonic = clock.monotonic
        self._news = news
        self.peers: Peers
        self.router: Router
        self.inbound: Inbound | None = None
        self.unexpected = 0
        """Envelopes that made no sense from that peer; dropped."""

    def linked(self, peer: Peer) -> None:
        """Note the link, and let go what waited for it."""
        self.peers.add(peer)
        self._news.peer_linked(peer)
        if peer.is_runner:
            self.router.release(self.router.table.of_runner(peer.runner))

    def unlinked(self, peer: Peer, reason: str, unsent: Sequence[Envelope]) -> None:
        """Settle what was in flight on the link."""
        _log.info("link to %s closed: %s", peer.runner, reason)
        self.peers.remove(peer)
        if self.inbound is not None:
            self.inbound.abandoned(peer)
        self.router.link_lost(peer, [e.id for e in unsent if type(e) is Request], reason)
        self._news.peer_lost(peer)

    def received(self, peer: Peer, envelopes: Sequence[Envelope]) -> None:
        """Handle one frame."""
        inbound = self.inbound
        for envelope in envelopes:
            if isinstance(envelope, Reply):
                message = self._answered(peer, envelope)
                if message is not None:
                    message.completed(envelope.body)
            elif isinstance(envelope, Request) and inbound is not None:
                inbound.request(peer, envelope)
            else:
                self._control(peer, envelope)

    def _answered(self, peer: Peer, envelope: Reply | Failure) -> Message | None:
        """Return the call that this answers, now done; `None` for one that nobody waits for any more."""
        message = peer.pending.pop(envelope.id, None)
        if message is None or message.phase != SENT:
            return None
        shard = message.shard
        if (
            shard is not None
            and 0 < envelope.epoch < self.router.table.newest.get(shard, 0)
            and self.router.table.is_superseded(shard, envelope.epoch, self._monotonic())
        ):
            self.router.refused_replies += 1
            self.router.lost(message, peer, "it does not own the shard any more")
            return None
        message.phase = DONE
        return message

    def _control(self, peer: Peer, envelope: Envelope) -> None:
        match envelope:
            case Failure():
                message = self._answered(peer, envelope)
                if message is not None:
                    message.failed(decode_error(envelope.body))
            case NotOwner():
                self.router.not_owner(peer, envelope.id, envelope.hint)
            case Chunk():
                message = peer.pending.get(envelope.id)
                if message is not None and message.phase == SENT:
                    message.chunk(envelope.bodies)
            case Credit() | Cancel() if self.inbound is not None:
                self.inbound.control(peer, envelope)
            case Owners():
                self._learn(peer, envelope)
            case Members():
                self._news.members(peer, envelope)
            case Leaving():
                peer.is_leaving = True
                _log.info("%s is leaving: %s", peer.runner, envelope.reason)
            case _:
                self.unexpected += 1

    def _learn(self, peer: Peer, news: Owners) -> None:
        table = self.router.table
        if news.complete:
            still = {owner.shard for owner in news.owned}
            for shard in table.of_runner(peer.runner):
                if shard not in still:
                    table.forget(shard, peer.runner)
        for shard in news.released:
            table.forget(shard, peer.runner)
        changed = table.learn(news.owned, self._monotonic())
        self._news.owners(peer, news)
        self.router.owners_changed(changed)
