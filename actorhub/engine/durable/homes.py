"""Where an entity is at home, while runners disagree about its shard.

A release of a program may give an entity type another `shard_group` or `shard_key`. As long as runners of the release
before run, each side routes an entity's calls to another shard. What is stored of the entity lies in one of the two,
its *home*, and only there it has an activation. So whoever activates an entity and finds its home elsewhere asks the
owner of that shard:

- It has declared the entity for that shard: then the entity stays, and what arrived here is sent there.
- It has not: it ends the activation that it may have, and gives the entity away. What is stored is moved here.

A shard without a living runner that hosts its group is not asked. So entities move one by one, each when it is called,
and the other way round where the release before is put back. Runners of the release before know no homes; the
question is one that they can answer, and their answer says what they have declared.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from actorhub.core.address import ShardId, ShardOwner
from actorhub.core.backoff import Backoff
from actorhub.core.envelope import HOME, MAY_MOVE, RETRY_MESSAGE, TELL, Durable
from actorhub.core.errors import (
    ActorhubError,
    MalformedMessage,
    PersistenceError,
    RunnerUnavailable,
    UnknownEntityType,
)
from actorhub.core.logger import get_logger
from actorhub.engine.durable.delivery import Delivery
from actorhub.engine.durable.owner import Owner
from actorhub.engine.model.records import ACTIVATING, DEAD, AwaitedMessage, Cell, HostedShard, Message
from actorhub.engine.model.sharding import Sharding
from actorhub.engine.model.spec import HandlerSpec, operation_spec
from actorhub.engine.runs.activation import Activations, Elsewhere
from actorhub.engine.supervision import store_call
from actorhub.storage.message_ports import RunStart
from actorhub.storage.ports import Fenced
from actorhub.storage.singleton_ports import Leadership

_log: Final = get_logger("actorhub.homes")

_ASK_AGAIN: Final = 0.1
"""Seconds until the owner of a home is asked again, where nobody could say, or it changed."""
_GRACE: Final = 5.0
"""Seconds for the runs of an entity that is given away."""
_VALID: Final = 5.0
"""Seconds since the question for which consent to give an entity away counts. A move takes no longer."""
_GIVEN: Final = 2 * _VALID
"""Seconds for which an entity that was given away is not activated where it was. A move that took too long is over by
then on the server, too: it needs a second for that (`move_entity`)."""
_CHECKS: Final = Backoff(initial=0.005, maximum=0.1)
"""Pauses between checks of whether an activation has ended."""
_SWEEP: Final = 10.0
"""Seconds between sweeps for messages in shards that nobody hosts."""
_STRAYS_AT_ONCE: Final = 1000
"""Entities that a sweep reads at a time."""


class HomeQuestion(AwaitedMessage):
    """Asks the owner of a shard whether it has an entity there. Any answer means yes, but for being sent back."""

    __slots__ = ("home", "is_kept")

    def __init__(self, spec: HandlerSpec, entity_id: str, home: ShardId, *, may_move: bool) -> None:
        # The release before checks the handler, and runs what is not marked as durable.
        super().__init__(spec, entity_id, RETRY_MESSAGE)
        self.delivery = Durable()
        self.home = home
        self.headers = {HOME: str(home), MAY_MOVE: "1"} if may_move else {HOME: str(home)}
        self.is_kept = True

    def on_sent_back(self, hint: ShardOwner | None) -> None:
        """Take the answer of a runner that has the entity in another shard, or that no longer owns the one in question.

        It names the owner of the shard in which it has the entity, if it knows that.
        """
        if not self.future.done():
            if hint is not None and hint.shard != self.home:
                self.is_kept = False
                self.future.set_result(b"")
            else:
                self.future.set_exception(RunnerUnavailable(f"{self.home} has another owner"))


@dataclass(frozen=True, slots=True)
class OtherRunners:
    """What a runner knows of others, for `Homes`."""

    hosted_groups: Callable[[], Collection[str]]
    """Returns the shard groups that living runners host."""
    ask_home: Callable[[HomeQuestion], Awaitable[str]]
    """Has the owner of a shard answer a question; returns its incarnation."""
    new_id: Callable[[], int]
    """Returns the id of a new message."""
    wake: Callable[[Message, ShardId], None]
    """Tells a shard's owner that something like the message was stored for it."""


