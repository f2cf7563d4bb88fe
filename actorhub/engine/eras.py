"""Forgetting what was learned in an era of the database that is over."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from actorhub.core.backoff import Backoff
from actorhub.core.logger import get_logger
from actorhub.engine.node import Node
from actorhub.storage.ports import Era, EraChange, Storage

_log: Final = get_logger("actorhub.eras")
_SOON: Final = Backoff(0.05, 1.0)


class EraWatch:
    """Keeps one process in the present era of its database.

    Owners, epochs, links and leases of an era say nothing in the next one, in which all of that may have happened
    differently, or not yet. All of it goes at once and without a question, because whether something was lost is known
    to nobody for all: each process knows only what it was told itself.
    """

    def __init__(
        self,
        node: Node,
        storage: Storage,
        *,
        lease_machine_id: Callable[[], Coroutine[Any, Any, None]],
        on_ended: Callable[[str], None] | None = None,
    ) -> None:
        """Begin with the era that `storage` is in.

        Args:
            node: Forgets owners and ends its links.
            storage: Tells when another era begins.
            lease_machine_id: Leases a machine id in the present era.
            on_ended: Told first that the era is over, and why; lets go of what this process owns.
        """
        self._node = node
        self._on_ended = on_ended
        self._lease_machine_id = lease_machine_id
        self.prepared: Era | None = None
        """The era in which this process has what its shards need."""
        self.losses = 0
        """How often the database came back without something that this process had seen acknowledged."""
        self.last_loss = ""
        """What was lost last, in a sentence."""
        node.transport.enter(storage.era.cluster, storage.era.token)
        storage.on_era(self._on_era)

    def _on_era(self, change: EraChange) -> None:
        reason = change.lost or "the database was restarted, or another server took its place"
        if change.lost:
            self.losses += 1
            self.last_loss = change.lost
            _log.error("acknowledged work is lost: %s; this process goes on with what the database has", change.lost)
        else:
            _log.info("era %s of the database begins: %s", change.era.token, reason)
        if self._on_ended is not None:
            self._on_ended(reason)
        if change.lost:
            # The lease of the machine id may be one of the things that are lost, and the id another process's by now.
            self._node.ids.revoke()
            _ = self._node.supervisor.loop("lease a machine id again", self._lease_machine_id, _SOON)
        self._node.enter_era(change.era.cluster, change.era.token, "another era of the database began")
