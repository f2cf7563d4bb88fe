"""While a message is being cancelled it does not start, and nothing overtakes it (invariant G)."""

from collections.abc import Sequence
from typing import Any, Final

import pytest

from actorhub import Cluster, PersistenceError
from actorhub.core.address import ShardId
from actorhub.storage.memory.messages import MemoryMessages
from actorhub.storage.message_ports import CancelResult, PendingMessage
from actorhub.testing import MemoryCluster, until
from tests.durable.entities import Log, hub, read
from tests.support.gates import Gate, closed_gates, failure, gates, soon
from tests.support.parts import host_of, runner_of

__all__ = ["closed_gates", "hub"]

_AWAY: Final = "the store is away"


async def test_a_message_whose_cancellation_fails_keeps_its_place(
    runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent behind it does not overtake it while the store is asked, nor afterwards."""
    asked, may_fail = Gate(), Gate()

    async def away(*_: Any, **__: Any) -> CancelResult:
        asked.enter()
        await may_fail.pass_through()
        raise PersistenceError(_AWAY)

    log = runner.client(Log)("a")
    await runner.tell(log.hold())
    await gates["a"].came()
    first = await runner.tell(log.add("first"))
    await runner.tell(log.add("second"))
    monkeypatch.setattr(runner_of(runner).storage.messages, "cancel", away)
    cancelling = soon(failure(runner.cancel(first)))
    await asked.came()
    gates["a"].open()
    await until(lambda: gates["a"].inside == 0)
    await runner.tell(log.add("third"))
    may_fail.open()
    assert isinstance(await cancelling, PersistenceError)
    assert await read(runner, "a", 4) == ["held", "first", "second", "third"]


async def test_a_message_in_the_store_is_not_brought_in_while_it_is_cancelled(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next owner scans the store several times meanwhile; once the message is cancelled, what is behind it runs."""
    victim = await memory.start_runner()
    await memory.settled()
    client = await memory.client()
    log = client.client(Log)("a")
    await client.tell(log.hold())
    await gates["a"].came()
    first = await client.tell(log.add("first"))
    await client.tell(log.add("second"))
    asked, may_cancel = Gate(), Gate()
    cancel, load_backlog = MemoryMessages.cancel, MemoryMessages.load_backlog

    async def cancel_late(self: MemoryMessages, *args: Any, **options: Any) -> CancelResult:
        asked.enter()
        await may_cancel.pass_through()
        return await cancel(self, *args, **options)

    async def load_late(self: MemoryMessages, *args: Any) -> tuple[Sequence[PendingMessage], frozenset[ShardId]]:
        await asked.came()
        return await load_backlog(self, *args)

    monkeypatch.setattr(MemoryMessages, "cancel", cancel_late)
    monkeypatch.setattr(MemoryMessages, "load_backlog", load_late)
    await memory.kill(victim)
    gates["a"].open()
    loader = host_of(await memory.start_runner()).delivery.loader
    cancelling = soon(client.cancel(first))
    await until(lambda: memory.stored("log", "a") is not None, "the run of what was held")
    scans = loader.scans
    await client.poll_storage()
    await until(lambda: loader.scans > scans + 1, "two more scans")
    may_cancel.open()
    assert await cancelling
    assert await read(client, "a", 2) == ["held", "second"]
    assert gates["a"].log == ["second"]
