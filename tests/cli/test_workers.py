"""`actorhub serve --workers N`: a parent and its runner processes."""

import asyncio
import os
import signal
from pathlib import Path

from tests.support.processes import ActorhubProcess, Processes


async def _runners(processes: Processes, parent: ActorhubProcess) -> list[dict[str, object]]:
    found = await processes.run("runners", "--json", "--admin", parent.address)
    return [row for row in found.json if row["state"] == "serving"] if found.code == 0 else []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


async def _until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while any(map(_is_alive, pids)):
            await asyncio.sleep(0.02)


async def test_workers_serve_together_and_leave_together(processes: Processes) -> None:
    """One ready line for all, the first at the address that was asked for, one process each, and 0 after SIGTERM."""
    parent = await processes.serve("--workers", "2")
    assert parent.out.startswith(f"ready: 2 runners {', '.join(parent.addresses)}, database ")
    rows = await _runners(processes, parent)
    assert sorted(str(row["address"]) for row in rows) == sorted(parent.addresses)
    pids = [int(str(row["pid"])) for row in rows]
    assert parent.pid not in pids
    assert await parent.terminate(deadline=10) == 0
    assert parent.out.count("ready:") == 1
    await _until_gone(pids)


async def test_a_crashed_worker_is_started_again(processes: Processes) -> None:
    """The parent logs how it ended, and another process takes its place."""
    parent = await processes.serve("--workers", "2")
    before = {int(str(row["pid"])) for row in await _runners(processes, parent)}
    victim = next(int(str(r["pid"])) for r in await _runners(processes, parent) if r["address"] != parent.address)
    os.kill(victim, signal.SIGKILL)
    await parent.says(f"(pid {victim}) was ended by SIGKILL and is started again in ")
    async with asyncio.timeout(20):
        while len(after := {int(str(row["pid"])) for row in await _runners(processes, parent)} - {victim}) < 2:
            await asyncio.sleep(0.05)
    assert len(after - before) == 1
    assert await parent.terminate() == 0


async def test_workers_leave_when_their_parent_is_killed(processes: Processes) -> None:
    """No worker outlives a parent that could not say goodbye."""
    parent = await processes.serve("--workers", "2")
    pids = [int(str(row["pid"])) for row in await _runners(processes, parent)]
    assert len(pids) == 2
    await parent.kill()
    await _until_gone(pids)


async def test_what_is_wrong_with_the_program_is_said_once(processes: Processes) -> None:
    """The other workers are not started when the first cannot be."""
    finished = await processes.run("serve", "nowhere:hub", "--workers", "3")
    assert finished.code == 1
    assert finished.err.count("there is no module 'nowhere'") == 1


async def test_a_second_signal_ends_parent_and_workers_at_once(processes: Processes) -> None:
    """While a worker waits for a handler, a second SIGTERM kills it and ends the parent with 143."""
    parent = await processes.serve("--workers", "2", "--grace", "60s")
    pids = [int(str(row["pid"])) for row in await _runners(processes, parent)]
    call = processes.start("call", "gate", "a", "sleep", "60", "--admin", parent.address)
    await parent.says("gate a sleeps")
    parent.signal(signal.SIGTERM)
    await parent.says("leaving the cluster")
    parent.signal(signal.SIGTERM)
    assert await parent.ended(deadline=3) == 143
    await _until_gone(pids)
    assert await call.ended() == 1


async def test_workers_share_an_embedded_postgres_that_their_parent_holds(open_directory: Path) -> None:
    """Without a database the parent starts one, the workers use it, and it is stopped when all have left."""
    with Processes(open_directory) as commands:
        parent = await commands.serve("--workers", "2")
        assert parent.out.rstrip().endswith("database embedded Postgres in .actorhub")
        count = await commands.run("call", "orders", "ada", "count", "--admin", parent.address)
        assert count.json == 0
        assert await parent.terminate() == 0
        assert not (open_directory / ".actorhub" / "postgres" / "postmaster.pid").exists()
        assert "is up to date" in (await commands.run("migrate")).out
