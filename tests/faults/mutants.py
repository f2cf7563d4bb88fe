"""Defects of the product that its tests must notice: each breaks one thing.

`apply` is called by the hub module of the tests alone, with what the environment says. The product does not know it.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from actorhub import context
from actorhub.cluster import cluster_of_handler
from actorhub.context import Current
from actorhub.core.address import RunnerAddress, ShardId, ShardOwner
from actorhub.core.clock import Clock
from actorhub.core.idempotency import run_key
from actorhub.core.retry import Retry
from actorhub.engine.anycast.letting_go import FormerOwnerRequests
from actorhub.engine.durable.attempts import Attempts
from actorhub.engine.durable.backlog import Backlog
from actorhub.engine.durable.intake import Intake
from actorhub.engine.durable.server_clock import ServerClock
from actorhub.engine.host import Host
from actorhub.engine.model import asked
from actorhub.engine.model.asked import AskedMessage
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.records import Cell, HostedShard, Message
from actorhub.engine.model.run import Run
from actorhub.engine.ownership.former_owners import FormerOwners
from actorhub.engine.runs import completion
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.saving import StepRun
from actorhub.storage.memory.message_table import MessageTable
from actorhub.storage.message_ports import CancelResult, Outcome, PendingMessage, Readiness, RunStart, StoredReply
from actorhub.storage.postgres import PostgresStorage, schema

Patch: TypeAlias = Callable[[Any, str, Any], None]
"""Replaces an attribute: `setattr`, or something that can take it back."""

EntityAddress: TypeAlias = tuple[ShardId, str, str]
MUTANTS: Final[dict[str, Callable[[Patch], None]]] = {}
_OWNS: Final = "s.epoch = r.epoch and s.owner_incarnation = committer"
"""How statements check that the committer owns a shard."""
_AHEAD: Final = 0.15
"""Seconds that a wrong clock is ahead."""


def mutant(name: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a defect under a name."""

    def register(break_it: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[name] = break_it
        return break_it

    return register


def apply(name: str, patch: Patch = setattr) -> None:
    """Put the defect `name` into this process; nothing for the empty name."""
    if name:
        MUTANTS[name](patch)


@mutant("keys are ignored")
def _(patch: Patch) -> None:
    store = Intake._store_message

    def broken(self: Intake, message: DurableMessage, attempts: int) -> None:
        if message.delivery is not None:
            message.delivery = msgspec.structs.replace(message.delivery, key=None, payload_hash=b"")
        store(self, message, attempts)

    patch(Intake, "_store_message", broken)


@mutant("what is stored does not go first")
def _(patch: Patch) -> None:
    def broken(self: Host) -> None:
        """Let what arrives from new owners run at once."""

    patch(Host, "on_new_senders", broken)


@mutant("what a step asks has no key")
def _(patch: Patch) -> None:
    def broken(self: StepRun, call: Message, payload: bytes, step: str = "") -> AskedMessage | None:
        return None

    patch(StepRun, "send_once", broken)


@mutant("a run that is repeated asks with other keys")
def _(patch: Patch) -> None:
    def broken(scope: Sequence[str], step: str, payload: bytes, number: int) -> str:
        return run_key(scope, f"{step}{secrets.token_hex(8)}", payload, number)

    patch(asked, "run_key", broken)


@mutant("a repeated call is taken for a new one")
def _(patch: Patch) -> None:
    store = Intake._store_message

    def broken(self: Intake, message: DurableMessage, attempts: int) -> None:
        if message.delivery is not None:
            message.delivery = msgspec.structs.replace(message.delivery, is_repeated=False)
        store(self, message, attempts)

    patch(Intake, "_store_message", broken)


@mutant("shards are released before they are drained")
def _(patch: Patch) -> None:
    drain = Host.drain

    async def broken(self: Host, shard_id: ShardId, grace: float) -> None:
        _ = self.delivery.intake._supervisor.spawn(drain(self, shard_id, grace), "drain when it is too late")

    patch(Host, "drain", broken)


@mutant("what a former owner left is not loaded")
def _(patch: Patch) -> None:
    def broken(self: Backlog, shard: HostedShard) -> None:
        """Look for nothing."""

    patch(Backlog, "mark", broken)
    patch(Backlog, "scan", broken)


@mutant("runs are counted after they end")
def _(patch: Patch) -> None:
    store = Intake._store_message

    def store_uncounted(self: Intake, message: DurableMessage, attempts: int) -> None:
        store(self, message, 0)

    def start_uncounted(self: Attempts, message: DurableMessage) -> None:
        message.attempts += 1
        self.on_counted(message)

    patch(Intake, "_store_message", store_uncounted)
    patch(Attempts, "start", start_uncounted)
    patch(completion, "next_to_count", lambda *_: None)


@mutant("what a handler tells leaves at once")
def _(patch: Patch) -> None:
    async def broken(self: Current, call: Awaitable[Any], **options: Any) -> int:
        return await cluster_of_handler().tell(call)

    patch(context.Current, "tell", broken)


@mutant("domain errors are run again")
def _(patch: Patch) -> None:
    patch(Retry, "is_final", lambda *_: False)


@mutant("the state is not rolled back")
def _(patch: Patch) -> None:
    def broken(cell: Cell, *, shared: bool) -> None:
        """Leave what the handler changed."""

    patch(completion, "roll_back", broken)


class _Ahead:
    """A clock that shows a later time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def time(self) -> float:
        return self._clock.time() + _AHEAD


@mutant("messages run before they are due")
def _(patch: Patch) -> None:
    now, start_run = ServerClock.now, MessageTable.start_run

    def start_early(self: MessageTable, start: RunStart, incarnation: str) -> Readiness:
        clock = self._clock
        self._clock = _Ahead(clock)  # type: ignore[assignment]
        try:
            return start_run(self, start, incarnation)
        finally:
            self._clock = clock

    patch(ServerClock, "now", lambda self: now(self) + _AHEAD)
    patch(MessageTable, "start_run", start_early)


@mutant("the newest message is loaded first")
def _(patch: Patch) -> None:
    load = MessageTable.load_entities

    def broken(self: MessageTable, entities: Sequence[EntityAddress], per_entity: int) -> list[PendingMessage]:
        return load(self, entities, per_entity)[::-1]

    patch(MessageTable, "load_entities", broken)


@mutant("the fence is off")
def _(patch: Patch) -> None:
    make = PostgresStorage.__init__

    def broken(steps: Callable[[], Sequence[schema.Step]]) -> Callable[[], Sequence[schema.Step]]:
        return lambda: [msgspec.structs.replace(step, sql=step.sql.replace(_OWNS, "true")) for step in steps()]

    def without_fence(self: PostgresStorage, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **{**options, "fence": False})

    assert any(_OWNS in step.sql for step in schema.migrations())
    for kind in ("migrations", "additions"):
        patch(schema, kind, broken(getattr(schema, kind)))
    patch(PostgresStorage, "__init__", without_fence)


@mutant("replies leave before their commit")
def _(patch: Patch) -> None:
    commit = Completion._commit_run

    def broken(self: Completion, run: Run, data: bytes | None, body: bytes) -> None:
        message = run.message
        if isinstance(message, DurableMessage):
            message.events.answer(message.waiters, message.message_id, StoredReply(Outcome.VALUE, body))  # type: ignore[attr-defined]
        commit(self, run, data, body)

    patch(Completion, "_commit_run", broken)


@mutant("cancellations are forgotten")
def _(patch: Patch) -> None:
    def broken(self: MessageTable, *what: Any, **options: Any) -> CancelResult:
        return CancelResult.CANCELLED

    patch(MessageTable, "cancel", broken)


@mutant("a cancelled key stays taken")
def _(patch: Patch) -> None:
    cancel = MessageTable.cancel

    def broken(self: MessageTable, *what: Any, **options: Any) -> CancelResult:
        keys = dict(self._keys)
        result = cancel(self, *what, **options)
        self._keys.update(keys)
        return result

    patch(MessageTable, "cancel", broken)


@mutant("counts under way are not awaited")
def _(patch: Patch) -> None:
    async def broken(self: Attempts, shard: HostedShard) -> None:
        """Let the hand-over end before the answer."""

    patch(Attempts, "_until_answered", broken)


@mutant("runs that go on are not given back")
def _(patch: Patch) -> None:
    def broken(self: Attempts, shard: HostedShard) -> list[RunStart]:
        return list(self._memory.table(shard).spared.values())

    patch(Attempts, "_cut", broken)


@mutant("a free lock is taken at once")
def _(patch: Patch) -> None:
    async def broken(self: FormerOwners, *what: Any, **options: Any) -> bool:
        return True

    patch(FormerOwners, "until_gone", broken)


@mutant("whoever cannot be asked counts as dead")
def _(patch: Patch) -> None:
    has_let_go = FormerOwnerRequests.has_let_go

    async def broken(
        self: FormerOwnerRequests, owner: RunnerAddress, tenures: Sequence[ShardOwner], seconds: float
    ) -> bool:
        return self._node.peers.by_runner(owner) is None or await has_let_go(self, owner, tenures, seconds)

    patch(FormerOwnerRequests, "has_let_go", broken)


_TAKES_FREE_LOCKS: Final = "and not exists (select from lock_session as s where s.token = l.session);"
"""How a lock session gets a lock: once it has the row, nobody else may hold it."""


def _break_leases(patch: Patch, *changes: tuple[str, str]) -> None:
    steps = schema.additions()

    def broken(sql: str) -> str:
        for before, after in changes:
            sql = sql.replace(before, after)
        return sql

    assert all(any(before in step.sql for step in steps) for before, _ in changes)
    patch(schema, "additions", lambda: [msgspec.structs.replace(step, sql=broken(step.sql)) for step in steps])


@mutant("a lease that was given away can be renewed")
def _(patch: Patch) -> None:
    silent_too = _TAKES_FREE_LOCKS.replace(");", " and not is_silent(s.renewed_at, silence));")
    _break_leases(
        patch,
        (_TAKES_FREE_LOCKS, silent_too),
        ("where is_silent(h.renewed_at, silence) and h.token in (", "where false and h.token in ("),
    )


@mutant("two get one lock row")
def _(patch: Patch) -> None:
    _break_leases(patch, (_TAKES_FREE_LOCKS, ";"), ("        for update of l skip locked\n", ""))
