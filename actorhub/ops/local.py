"""The runner of this process, as the services on its port see it: what they read of the engine stands here.

What metrics read stands in `reading`. Nothing else in `ops` looks inside a runner.
"""

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Final

import msgspec

from actorhub import _call as calls
from actorhub.cluster import Cluster, cluster_here
from actorhub.core.address import ShardId
from actorhub.core.errors import ActorhubError, UnknownEntityType
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.model.durable_message import DurableMessage
from actorhub.engine.model.progress import Wait
from actorhub.engine.model.records import ACTIVATING, CLOSING, DEAD, PASSIVATING, Cell
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.runner import Runner
from actorhub.storage.ports import Storage
from actorhub.transport.grpc._pb import admin_v1_pb2 as pb

_STEPS: Final = 2000
"""Records that are visited before the event loop gets its turn."""

_LISTED: Final = 2
"""Steps, and waits, of a run that lists show: a page has a thousand runs."""
_WHOLE: Final = 100
_LONGEST_NAME: Final = 200
"""Characters of the name of a step or wait."""

_STATES: Final = {
    "owned": pb.SHARD_STATE_OWNED,
    "acquiring": pb.SHARD_STATE_ACQUIRING,
    "draining": pb.SHARD_STATE_DRAINING,
    "unowned": pb.SHARD_STATE_UNOWNED,
}


class NotServing(ActorhubError):
    """This runner cannot answer yet. Another one may."""


