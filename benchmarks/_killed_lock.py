"""The limit of a takeover: how soon a waiting session gets the advisory locks of a killed process."""

import asyncio
import secrets
import subprocess
import sys
import time
from typing import Final

import asyncpg

LOCKS: Final = 100
_HOLD: Final = """
import asyncio, sys, asyncpg
async def hold(url, space):
    connection = await asyncpg.connect(url)
    await connection.execute(f"select pg_advisory_lock({space}, n) from generate_series(1, LOCKS) as n")
    print("held", flush=True)
    await asyncio.Event().wait()
asyncio.run(hold(sys.argv[1], int(sys.argv[2])))
""".replace("LOCKS", str(LOCKS))


def _holder(url: str, space: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", _HOLD, url, str(space)], stdout=subprocess.PIPE, text=True)


async def killed_lock_seconds(url: str) -> float:
    """Kill a process with as many locks as a runner. Return the seconds until another session has all of them."""
    space = secrets.randbelow(2**31)
    holder = _holder(url, space)
    connection = await asyncpg.connect(url)
    try:
        assert holder.stdout is not None
        await asyncio.to_thread(holder.stdout.readline)
        sql = f"select pg_advisory_lock({space}, n) from generate_series(1, {LOCKS}) as n"
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(connection.execute(sql))
            await asyncio.sleep(0.05)
            begin = time.perf_counter()
            holder.kill()
            await waiting
            return time.perf_counter() - begin
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
        await connection.close()
