"""What operators see of singletons and schedules, and do with schedules. Any runner answers for the cluster."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from actorhub import _call as calls
from actorhub.core.address import ShardId, ShardOwner
from actorhub.core.cron import check_expression, run_now_key
from actorhub.core.errors import MalformedMessage, UnknownEntityType, UnknownHandler
from actorhub.core.logger import get_logger
from actorhub.engine.model.spec import HandlerSpec
from actorhub.engine.ownership.plan import LIVE_WITHIN
from actorhub.engine.singletons.health import SingletonHealth, is_stale
from actorhub.ops.local import LocalRunner
from actorhub.storage.singleton_ports import ScheduleEdit, ScheduleRow, SingletonRow
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

_log: Final = get_logger("actorhub.ops")

_LONGEST_TEXT: Final = 2_000
"""Characters of an error."""
_LONGEST_EXPRESSION: Final = 1_000
"""Characters. The longest expression in which nothing is redundant has about 600."""


class SingletonAdmin:
    """Answers of one runner for the whole cluster. Every method raises `PersistenceError` when the store fails."""

    def __init__(self, runner: LocalRunner) -> None:
        self._runner = runner
        self._store = runner.storage.singletons
        self._cluster = runner.cluster
        self._specs = runner.specs

    async def singletons(self) -> pb.ListSingletonsReply:
        """Return every singleton with its schedules, by name."""
        schedules: defaultdict[str, list[ScheduleRow]] = defaultdict(list)
        for schedule in (await self._store.schedules())[0]:
            schedules[schedule.singleton].append(schedule)
        # The owners are read last. If a shard moves in between, the row of its former leader meets a new owner, and
        # `_state` says that nobody leads. In the other order it would show a leader that has lost its shard by now.
        rows, now = await self._store.singletons()
        owners = await self._owners()
        found = {row.singleton: _singleton(row, _state(row, owners, now)) for row in rows}
        for spec in self._specs.values():
            if spec.singleton_id is not None and spec.name not in found:
                shard = self._runner.shard_of(spec, spec.singleton_id)
                found[spec.name] = pb.Singleton(singleton=spec.name, entity_id=spec.singleton_id, shard=str(shard))
        for name, singleton in found.items():
            singleton.schedules.extend(map(_schedule, schedules[name]))
        return pb.ListSingletonsReply(singletons=[found[name] for name in sorted(found)], now=now)

    async def schedules(self, singleton: str) -> pb.ListSchedulesReply:
        """Return the schedules of one singleton, or of every one where the name is empty.

        Raises:
            UnknownEntityType: no singleton has that name.
        """
        rows, now = await self._store.schedules(singleton or None)
        if singleton and not rows:
            await self._check_known(singleton)
        return pb.ListSchedulesReply(schedules=map(_schedule, rows), now=now)

    async def edit(self, request: pb.EditScheduleRequest) -> pb.Schedule:
        """Change a schedule, have its leader read it again, and return the schedule as it is now.

        Raises:
            UnknownEntityType: no singleton has that name.
            UnknownHandler: it has no schedule of that name.
            MalformedMessage: the request names no change, or one that makes no sense.
        """
        before, _ = await self._found(request.singleton, request.name)
        edit, done = _edit(request, before)
        row = await self._store.edit_schedule(request.singleton, request.name, edit)
        if row is None:
            raise UnknownHandler(
                f"{request.singleton}.{request.name} was removed this very moment: it is not declared in the code"
            )
        _log.info("schedule %s.%s: %s", row.singleton, row.name, done)
        await self._cluster.poll_storage()
        return _schedule(row)

    async def run_now(self, singleton: str, name: str) -> int:
        """Store a message that runs the schedule's method at once; return the message's id.

        Raises:
            UnknownEntityType: no singleton has that name, or this runner's program does not declare it.
            UnknownHandler: it has no schedule of that name.
        """
        _, now = await self._found(singleton, name)
        entity_id, spec = self._method(singleton, name)
        arguments = spec.bind(datetime.fromtimestamp(now, UTC))
        target = self._runner.target(key=run_now_key(name, self._cluster.snowflake()))
        message_id = await self._cluster.tell(calls.Call(target, spec, entity_id, arguments))
        _log.info("schedule %s.%s: runs now, as message %d", singleton, name, message_id)
        return message_id

    async def _found(self, singleton: str, name: str) -> tuple[ScheduleRow, float]:
        """Return a schedule, and the store's clock."""
        rows, now = await self._store.schedules(singleton)
        for row in rows:
            if row.name == name:
                return row, now
        await self._check_known(singleton)
        known = ", ".join(row.name for row in rows) or "none"
        raise UnknownHandler(f"{singleton} has no schedule {name[:100]!r}: it has {known}")

    async def _check_known(self, singleton: str) -> None:
        known = {row.singleton for row in (await self._store.singletons())[0]}
        known |= {spec.name for spec in self._specs.values() if spec.singleton_id is not None}
        if singleton not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UnknownEntityType(f"there is no singleton {singleton[:100]!r}: these exist: {listed}")

    def _method(self, singleton: str, name: str) -> tuple[str, HandlerSpec]:
        spec = self._specs.get(singleton)
        if spec is None or spec.singleton_id is None:
            raise UnknownEntityType(f"the program of this runner has no singleton {singleton!r}: ask one that hosts it")
        if name not in spec.crons:
            raise UnknownHandler(f"the program of this runner has no schedule {singleton}.{name}: ask a newer one")
        return spec.singleton_id, spec.crons[name]

    async def _owners(self) -> Mapping[ShardId, ShardOwner]:
        """Return the shards' owners, as far as these are alive."""
        storage = self._runner.storage
        live = {one.info.runner.incarnation for one in await storage.runners() if one.silent_for <= LIVE_WITHIN}
        owners = (row.owner for row in await storage.shards())
        return {owner.shard: owner for owner in owners if owner is not None and owner.runner.incarnation in live}


