"""`save()` belongs to the run that calls it: one at a time, none outside of it, and the run ends after it."""

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import msgspec
import pytest

from actorhub import Entity, HandlerFailed, Hub, Singleton
from actorhub.testing import MemoryCluster, state_of
from tests.support.gates import failure, gates, soon


def _spawn(call: Coroutine[Any, Any, None]) -> None:
    _ = soon(call)


class Marks(msgspec.Struct):
    made: list[str] = []
    half: bool = False


class Sheet(Entity[Marks]):
    """Marks its state. Whoever finds `half` set sees another handler's change before it is complete."""

    async def mark(self, name: str) -> None:
        self.state.made.append(name)

    async def mark_in_two_steps(self, name: str, gate: str) -> None:
        assert not self.state.half
        self.state.half = True
        await gates[gate].pass_through()
        self.state.half = False
        self.state.made.append(name)

    async def mark_in_parts(self, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._part(f"part {number}"))

    async def mark_and_leave(self, name: str, late: str) -> None:
        """Return while a save is under way; another one, in the same task, comes too late."""
        self.state.made.append(name)
        _spawn(self._save_twice(late))
        await asyncio.sleep(0)

    async def mark_and_raise(self, kept: str, lost: str) -> None:
        self.state.made.append(kept)
        _spawn(self.save())
        await asyncio.sleep(0)
        self.state.made.append(lost)
        raise ValueError("no luck")

    async def leave_a_task(self, gate: str) -> None:
        _spawn(self._save_later(gate))

    async def odd(self, name: str, seed: int) -> None:
        """Mark, save and leave saves behind in a random way; raise now and then, once what was marked is saved."""
        random = Random(seed)
        self.state.made.append(name)
        for _ in range(random.randrange(4)):
            match random.randrange(4):
                case 0:
                    await self.save()
                case 1:
                    _spawn(self.save())
                case 2:
                    await asyncio.gather(self.save(), self.save())
                case _:
                    await asyncio.sleep(0)
        if random.random() < 0.3:
            await self.save()
            self.state.made.append(f"{name} never")
            raise ValueError(name)

    async def _part(self, name: str) -> None:
        self.state.made.append(name)
        await self.save()

    async def _save_twice(self, late: str) -> None:
        try:
            await self.save()
            self.state.made.append(late)
            await self.save()
        except RuntimeError as error:
            self.state.made.remove(late)
            gates["late"].log.append(str(error))

    async def _save_later(self, gate: str) -> None:
        await gates[gate].pass_through()
        try:
            await self.save()
        except RuntimeError as error:
            gates[gate].log.append(str(error))
        gates["late"].open()


def _hub() -> Hub:
    hub = Hub()
    hub.register(Sheet)
    return hub


async def test_saves_of_one_handler_at_once_queue_up() -> None:
    """All are committed."""
    async with MemoryCluster(_hub()) as memory:
        sheet = (await memory.start_runner()).client(Sheet)("a")
        await sheet.mark_in_parts(20)
        assert sorted((await state_of(memory, Sheet, "a")).made) == sorted(f"part {number}" for number in range(20))
        await sheet.mark("last")
        assert (await state_of(memory, Sheet, "a")).made[-1] == "last"


async def test_a_handler_that_returns_ends_after_its_save() -> None:
    """Its reply comes when both are committed, and what its task saves after that is refused."""
    async with MemoryCluster(_hub()) as memory:
        sheet = (await memory.start_runner()).client(Sheet)("a")
        await sheet.mark_and_leave("one", "late")
        await sheet.mark("two")
        assert (await state_of(memory, Sheet, "a")).made == ["one", "two"]
        assert gates["late"].log == ["sheet.mark_and_leave: its run is over, so it cannot save"]


async def test_a_handler_that_raises_during_its_save_keeps_what_was_saved() -> None:
    """The rest is taken back, when the save is answered."""
    async with MemoryCluster(_hub()) as memory:
        sheet = (await memory.start_runner()).client(Sheet)("a")
        assert isinstance(await failure(sheet.mark_and_raise("kept", "lost")), HandlerFailed)
        await sheet.mark("next")
        assert (await state_of(memory, Sheet, "a")).made == ["kept", "next"]


async def test_a_task_that_outlives_its_handler_cannot_save() -> None:
    """Another handler's half-done change is not committed by it, and is taken back when that handler fails."""
    async with MemoryCluster(_hub()) as memory:
        sheet = (await memory.start_runner()).client(Sheet)("a")
        await sheet.leave_a_task("task")
        marking = soon(sheet.mark_in_two_steps("whole", "handler"))
        await gates["handler"].came()
        gates["task"].open()
        await gates["late"].pass_through()
        assert (await state_of(memory, Sheet, "a")) == Marks()
        assert gates["task"].log == ["sheet.leave_a_task: its run is over, so it cannot save"]
        gates["handler"].open()
        await marking
        assert (await state_of(memory, Sheet, "a")).made == ["whole"]


class Starter(Entity[Marks]):
    """Leaves a task behind in a hook."""

    async def on_activate(self) -> None:
        self.state.made.append("activated")
        _spawn(self._save_later())

    async def mark_in_two_steps(self) -> None:
        self.state.half = True
        await gates["handler"].pass_through()
        self.state.half = False

    async def _save_later(self) -> None:
        await gates["handler"].came()
        try:
            await self.save()
        except RuntimeError as error:
            gates["task"].log.append(str(error))
        gates["handler"].open()


async def test_a_task_of_a_hook_cannot_save_after_it() -> None:
    """Nor before the handler that runs by then is done."""
    own = Hub()
    own.register(Starter)
    async with MemoryCluster(own) as memory:
        await (await memory.start_runner()).client(Starter)("a").mark_in_two_steps()
        assert gates["task"].log == ["starter.on_activate: its run is over, so it cannot save"]
        assert await state_of(memory, Starter, "a") == Marks(["activated"])


class Loop(Singleton[Marks]):
    """Saves twice at once in its main loop, and leaves a save behind."""

    async def run(self) -> None:
        self.state.made.append("run")
        await asyncio.gather(self.save(), self.save(), self.save())
        self.state.made.append("left")
        _spawn(self._save_last())
        await asyncio.sleep(0)

    async def _save_last(self) -> None:
        await self.save()
        gates["last"].open()

    async def mark(self) -> list[str]:
        self.state.made.append("mark")
        return self.state.made


async def test_a_main_loop_saves_in_any_number_of_tasks() -> None:
    """Nothing looks like lost leadership: `run` runs once, and what its last task saves is committed."""
    own = Hub()
    own.register(Loop)
    async with MemoryCluster(own) as memory:
        loop = (await memory.start_runner()).singleton(Loop)
        await loop.mark()
        await gates["last"].pass_through()
        assert sorted((await state_of(memory, Loop, "loop")).made) == ["left", "mark", "run"]


@pytest.mark.parametrize("seed", range(20))
async def test_saves_in_any_order_keep_every_handlers_change(seed: int) -> None:
    """Handlers of a few entities save at random; each mark is there once, and nothing of what was taken back is."""
    random = Random(seed)
    async with MemoryCluster(_hub()) as memory:
        runner = await memory.start_runner()
        ids = ["a", "b", "c"]
        calls = [(random.choice(ids), f"m{number}", random.randrange(1000)) for number in range(60)]
        sheets = runner.client(Sheet)
        await asyncio.gather(*(sheets(where).odd(name, own) for where, name, own in calls), return_exceptions=True)
        for where in ids:
            made = (await state_of(memory, Sheet, where)).made
            assert sorted(made) == sorted(name for at, name, _ in calls if at == where)
