"""What waiting costs, and waits with a limit: one poll for all of them, and one outcome for every run."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from actorhub import Cluster, current
from actorhub.core.address import ShardId
from actorhub.engine.runs import lookout
from actorhub.storage.checkpoint_ports import Completion
from actorhub.storage.message_ports import PendingMessage
from actorhub.testing import MemoryCluster, until
from tests.steps.entities import Clerk, doing, hub, owner
from tests.steps.test_deferred import three, token, waiting, waits_for
from tests.support.gates import gates, outcomes, soon
from tests.support.parts import host_of, runner_of

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the clerks do."""
    doing.clear()


async def test_any_number_of_waits_and_sleeps_polls_the_store_as_often_as_one(
    memory: MemoryCluster, runner: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per interval for all of them together, and each gets its value at once."""
    monkeypatch.setattr(lookout, "_INTERVAL", 0.5)
    storage, looks = runner_of(runner).storage, list[str]()
    completions, load = storage.checkpoints.completions, storage.messages.load_scheduled

    async def values(hashes: Sequence[bytes]) -> Mapping[bytes, Completion]:
        looks.append("values")
        return await completions(hashes)

    async def scheduled(shards: Sequence[ShardId], due: float, limit: int) -> tuple[Sequence[PendingMessage], float]:
        looks.extend([] if shards else ["time"])
        return await load(shards, due, limit)

    async def sleep(_: Clerk) -> None:
        await current().sleep(timedelta(days=1))

    waits, sleeps = [f"w{number}" for number in range(150)], [f"s{number}" for number in range(150)]
    doing.update(dict.fromkeys(waits, waits_for(str)) | dict.fromkeys(sleeps, sleep))
    told = [await runner.tell(runner.client(Clerk)(entity_id).work()) for entity_id in (*waits, *sleeps)]
    suspended = host_of(runner).scheduler.suspended
    await until(lambda: sum(bool(run.progress and run.progress.waits) for run in suspended) == 300)
    monkeypatch.setattr(storage.checkpoints, "completions", values)
    monkeypatch.setattr(storage.messages, "load_scheduled", scheduled)
    await asyncio.sleep(2.2)
    assert 3 <= looks.count("values") <= 5
    assert 3 <= looks.count("time") <= 5
    for entity_id in waits[:20]:
        assert await runner.complete(await token(entity_id), entity_id)
    async with asyncio.timeout(0.4):
        assert [await runner.reply(message_id) for message_id in told[:20]] == waits[:20]


@pytest.mark.parametrize("end", ["", "kill", "stop"])
async def test_a_wait_with_a_limit_is_over_when_that_is_over(memory: MemoryCluster, end: str) -> None:
    """By the store's clock, from the first run that came there; every run and whoever completes late hear the same."""
    client = await three(memory)

    async def work(_: Clerk) -> list[str]:
        value = current().deferred("value", int)
        gates["a"].left.append(value.token)
        found: list[str] = []
        for _number in range(2):
            try:
                await value.wait(timeout=timedelta(seconds=0.6))
            except TimeoutError as error:
                found.append(type(error).__name__)
        gates["a"].entered += 1
        if gates["a"].entered == 1:
            raise RuntimeError("once more")
        return found

    doing["a"] = work
    began = asyncio.get_running_loop().time()
    asked = soon(client.client(Clerk)("a").work())
    made = await token()
    if end:
        await until(lambda: waiting(memory) == 1)
        await getattr(memory, end)(owner(memory, client))
    async with asyncio.timeout(5):
        assert await asked == ["CallTimeout"] * 2
    assert asyncio.get_running_loop().time() - began >= 0.6
    assert not await client.complete(made, 1)
    assert waiting(memory) == 0


async def test_a_value_in_time_ends_a_wait_with_a_limit(cluster: Cluster) -> None:
    """Its run gets it, and the limit passes unnoticed."""

    async def work(_: Clerk) -> int:
        value = current().deferred("value", int)
        gates["a"].left.append(value.token)
        found = await value.wait(timeout=timedelta(seconds=0.3))
        await current().sleep(timedelta(seconds=0.4))
        return found + await value.wait(timeout=timedelta(seconds=0.3))

    doing["a"] = work
    asked = soon(cluster.client(Clerk)("a").work())
    assert await cluster.complete(await token(), 7)
    assert await asked == 14


async def test_a_value_and_the_end_of_its_wait_that_race_agree(cluster: Cluster) -> None:
    """Whoever completed it hears that it counts, or that it came too late; the run finds the same."""
    ids = [f"e{number}" for number in range(40)]

    async def work(_: Clerk) -> str:
        value = current().deferred("value", str)
        gates[current().entity_id].left.append(value.token)
        try:
            return await value.wait(timeout=timedelta(seconds=0.3))
        except TimeoutError:
            return "late"

    doing.update(dict.fromkeys(ids, work))
    asked = [soon(cluster.client(Clerk)(entity_id).work()) for entity_id in ids]
    made = [await token(entity_id) for entity_id in ids]

    async def complete(number: int) -> bool:
        await asyncio.sleep(0.2 + number * 0.004)
        return await cluster.complete(made[number], "in time")

    counted = await outcomes(*(complete(number) for number in range(40)))
    for call, counts in zip(asked, counted, strict=True):
        assert await call == ("in time" if counts else "late")
