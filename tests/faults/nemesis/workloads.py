"""What goes on at once while faults happen, and the judgement of it."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

from actorhub.cluster import Cluster
from tests.faults.cluster.notes import NotesReader
from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.durable import checks
from tests.faults.durable.clients import DEEDS, Deed, DurableClients, DurableSender, durable_clients
from tests.faults.durable.history import runs_of
from tests.faults.durable.records import read_book, settled
from tests.faults.leaders.history import Sample, leader_violations, turns_of
from tests.faults.leaders.records import read_chronicle, sample_locks, shard_of_singleton
from tests.faults.owners import history as owners
from tests.faults.owners.clients import Writers
from tests.faults.owners.hub import KEYS
from tests.faults.registers import history as registers
from tests.faults.registers.clients import RecordedClients, recorded_clients
from tests.faults.registers.history import starts_of
from tests.faults.sagas.orders import Orders
from tests.faults.sagas.payments import PaymentService

_BOOKS: Final = 120
_SENDERS: Final = 16
_PAUSE: Final = 0.1
_WAVE: Final = 24
_REGISTERS: Final = 12
_ASKED: Final = 24
"""Books that nobody uses but whoever wants to know how soon they answer once faults have ended: nothing waits there."""
_ORDER_PACE: Final = 1.0
_SAMPLE_PACE: Final = 0.1


async def _wave(sender: DurableSender, _: str) -> None:
    """Send to many entities at once, by asks and tells."""
    clients = sender.clients
    async with asyncio.TaskGroup() as tasks:
        for number in range(_WAVE):
            entity = clients.chance.choice(clients.entities)
            send = clients.ask if number % 2 else clients.tell
            tasks.create_task(send(entity, sender.order(entity, holds_ms=())))


_DEEDS: Final[Sequence[tuple[Deed, float]]] = [*DEEDS, (_wave, 6.0)]


class Workloads:
    """Senders of every kind on one cluster.

    Those of durable messages and of registers go on to new entities at each station, where what they did to the former
    ones is judged and forgotten: so neither memory nor states grow with the length of a run. Numbers that are read and
    written, the singleton and the orders go on.
    """

    def __init__(
        self, processes: ClusterProcesses, cluster: Cluster, service: PaymentService, seed: int, patience: float
    ) -> None:
        self.patience = patience
        """Seconds after the end of faults within which everything answers."""
        self.found: list[str] = []
        """Broken promises."""
        self.acknowledged: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        """What calls failed with."""
        self.reads = 0
        """Reads that were judged."""
        self._processes = processes
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._generations = itertools.count(1)
        self._books: DurableClients
        self._asked: list[str] = []
        self._writers = Writers(cluster)
        self._orders = Orders(cluster, service, seed, timedelta(seconds=6 * patience))
        self._samples: list[Sample] = []
        self._owners = owners.History((), self._writers.acknowledged)
        readers = {kind: NotesReader(partial(processes.events, kind)) for kind in ("starts", "runs", "turns", "acts")}
        self._starts, self._runs, self._turn_notes, self._acts = readers.values()

    @asynccontextmanager
    async def going_on(self) -> AsyncGenerator[None, None]:
        """Add to numbers, place orders, and look who leads, during the body; then judge orders and leaders."""
        await self._answers("the singleton", self._led())
        shard = await shard_of_singleton(self._processes)
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._writers.add(key)) for key in KEYS]
            running.append(tasks.create_task(sample_locks(self._processes, shard, self._samples, _SAMPLE_PACE)))
            tasks.create_task(self._orders.keep_placing(_ORDER_PACE, enough))
            yield
            enough.set()
            for task in running:
                task.cancel()
        self.found += [f"orders: {text}" for text in await self._orders.violations()]
        self.acknowledged["orders placed"] = len(self._orders.placed)
        for runner in self._processes.runners:
            runner.terminate()
        for runner in self._processes.runners:
            await runner.gone()
        self._judge_owners()
        await self._judge_leaders()

    @asynccontextmanager
    async def generation(self) -> AsyncGenerator[None, None]:
        """Send to new entities during the body; then judge what became of that, and forget it."""
        number = next(self._generations)
        self._books = DurableClients(self._cluster, _BOOKS, self._chance, f"e{number}.")
        self._asked = [f"p{number}.{each}" for each in range(_ASKED)]
        async with (
            recorded_clients(self._cluster, _REGISTERS, self._chance, prefix=f"k{number}.") as clients,
            durable_clients(self._books, _SENDERS, _DEEDS, _PAUSE),
        ):
            await self.all_answer(0.0)
            yield
        await self._judge_registers(clients)
        await self._judge_books()
        self._judge_owners()

    async def all_answer(self, since: float) -> float:
        """Wait until each number and some books have answered; return the seconds since then."""
        async with asyncio.TaskGroup() as tasks:
            for key in KEYS:
                tasks.create_task(self._answers(f"till/{key}", self._writers.answer(key)))
            for entity in self._asked:
                tasks.create_task(self._answers(f"book/{entity}", self._ask(entity)))
        return time.monotonic() - since

    async def _answers(self, what: str, answer: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await answer
        except TimeoutError:
            self.found.append(f"recovery: {what} did not answer within {self.patience} s")

    async def _ask(self, entity: str) -> None:
        books, pause = self._books, 0.005
        while (await books.ask(entity, books.order("probe", entity))).outcome != "ok":
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    async def _led(self) -> None:
        while not await self._processes.fetch("select from public.done limit 1"):
            await asyncio.sleep(0.02)

    async def _judge_registers(self, clients: RecordedClients) -> None:
        found = registers.violations(clients.history, await self._processes.stored(), starts_of(self._starts.read()))
        self.found += [f"registers: {text}" for text in found]
        self._note_errors(each.error for each in clients.history.operations)
        self.acknowledged["changes of registers"] += clients.history.counts().get("ok", 0)

    async def _judge_books(self) -> None:
        books = self._books
        await settled(self._processes, self.patience)
        await books.all_replies(timedelta(seconds=self.patience))
        runs = runs_of(self._runs.read())
        book = await read_book(self._processes, books.sent, runs=runs, entities=[*books.entities, *self._asked])
        found = checks.durable_violations(book)
        if found:
            self.found.append(f"durable messages: {checks.explained_violations(found, book)}")
        self._note_errors(call.error for call in book.sent)
        for kind in ("ask", "tell"):
            count = sum(call.kind == kind and call.outcome == "ok" for call in book.sent)
            self.acknowledged[f"durable {kind}s"] += count

    def _note_errors(self, errors: Iterable[str]) -> None:
        self.errors.update(error for error in errors if error)

    def _judge_owners(self) -> None:
        events = [owners.Event(*values) for values in self._acts.read()]
        self.reads += sum(event.what == "read" for event in events)
        freezes = [freeze for runner in self._processes.runners for freeze in runner.freezes]
        self._owners = owners.History([*self._owners.events, *events], self._writers.acknowledged, freezes)
        self.found += [f"owners: {text}" for text in owners.violations(self._owners)]
        self.acknowledged["additions to numbers"] = sum(map(self._writers.last, KEYS))
        self._owners = self._owners.settled()
        self._writers.acknowledged.update(self._owners.acknowledged)

    async def _judge_leaders(self) -> None:
        chronicle = await read_chronicle(self._processes, self._samples, turns_of(self._turn_notes.read()))
        self.found += [f"leaders: {text}" for text in leader_violations(chronicle)]
        self.acknowledged["steps and fire times of the singleton"] = len(chronicle.commits)
