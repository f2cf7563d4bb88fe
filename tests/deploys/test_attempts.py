"""SIGTERM of real processes, one after the other, with a grace time that most runs exceed: no attempt is lost."""

import asyncio
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from actorhub import ActorhubError, Cluster, HandlerFailed
from tests.deploys.once import WAYS, Job, hub
from tests.support.processes import ActorhubProcess, Processes

ROUNDS = pytest.mark.parametrize("rounds", [1, pytest.param(12, marks=pytest.mark.faults)])


async def end_of(client: Cluster, message_id: int) -> int | str:
    """Return the attempt that ended, or the error."""
    try:
        end: int = await client.reply(message_id, timeout=timedelta(seconds=60))
    except ActorhubError as error:
        return f"{type(error).__name__}: {error}"
    return end


async def tell_all(client: Cluster, round_: int) -> dict[str, int]:
    """Tell some messages of each kind; return their ids by what they are."""
    chance = random.Random(round_)
    told: dict[str, int] = {}
    for way in WAYS:
        for number in range(5):
            name = f"{way}-{round_}-{number}"
            call = getattr(client.client(Job)(name), way)
            told[name] = await client.tell(call(chance.choice((0.5, 1.5, 3.0))))
    return told


@ROUNDS
async def test_no_signal_to_leave_costs_an_attempt(postgres_url: str, tmp_path: Path, rounds: int) -> None:
    """Two runners leave in turns, at any moment of runs that have one attempt; a killed one costs it."""
    with Processes(tmp_path) as processes:

        async def serve() -> ActorhubProcess:
            flags = ("--database", postgres_url, "--grace", "1s", "--shards-per-group", "16")
            return await processes.serve(*flags, reference="tests.deploys.once:hub")

        runners = [await serve(), await serve()]
        async with hub.connect(database_url=postgres_url) as client:
            told: dict[str, int] = {}
            for number in range(rounds):
                told |= await tell_all(client, number)
                for _ in range(2):
                    await asyncio.sleep(random.Random(number).uniform(0.2, 1.0))
                    assert await runners.pop(0).terminate() == 0
                    runners.append(await serve())
            ends = {name: await end_of(client, message_id) for name, message_id in told.items()}
            assert {name: end for name, end in ends.items() if end != 1} == {}, Counter(ends.values())
            killed = await client.tell(client.client(Job)("killed").pauses(60.0))
            await asyncio.sleep(1.0)
            for runner in runners:
                await runner.kill()
            runners = [await serve()]
            with pytest.raises(HandlerFailed, match="RunnerLost"):
                await client.reply(killed, timeout=timedelta(seconds=30))
            for runner in runners:
                assert await runner.terminate() == 0