class Homes:
    """Brings entities to the shard in which they are activated, and gives them away."""

    def __init__(
        self,
        owner: Owner,
        others: OtherRunners,
        *,
        sharding: Sharding,
        activations: Activations,
        delivery: Delivery,
        discard: Callable[[Cell], None],
        forget: Callable[[Cell], Iterable[Message]],
    ) -> None:
        self._types = owner.types
        self._shards = owner.shards
        self._incarnation = owner.incarnation
        self._clock = owner.clock
        self._scheduler = owner.scheduler
        self._supervisor = owner.supervisor
        self._store = owner.store
        self._others = others
        self._sharding = sharding
        self._storage = owner.storage
        self._forward = owner.forward
        self._activations = activations
        self._memory = delivery.memory
        self._backlog = delivery.backlog
        self._schedule = delivery.schedule
        self._discard = discard
        self._forget = forget
        self._asked = 0
        self._swept: tuple[ShardId, str, str] | None = None
        """Shard, type and id of the entity at which a sweep is, or where the latest one failed."""
        self._given: dict[tuple[str, str], tuple[ShardId, float]] = {}
        """Entities that were given away: from which shard, and until when that is remembered, in monotonic seconds."""

    def check(self, cell: Cell) -> None:
        """Do nothing if the entity may be activated in the cell's shard, as far as is known without the store.

        Raises:
            Elsewhere: it was given away from there just now; or is a singleton, whose leader is where it is declared.
        """
        given = self._given.get(cell.entity)
        if given is not None and given[0] == cell.shard.id and self._clock.monotonic() < given[1]:
            raise Elsewhere(self._place_of(cell.entity))
        if cell.is_singleton and (place := self._place_of(cell.entity)) != cell.shard.id:
            raise Elsewhere(place)

    async def settle(self, cell: Cell, home: ShardId) -> None:
        """Move what is stored of the entity from its home to the cell's shard.

        Raises:
            Elsewhere: its home's owner keeps it.
            PersistenceError: the store failed.
        """
        may_move, level = self._place_of(cell.entity) == cell.shard.id, logging.INFO
        while cell.phase == ACTIVATING:
            asked = self._clock.monotonic()
            try:
                owner = await self.consent(cell.entity, home, may_move=may_move)
                seconds = asked + _VALID - self._clock.monotonic()
                if seconds > 0 and cell.phase == ACTIVATING:
                    await self._bring(cell, home, owner, seconds)
                    return
            except (Fenced, RunnerUnavailable) as error:
                _log.log(level, "%s stays in %s for now: %s", cell.address, home, error)
                level = logging.DEBUG  # It may be like that for as long as a takeover lasts.
                await asyncio.sleep(_ASK_AGAIN)

    async def consent(self, entity: tuple[str, str], home: ShardId, *, may_move: bool) -> str | None:
        """Return who owns an entity's home and gives the entity away; `None`: nobody who is alive.

        Raises:
            Elsewhere: it keeps the entity.
            RunnerUnavailable: nobody could say.
        """
        if home in self._shards:
            return self._incarnation
        if home.group not in self._others.hosted_groups():
            return None
        # Not always the same handler: the release before need not have it, and answers only for those that it has.
        self._asked += 1
        handlers = [spec for spec in self._types[entity[0]].spec.handlers.values() if not spec.stream]
        spec = handlers[self._asked % len(handlers)] if handlers else operation_spec(entity[0], "home")
        question = HomeQuestion(spec, entity[1], home, may_move=may_move)
        question.deadline = self._clock.monotonic() + 2 * _GRACE
        owner = await self._others.ask_home(question)
        if question.is_kept:
            raise Elsewhere(home)
        return owner

    async def led_elsewhere(self, leadership: Leadership) -> ShardId | None:
        """Return the shard in which another release leads a singleton, or may lead it; `None`: it does not."""
        rows, _ = await self._storage.singletons.singletons()
        row = next((row for row in rows if row.singleton == leadership.singleton), None)
        if row is None or row.shard == leadership.shard:
            return None
        try:
            await self.consent((leadership.singleton, leadership.entity_id), row.shard, may_move=True)
        except (Elsewhere, RunnerUnavailable):
            return row.shard
        return None

    def on_question(self, question: Message, send_back: Callable[[ShardId], None]) -> None:
        """Answer the question whether an entity is in a shard: with a reply, or by `send_back`."""
        _ = self._supervisor.spawn(self._answer(question, send_back), "say where an entity is at home")

    async def _answer(self, question: Message, send_back: Callable[[ShardId], None]) -> None:
        headers = question.headers or {}
        try:
            home = ShardId.parse(headers[HOME])
            place = await self.give(question.entity, home, may_move=MAY_MOVE in headers)
        except ActorhubError as error:
            question.on_failed(error)
        else:
            if place is None:
                question.on_completed(b"")
            else:
                send_back(place)

    async def give(self, entity: tuple[str, str], home: ShardId, *, may_move: bool) -> ShardId | None:
        """Give an entity away; return the shard in which this runner has it, `None`: in that very one.

        Args:
            entity: Type and id.
            home: The shard from which somebody wants to move it.
            may_move: Whether who asks has declared it for another shard. Otherwise it may stay where it is.

        Raises:
            RunnerUnavailable: this runner does not own the shard, or something of the entity resists.
            UnknownEntityType: it does not host the type.
        """
        if entity[0] not in self._types:
            raise UnknownEntityType(f"this runner does not host entity type {entity[0]!r}")
        place = self._place_of(entity)
        if home not in self._shards:
            raise RunnerUnavailable(f"{home} has another owner")
        if place == home or not may_move:
            return None
        # From here on the next activation, whoever wants one, goes to the other shard.
        until = self._clock.monotonic() + _GIVEN
        self._given = {key: row for key, row in self._given.items() if row[1] > until - _GIVEN}
        self._given[entity] = (home, until + _GRACE)
        cell = self._backlog.cell_of(entity)
        if cell is not None and cell.shard.id == home and not await self._ended(cell):
            raise RunnerUnavailable(f"{cell.address} is still being activated in {home}")
        self._given[entity] = (home, self._clock.monotonic() + _GIVEN)
        if (shard := self._shards.get(home)) is not None:
            # Whoever waits here for a message that is about to be moved would not be told how it ends.
            await self._take_back(self._memory.let_go_of(shard, entity, place))
        return place

    async def send_away(self, cell: Cell, home: ShardId) -> None:
        """End an activation that must not exist here, and send what waits for it to the entity's home."""
        await self._move_messages(cell, home)
        if cell.phase != DEAD:
            cell.phase = DEAD
            for message in self._forget(cell):
                self._forward(message, home)

    async def _move_messages(self, cell: Cell, home: ShardId) -> None:
        try:
            await self._take_back(self._memory.set_aside(cell.shard, cell.entity))
            wake_id = self._others.new_id()
            moved = await self._storage.move_entity(
                cell.entity,
                source=cell.shard.id,
                source_owner=self._incarnation,
                target=home,
                incarnation=self._incarnation,
            )
        except PersistenceError as error:
            _log.warning("messages of %s could not be moved to %s yet: %s", cell.address, home, error)
            return
        if moved:
            self._wake_owner(cell, home, wake_id)
        # The loader may have brought in what it read before the move.
        await self._take_back(self._memory.let_go_of(cell.shard, cell.entity, home))

    async def run(self) -> None:
        """Bring in messages from shards that no living runner hosts, those of entities that belong here."""
        while True:
            await asyncio.sleep(_SWEEP * (0.5 + self._clock.random()))
            try:
                await self._sweep()
            except PersistenceError as error:
                _log.warning("messages of groups that nobody hosts could not be looked for: %s", error)

    async def _sweep(self) -> None:
        is_full = True
        while is_full:
            groups = self._others.hosted_groups()
            found = await self._store.strays(self._types, groups, self._swept, _STRAYS_AT_ONCE)
            for stray in found:
                self._swept = stray  # If this one fails, the next sweep begins behind it.
                await self._bring_stray(stray[0], stray[1:])
            is_full = len(found) == _STRAYS_AT_ONCE
        self._swept = None

    async def _bring_stray(self, source: ShardId, entity: tuple[str, str]) -> None:
        try:
            shard = self._shards.get(self._place_of(entity))
        except MalformedMessage:
            return  # Its shard_key refuses the id.
        if shard is None or shard.draining:
            return
        with contextlib.suppress(Fenced):  # Somebody hosts the group by now.
            await self._storage.move_entity(
                entity, source=source, source_owner=None, target=shard.id, incarnation=self._incarnation
            )
            self._let_stored_in(shard, entity)

    async def _bring(self, cell: Cell, home: ShardId, owner: str | None, seconds: float) -> None:
        moving = self._storage.move_entity(
            cell.entity, source=home, source_owner=owner, target=cell.shard.id, incarnation=self._incarnation
        )
        try:
            moved = await store_call(self._supervisor, moving, "move an entity", seconds)
        except Fenced:
            raise
        except PersistenceError:
            await self._let_moved_go_first(cell)  # Perhaps there are some.
            raise
        _log.debug("%s moved from %s to %s with %d messages", cell.address, home, cell.shard.id, moved)
        if moved:
            await self._let_moved_go_first(cell)
        if (source := self._shards.get(home)) is not None:
            await self._take_back(self._memory.let_go_of(source, cell.entity, cell.shard.id))

    async def _let_moved_go_first(self, cell: Cell) -> None:
        """Have what arrived here wait behind messages that were moved here, which are older (invariant G)."""
        if cell.phase == ACTIVATING:
            counted = self._memory.set_aside(cell.shard, cell.entity)
            self._let_stored_in(cell.shard, cell.entity)
            await self._take_back(counted)

    def _let_stored_in(self, shard: HostedShard, entity: tuple[str, str]) -> None:
        if (cell := self._backlog.cell_of(entity)) is not None:
            cell.has_backlog = True
        self._backlog.mark_awaited(shard, entity)
        self._schedule.poll_soon()

    async def _take_back(self, counted: Sequence[RunStart]) -> None:
        """Have runs that are counted and will not end here not count as attempts."""
        try:
            await self._store.uncount_runs(counted, self._incarnation)
        except PersistenceError as error:
            _log.warning("%d runs of an entity that moves cost an attempt each: %s", len(counted), error)

    async def _ended(self, cell: Cell) -> bool:
        """End an activation, within the grace time; return whether it is over."""
        until, checks = self._clock.monotonic() + _GRACE, 0
        while cell.phase != DEAD and (left := until - self._clock.monotonic()) > 0:
            checks += 1
            self._activations.close(cell)
            self._scheduler.cut_short(lambda one: one is cell)
            await asyncio.sleep(min(left, _CHECKS.longest(checks)))
        if cell.phase != DEAD:
            self._discard(cell)
            self._scheduler.cancel_dead("the entity moved and the handler did not finish within the grace time")
        return cell.phase == DEAD

    def _wake_owner(self, cell: Cell, home: ShardId, message_id: int) -> None:
        """Have the owner of the home find what was moved there. Without a handler to name it finds that by itself."""
        handlers = cell.hosted_type.spec.handlers.values()
        if (spec := next((spec for spec in handlers if spec.durable), None)) is not None:
            told = Message(spec, cell.entity_id, TELL)
            told.message_id = message_id
            told.shard_id = home
            self._others.wake(told, home)

    def _place_of(self, entity: tuple[str, str]) -> ShardId:
        return self._sharding.shard_of(self._types[entity[0]].spec, entity[1])
