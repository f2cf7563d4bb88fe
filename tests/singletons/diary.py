"""A singleton that writes down what happens to it, for the tests of singletons."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from actorhub import Cluster, Singleton, current, handler
from actorhub.engine.singletons.leader import SingletonLeader
from actorhub.storage.singleton_ports import SingletonRow
from actorhub.testing import MemoryCluster, until
from tests.support.gates import gates
from tests.support.parts import host_of

Act = Callable[["Diary"], Awaitable[None]]


class Notes(msgspec.Struct):
    """What the diary keeps."""

    lines: list[str] = []
    count: int = 0


class Story:
    """What one test sees of the singleton, and what it has it do. By hook or handler: `act["run"]`."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.act: dict[str, Act] = {}
        self.alive = 0
        """Activations between `on_become_leader` that returned and `on_lose_leadership` that began."""
        self.most_alive = 0
        self.ran: Counter[str] = Counter()
        self.seen: defaultdict[str, list[object]] = defaultdict(list)

    def clear(self) -> None:
        """Forget the test before."""
        self.__init__()  # type: ignore[misc]

    async def part(self, name: str, me: "Diary") -> None:
        """Write `name` down, then do what the test wants there."""
        self.ran[name] += 1
        self.log.append(name)
        if name in self.act:
            await self.act[name](me)


story = Story()
"""Of the test that runs."""


class Diary(Singleton[Notes], name="diary", mailbox_capacity=5):
    """Tells the story of its hooks."""

    async def on_activate(self) -> None:
        await story.part("on_activate", self)

    async def on_become_leader(self) -> None:
        await story.part("on_become_leader", self)
        story.ran["led"] += 1
        story.alive += 1
        story.most_alive = max(story.most_alive, story.alive)

    async def on_lose_leadership(self) -> None:
        story.alive -= 1
        await story.part("on_lose_leadership", self)

    async def on_deactivate(self) -> None:
        await story.part("on_deactivate", self)

    async def run(self) -> None:
        try:
            await story.part("run", self)
        except asyncio.CancelledError:
            story.log.append("run cancelled")
            raise

    async def add(self, line: str) -> int:
        """Change the state."""
        self.state.lines.append(line)
        return len(self.state.lines)

    async def read(self) -> Notes:
        """Return the state."""
        return self.state

    async def do(self, name: str) -> str:
        """Do what the test put under `name`."""
        await story.part(name, self)
        return str(current().epoch)

    @handler(readonly=True)
    async def look(self, name: str) -> int:
        """Do it beside other readers."""
        await story.part(name, self)
        return self.state.count

    @handler(reentrant=True)
    async def nested(self, name: str) -> None:
        """Do it inside another one's turn."""
        await story.part(name, self)

    async def count_up(self, to: int) -> AsyncIterator[int]:
        """Yield and count."""
        for number in range(to):
            self.state.count = number
            yield number


async def for_ever(me: Diary) -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()


def at_gate(name: str) -> Act:
    """Return what waits at a gate."""

    async def act(me: Diary) -> None:
        await gates[name].pass_through()

    return act


def pause(seconds: float) -> Act:
    """Return what takes that long."""

    async def act(me: Diary) -> None:
        await asyncio.sleep(seconds)

    return act


def led(runner: Cluster, name: str = "diary") -> SingletonLeader | None:
    """Return the runner's leadership of a singleton."""
    return next((one for one in host_of(runner).singletons.leaders if one.spec.name == name), None)


def is_leading(runner: Cluster, name: str = "diary") -> bool:
    """Whether an activation leads there."""
    one = led(runner, name)
    return one is not None and one.cell is not None


def leaders(memory: MemoryCluster, name: str = "diary") -> list[Cluster]:
    """Return the live runners whose activation leads."""
    return [runner for runner in memory.runners if is_leading(runner, name)]


async def leads(memory: MemoryCluster, name: str = "diary", *, tended: bool = True) -> Cluster:
    """Wait until exactly one runner leads; `tended`: and its row says so and it has shown a heartbeat."""

    def leads_now() -> bool:
        now = leaders(memory, name)
        if len(now) != 1:
            return False
        known = led(now[0], name)
        assert known is not None
        found = [row for row in memory.store.singletons.singletons() if row.singleton == name]
        return not tended or (
            bool(found) and found[0].epoch == known.leadership.epoch and found[0].heartbeat_at is not None
        )

    await until(leads_now, f"one leader of {name}")
    return leaders(memory, name)[0]


def row(memory: MemoryCluster, name: str = "diary") -> SingletonRow:
    """Return what is stored of a singleton."""
    return next(found for found in memory.store.singletons.singletons() if found.singleton == name)
