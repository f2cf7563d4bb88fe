"""A program that forks after a call, and prints what each operation fails with in the child."""

import asyncio
import multiprocessing
import os
import signal
import sys

import msgspec

from actorhub import Cluster
from actorhub.testing import MemoryCluster
from tests.calls.test_elsewhere import CALLS, Desk, hub

_PATIENCE = 20


async def _try_all(cluster: Cluster) -> None:
    signal.alarm(_PATIENCE)  # What hangs ends the child, and the test with it.
    said: dict[str, list[str]] = {}
    for name, call in CALLS.items():
        try:
            said[name] = ["no error", "", repr(await call(cluster))]
        except Exception as error:  # noqa: BLE001 - user code: the test looks at it
            said[name] = [type(error).__name__, str(getattr(error, "possibly_executed", None)), str(error)]
    sys.stdout.write(msgspec.json.encode(said).decode())
    sys.stdout.flush()


def _in_a_loop_of_its_own(cluster: Cluster) -> None:
    asyncio.run(_try_all(cluster))


async def main(how: str) -> None:
    async with MemoryCluster(hub) as memory:
        cluster = await memory.start_runner()
        await cluster.client(Desk)("a").add(1)
        if how == "a loop of its own":
            child = multiprocessing.get_context("fork").Process(target=_in_a_loop_of_its_own, args=[cluster])
            child.start()
            await asyncio.to_thread(child.join)
        elif (pid := os.fork()) == 0:
            await _try_all(cluster)
            os._exit(0)
        else:
            await asyncio.to_thread(os.waitpid, pid, 0)
        await cluster.client(Desk)("a").add(1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
