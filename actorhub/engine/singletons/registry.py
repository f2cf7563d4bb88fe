"""The singletons that this runner leads, which are those whose shard it owns."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.errors import NotConnected, PersistenceError, SingletonError, SingletonErrorReason
from actorhub.engine.model.records import Cell, HostedShard, HostedType
from actorhub.engine.model.run import Run
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.runs.activation import Elsewhere
from actorhub.engine.runs.completion import Completion
from actorhub.engine.runs.saving import Saving
from actorhub.engine.singletons.health import SingletonHealth
from actorhub.engine.singletons.leader import SingletonLeader
from actorhub.engine.singletons.own_messages import MainLoop
from actorhub.engine.singletons.restarts import Restarts
from actorhub.engine.singletons.services import LeaderServices
from actorhub.storage.ports import Fenced, VersionConflict

_SAVE_ATTEMPTS: Final = 4
_SAVE_PAUSE: Final = Backoff(initial=0.05, maximum=1.0)


class SingletonLeaders:
    """Starts a leader for each singleton whose shard this runner gets, and tells it what happens to the shard."""

    def __init__(
        self,
        services: LeaderServices,
        *,
        types: Iterable[HostedType],
        sharding: Sharding,
        completion: Completion,
        saving: Saving,
    ) -> None:
        self._services = services
        self._sharding = sharding
        self._completion = completion
        self._saving = saving
        self._types = [hosted for hosted in types if hosted.spec.singleton_id is not None]
        self._leaders: dict[str, SingletonLeader] = {}
        self._supervisions: dict[str, asyncio.Task[None]] = {}
        """The last supervision of each singleton here. The next one waits until it has run `on_lose_leadership`."""
        self._restarts: dict[str, Restarts] = {}
        """The pauses of each singleton's `run`, over all leaderships here."""

    @property
    def has_any(self) -> bool:
        """Whether this process hosts singletons, whether or not it leads them."""
        return bool(self._types)

    @property
    def leaders(self) -> Iterable[SingletonLeader]:
        """The leaders of the singletons whose shard is owned here."""
        return self._leaders.values()

    @property
    def residents(self) -> Iterable[Cell]:
        """The activations of singletons here."""
        return [cell for hosted in self._types for cell in hosted.cells.values()]

    def report(self) -> list[SingletonHealth]:
        """Return the health of each singleton that is led here, sorted by name."""
        return [self._leaders[name].health() for name in sorted(self._leaders)]

    def on_granted(self, shards: Iterable[HostedShard]) -> None:
        """Start to lead the singletons of these shards."""
        if not self._types:
            return
        here = {shard.id: shard for shard in shards}
        for hosted in self._types:
            shard = here.get(self._home(hosted))
            if shard is not None:
                name = hosted.spec.name
                restarts = self._restarts.setdefault(name, Restarts(self._services.clock))
                former = self._supervisions.get(name)
                leader = SingletonLeader(self._services, hosted, shard, former=former, restarts=restarts)
                self._leaders[name] = leader
                self._supervisions[name] = self._services.supervisor.loop("lead a singleton", leader.supervise)

    def stop(self, shard: HostedShard) -> None:
        """End the singletons of a shard that is being handed over."""
        for leader in self._of(shard):
            leader.stop()

    def abandon(self, cell: Cell) -> None:
        """Do not wait for what still runs in an activation that is about to be dropped."""
        if (leader := self._found(cell)) is not None:
            leader.abandoned = cell

    def on_lost(self, shard: HostedShard) -> None:
        """End the singletons of a shard that this process no longer owns, and forget their leaders."""
        for leader in self._of(shard):
            leader.stop()
            del self._leaders[leader.spec.name]

    def poll(self) -> None:
        """Have the leaders read what operators have changed."""
        for leader in self._leaders.values():
            leader.poll()

    def leader_of(self, cell: Cell) -> SingletonLeader:
        """Return the leader that an activation belongs to.

        Raises:
            NotConnected: The shard was lost.
        """
        leader = self._found(cell)
        if leader is None:
            raise NotConnected(f"{cell.address}: this runner no longer leads this singleton")
        return leader

    def track_task(self, cell: Cell, task: "asyncio.Task[None]") -> None:
        """Take note of a task that makes or ends an activation. The next activation waits for it."""
        if (leader := self._found(cell)) is not None:
            leader.track_task(cell, task)

    async def until_leading(self, cell: Cell) -> bool:
        """Wait until the store knows that this runner leads; return `False` if that will not be, or not for long.

        Raises:
            Elsewhere: Another release leads it in another shard.
        """
        leader = self.leader_of(cell)
        registered = leader.registered
        await asyncio.wait((registered, leader.elsewhere), return_when=asyncio.FIRST_COMPLETED)
        if not registered.done():
            raise Elsewhere(leader.elsewhere.result())
        return not registered.cancelled() and not cell.shard.draining

    async def lose(self, cell: Cell) -> None:
        """Run `on_lose_leadership` of an activation that ends, if that is due."""
        if (leader := self._found(cell)) is not None:
            await leader.lose(cell)

    def state_error(self, cell: Cell, reason: SingletonErrorReason, text: str) -> None:
        """Count a failure to load, decode or store the state."""
        self.leader_of(cell).state_error(reason, text)

    def on_gone(self, cell: Cell) -> None:
        """Tell the leader that an activation has ended."""
        leader = self._leaders.get(cell.hosted_type.spec.name)
        if leader is not None:
            leader.on_gone()

    async def run_scheduled(self, run: Run, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run the method with `@cron` for the fire time of a message, unless that is to be skipped."""
        return await self.leader_of(run.cell).schedules.run(run, call)

    async def until_ended(self, shards: Collection[ShardId], limit: float) -> None:
        """Wait, for at most `limit` seconds, until every `on_lose_leadership` has run that is due for these shards.

        A shard that was lost some time ago may still have one to run: handlers get time to end before it.
        """
        lost = (hosted for hosted in self._types if hosted.spec.name not in self._leaders)
        ending = [
            self._supervisions[hosted.spec.name]
            for hosted in lost
            if hosted.spec.name in self._supervisions and self._home(hosted) in shards
        ]
        if ending:
            await asyncio.wait(ending, timeout=limit)

    async def handed_over(self, shard: HostedShard, limit: float) -> None:
        """Wait, for at most `limit` seconds, until the shard's leaders have done everything and written that they left.

        The shard is released after that. So the next leader reads the last rows of this one, and its `on_become_leader`
        comes after the `on_lose_leadership` of this one.
        """
        supervisions = [self._supervisions[leader.spec.name] for leader in self._of(shard)]
        if supervisions:
            await asyncio.wait(supervisions, timeout=max(0.0, limit))

    async def aclose(self, limit: float) -> None:
        """Wait, for at most `limit` seconds, until every `on_lose_leadership` that is due has run.

        After a hand-over all of them have. After a fence they run while the shards may already be led elsewhere.
        """
        if self._supervisions:
            await asyncio.wait(self._supervisions.values(), timeout=limit)

    async def save(self, run: Run, state: Any) -> None:
        """Commit the state of a singleton from within its `run`. The steps before it become history.

        A failed write is repeated, because `run` is not: an error here would end it. A refusal is not repeated, since
        the store would refuse again.

        Raises:
            SingletonError: `state_persist_failed`. Ownership was lost, or the store failed several times.
        """
        message, cell, progress = run.message, run.cell, run.progress
        assert isinstance(message, MainLoop)
        assert progress is not None
        if state is not msgspec.UNSET:
            cell.instance.state = state
        data = None if cell.record is None else self._completion.changed_state(cell)
        attempt = 1
        while True:
            try:
                await self._saving.commit_save(run, data)
                break
            except PersistenceError as error:
                message.leader.state_error("state_persist_failed", str(error))
                if isinstance(error, Fenced | VersionConflict) or attempt == _SAVE_ATTEMPTS:
                    raise SingletonError("state_persist_failed", str(error)) from error
            await asyncio.sleep(_SAVE_PAUSE.delay(attempt, self._services.clock.random()))
            attempt += 1
        progress.on_closed()

    def _found(self, cell: Cell) -> SingletonLeader | None:
        leader = self._leaders.get(cell.hosted_type.spec.name)
        return leader if leader is not None and _leads(leader, cell.shard) else None

    def _home(self, hosted: HostedType) -> ShardId:
        return self._sharding.shard_of(hosted.spec, str(hosted.spec.singleton_id))

    def _of(self, shard: HostedShard) -> list[SingletonLeader]:
        return [leader for leader in self._leaders.values() if _leads(leader, shard)]


def _leads(leader: SingletonLeader, shard: HostedShard) -> bool:
    return (leader.leadership.shard, leader.leadership.epoch) == (shard.id, shard.epoch)
