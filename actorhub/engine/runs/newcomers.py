"""Calls whose entities wait for a place in memory (`on_full="wait"`): first come, first served."""

from collections import deque
from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from actorhub.engine.model.records import NEW, QUEUED, HostedShard, HostedType, Message

MOST_NEWCOMERS: Final = 100_000
"""Calls that may wait for places in memory at once."""


Key: TypeAlias = tuple[str, str]
"""Type and id of an entity."""


class Newcomer(msgspec.Struct, eq=False):
    """An entity that is to become resident, and the calls that wait for that."""

    hosted_type: HostedType
    shard: HostedShard
    entity_id: str
    messages: deque[Message]


class Newcomers:
    """Entities in the order of their first calls.

    An entity that is here is not resident. All calls of one entity leave together, so that they stay in order.
    """

    def __init__(self) -> None:
        self.entities: dict[Key, Newcomer] = {}
        """It is always the same dictionary."""
        self._of_shard: dict[HostedShard, dict[Key, None]] = {}
        self.count = 0
        """Calls that wait."""

    def add(self, message: Message, hosted_type: HostedType, shard: HostedShard) -> bool:
        """Let a call wait; `False` if too many do."""
        if self.count >= MOST_NEWCOMERS:
            return False
        key = hosted_type.spec.name, message.entity_id
        newcomer = self.entities.get(key)
        if newcomer is None:
            newcomer = self.entities[key] = Newcomer(hosted_type, shard, message.entity_id, deque())
            self._of_shard.setdefault(shard, {})[key] = None
        newcomer.messages.append(message)
        message.phase = QUEUED
        self._count(hosted_type, 1)
        return True

    def remove(self, message: Message) -> None:
        """Forget a call that no longer waits, if it is here."""
        key = message.spec.entity_type, message.entity_id
        newcomer = self.entities.get(key)
        if newcomer is not None and message in newcomer.messages:
            newcomer.messages.remove(message)
            self._count(newcomer.hosted_type, -1)
            if not newcomer.messages:
                self._take(key)

    def first(self) -> Newcomer | None:
        """Return the entity whose turn it is to get a place; `None` if none waits."""
        return next(iter(self.entities.values()), None)

    def take(self, hosted_type: HostedType, entity_id: str) -> Iterable[Message]:
        """Remove and return the calls of an entity."""
        return self._take((hosted_type.spec.name, entity_id)) if self.entities else ()

    def take_of(self, shard: HostedShard) -> list[Message]:
        """Remove and return the calls of a shard that is about to be another runner's."""
        return [message for key in list(self._of_shard.get(shard, ())) for message in self._take(key)]

    def _take(self, key: Key) -> Iterable[Message]:
        newcomer = self.entities.pop(key, None)
        if newcomer is None:
            return ()
        others = self._of_shard[newcomer.shard]
        del others[key]
        if not others:
            del self._of_shard[newcomer.shard]
        self._count(newcomer.hosted_type, -len(newcomer.messages))
        for message in newcomer.messages:
            message.phase = NEW
        return newcomer.messages

    def _count(self, hosted_type: HostedType, change: int) -> None:
        self.count += change
        hosted_type.newcomers += change
