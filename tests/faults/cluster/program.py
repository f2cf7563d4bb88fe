"""What the programs of fault tests have in common, which run in processes of their own: `python -m … JSON`.

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
from pathlib import Path
from typing import Any

from actorhub import Hub
from actorhub.cluster import Cluster, part_of
from actorhub.engine.runner import Runner


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


def run_program(
    served: Hub,
    notes: Callable[[Path], None],
    beside: Callable[[Cluster], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run `main` as this process's arguments say; `notes` is told where to write down what happens."""
    given = json.loads(sys.argv[1])
    notes(Path(given.pop("events")))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s")
    asyncio.run(main(given, served, beside))
