"""cancel() while the message comes in from the store: what was cancelled does not begin afterwards."""

import asyncio
from asyncio import Future
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from actorhub import Cluster, Entity, Hub, MessageCancelled, current, handler
from actorhub.storage.message_ports import CancelResult, MessageStore, Readiness, RunStart
from actorhub.testing import MemoryCluster
from tests.support.gates import failure, gates, soon
from tests.support.parts import runner_of


class Late(Entity[int]):
    """Is activated when its gate opens."""

    async def on_activate(self) -> None:
        await gates["activation"].pass_through()

    @handler(durable=True)
    async def work(self) -> int:
        gates["work"].enter()
        return current().attempt

    async def read(self) -> int:
        return gates["work"].entered


class Other(Entity[int], shard_group="others"):
    """Is all that its runner has."""


hub = Hub()
hub.register(Late)
others = Hub()
others.register(Other)


def _hold_activation(store: MessageStore, patch: pytest.MonkeyPatch) -> str:
    """The run is counted, and its entity's activation is under way."""
    return "activation"


def _hold_answer(store: MessageStore, patch: pytest.MonkeyPatch) -> str:
    """The run is counted, and the answer that says so is under way."""
    start_run = store.start_run

    def answer_late(start: RunStart, incarnation: str) -> "Future[Readiness]":
        async def counted() -> Readiness:
            answer = await start_run(start, incarnation)
            await gates["answer"].pass_through()
            return answer

        return soon(counted())

    patch.setattr(store, "start_run", answer_late)
    return "answer"


Hold = Callable[[MessageStore, pytest.MonkeyPatch], str]
HOLDS: Final[list[Hold]] = [_hold_activation, _hold_answer]


@pytest.mark.parametrize("terminate", [False, True], ids=["cancel", "terminate"])
@pytest.mark.parametrize("hold", HOLDS)
async def test_a_message_that_comes_in_while_it_is_cancelled_does_not_begin(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch, hold: Hold, terminate: bool
) -> None:
    """Its run is counted before the cancellation is written, and has not begun by then."""
    store = runner_of(runner).storage.messages
    told = await runner.tell(runner.client(Late)("a").work(), delay=timedelta(hours=1))
    held = hold(store, monkeypatch)
    cancel = store.cancel

    async def cancel_late(*what: Any, **options: Any) -> CancelResult:
        _ = await store.retry([told])
        await runner.poll_storage()
        await gates[held].came()
        return await cancel(*what, **options)

    monkeypatch.setattr(store, "cancel", cancel_late)
    async with asyncio.timeout(10):
        assert await runner.cancel(told, terminate=terminate)
        monkeypatch.setattr(store, "cancel", cancel)
        gates["answer"].open()
        gates["activation"].open()
        assert isinstance(await failure(runner.reply(told)), MessageCancelled)
        assert await runner.client(Late)("a").read() == 0


@pytest.mark.parametrize("hold", HOLDS)
async def test_a_message_that_is_cancelled_while_its_shard_is_taken_does_not_begin(
    memory: MemoryCluster, runner: Cluster, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    """Nobody owned it, so the store was asked; by then a runner had taken the shard, and counted the run."""
    monkeypatch.setattr("actorhub._stored_messages._OWNER_PATIENCE", 0.1)
    canceller = await memory.start_runner(hub=others, groups=("others",))
    told = await runner.tell(runner.client(Late)("a").work(), delay=timedelta(hours=1))
    await memory.kill(runner)
    store = runner_of(canceller).storage.messages
    cancel = store.cancel

    async def cancel_late(*what: Any, **options: Any) -> CancelResult:
        taker = await memory.start_runner()
        held = hold(runner_of(taker).storage.messages, monkeypatch)
        _ = await store.retry([told])
        await taker.poll_storage()
        await gates[held].came()
        return await cancel(*what, **options)

    monkeypatch.setattr(store, "cancel", cancel_late)
    async with asyncio.timeout(10):
        assert await canceller.cancel(told)
        gates["answer"].open()
        gates["activation"].open()
        taker = memory.runners[-1]
        assert isinstance(await failure(taker.reply(told)), MessageCancelled)
        assert await taker.client(Late)("a").read() == 0