def _state(row: SingletonRow, owners: Mapping[ShardId, ShardOwner], now: float) -> pb.SingletonState.ValueType:
    owner = owners.get(row.shard)
    if not row.leader or owner is None or (owner.runner.incarnation, owner.epoch) != (row.incarnation, row.epoch):
        return pb.SINGLETON_STATE_UNLED
    stale = is_stale(heartbeat_at=row.heartbeat_at, since=row.since, now=now)
    return pb.SINGLETON_STATE_STALE if stale else pb.SINGLETON_STATE_LEADING


def _singleton(row: SingletonRow, state: pb.SingletonState.ValueType) -> pb.Singleton:
    execution = row.execution
    return pb.Singleton(
        singleton=row.singleton,
        entity_id=row.entity_id,
        shard=str(row.shard),
        state=state,
        leader="" if state == pb.SINGLETON_STATE_UNLED else row.leader,
        incarnation=row.incarnation,
        epoch=row.epoch,
        since=row.since,
        heartbeat_at=row.heartbeat_at,
        executions=execution.executions,
        last_execution=execution.last_execution,
        last_execution_at=execution.last_execution_at,
        last_duration=execution.last_duration,
        last_error=execution.last_error[:_LONGEST_TEXT],
        last_error_at=execution.last_error_at,
        state_errors=execution.state_errors,
        state_error=execution.state_error[:_LONGEST_TEXT],
        main_loop=execution.body,
        state_ttl=row.state_ttl,
    )


def _schedule(row: ScheduleRow) -> pb.Schedule:
    return pb.Schedule(
        singleton=row.singleton,
        name=row.name,
        expression=row.expression,
        timezone=row.timezone,
        paused=row.paused,
        edited=row.edited,
        declared=row.declared,
        next_at=row.next_at,
        last_at=row.last_at,
        last_started_at=row.last_started_at,
        last_duration=row.last_duration,
        last_error=row.last_error[:_LONGEST_TEXT],
        runs=row.runs,
        failures=row.failures,
        failures_in_a_row=row.failures_in_a_row,
        skipped=row.skipped,
        last_skip=row.last_skip[:_LONGEST_TEXT],
        revision=row.revision,
    )


def singleton_health(health: SingletonHealth) -> pb.SingletonHealth:
    """Return how a singleton that has a leader is."""
    schedules = [pb.ScheduleHealth(name=schedule.name, status=schedule.status) for schedule in health.schedules]
    return pb.SingletonHealth(
        singleton=health.name, status=health.status, is_stale=health.is_stale, schedules=schedules
    )


def _edit(request: pb.EditScheduleRequest, before: ScheduleRow) -> tuple[ScheduleEdit, str]:
    """Return what the store is to change, and the same in words.

    Raises:
        MalformedMessage: it names no change, or expression and time zone do not make a schedule.
    """
    match request.WhichOneof("change"):
        case "paused":
            return ScheduleEdit(paused=request.paused), "paused" if request.paused else "resumed"
        case "reset":
            return ScheduleEdit(reset=True), "reset to what the code says"
        case "set" if request.set.HasField("expression") or request.set.HasField("timezone"):
            return _times(request.set, before)
        case _:
            raise MalformedMessage("say what to change: paused, reset, or set with an expression or a time zone")


def _times(wanted: pb.ScheduleTimes, before: ScheduleRow) -> tuple[ScheduleEdit, str]:
    expression = wanted.expression if wanted.HasField("expression") else before.expression
    timezone = wanted.timezone if wanted.HasField("timezone") else before.timezone
    if len(expression) > _LONGEST_EXPRESSION:
        raise MalformedMessage(f"an expression of {len(expression)} characters: the limit is {_LONGEST_EXPRESSION}")
    try:
        check_expression(expression, timezone)
    except ValueError as error:
        raise MalformedMessage(f"schedule {before.singleton}.{before.name}: {error}") from error
    # Both are written, even if one stays as it is: each was checked together with the other, and somebody else may
    # change it meanwhile.
    return ScheduleEdit(expression=expression, timezone=timezone), f"set to {expression!r} in {timezone}"
