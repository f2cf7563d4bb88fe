"""Messages that were stored by an earlier release, and that this one cannot run: none of them is lost."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from actorhub import Cluster, Entity, Hub, handler
from actorhub.core.errors import (
    ActorhubError,
    MalformedMessage,
    MessageCancelled,
    UnknownEntityType,
    UnknownHandler,
)
from actorhub.engine.durable.strays import PATIENCE
from actorhub.storage.message_ports import MessageRow, MessageState
from actorhub.testing import MemoryCluster, SteppedClock
from tests.support.gates import soon

LATER = timedelta(minutes=1)
"""When the messages of the earlier release are due: after the next one has been deployed."""


class Mail(Entity[list[str]], name="mail"):
    """The earlier release."""

    @handler(durable=True)
    async def send(self, to: str) -> int:
        self.state.append(to)
        return len(self.state)

    @handler(durable=True)
    async def charge(self, cents: int) -> int:
        self.state.append(str(cents))
        return len(self.state)

    @handler(durable=True)
    async def listed(self) -> int:
        return 0


class Parcel(Entity[list[str]], name="parcel"):
    """A type that the later release does not have."""

    @handler(durable=True)
    async def ship(self, to: str) -> int:
        self.state.append(to)
        return len(self.state)


class LaterMail(Entity[list[str]], name="mail"):
    """The later release: `send` is gone, `charge` takes something else, `listed` is a stream."""

    @handler(durable=True)
    async def charge(self, cents: dict[str, int]) -> int:
        self.state.append(str(cents))
        return len(self.state)

    async def listed(self) -> AsyncIterator[str]:
        for text in self.state:
            yield text


class WithoutDurables(Entity[list[str]], name="mail"):
    """A release in which nothing is durable, and everything is gone."""

    async def read(self) -> list[str]:
        return self.state


def hub_of(*entities: type[Entity[Any]]) -> Hub:
    hub = Hub()
    for entity in entities:
        hub.register(entity)
    return hub


earlier, later, bare = hub_of(Mail, Parcel), hub_of(LaterMail), hub_of(WithoutDurables)


class Deploy:
    """A cluster in memory whose clock a test steps, and messages that wait in it for the next release."""

    def __init__(self, memory: MemoryCluster, clock: SteppedClock) -> None:
        self.memory = memory
        self.clock = clock

    async def leave_messages(self) -> dict[str, int]:
        """Store one message for each handler at the earlier release, and stop it; return their ids."""
        runner = await self.memory.start_runner(hub=earlier)
        client = await self.memory.client(hub=earlier)
        mail, parcel = client.client(Mail)("ada"), client.client(Parcel)("ada")
        told = {
            "send": await client.tell(mail.send("bob"), delay=LATER, key="s-1"),
            "charge": await client.tell(mail.charge(500), delay=LATER, key="c-1"),
            "listed": await client.tell(mail.listed(), delay=LATER),
            "ship": await client.tell(parcel.ship("bob"), delay=LATER, key="p-1"),
        }
        await self.memory.stop(runner)
        return told

    async def pass_time(self, by: timedelta) -> None:
        """Step the store's clock, and have every runner look at the store."""
        self.clock.step(by)
        for runner in self.memory.runners:
            await runner.poll_storage()

    async def buried(self, message_id: int) -> MessageRow:
        """Wait until a message is a dead letter."""
        async with asyncio.timeout(10):
            while (row := self.row(message_id)).state is not MessageState.DEAD:
                await asyncio.sleep(0.005)
        return row

    def row(self, message_id: int) -> MessageRow:
        """Return all that is known of a message."""
        row = self.memory.store.messages.find(message_id)
        assert row is not None
        return row


@pytest.fixture
async def deploy() -> AsyncIterator[Deploy]:
    """An empty cluster whose clock can be stepped."""
    clock = SteppedClock(datetime(2026, 11, 1, tzinfo=UTC))
    async with MemoryCluster(earlier, clock=clock) as memory:
        yield Deploy(memory, clock)


async def error_of(client: Cluster, message_id: int) -> ActorhubError:
    with pytest.raises(ActorhubError) as caught:
        await client.reply(message_id)
    return caught.value


