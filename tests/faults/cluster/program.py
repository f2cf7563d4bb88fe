"""The program that fault tests run in processes of its own: `python -m tests.faults.cluster.program JSON`.

Prints one JSON object per line. Commands come on standard input, whose end ends the process at once.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from actorhub import Entity, Hub, current, handler
from actorhub.cluster import Cluster, part_of
from actorhub.engine.runner import Runner


class Applied(msgspec.Struct, array_like=True):
    """One operation in a register's state."""

    number: int
    epoch: int


class Applications(msgspec.Struct):
    """Every operation that was committed, in order."""

    done: list[Applied] = []


_events = -1


class Register(Entity[Applications], name="register"):
    """Remembers the operations that it applied."""

    async def apply(self, number: int, hold_ms: int, block_ms: int = 0) -> int:
        """Append an operation and return how many there are, after waiting, or after blocking the event loop."""
        note_start(number)
        self.state.done.append(Applied(number, current().epoch))
        if hold_ms:
            await asyncio.sleep(hold_ms / 1000)
        if block_ms:
            time.sleep(block_ms / 1000)  # noqa: ASYNC251 - on purpose: a handler that computes
        return len(self.state.done)

    @handler(readonly=True)
    async def applied(self) -> list[Applied]:
        """Return the operations in order."""
        return self.state.done


class Relay(Entity, name="relay"):
    """Calls registers from inside the cluster."""

    async def forward(self, key: str, number: int, hold_ms: int) -> int:
        """Apply an operation to the register of `key`, wherever it lives."""
        return await current().client(Register)(key).apply(number, hold_ms)

    async def forward_many(self, keys: list[str], number: int, block_ms: int) -> int:
        """Apply an operation to registers at the same time; the first of them blocks the event loop."""
        register = current().client(Register).options(timeout=timedelta(seconds=20))
        async with asyncio.TaskGroup() as tasks:
            for index, key in enumerate(keys):
                tasks.create_task(_apply(register(key), number + index, 0 if index else block_ms))
        return len(keys)


async def _apply(register: Register, number: int, block_ms: int) -> None:
    await register.apply(number, 0, block_ms)


hub = Hub()
hub.register(Register)
hub.register(Relay)


def note_start(number: int) -> None:
    """Write down that a handler begins."""
    here = current()
    line = json.dumps([time.monotonic(), here.entity_id, number, here.epoch])
    os.write(_events, f"{line}\n".encode())


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _statistics(runner: Runner) -> dict[str, Any]:
    host, ownership = runner.host.statistics(), runner.ownership.statistics()
    return {
        "time": time.monotonic(),
        "commits": host.results.commits,
        "refused_commits": host.results.refused_commits,
        "started": host.started,
        "shards": host.shards,
        "owned": ownership.shards_owned,
        "self_fenced": ownership.self_fenced,
        "sessions_lost": ownership.sessions_lost,
        "sessions_opened": ownership.sessions_opened,
    }


async def _obey(commands: asyncio.StreamReader, runner: Runner) -> None:
    while line := (await commands.readline()).strip():
        if line == b"statistics":
            _say(statistics=_statistics(runner))
    os._exit(3)


async def _read_commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    make: Callable[[], asyncio.StreamReaderProtocol] = lambda: asyncio.StreamReaderProtocol(reader)  # noqa: E731
    await asyncio.get_running_loop().connect_read_pipe(make, sys.stdin)
    return reader


async def main(
    settings: dict[str, Any], served: Hub, beside: Callable[[Cluster], Coroutine[Any, Any, None]] | None = None
) -> None:
    """Be a runner of `served` until SIGTERM or the end of the commands; `beside` runs meanwhile."""
    commands = await _read_commands()
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    async with served.runner(**settings) as cluster:
        runner = part_of(cluster)
        assert isinstance(runner, Runner)
        async with asyncio.TaskGroup() as tasks:
            obeying = tasks.create_task(_obey(commands, runner))
            running = [obeying, *([tasks.create_task(beside(cluster))] if beside is not None else [])]
            _say(ready=runner.info.runner.address, incarnation=runner.info.runner.incarnation)
            await leave.wait()
            for task in running:
                task.cancel()
    _say(left=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    _events = os.open(Path(given.pop("events")), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s")
    # The handlers above belong to this module, which must not be imported a second time under its real name.
    asyncio.run(main(given, hub))
