"""Senders of durable messages that write down what they were told."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from actorhub.cluster import Cluster
from actorhub.core.errors import (
    ActorhubError,
    DuplicateKey,
    HandlerFailed,
    MessageCancelled,
)
from tests.faults.durable.history import Expected, Sent, Terminal
from tests.faults.durable.hub import DOOMED_RUNS, Book, Done, Order, Refused

_TIMEOUTS: Final = (1.0, 4.0, 15.0)
_REPLY_TIMEOUT: Final = timedelta(seconds=20)
_BURST: Final = 5
_REFUSED_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 0.06
"""Seconds between two deeds of a sender at most."""
_EXPECTED: Final[dict[str, Expected]] = {"apply": "value", "die": "value", "freeze": "value", "refuse": "error"}
"""How messages of a handler end; those of others as dead letters."""

Deed: TypeAlias = Callable[["DurableSender", str], Coroutine[Any, Any, None]]


class DurableClients:
    """All senders of one cluster, and everything that they sent.

    Args:
        cluster: Where to send.
        entities: How many entities there are to send to.
        chance: Draws what to send.
        prefix: Of the entities' ids.
    """

    def __init__(self, cluster: Cluster, entities: int, chance: random.Random, prefix: str = "e") -> None:
        self.cluster = cluster
        self.entities = [f"{prefix}{number}" for number in range(entities)]
        self.chance = chance
        self.sent: list[Sent] = []
        self._answered: dict[str, float] = {}
        """When the last ask that was answered had been invoked, by entity."""
        self._contents = itertools.count(1)
        self._sequences: dict[tuple[str, str], int] = {}

    def order(self, sender: str, entity: str, **other: Any) -> Order:
        """Make the payload of a new message of a sender."""
        self._sequences[sender, entity] = sequence = self._sequences.get((sender, entity), 0) + 1
        return Order(next(self._contents), sender, sequence, **other)

    async def ask(
        self, entity: str, order: Order, handler: str = "apply", *, key: str = "", timeout: float = 0
    ) -> Sent:
        """Ask and write down how it ended."""
        limit = timedelta(seconds=timeout or self.chance.choice(_TIMEOUTS))
        client = self.cluster.client(Book).options(timeout=limit, key=key or None)
        sent = self._sent(order, entity, "ask", handler, key)
        call: Awaitable[Done] = getattr(client(entity), handler)(order)
        await _noted(sent, call)
        if sent.outcome == "ok":
            self._answered[entity] = max(sent.invoked, self._answered.get(entity, 0.0))
        return sent

    async def tell(
        self,
        entity: str,
        order: Order,
        handler: str = "apply",
        *,
        key: str = "",
        delay: float = 0.0,
        at: float = 0.0,
    ) -> Sent:
        """Tell and write down whether it was accepted; `at` is seconds since the Unix epoch."""
        sent = self._sent(order, entity, "tell", handler, key)
        sent.due = at or (time.time() + delay if delay else 0.0)
        try:
            sent.message_id = await self.cluster.tell(
                getattr(self.cluster.client(Book)(entity), handler)(order),
                key=key or None,
                delay=timedelta(seconds=delay) if delay else None,
                deliver_at=datetime.fromtimestamp(at, UTC) if at else None,
            )
        except ActorhubError as error:
            _note_error(sent, error)
        else:
            sent.outcome = "ok"
        finally:
            sent.completed = time.monotonic()
        return sent

    async def cancel(self, sent: Sent) -> None:
        """Try to cancel a tell that was accepted."""
        try:
            if await self.cluster.cancel(sent.message_id):
                sent.cancelled = time.monotonic()
        except ActorhubError as error:
            # Whether it was cancelled shows in its terminal reply.
            sent.error = f"cancel: {type(error).__name__}: {error}"

    async def reply(self, sent: Sent, timeout: timedelta = _REPLY_TIMEOUT) -> None:
        """Wait for the terminal reply of a tell that was accepted, and write it down if it comes."""
        terminal, error = await _terminal(self.cluster.reply(sent.message_id, timeout=timeout))
        if terminal is not None:
            sent.replies.append(terminal)
        else:
            sent.error = f"reply: {type(error).__name__}: {error}"

    async def all_replies(self, timeout: timedelta = _REPLY_TIMEOUT) -> None:
        """Ask for the terminal reply of every tell that was accepted, once more for those that had it."""
        waiting = iter([sent for sent in self.sent if sent.kind == "tell" and sent.outcome == "ok"])

        async def work() -> None:
            for sent in waiting:
                await self.reply(sent, timeout)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(32):
                tasks.create_task(work())

    def unserved(self, since: float) -> list[str]:
        """Return the entities that answered no ask that began after `since`."""
        return [entity for entity in self.entities if self._answered.get(entity, -1.0) <= since]

    def _sent(self, order: Order, entity: str, kind: Any, handler: str, key: str) -> Sent:  # noqa: ANN401 - a literal
        expected: Expected = {**dict.fromkeys(("apply", "die", "freeze"), "value"), "refuse": "error"}.get(
            handler, "dead"
        )  # type: ignore[assignment]
        attempts = DOOMED_RUNS if handler == "doom" else 100
        made = Sent(
            order.content, order.sender, entity, kind, time.monotonic(), key, expected=expected, attempts=attempts
        )
        self.sent.append(made)
        return made


class DurableSender:
    """One sender: one deed after the other, each towards one entity."""

    def __init__(self, clients: DurableClients, name: str, deeds: "Sequence[tuple[Deed, float]]", pause: float) -> None:
        self.clients = clients
        self.name = name
        self._deeds = [deed for deed, _ in deeds]
        self._weights = [weight for _, weight in deeds]
        self._pause = pause
        self.stopping = False
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Do deeds until `stopping`."""
        chance = self.clients.chance
        async with asyncio.TaskGroup() as self._tasks:
            while not self.stopping:
                deed = chance.choices(self._deeds, self._weights)[0]
                await deed(self, chance.choice(self.clients.entities))
                # Whoever is refused at once, and tries again at once, leaves the others no processor to recover.
                is_refused = bool(self.clients.sent) and self.clients.sent[-1].outcome == "failed"
                await asyncio.sleep(chance.uniform(0.0, _REFUSED_PAUSE if is_refused else self._pause))

    def order(self, entity: str, **other: Any) -> Order:
        """Make the payload of this sender's next message to the entity."""
        chance = self.clients.chance
        hold = chance.choice((0, 0, 0, 5, 30))
        drawn = {"holds_ms": (hold,) if hold else (), "is_witnessed": chance.random() < 0.4}
        return self.clients.order(self.name, entity, **{**drawn, **other})

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that the next deed does not wait for."""
        self._tasks.create_task(work)


async def _ask(sender: DurableSender, entity: str) -> None:
    await sender.clients.ask(entity, sender.order(entity))


async def _tell(sender: DurableSender, entity: str) -> None:
    sent = await sender.clients.tell(entity, sender.order(entity))
    if sent.outcome == "ok" and sender.clients.chance.random() < 0.5:
        sender.beside(sender.clients.reply(sent))


async def _burst(sender: DurableSender, entity: str) -> None:
    for _ in range(_BURST):
        await sender.clients.tell(entity, sender.order(entity))


async def _duplicates(sender: DurableSender, entity: str) -> None:
    """Send one message from several callers at once, then late, then its key with another payload."""
    clients = sender.clients
    order = sender.order(entity)
    key = f"key of {order.content}"
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(clients.ask(entity, order, key=key))
        tasks.create_task(clients.tell(entity, order, key=key))
        tasks.create_task(clients.ask(entity, order, key=key))
    await clients.ask(entity, order, key=key)
    if clients.chance.random() < 0.3:
        await clients.ask(entity, sender.order(entity), key=key)


async def _schedule(sender: DurableSender, entity: str) -> None:
    clients = sender.clients
    delay = clients.chance.uniform(0.05, 1.5)
    order = sender.order(entity)
    if clients.chance.random() < 0.5:
        sent = await clients.tell(entity, order, delay=delay)
    else:
        sent = await clients.tell(entity, order, at=time.time() + delay)
    if sent.outcome == "ok" and clients.chance.random() < 0.5:
        await asyncio.sleep(clients.chance.uniform(0.0, delay))
        await clients.cancel(sent)


async def _cancel(sender: DurableSender, entity: str) -> None:
    first = await sender.clients.tell(entity, sender.order(entity, holds_ms=(30,)))
    sent = await sender.clients.tell(entity, sender.order(entity))
    if first.outcome == "ok" and sender.clients.chance.random() < 0.5:
        await sender.clients.cancel(first)
    if sent.outcome == "ok":
        await sender.clients.cancel(sent)


async def _chain(sender: DurableSender, entity: str) -> None:
    target = sender.clients.chance.choice([each for each in sender.clients.entities if each != entity])
    for _ in range(sender.clients.chance.choice((1, 3))):
        await sender.clients.tell(entity, sender.order(entity, target=target))


async def _refuse(sender: DurableSender, entity: str) -> None:
    await sender.clients.ask(entity, sender.order(entity, target=sender.clients.entities[0]), "refuse")


async def _crash(sender: DurableSender, entity: str) -> None:
    order = sender.order(entity, failures=sender.clients.chance.choice((1, 2)))
    await sender.clients.tell(entity, order)


async def _doom(sender: DurableSender, entity: str) -> None:
    await sender.clients.tell(entity, sender.order(entity, target=sender.clients.entities[0]), "doom")


DEEDS: Final[Sequence[tuple[Deed, float]]] = [
    (_ask, 4.0),
    (_tell, 3.0),
    (_burst, 1.0),
    (_duplicates, 1.0),
    (_schedule, 2.0),
    (_cancel, 0.7),
    (_chain, 1.5),
    (_refuse, 0.7),
    (_crash, 0.7),
    (_doom, 0.4),
]


async def _noted(sent: Sent, call: Awaitable[Done]) -> None:
    try:
        terminal, error = await _terminal(call)
        if terminal is not None:
            sent.outcome = "ok"
            sent.replies.append(terminal)
        elif error is not None:
            _note_error(sent, error)
    finally:
        sent.completed = time.monotonic()


async def _terminal(call: Awaitable[Done]) -> tuple[Terminal | None, ActorhubError | None]:
    """Return the terminal reply that a call ended with, else its error."""
    try:
        done = await call
    except Refused:
        return Terminal("error"), None
    except HandlerFailed:
        return Terminal("dead"), None
    except MessageCancelled:
        return Terminal("cancelled"), None
    except ActorhubError as error:
        return None, error
    return Terminal("value", done.position, done.epoch, done.attempt), None


def _note_error(sent: Sent, error: ActorhubError) -> None:
    sent.error = f"{type(error).__name__}: {error}"
    if isinstance(error, DuplicateKey):
        sent.outcome = "clash"
    else:
        sent.outcome = "unknown" if error.possibly_executed else "failed"


@asynccontextmanager
async def durable_clients(
    clients: DurableClients, senders: int, deeds: Sequence[tuple[Deed, float]] = DEEDS, pause: float = _LONGEST_PAUSE
) -> AsyncGenerator[DurableClients, None]:
    """Run senders in the background; they end with the block, after what they wait for."""
    running = [DurableSender(clients, f"s{number}", deeds, pause) for number in range(senders)]
    async with asyncio.TaskGroup() as tasks:
        for sender in running:
            tasks.create_task(sender.run())
        try:
            yield clients
        finally:
            for sender in running:
                sender.stopping = True