class LocalRunner:
    """What one runner knows about itself and about what it hosts, as messages of `actorhub.admin.v1`."""

    def __init__(self, runner: Runner, specs: Mapping[str, EntitySpec]) -> None:
        self._runner = runner
        self.specs = specs
        """The declared entity types by name."""

    @property
    def address(self) -> str:
        """Where peers and clients reach it."""
        return self._runner.info.runner.address

    @property
    def incarnation(self) -> str:
        """Which start of it this is."""
        return self._runner.info.runner.incarnation

    @property
    def groups(self) -> Iterable[str]:
        """The shard groups that it hosts."""
        return self._runner.info.groups

    @property
    def shards_per_group(self) -> int:
        """How many shards each group of the cluster has."""
        return self._runner.values.shards_per_group

    @property
    def storage(self) -> Storage:
        """Its access to the cluster's store."""
        return self._runner.storage

    @property
    def cluster(self) -> Cluster:
        """The cluster that the handlers of this process belong to."""
        return self._runner.host.scheduler.context[cluster_here]

    def time(self) -> float:
        """Return seconds since the Unix epoch, by this process's clock."""
        return self._runner.node.clock.time()

    def target(
        self,
        *,
        timeout: float | None = 30.0,
        waits_for_room: bool = False,
        headers: dict[str, str] | None = None,
        key: str | None = None,
    ) -> calls.CallTarget:
        """Return where calls from this process go, and how: see `Target`."""
        return calls.CallTarget(
            self._runner.node, timeout=timeout, waits_for_room=waits_for_room, headers=headers, key=key
        )

    def spec(self, entity_type: str) -> EntitySpec:
        """Return the declaration of an entity type.

        Raises:
            UnknownEntityType: this runner's program does not declare it.
        """
        spec = self.specs.get(entity_type)
        if spec is None:
            known = ", ".join(sorted(self.specs)) or "none"
            raise UnknownEntityType(f"this runner knows no entity type {entity_type[:100]!r}: it knows {known}")
        return spec

    def check_entity_id(self, entity_type: str, entity_id: str) -> None:
        """Check an id.

        Raises:
            MalformedMessage: no entity of the type can have it.
            UnknownEntityType: this runner's program does not declare the type.
        """
        self.spec(entity_type).check_id(entity_id, self._runner.node.limits.max_entity_id_bytes)

    def shard_of(self, spec: EntitySpec, entity_id: str) -> ShardId:
        """Return the shard of an id."""
        return self._runner.node.router.sharding.shard_of(spec, entity_id)

    def numbers(self) -> pb.RunnerNumbers:
        """Return what it counts."""
        hosted, held = self._runner.host.statistics(), self._runner.ownership.statistics()
        return pb.RunnerNumbers(
            serving=self._runner.ownership.is_fresh() and not self.cluster.is_shutting_down,
            shards_owned=held.shards_owned,
            shards_acquiring=held.shards_acquiring,
            shards_draining=held.shards_draining,
            resident_entities=hosted.resident,
            queued_messages=hosted.queued,
            pid=os.getpid(),
            unreached=[pb.UnreachedRunner(**msgspec.structs.asdict(one)) for one in self._runner.health().unreached],
        )

    async def held_shards(self, shards: Iterable[ShardId], limit: int) -> list[pb.Shard]:
        """Return the first `limit` of `shards` that this runner owns, acquires or drains."""
        found: list[pb.Shard] = []
        for number, shard in enumerate(shards):
            if number % _STEPS == _STEPS - 1:
                await asyncio.sleep(0)
            if (state := self._runner.ownership.state(shard)) != "unowned":
                found.append(self._shard(shard, state))
                if len(found) == limit:
                    break
        return found

    async def resident_entities(
        self, *, entity_type: str, shard: ShardId | None, after: tuple[str, str], limit: int
    ) -> list[pb.Entity]:
        """Return the first `limit` resident entities after `after`, by type and id; an empty type means every one."""
        first: list[tuple[tuple[str, str], Cell]] = []
        batch: list[tuple[tuple[str, str], Cell]] = []
        async for cell in self._cells(shard):
            key = (cell.hosted_type.spec.name, cell.entity_id)
            if (not entity_type or key[0] == entity_type) and key > after:
                batch.append((key, cell))
                if len(batch) >= max(limit, _STEPS):
                    first, batch = _smallest(limit, first, batch), []
        return [self._entity(cell) for _, cell in _smallest(limit, first, batch)]

    def resident_entity(self, entity_type: str, entity_id: str) -> pb.Entity | None:
        """Return an entity; `None` if it is not resident here."""
        hosted = self._runner.host.types.get(entity_type)
        cell = hosted.cells.get(entity_id) if hosted is not None else None
        return self._entity(cell) if cell is not None else None

    def message_runs(self, ids: Collection[int], *, whole: bool) -> dict[int, pb.MessageRun]:
        """Return, of those durable messages that run here, how far each is; whole with tokens, else as in lists."""
        if not self._runner.ownership.is_fresh():
            return {}  # Others may have the shards by now, and run what this process believes to be running here.
        running = self._runner.host.delivery.memory.running(frozenset(ids))
        return {message.message_id: self._message_run(message, whole=whole) for message in running}

    async def _cells(self, shard: ShardId | None) -> AsyncIterator[Cell]:
        """Walk what is resident, shard by shard.

        Between two shards, and within one every so often, the event loop gets its turn, and with it activations,
        passivations and hand-overs. So each shard is looked up when its turn comes and its cells are copied: what comes
        or goes meanwhile may or may not be seen, but nothing is visited twice.
        """
        hosted = self._runner.host.shards
        seen = 0
        for shard_id in [shard] if shard is not None else list(hosted):
            for cell in list(hosted[shard_id].cells) if shard_id in hosted else ():
                if cell.phase != DEAD:
                    yield cell
                seen += 1
                if seen % _STEPS == 0:
                    await asyncio.sleep(0)

    def _shard(self, shard: ShardId, state: str) -> pb.Shard:
        hosted = self._runner.host.shards.get(shard)
        return pb.Shard(
            shard=str(shard),
            state=_STATES[state],
            runner=self.address,
            incarnation=self.incarnation,
            epoch=hosted.epoch if hosted is not None else self._runner.ownership.epoch(shard) or 0,
            resident_entities=len(hosted.cells) if hosted is not None else 0,
            queued_messages=hosted.queued if hosted is not None else 0,
        )

    def _entity(self, cell: Cell) -> pb.Entity:
        record = cell.record
        return pb.Entity(
            entity_type=cell.hosted_type.spec.name,
            entity_id=cell.entity_id,
            shard=str(cell.shard.id),
            runner=self.address,
            incarnation=self.incarnation,
            epoch=cell.shard.epoch,
            activity=_activity(cell),
            queued_messages=len(cell.queue) if cell.queue is not None else 0,
            idle_seconds=self._runner.node.clock.monotonic() - cell.last_used if cell.last_used else None,
            state_version=record.version if record is not None else 0,
            state_bytes=len(record.data) if record is not None else 0,
        )

    def _message_run(self, message: DurableMessage, *, whole: bool) -> pb.MessageRun:
        run = self._runner.host.carriers.run_of(message)
        progress = run.progress if run is not None else None
        most = _WHOLE if whole else _LISTED
        # A sleep, and a wait's limit, is stored by a step, too; names that people give have no control characters.
        steps = sorted(name for name in progress.under_way if name.isprintable()) if progress is not None else []
        return pb.MessageRun(
            attempt=message.attempts,
            since=self._time_of(message.started_at),
            runner=self.address,
            incarnation=self.incarnation,
            epoch=message.shard.epoch,
            steps=[name[:_LONGEST_NAME] for name in steps[:most]],
            waits=[self._wait(wait, whole=whole) for wait in progress.waits[:most]] if progress is not None else [],
        )

    def _wait(self, wait: Wait, *, whole: bool) -> pb.Wait:
        deferral = wait.deferral
        return pb.Wait(
            kind=pb.WAIT_KIND_SLEEP if deferral is None else pb.WAIT_KIND_DEFERRED,
            name=wait.name[:_LONGEST_NAME],
            since=self._time_of(wait.since),
            until=wait.until,
            token=self._runner.host.deferrals.token(deferral) if whole and deferral is not None else "",
        )

    def _time_of(self, monotonic: float) -> float:
        """Return a moment of this process in seconds since the Unix epoch."""
        clock = self._runner.node.clock
        return clock.time() - (clock.monotonic() - monotonic)


def local_runner(acceptor: LinkAcceptor, specs: Mapping[str, EntitySpec]) -> LocalRunner:
    """Return the runner behind `acceptor`.

    Raises:
        NotServing: it is still being made.
    """
    if acceptor.runner is None:
        raise NotServing("this runner is starting: ask again, or ask another one")
    return LocalRunner(acceptor.runner, specs)


def _smallest(
    limit: int, first: list[tuple[tuple[str, str], Cell]], batch: list[tuple[tuple[str, str], Cell]]
) -> list[tuple[tuple[str, str], Cell]]:
    return heapq.nsmallest(limit, [*first, *batch], key=lambda entry: entry[0])


def _activity(cell: Cell) -> pb.Activity.ValueType:
    if cell.phase == ACTIVATING:
        return pb.ACTIVITY_ACTIVATING
    if cell.phase in (CLOSING, PASSIVATING):
        return pb.ACTIVITY_CLOSING
    return pb.ACTIVITY_IDLE if cell.is_idle else pb.ACTIVITY_RUNNING