async def test_arguments_that_no_longer_fit_are_kept_in_a_dead_letter(
    deploy: Deploy, caplog: pytest.LogCaptureFixture
) -> None:
    """It has its arguments, a line in the log, and leaves its key to the corrected call."""
    told = await deploy.leave_messages()
    runner = await deploy.memory.start_runner(hub=later)
    client = await deploy.memory.client(hub=later)
    with caplog.at_level(logging.WARNING, "actorhub.settlement"):
        await deploy.pass_time(LATER)
        row = await deploy.buried(told["charge"])
    assert (msgspec.msgpack.decode(row.body or b""), row.key) == ([500], "c-1")
    assert row.history[-1].error_type == "MalformedMessage"
    assert f"mail.charge(ada): message {told['charge']} does not fit this release" in caplog.text
    error = await error_of(client, told["charge"])
    assert isinstance(error, MalformedMessage)
    assert not error.possibly_executed
    mail = client.client(LaterMail)("ada")
    assert await client.client(LaterMail).options(key="c-1")("ada").charge({"eur": 5}) == 1
    assert await mail.charge({"eur": 6}) == 2
    assert not await client.retry(told["charge"])  # its key names the corrected call by now
    assert runner.runner is not None


@pytest.mark.parametrize("release", [later, bare])
async def test_messages_of_a_removed_handler_wait_and_become_dead_letters(deploy: Deploy, release: Hub) -> None:
    """They wait for a release that has it for ten minutes, or as long as another runner hosts their type."""
    told = await deploy.leave_messages()
    await deploy.memory.start_runner(hub=release)
    client = await deploy.memory.client(hub=release)
    await deploy.pass_time(LATER)
    await deploy.pass_time(timedelta(seconds=PATIENCE * 0.9))
    await asyncio.sleep(0.1)
    assert deploy.row(told["send"]).state is MessageState.PENDING
    await deploy.pass_time(timedelta(seconds=PATIENCE * 0.2))
    rows = {name: await deploy.buried(told[name]) for name in ("send", "listed", "ship")}
    assert msgspec.msgpack.decode(rows["send"].body or b"") == ["bob"]
    assert msgspec.msgpack.decode(rows["ship"].body or b"") == ["bob"]
    kinds = {name: type(await error_of(client, told[name])) for name in rows}
    assert kinds == {"send": UnknownHandler, "listed": UnknownHandler, "ship": UnknownEntityType}


async def test_messages_that_another_runner_may_host_wait(deploy: Deploy) -> None:
    """A type that is hosted elsewhere in the cluster is not gone, wherever its shard is at present."""
    told = await deploy.leave_messages()
    await deploy.memory.start_runner(hub=later)
    others = await deploy.memory.start_runner(hub=hub_of(Parcel))
    await deploy.memory.settled()
    await deploy.pass_time(LATER)
    await deploy.pass_time(timedelta(hours=1))
    await asyncio.sleep(0.1)
    assert deploy.row(told["ship"]).state in (MessageState.PENDING, MessageState.DONE)
    await deploy.memory.kill(others)
    await deploy.memory.start_runner(hub=earlier)
    client = await deploy.memory.client(hub=earlier)
    async with asyncio.timeout(10):
        assert await client.reply(told["ship"]) == 1


@pytest.mark.parametrize("name", ["send", "listed", "ship"])
async def test_a_waiting_message_can_be_cancelled_without_its_class(deploy: Deploy, name: str) -> None:
    """A client of the later release does that, and whoever waits for the reply learns of it."""
    told = await deploy.leave_messages()
    runner = await deploy.memory.start_runner(hub=later)
    client = await deploy.memory.client(hub=later)
    await deploy.pass_time(LATER)
    waiting = [soon(error_of(caller, told[name])) for caller in (client, runner)]
    await asyncio.sleep(0.05)
    assert await client.cancel(told[name])
    assert [type(await one) for one in waiting] == [MessageCancelled, MessageCancelled]
    assert deploy.row(told[name]).state is MessageState.CANCELLED


@pytest.mark.parametrize("name", ["send", "listed", "ship"])
async def test_a_dead_letter_is_retried_without_its_class_and_runs_at_the_release_that_has_it(
    deploy: Deploy, name: str
) -> None:
    """The release is taken back, and nothing that was acknowledged is lost."""
    told = await deploy.leave_messages()
    runner = await deploy.memory.start_runner(hub=later)
    client = await deploy.memory.client(hub=later)
    await deploy.pass_time(LATER)
    await deploy.pass_time(timedelta(seconds=PATIENCE * 1.1))
    await deploy.buried(told[name])
    await deploy.memory.stop(runner)
    await deploy.memory.start_runner(hub=earlier)
    assert await client.retry(told[name])
    client = await deploy.memory.client(hub=earlier)
    async with asyncio.timeout(10):
        assert await client.reply(told[name]) in (0, 1)


async def test_a_call_of_a_handler_that_takes_something_else_by_now_gets_its_error(deploy: Deploy) -> None:
    """Whoever waits learns at once which parameter does not fit, and the message can be looked at."""
    await deploy.memory.start_runner(hub=later)
    client = await deploy.memory.client(hub=earlier)
    with pytest.raises(MalformedMessage, match="cents") as refusal:
        await client.client(Mail).options(key="c-1")("ada").charge(500)
    assert not refusal.value.possibly_executed
