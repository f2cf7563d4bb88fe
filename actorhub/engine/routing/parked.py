"""Messages that wait for owners of their shards, in the order in which they are to be routed."""

from collections import deque
from collections.abc import Callable, Iterator
from operator import attrgetter

from actorhub.core.address import ShardId
from actorhub.core.envelope import ASK, TELL
from actorhub.engine.model.records import PARKED, Message


class Parked:
    """A queue for each shard. A message that was given up stays in its queue, as done, until that is taken."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Prepare.

        Args:
            monotonic: The clock, in seconds.
        """
        self.count = 0
        """Messages in all queues."""
        self._monotonic = monotonic
        self._queues: dict[ShardId, deque[Message]] = {}
        self._since: dict[ShardId, float] = {}
        """Since when some message has been waiting for each shard."""

    def __iter__(self) -> Iterator[Message]:
        for queue in list(self._queues.values()):
            yield from list(queue)

    def shards(self) -> list[ShardId]:
        """Return the shards that something is parked for."""
        return list(self._queues)

    def add(self, message: Message, shard: ShardId) -> None:
        """Append a message to the queue of its shard."""
        message.phase = PARKED
        self.count += 1
        self._queues.setdefault(shard, deque()).append(message)
        self._since.setdefault(shard, self._monotonic())

    def of(self, shard: ShardId) -> list[Message]:
        """Return what is parked for a shard."""
        return list(self._queues.get(shard, ()))

    def take(self, shard: ShardId) -> list[Message]:
        """Remove what is parked for a shard, and return it; a durable message comes before what was sent after it.

        What has come back is parked behind that. Once nothing is parked again, call `forget_wait`.
        """
        messages = list(self._queues.pop(shard, ()))
        self.count -= len(messages)
        if any(message.was_sent_before for message in messages):
            places = [place for place, message in enumerate(messages) if _has_place(message)]
            in_order = sorted((messages[place] for place in places), key=attrgetter("message_id"))
            for place, message in zip(places, in_order, strict=True):
                messages[place] = message
        return messages

    def forget_wait(self, shard: ShardId) -> None:
        """Forget since when the shard has had messages that wait, unless it still has some."""
        if shard not in self._queues:
            self._since.pop(shard, None)

    def take_up_to(self, message: Message, shard: ShardId) -> list[Message]:
        """Remove a durable tell, with the durable messages to its entity that were sent before it, and return them."""
        queue = self._queues[shard]
        taken = sorted((m for m in queue if m is message or _goes_before(m, message)), key=attrgetter("message_id"))
        gone = set(taken)
        self._queues[shard] = deque(m for m in queue if m not in gone)
        self.count -= len(taken)
        return taken

    def longest_wait(self) -> float:
        """Return for how many seconds some shard has had messages that wait for its owner."""
        waiting = (shard for shard, queue in self._queues.items() if any(m.phase == PARKED for m in queue))
        since = min((self._since[shard] for shard in waiting), default=None)
        return 0.0 if since is None else self._monotonic() - since

    def clear(self) -> None:
        """Forget everything."""
        self._queues.clear()
        self._since.clear()
        self.count = 0


def _has_place(message: Message) -> bool:
    """Whether a message is a durable one that has its place by its id: with a due time, or once stored, it has none."""
    delivery = message.delivery
    return (
        delivery is not None
        and message.kind in (ASK, TELL)
        and not (delivery.is_stored or delivery.deliver_at or delivery.delay)
    )


def _goes_before(other: Message, message: Message) -> bool:
    """Whether a message that is parked must run before a durable one: it was sent to the same entity before it."""
    return (
        other.phase == PARKED
        and other.message_id < message.message_id
        and other.entity == message.entity
        and _has_place(other)
        and _has_place(message)
    )
