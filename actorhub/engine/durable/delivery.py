"""Durable messages on a runner: the parts that see them from their call to their reply, put together."""

from collections.abc import Iterable

import msgspec

from actorhub.core.envelope import CANCEL_MESSAGE, RETRY_MESSAGE
from actorhub.engine.durable.attempts import Attempts
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.due import DueLoop
from actorhub.engine.durable.handlers import StoredHandlers
from actorhub.engine.durable.in_memory import InMemory
from actorhub.engine.durable.intake import Intake
from actorhub.engine.durable.loader import Loader
from actorhub.engine.durable.loading import Loading
from actorhub.engine.durable.owner import Owner
from actorhub.engine.durable.requests import MessageRequests
from actorhub.engine.durable.schedule import Schedule
from actorhub.engine.durable.settlement import Settlement
from actorhub.engine.model.records import HostedShard, Message
from actorhub.engine.runs.residency import Residents


class DeliveryStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of this process, and how many messages are in memory now."""

    settled: int
    """Messages whose outcome, a value or an error of the handler, was committed here."""
    failed_runs: int
    dead_letters: int
    undeliverable: int
    """Of the dead letters, those that do not fit this release: their arguments, or for want of a handler."""
    redelivered: int
    """Runs that were not a message's first."""
    in_memory: int
    scheduled: int
    """Of those in memory, how many have a due time."""
    scans: int
    """Reads of the store for messages that wait in it."""


class Delivery:
    """Makes the parts, bottom-up, and passes on what the host tells them."""

    def __init__(self, owner: Owner, residents: Residents) -> None:
        self._shards = owner.shards
        self.handlers = StoredHandlers(owner.types)
        self.backlog = Backlog(types=owner.types, shards=owner.shards)
        self.schedule = Schedule()
        self.memory = InMemory(owner, residents=residents, backlog=self.backlog, schedule=self.schedule)
        self.settlement = Settlement(owner, memory=self.memory, backlog=self.backlog)
        self.attempts = Attempts(owner, memory=self.memory, settlement=self.settlement, schedule=self.schedule)
        self.intake = Intake(
            owner,
            memory=self.memory,
            backlog=self.backlog,
            schedule=self.schedule,
            settlement=self.settlement,
            attempts=self.attempts,
        )
        loading = Loading(owner, handlers=self.handlers, memory=self.memory, settlement=self.settlement)
        self.loader = Loader(owner, backlog=self.backlog, memory=self.memory, loading=loading)
        self.due = DueLoop(owner, schedule=self.schedule, memory=self.memory, loading=loading)
        self.requests = MessageRequests(owner, memory=self.memory, intake=self.intake, settlement=self.settlement)

    def statistics(self) -> DeliveryStatistics:
        """Return counts; walks all owned shards."""
        return DeliveryStatistics(
            settled=self.settlement.settled,
            failed_runs=self.settlement.failed_runs,
            dead_letters=self.settlement.dead_letters,
            undeliverable=self.settlement.undeliverable,
            redelivered=self.attempts.redelivered,
            in_memory=len(self.memory),
            scheduled=len(self.schedule),
            scans=self.loader.scans,
        )

    def accept(self, message: Message, shard: HostedShard) -> None:
        """Take a call of a durable handler, or a request about a durable message, for an owned shard."""
        if message.kind == CANCEL_MESSAGE:
            self.requests.cancel(message, shard)
        elif message.kind == RETRY_MESSAGE:
            self.requests.retry(message, shard)
        else:
            self.intake.accept(message, shard)

    def on_granted(self, shards: Iterable[HostedShard]) -> None:
        """Begin to serve shards that this runner got."""
        self.memory.on_granted(shards)

    def on_draining(self, shard: HostedShard) -> None:
        """Have what running handlers wait for come in from the store: its entity may be about to leave memory."""
        for callers in self.memory.table(shard).waiting.values():
            for caller in callers:
                if caller.chain:
                    self.backlog.mark_awaited(shard, caller.entity)

    def on_revoked(self, shard: HostedShard) -> None:
        """Forget everything of the shard; callers that wait are sent on to its next owner."""
        for caller in self.memory.on_revoked(shard):
            self.intake.send_on(caller)

    def poll(self) -> None:
        """Scan the store for what this process was not told of."""
        for shard in self._shards.values():
            self.backlog.scan(shard)
        self.schedule.poll_soon()

    def let_stored_go_first(self) -> None:
        """Have everything new wait behind what is in the store, of which this process may not have been told."""
        for shard in self._shards.values():
            self.intake.let_stored_go_first(shard)
