"""The singletons that this runner leads: those whose shard it owns."""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorhub.core.address import ShardId
from actorhub.core.backoff import Backoff
from actorhub.core.clock import Clock
from actorhub.core.errors import NotConnected, PersistenceError, SingletonError
from actorhub.engine.model.cell import Cell, HostedShard
from actorhub.engine.model.message import Message
from actorhub.engine.model.spec import EntitySpec
from actorhub.engine.singletons.health import SingletonHealth
from actorhub.engine.singletons.leader import BodyRun, Led
from actorhub.engine.supervision import Supervisor
from actorhub.storage.ports import Fenced, VersionConflict

if TYPE_CHECKING:
    from actorhub.engine.host import Host

_SAVE_ATTEMPTS: Final = 4
_SAVE_PAUSE: Final = Backoff(initial=0.05, maximum=1.0)


class Singletons:
    """Starts a keeper for each singleton of a shard that this runner gets, and tells it what becomes of both."""

    def __init__(self, host: "Host", supervisor: Supervisor, clock: Clock, incarnation: str) -> None:
        self._host = host
        self._supervisor = supervisor
        self._clock = clock
        self._incarnation = incarnation
        self._types = [hosted for hosted in host.types.values() if hosted.spec.singleton_id is not None]
        self._led: dict[str, Led] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        """The last keeper of each singleton: the next one waits until it has run `on_lose_leadership`."""
        self.shard_of: Callable[[EntitySpec, str], ShardId]
        """Returns the shard of an id."""
        self.new_id: Callable[[], int]
        """Returns the id of a new message."""

    @property
    def has_any(self) -> bool:
        """Whether this process hosts singletons, led or not."""
        return bool(self._types)

    @property
    def led(self) -> Iterable[Led]:
        """Those whose shard is owned here."""
        return self._led.values()

    def report(self) -> list[SingletonHealth]:
        """Return how each singleton is that is led here, by name."""
        return [self._led[name].health() for name in sorted(self._led)]

    def granted(self, shards: Iterable[HostedShard]) -> None:
        """Lead the singletons of these shards."""
        if not self._types:
            return
        here = {shard.id: shard for shard in shards}
        for hosted in self._types:
            shard = here.get(self.shard_of(hosted.spec, str(hosted.spec.singleton_id)))
            if shard is not None:
                led = Led(
                    self._host,
                    hosted,
                    shard,
                    supervisor=self._supervisor,
                    clock=self._clock,
                    incarnation=self._incarnation,
                )
                led.former = self._keepers.get(hosted.spec.name)
                self._led[hosted.spec.name] = led
                self._keepers[hosted.spec.name] = self._supervisor.loop("lead a singleton", led.keep)

    def stop(self, shard: HostedShard) -> None:
        """The shard is handed over: its singletons end with it."""
        for led in self._of(shard):
            led.stop()

    def over(self, shard: HostedShard) -> None:
        """The shard is not this process's any more."""
        for led in self._of(shard):
            led.stop()
            del self._led[led.spec.name]

    def look(self) -> None:
        """Read soon what operators changed."""
        for led in self._led.values():
            led.look()

    def led_in(self, cell: Cell) -> Led:
        """Return the leadership that an activation belongs to.

        Raises:
            NotConnected: the shard was lost.
        """
        led = self._found(cell)
        if led is None:
            raise NotConnected(f"{cell.address}: this runner does not lead it any more")
        return led

    def _found(self, cell: Cell) -> Led | None:
        led = self._led.get(cell.hosted.spec.name)
        is_its = led is not None and (led.leadership.shard, led.leadership.epoch) == (cell.shard.id, cell.shard.epoch)
        return led if is_its else None

    def works(self, cell: Cell, task: "asyncio.Task[None]") -> None:
        """`task` makes or ends an activation of a singleton: the next one waits for it."""
        if (led := self._found(cell)) is not None:
            led.works(cell, task)

    async def lose(self, cell: Cell) -> None:
        """Run `on_lose_leadership` of an activation that ends here, if that is due."""
        if (led := self._found(cell)) is not None:
            await led.lose(cell)

    def gone(self, cell: Cell) -> None:
        """An activation of a singleton is over."""
        led = self._led.get(cell.hosted.spec.name)
        if led is not None:
            led.gone()

    async def handed_over(self, shard: HostedShard, limit: float) -> None:
        """Wait, for at most `limit` seconds, until nothing of the shard's singletons is to be done any more."""
        keepers = [self._keepers[led.spec.name] for led in self._of(shard)]
        if keepers:
            await asyncio.wait(keepers, timeout=max(0.0, limit))

    async def aclose(self, limit: float) -> None:
        """Wait, for at most `limit` seconds, until every `on_lose_leadership` that is due has run."""
        if self._keepers:
            await asyncio.wait(self._keepers.values(), timeout=limit)

    async def save(self, message: Message, cell: Cell, state: Any) -> None:
        """Commit the state of a singleton in its `run`; the steps before it become history.

        Raises:
            SingletonError: `state_persist_failed`: ownership was lost, or the store failed several times.
        """
        assert isinstance(message, BodyRun)
        assert message.progress is not None
        if state is not msgspec.UNSET:
            cell.instance.state = state
        data = None if cell.record is None else self._host.results.changed_state(cell)
        attempt = 1
        while True:
            try:
                await self._host.runs.commit_save(message, cell, data)
                break
            except PersistenceError as error:
                message.led.state_error("state_persist_failed", str(error))
                if isinstance(error, Fenced | VersionConflict) or attempt == _SAVE_ATTEMPTS:
                    raise SingletonError("state_persist_failed", str(error)) from error
            await asyncio.sleep(_SAVE_PAUSE.delay(attempt, self._clock.random()))
            attempt += 1
        message.progress.closed()

    def _of(self, shard: HostedShard) -> list[Led]:
        return [
            led
            for led in self._led.values()
            if led.leadership.shard == shard.id and led.leadership.epoch == shard.epoch
        ]
