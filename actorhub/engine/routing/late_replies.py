"""Calls whose shard has another owner by now, and whose reply the former one still owes."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable
from typing import Final

from actorhub.core.address import ShardId
from actorhub.core.envelope import ECHO
from actorhub.core.errors import ActorhubError
from actorhub.engine.model.records import SENT, AwaitedMessage, Message
from actorhub.engine.model.spec import operation_spec
from actorhub.engine.routing.peers import Peer, Peers
from actorhub.engine.routing.table import RoutingTable
from actorhub.engine.supervision import Supervisor

_ECHO: Final = operation_spec("runner", "echo")
_GRACE: Final = 1.1
"""Seconds to wait for a former owner's replies: a little longer than the routing table accepts them."""
_PATIENCE: Final = 0.5
"""Seconds in which a former owner answers that it is alive."""
_LONGEST: Final = 10.0
"""Seconds for which one that is alive is waited for."""


def echo(send_to: Callable[[Message, Peer], None], peer: Peer) -> "asyncio.Future[bytes]":
    """Return what is done once a peer has answered, and so has taken in what was sent to it before.

    What it sent before its answer has arrived by then. It fails with an `ActorhubError` if the link breaks.
    """
    message = AwaitedMessage(_ECHO, "", ECHO)
    send_to(message, peer)
    return message.future


class LateReplies:
    """Gives up calls that a former owner does not answer.

    One whose event loop is blocked, or whose commit hangs, keeps its links open, so no broken link would end the wait.
    One that is alive need not have run the call itself: where a release has the entity in another shard, it has passed
    the call on, and passes the reply back.
    """

    def __init__(
        self,
        peers: Peers,
        table: RoutingTable,
        supervisor: Supervisor,
        *,
        send_to: Callable[[Message, Peer], None],
        on_lost: Callable[[Message, Peer, str], None],
    ) -> None:
        """Prepare.

        Args:
            peers: The open links.
            table: Who owns which shard.
            supervisor: Owns the tasks that wait.
            send_to: Sends a message to a peer.
            on_lost: Settles a call that has been recalled from a peer; gets the reason.
        """
        self._peers = peers
        self._table = table
        self._supervisor = supervisor
        self._send_to = send_to
        self._on_lost = on_lost
        self._moved: set[ShardId] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, moved: Iterable[ShardId]) -> None:
        """Wait for what is owed for these shards, whose owners have changed."""
        self._moved.update(moved)
        if self._moved and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GRACE, self._begin)

    def close(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def owed(self, moved: Collection[ShardId]) -> list[tuple[Peer, Message]]:
        """Return what has not been answered by a former owner of these shards, in the order in which it was sent.

        A shard may have come back to its former owner meanwhile, or have no known owner. Then the answer counts.
        """
        return [(peer, message) for peer in self._peers.runners() if moved for message in self._owed_by(peer, moved)]

    def _owed_by(self, peer: Peer, moved: Collection[ShardId]) -> list[Message]:
        found: list[Message] = []
        for message in peer.pending.values():
            if message.phase == SENT and message.shard_id is not None and message.shard_id in moved:
                owner = self._table.owner(message.shard_id)
                if owner is not None and owner.runner != peer.runner:
                    found.append(message)
        return found

    def _begin(self) -> None:
        moved, self._moved = frozenset(self._moved), set()
        self._timer = None
        for peer in dict.fromkeys(peer for peer, _ in self.owed(moved)):
            _ = self._supervisor.spawn(self._wait(peer, moved), "wait for a former owner")

    async def _wait(self, peer: Peer, moved: Collection[ShardId]) -> None:
        """Wait as long as the peer is alive and owes something; then give up the rest."""
        with contextlib.suppress(ActorhubError, TimeoutError):
            async with asyncio.timeout(_LONGEST):
                while self._owed_by(peer, moved):
                    async with asyncio.timeout(_PATIENCE):
                        await echo(self._send_to, peer)
                    await asyncio.sleep(_PATIENCE)
        for message in self._owed_by(peer, moved):
            peer.recall(message)
            self._on_lost(message, peer, "another runner took the shard over before the reply came")
