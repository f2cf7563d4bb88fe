"""`actorhub serve`: one process from start to hand-over."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from actorhub.core.clock import SystemClock
from tests.support.processes import SHOP, Processes


async def test_a_served_hub_takes_calls_and_leaves_on_sigterm(processes: Processes) -> None:
    """The ready line comes once, a call is answered, and SIGTERM ends the process with 0 and an empty table."""
    runner = await processes.serve()
    assert runner.out.startswith(f"ready: runner {runner.address} owns 300 shards, database postgresql://")
    admin = ("--admin", runner.address)
    first = await processes.run("call", "orders", "ada", "process", '{"sku":"tea","quantity":2}', *admin)
    assert (first.code, first.json) == (0, {"number": 1, "total_cents": 700})
    assert await runner.terminate(deadline=10) == 0
    assert runner.out.count("ready:") == 1
    again = await processes.serve()
    count = await processes.run("call", "orders", "ada", "count", "--admin", again.address)
    assert count.json == 1


async def test_a_handler_that_runs_at_sigterm_finishes(processes: Processes) -> None:
    """The running call gets its reply, and the process ends with 0 after it."""
    runner = await processes.serve()
    call = processes.start("call", "gate", "a", "sleep", "1.0", "--admin", runner.address)
    await runner.says("gate a sleeps")
    assert await runner.terminate() == 0
    assert await call.ended() == 0
    assert call.out.strip() == '"slept"'


@pytest.mark.parametrize(("others", "gateway"), [(0, 0), (1, 0), (1, 1)])
async def test_a_handler_that_runs_at_sigterm_calls_its_sibling(
    processes: Processes, others: int, gateway: int
) -> None:
    """The entity with the same id is in the same shard, which drains: call and process are soon over, without error."""
    runner = await processes.serve()
    runners = [runner, *[await processes.serve() for _ in range(others)]]
    admin = ("--admin", runners[gateway].address)
    calls = [processes.start("call", "gate", f"g{n}", "sleep_and_order", "1.0", *admin) for n in range(4)]
    async with asyncio.timeout(20):
        while sum(one.err.count(" sleeps") for one in runners) < len(calls):
            await asyncio.sleep(0.02)
    began = SystemClock().monotonic()
    assert await runner.terminate() == 0
    assert [await call.ended() for call in calls] == [0] * 4, [call.err for call in calls]
    assert SystemClock().monotonic() - began < 8  # the grace time is many times as long
    assert [call.out.strip() for call in calls] == ["1"] * 4
    assert "did not finish" not in runner.err


async def test_a_handler_that_outlives_the_grace_time_is_cut_off(processes: Processes) -> None:
    """The process ends with 0 soon after its grace time, whatever the handler does."""
    runner = await processes.serve("--grace", "500ms")
    call = processes.start("call", "gate", "a", "sleep", "60", "--admin", runner.address)
    await runner.says("gate a sleeps")
    assert "running" in (await processes.run("entities", "--json", "--admin", runner.address)).out
    assert await runner.terminate(deadline=6) == 0
    assert await call.ended() == 1


@pytest.mark.parametrize("what", ["leave_task", "leave_thread"])
async def test_what_a_program_leaves_behind_does_not_keep_the_process(processes: Processes, what: str) -> None:
    """A task that swallows its cancellation, or a thread that hangs: the process ends with 0, and says so."""
    runner = await processes.serve()
    left = await processes.run("call", "gate", "a", what, "--admin", runner.address)
    assert left.json == "left"
    assert await runner.terminate(deadline=10) == 0
    assert "does not end: leaving without it" in runner.err
    assert ("swallows its cancellation" in runner.err) == (what == "leave_task")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("exit_in_a_task", "a task of the program raised SystemExit: 3"),
        ("cancel_all_tasks", "a task of the program cancelled the main task"),
        ("stop_the_loop", "a task of the program raised RuntimeError: Event loop stopped"),
    ],
)
async def test_who_ends_the_event_loop_ends_the_process_and_is_named(
    processes: Processes, what: str, said: str
) -> None:
    """It cannot be run to its end any longer, and what ended it must not look like a crash of the interpreter."""
    runner = await processes.serve()
    _ = await processes.run("call", "gate", "a", what, "--admin", runner.address)
    assert await runner.ended(deadline=10) == 1
    assert said in runner.err
    assert "which ends this process at once" in runner.err


async def test_who_cancels_the_tasks_of_actorhub_ends_the_process_and_is_named(processes: Processes) -> None:
    """Although the main task lives, the process ends with 1, and the next runner has its shards at once."""
    runner = await processes.serve()
    _ = await processes.run("call", "gate", "a", "cancel_other_tasks", "--admin", runner.address)
    assert await runner.ended(deadline=10) == 1
    assert "a task of the program cancelled actorhub's own tasks" in runner.err
    assert "Traceback" not in runner.err
    other = await processes.serve()
    count = await processes.run("call", "orders", "ada", "count", "--admin", other.address)
    assert count.json == 0


async def test_a_second_signal_ends_the_process_at_once(processes: Processes) -> None:
    """While the first waits for a handler, a second SIGINT ends the process with 130."""
    runner = await processes.serve()
    _ = processes.start("call", "gate", "a", "sleep", "60", "--admin", runner.address)
    await runner.says("gate a sleeps")
    runner.signal(signal.SIGINT)
    await runner.says("leaving the cluster")
    runner.signal(signal.SIGINT)
    assert await runner.ended(deadline=3) == 130


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_leaves_no_embedded_server_behind(open_directory: Path, workers: str) -> None:
    """It stops by itself after the processes have ended, unless somebody else uses it."""
    pid_file = open_directory / ".actorhub" / "postgres" / "postmaster.pid"
    with Processes(open_directory) as commands:
        runner = await commands.serve("--workers", workers, "--grace", "60s")
        other = await commands.serve()
        for process, is_last in ((runner, False), (other, True)):
            # So many that this process, too, owns some of them.
            for number in range(12):
                entity_id = f"{process.address}/{number}"
                _ = commands.start("call", "gate", entity_id, "sleep", "60", "--admin", process.address)
            await process.says("sleeps")
            process.signal(signal.SIGINT)
            await process.says("a second one ends this process")
            process.signal(signal.SIGINT)
            assert await process.ended(deadline=5) == 130
            if not is_last:
                assert (await commands.run("call", "orders", "ada", "count", "--admin", other.address)).code == 0
        async with asyncio.timeout(20):
            while pid_file.exists():
                await asyncio.sleep(0.05)


async def test_a_signal_during_the_start_ends_it(commands: Processes) -> None:
    """A runner whose database accepts connections and says nothing can be ended before it is ready."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        host, port = silent.sockets[0].getsockname()
        runner = commands.start("serve", SHOP, "--listen", "127.0.0.1:0", "--database", f"postgresql://{host}:{port}/x")
        await runner.says("starting, database postgresql://127.0.0.1")
        assert await runner.terminate(deadline=10) == 0
    assert runner.out == ""


async def test_logs_are_json_lines_where_asked_for(processes: Processes) -> None:
    """Each line on standard error is one JSON object with time, level, logger and message."""
    runner = await processes.serve("--log-format", "json")
    arguments = ("orders", "ada", "process", '{"sku":"coffee","quantity":2}')
    failed = await processes.run("call", *arguments, "--admin", runner.address)
    assert failed.code == 1
    assert await runner.terminate() == 0
    lines = [json.loads(line) for line in runner.err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert any("KeyError" in line.get("exception", "") for line in lines)


async def test_a_database_password_is_never_shown(processes: Processes, postgres_url: str) -> None:
    """The ready line shows where the data is, with the password masked."""
    runner = await processes.serve("--database", postgres_url.replace("//postgres@", "//postgres:hush@"))
    assert "hush" not in runner.out + runner.err
    assert "***" in runner.out
