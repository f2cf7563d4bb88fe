"""current().spawn(): a background task lives as long as its activation, and is nobody's run."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import Cluster, Entity, Hub, MailboxFull, NotConnected, Singleton, current, handler
from actorhub.client import Client
from actorhub.engine.runs import background
from actorhub.testing import MemoryCluster, until
from tests.support.gates import failure, gates
from tests.support.parts import host_of, runner_of


class Watcher(Entity[int], max_idle=timedelta(milliseconds=30)):
    async def on_deactivate(self) -> None:
        gates["watcher"].log.append("on_deactivate")

    async def watch(self, how: str = "gate") -> None:
        current().keep_alive()
        work = {"gate": self._hold, "fail": self._fail, "exit": self._exit, "swallow": self._swallow}[how]
        _ = current().spawn(work())

    async def leave(self) -> None:
        current().keep_alive(False)

    async def count_later(self) -> None:
        current().keep_alive()
        _ = current().spawn(self._count(current().client(Watcher)))

    async def save_later(self) -> None:
        current().keep_alive()
        _ = current().spawn(self._save())

    async def flood(self, count: int) -> None:
        for _ in range(count):
            _ = current().spawn(self._hold())

    async def count(self) -> int:
        self.state += 1
        return self.state

    @handler(readonly=True)
    async def read(self) -> int:
        return self.state

    async def _hold(self) -> None:
        await gates["task"].pass_through()

    async def _fail(self) -> None:
        raise ValueError("in the background")

    async def _exit(self) -> None:
        raise SystemExit(3)

    async def _swallow(self) -> None:
        while True:
            try:
                await gates["task"].pass_through()
            except asyncio.CancelledError:
                continue  # on purpose
            return

    async def _count(self, client: "Client[Watcher]") -> None:
        gates["task"].log.append(str(await client("w").count()))

    async def _save(self) -> None:
        for refused in (self.save, current):
            try:
                result = refused()
                if result is not None and asyncio.iscoroutine(result):
                    await result
            except (RuntimeError, NotConnected) as error:
                gates["task"].log.append(type(error).__name__)


class Guard(Singleton[int]):
    async def on_become_leader(self) -> None:
        _ = current().spawn(self._hold())

    async def on_lose_leadership(self) -> None:
        gates["guard"].log.append(f"lost with {gates['task'].inside} inside")

    async def ping(self) -> int:
        return self.state

    async def _hold(self) -> None:
        await gates["guarding"].pass_through()


hub = Hub()
hub.register(Watcher)
hub.register(Guard)


async def test_a_background_task_ends_with_its_activation(cluster: Cluster) -> None:
    """It outlives its handler, does not keep the entity in memory, and is over before `on_deactivate`."""
    watcher = cluster.client(Watcher)("w")
    await watcher.watch()
    await gates["task"].came()
    await asyncio.sleep(0.05)
    assert gates["task"].inside == 1
    await watcher.leave()
    await until(lambda: gates["watcher"].log == ["on_deactivate"])
    assert gates["task"].left == ["cancelled"]


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_background_task_ends_when_the_shard_is_lost(memory: MemoryCluster, end: str) -> None:
    """Whatever becomes of its runner."""
    runner = await memory.start_runner()
    await runner.client(Watcher)("w").watch()
    await gates["task"].came()
    await getattr(memory, end)(runner)
    await until(lambda: gates["task"].left == ["cancelled"])


@pytest.mark.parametrize("how", ["fail", "exit"])
async def test_a_background_task_that_fails_is_logged_and_counted(
    runner: Cluster, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With its entity's address; the entity goes on, and so does the process."""
    watcher = runner.client(Watcher)("w")
    await watcher.watch(how)
    failures = runner_of(runner).node.supervisor.statistics
    await until(lambda: failures().failures.get("background task of watcher") == 1)
    assert "watcher/w" in caplog.text
    assert await watcher.count() == 1


async def test_a_background_task_that_swallows_its_cancellation_holds_nobody_up(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for a second, named in the log, and left."""
    watcher = cluster.client(Watcher)("w")
    await watcher.watch("swallow")
    await gates["task"].came()
    await watcher.leave()
    async with asyncio.timeout(4):
        await until(lambda: gates["watcher"].log == ["on_deactivate"])
        assert await watcher.count() == 1
    assert "background task of watcher(w) went on 1 s" in caplog.text
    gates["task"].open()


async def test_a_background_task_calls_its_own_entity(cluster: Cluster) -> None:
    """Its call is neither a cycle nor bound to the deadline of the handler that began it."""
    await cluster.client(Watcher)("w").count_later()
    await until(lambda: gates["task"].log == ["1"])
    assert await cluster.client(Watcher)("w").read() == 1


async def test_a_background_task_can_neither_save_nor_see_a_run(cluster: Cluster) -> None:
    """Both say so."""
    await cluster.client(Watcher)("w").save_later()
    await until(lambda: gates["task"].log == ["RuntimeError", "NotConnected"])


async def test_an_activation_has_a_limited_number_of_background_tasks(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is refused, and none is left when the activation is over."""
    monkeypatch.setattr(background, "MOST_TASKS", 10)
    watcher = runner.client(Watcher)("w")
    await watcher.flood(10)
    assert isinstance(await failure(watcher.flood(1)), MailboxFull)
    tasks = host_of(runner).activations._background
    await until(lambda: len(tasks) == 1, "only the singleton's")


async def test_the_background_tasks_of_a_singleton_end_before_it_loses_its_leadership(memory: MemoryCluster) -> None:
    """None of them runs beside its last hooks."""
    runner = await memory.start_runner()
    assert await runner.singleton(Guard).ping() == 0
    await gates["guarding"].came()
    await memory.stop(runner)
    assert gates["guard"].log == ["lost with 0 inside"]
