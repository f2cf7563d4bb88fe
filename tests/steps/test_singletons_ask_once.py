"""What the steps of a singleton's `run`, and its schedules, ask and tell is sent once, until the next save."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from actorhub import Cluster, Hub, Singleton, cron, current
from actorhub.testing import MemoryCluster, until
from tests.steps.bank import Bank, bank, paid
from tests.steps.entities import Boss, body_saved, doing, hub, owner
from tests.support.gates import gates

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def nothing_to_do() -> None:
    """Forget what the test before had the singleton do."""
    doing.clear()


async def two(memory: MemoryCluster) -> Cluster:
    """Start two runners and a client."""
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()
    return await memory.client()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("boundary", ["ask 0", "tell 0", "save 0", "ask 1"])
async def test_the_next_leader_asks_for_nothing_twice(memory: MemoryCluster, boundary: str, how: str) -> None:
    """Each round of a loop that saves sends its messages once, wherever its leader ends; all rounds are equal."""

    async def stop_after(place: str) -> None:
        if place == boundary and not gates["trace"].log:
            gates["trace"].log.append(place)
            await asyncio.sleep(3600)

    async def ask(number: int) -> int:
        reply = await bank().pay("rent")
        await stop_after(f"ask {number}")
        return reply

    async def tip() -> None:
        await current().tell(bank().pay("tip"))

    async def run(boss: Boss) -> None:
        while (number := len(boss.state)) < 3:
            reply = await current().step("ask", ask, number)
            await current().step("tip", tip)
            await stop_after(f"tell {number}")
            await boss.save([*boss.state, f"reply {reply}"])
            await stop_after(f"save {number}")

    doing["boss"] = run
    client = await two(memory)
    await until(lambda: gates["trace"].log == [boundary])
    await getattr(memory, how)(owner(memory, client, Boss, "boss"))
    await until(lambda: body_saved(memory).generation >= 4, "three rounds, and the end")
    assert sorted(await paid(client)) == ["rent"] * 3 + ["tip"] * 3


async def test_a_run_that_failed_with_an_ask_s_error_makes_that_ask_again(
    memory: MemoryCluster, runner: Cluster
) -> None:
    """It is started again, with pauses; it would be of no use to give it the same error every time."""

    async def run(_: Boss) -> None:
        await current().step("tax", bank().pay, "tax")
        await current().step("rent", bank().try_to_pay, "rent")

    doing["boss"] = run
    await until(lambda: body_saved(memory).generation == 1, "the end of run")
    assert await paid(runner) == ["tax", "rent"]
    assert len(gates["boss"].log) == 2


async def test_outside_of_steps_a_run_gets_new_replies(memory: MemoryCluster, runner: Cluster) -> None:
    """Nobody can tell the next round of a loop from a repetition of the last one."""
    replies: list[list[int]] = [[], []]

    async def run(_: Boss) -> None:
        mine = replies[len(gates["boss"].log) - 1]
        for _round in range(3):
            mine.append(await bank().pay("rent"))
        if mine is replies[0]:
            raise RuntimeError("crashed")

    doing["boss"] = run
    await until(lambda: body_saved(memory).generation == 1, "the end of run")
    assert replies == [[1, 2, 3], [4, 5, 6]]


async def test_a_fire_time_that_is_repeated_asks_once() -> None:
    """The run of a schedule is one of a durable message: the next leader's joins what the killed one's asked for."""

    class Payer(Singleton, name="payer"):
        @cron("0 0 1 1 *")
        async def rent(self, at: datetime) -> int:
            gates["payer"].enter()
            return await current().client(Bank)("b").pay_slowly(str(at.year))

    payers = Hub()
    for cls in (Payer, Bank):
        payers.register(cls)
    async with MemoryCluster(payers) as memory:
        client = await two(memory)
        told = await client.tell(client.singleton(Payer).rent(datetime(2026, 1, 1, tzinfo=UTC)))
        await gates["bank"].came()
        await memory.kill(owner(memory, client, Payer, "payer"))
        await gates["payer"].came(2)
        gates["bank"].open()
        assert await client.reply(told, timeout=timedelta(seconds=10)) == 1
        assert await paid(client) == ["2026"]
