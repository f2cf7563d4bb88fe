"""Answers of the store that get lost after it did what it was asked: whoever waits for a reply gets the stored one."""

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from actorhub import Cluster, HandlerFailed, PersistenceError
from actorhub.storage.message_ports import RunFailure
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, Refused, Sender, hub, owner, read
from tests.support.gates import failure, soon
from tests.support.parts import host_of, runner_of

__all__ = ["hub"]

Request: TypeAlias = Callable[[Any, str], "Future[Any]"]


def losing_one_answer(request: Request, lost: list[str]) -> Request:
    """Return the request such that its first outcome is unknown, although it was carried out."""

    def ask_and_lose(what: object, incarnation: str) -> "Future[Any]":
        asked = request(what, incarnation)
        if lost:
            return asked
        lost.append("answer")
        answer: Future[Any] = asyncio.get_running_loop().create_future()
        asked.add_done_callback(
            lambda _: answer.set_exception(PersistenceError("the answer was lost", possibly_executed=True))
        )
        return answer

    return ask_and_lose


async def test_a_run_whose_commit_lost_its_answer_has_its_stored_reply(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is settled, so no later run of it tells its callers."""
    store, lost = runner_of(runner).storage.messages, list[str]()
    monkeypatch.setattr(store, "commit_run", losing_one_answer(store.commit_run, lost))
    async with asyncio.timeout(5):
        assert await runner.client(Log)("a").add("once") == 1
    assert lost
    assert await runner.client(Log)("a").read() == ["once"]


@pytest.mark.parametrize("runners", [1, 3])
async def test_what_was_told_by_a_commit_that_lost_its_answer_is_not_overtaken(
    memory: MemoryCluster, runners: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shard is acquired again, and what runs tell from then on starts after what is stored already."""
    for _ in range(runners):
        await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    sender = client.client(Sender)("s")
    for number in range(20):
        store, lost = runner_of(owner(memory, client, Sender, "s")).storage.messages, list[str]()
        monkeypatch.setattr(store, "commit_run", losing_one_answer(store.commit_run, lost))
        async with asyncio.timeout(10):
            await sender.send(f"e{number}", "first")
            await sender.send(f"e{number}", "second")
        assert lost
        monkeypatch.undo()
        assert await read(client, f"e{number}", 2) == ["first", "second"]


async def test_an_error_whose_commit_lost_its_answer_is_the_reply(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise where the run ended with an `EntityError`, which is committed alone."""
    store, lost = runner_of(runner).storage.messages, list[str]()
    monkeypatch.setattr(store, "commit_run", losing_one_answer(store.commit_run, lost))
    async with asyncio.timeout(5):
        error = await failure(runner.client(Log)("a").refuse("no"))
    assert lost
    assert isinstance(error, Refused)


async def test_a_dead_letter_whose_failure_lost_its_answer_is_the_reply(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise after the last attempt, whose failure makes it a dead letter."""
    store, lost = runner_of(runner).storage.messages, list[str]()

    def losing_the_last(failed: RunFailure, incarnation: str) -> "Future[Any]":
        return (lose if failed.pause is None else fail)(failed, incarnation)

    fail, lose = store.fail_run, losing_one_answer(store.fail_run, lost)
    monkeypatch.setattr(store, "fail_run", losing_the_last)
    async with asyncio.timeout(5):
        error = await failure(runner.client(Log)("a").crash(9))
    assert lost
    assert isinstance(error, HandlerFailed)
    assert error.type == "ValueError"


async def test_a_run_after_a_failure_that_lost_its_answer_comes_at_once(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has it with a due time, and is asked for that long before the next poll."""
    store, lost = runner_of(runner).storage.messages, list[str]()
    monkeypatch.setattr(store, "fail_run", losing_one_answer(store.fail_run, lost))
    async with asyncio.timeout(3):
        await runner.client(Log)("a").crash(1)
    assert lost


async def test_an_entity_whose_commit_lost_its_answer_takes_no_place_afterwards(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its activation is over when its shard is given up, so it is none of those that end with the shard."""
    # Only so many entities may have durable messages in memory. One that went on being counted would leave less room
    # for the others, and in the end none.
    store, lost = runner_of(runner).storage.messages, list[str]()
    monkeypatch.setattr(store, "commit_run", losing_one_answer(store.commit_run, lost))
    async with asyncio.timeout(5):
        await runner.client(Log)("a").add("once")
    assert lost
    assert host_of(runner).delivery.memory.entities == 0


async def test_an_entity_that_left_before_its_failure_was_stored_takes_no_place_afterwards(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise if its activation was over because it was idle: its run had ended, and the store had not answered."""
    host, store = host_of(runner), runner_of(runner).storage.messages
    failed: list[RunFailure] = []

    def without_an_answer(failure_of_run: RunFailure, incarnation: str) -> "Future[Any]":
        failed.append(failure_of_run)
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(store, "fail_run", without_an_answer)
    asked = soon(runner.client(Log)("a").crash(1))
    await until(lambda: bool(failed))
    monkeypatch.undo()
    (cell,) = host.cells()
    host.activations.close(cell)
    assert not list(host.cells())
    runner_of(runner).ownership.mistrust(failed[0].shard)
    async with asyncio.timeout(5):
        await asked
    assert host.delivery.memory.entities == 0
