"""Handles what comes over the links: replies find their calls, requests the host, announcements the routing table."""

from collections.abc import Sequence
from typing import Final, Protocol

from actorhub.core.address import RunnerAddress
from actorhub.core.clock import Clock
from actorhub.core.codec import decode_error
from actorhub.core.envelope import (
    ECHO,
    Cancel,
    Chunk,
    Credit,
    Envelope,
    Failure,
    Leaving,
    Members,
    NotOwner,
    Owners,
    Relayed,
    Reply,
    Request,
)
from actorhub.core.errors import ActorhubError, UnknownEntityType
from actorhub.core.logger import get_logger
from actorhub.engine.model.records import DONE, SENT, Message
from actorhub.engine.routing.inbound import Inbound
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.relays import Relays
from actorhub.engine.routing.router import Router
from actorhub.engine.routing.switching import LinkSwitch

_log: Final = get_logger("actorhub.exchange")


class NodeEvents(Protocol):
    """What a process learns about its peers and about its own messages. Implemented by `Runner` and `ClientNode`."""

    def on_linked(self, peer: Peer) -> None:
        """A link has been established."""
        ...

    def on_lost(self, peer: Peer) -> None:
        """A link is gone, and the calls that were in flight on it are settled."""
        ...

    def on_owners(self, peer: Peer, news: Owners) -> None:
        """A runner has announced what it owns or has released. The routing table knows already."""
        ...

    def on_members(self, peer: Peer, news: Members) -> None:
        """A runner has announced who is in the cluster."""
        ...

    def on_refused(self, runner: RunnerAddress, error: ActorhubError, is_first: bool) -> None:
        """An attempt to connect has failed; `is_first` of a series. The incarnation is empty if it is not known."""
        ...

    def on_leaving(self, peer: Peer) -> None:
        """A runner has announced that it is leaving."""
        ...

    def on_stranded(self) -> None:
        """A message has begun to wait for an owner of its shard."""
        ...


class Exchange:
    """Handles what comes over the links. A client has no inbound side: it drops requests, and counts them."""

    def __init__(
        self,
        *,
        peers: Peers,
        router: Router,
        relays: Relays,
        switch: LinkSwitch,
        inbound: Inbound | None,
        clock: Clock,
        events: NodeEvents,
    ) -> None:
        self._peers = peers
        self._router = router
        self._relays = relays
        self._switch = switch
        self._inbound = inbound
        self._monotonic = clock.monotonic
        self._node_events = events
        self.unexpected = 0
        """How many envelopes made no sense coming from their peer. They were dropped."""

    def on_linked(self, peer: Peer) -> None:
        """Add the link, and send what was waiting for it.

        Two direct links are used one after the other without further ado: where there are two, the earlier one is
        either as young as the later one, or broken without a sign. One that goes through another runner works, and
        calls may be under way on it that must not be overtaken, even if a direct one has taken its place already.
        """
        former = self._peers.add(peer)
        if former is not None and (former.via or peer.via or self._switch.is_under_way(peer)):
            self._switch.begin(former, peer)
        self._node_events.on_linked(peer)
        # Owners are read from the store, too, so messages may have been waiting for a link to a runner that was known
        # to own their shards.
        if peer.is_runner:
            self._router.release(self._router.table.of_runner(peer.runner))

    def on_unlinked(self, peer: Peer, reason: str, unsent: Sequence[Envelope]) -> None:
        """Settle what was in flight on the link.

        The peer leaves the table first, so that what is routed again does not choose the link that has just broken.
        """
        _log.info("the link to %s is closed: %s", peer.runner, reason)
        self._peers.remove(peer)
        self._relays.on_link_lost(peer, unsent)
        if self._inbound is not None:
            self._inbound.on_link_lost(peer)
        self._router.on_link_lost(peer, [e.id for e in unsent if type(e) is Request], reason)
        self._node_events.on_lost(peer)

    def on_received(self, peer: Peer, envelopes: Sequence[Envelope]) -> None:
        """Handle one frame."""
        inbound = self._inbound
        for envelope in envelopes:
            if isinstance(envelope, Reply):
                message = self._take_answered(peer, envelope)
                if message is not None:
                    message.on_completed(envelope.body)
            elif isinstance(envelope, Request) and inbound is not None:
                inbound.on_request(peer, envelope)
            else:
                self._on_control(peer, envelope)

    def _take_answered(self, peer: Peer, envelope: Reply | Failure) -> Message | None:
        """Mark the call that this answers as done, and return it; `None` if nobody waits for the answer.

        An answer of a former owner is refused: it could report state that the present owner has changed since, or a run
        whose commit the store refused. The call counts as lost then, as if its link had broken.
        """
        message = peer.pending.pop(envelope.id, None)
        if message is None or message.phase != SENT:
            return None
        shard = message.shard_id
        if (
            shard is not None
            and 0 < envelope.epoch < self._router.table.newest.get(shard, 0)
            and self._router.table.is_superseded(shard, envelope.epoch, self._monotonic())
        ):
            self._router.refused_replies += 1
            self._router.on_lost(message, peer, "it no longer owned the shard when it replied")
            return None
        message.phase = DONE
        return message

    def _on_control(self, peer: Peer, envelope: Envelope) -> None:
        match envelope:
            case Failure():
                message = self._take_answered(peer, envelope)
                if message is not None:
                    self._on_failed(message, decode_error(envelope.body))
            case NotOwner():
                self._router.on_not_owner(peer, envelope.id, envelope.hint)
            case Chunk():
                # Items that were on their way when the consumer left find no call.
                message = peer.pending.get(envelope.id)
                if message is not None and message.phase == SENT:
                    message.on_items(envelope.bodies)
            case Credit() | Cancel() if self._inbound is not None:
                self._inbound.on_control(peer, envelope)
            case _:
                self._on_news(peer, envelope)

    def _on_failed(self, message: Message, error: ActorhubError) -> None:
        if not (isinstance(error, UnknownEntityType) and self._router.is_tried_elsewhere(message)):
            message.on_failed(message.own_error(error))

    def _on_news(self, peer: Peer, envelope: Envelope) -> None:
        match envelope:
            case Owners():
                self._on_owners(peer, envelope)
            case Members():
                self._node_events.on_members(peer, envelope)
            case Relayed() if peer.via is None:  # A frame is passed on once.
                self._relays.on_piece(peer, envelope)
            case Request() if envelope.kind == ECHO:
                peer.link.send(Reply(envelope.id, 0, b""))  # A client serves no other request.
            case Leaving():
                self._peers.note_leaving(peer.runner.incarnation)
                self._node_events.on_leaving(peer)
                _log.info("runner %s is leaving the cluster: %s", peer.runner, envelope.reason)
            case _:
                self.unexpected += 1

    def _on_owners(self, peer: Peer, news: Owners) -> None:
        table = self._router.table
        # The announcements of one runner arrive in the order in which it sent them, so what a complete list does not
        # name is no longer its own. About other runners' shards it says nothing.
        if news.complete:
            still = {owner.shard for owner in news.owned}
            for shard in table.of_runner(peer.runner):
                if shard not in still:
                    table.forget(shard, peer.runner)
        for shard in news.released:
            table.forget(shard, peer.runner)
        changed = table.learn(news.owned, self._monotonic())
        self._node_events.on_owners(peer, news)
        self._router.on_owners_changed(changed)
