"""A runner in its own process, which the benchmarks start, watch, freeze and kill.

It prints one JSON line when it serves. On standard input it takes the commands of `_answer`, and it answers each with
one JSON line. SIGTERM drains it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import msgspec

from actorhub import Hub
from actorhub.cluster import Cluster, part_of
from actorhub.core.address import ShardId
from actorhub.core.errors import PersistenceError
from actorhub.engine.runner import Runner
from actorhub.storage.ports import Fenced, StateCommit
from benchmarks import _durable as durable
from benchmarks._harness import LOOPS, ROOT, rss_bytes, run
from benchmarks._raw import serve_raw

WORKLOAD: Final = "benchmarks._workload:hub"


async def serve(options: argparse.Namespace) -> None:
    """Run until SIGTERM, then hand over and return."""
    hub: Hub = pkgutil.resolve_name(options.hub)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        raw = await serve_raw(stack) if options.raw else ""
        cluster = await stack.enter_async_context(
            hub.runner(
                database_url=options.database,
                namespace=options.namespace,
                listen="127.0.0.1:0",
                shards_per_group=options.shards,
                max_resident=1_000_000,
            )
        )
        runner = cluster.runner
        assert runner is not None
        _say({"address": runner.address, "incarnation": runner.incarnation, "raw": raw})
        async with asyncio.TaskGroup() as tasks:
            answering = tasks.create_task(_answer(cluster))
            await stop.wait()
            answering.cancel()


async def _answer(cluster: Cluster) -> None:
    part = part_of(cluster)
    assert isinstance(part, Runner)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    remembered: dict[ShardId, int] = {}
    while line := (await reader.readline()).decode().strip():
        match line:
            case "remember":
                remembered = dict(part.ownership.owned)
                _say({"shards": len(remembered)})
            case "commit":
                _say(await _commit_as_before(part, remembered))
            case "shut":
                durable.run_log.gate.clear()
                _say(durable.statistics())
            case "durable":
                _say(durable.statistics())
            case _:
                _say(_statistics(part))


def _statistics(part: Runner) -> dict[str, Any]:
    return {
        "ownership": asdict(part.ownership.statistics()),
        "host": msgspec.to_builtins(part.host.statistics()),
        "storage": msgspec.to_builtins(part.storage.statistics()) if hasattr(part.storage, "statistics") else {},
        "rss_bytes": rss_bytes(),
    }


async def _commit_as_before(part: Runner, remembered: dict[ShardId, int]) -> dict[str, int]:
    """Bypass every check of this process, and try one commit per shard at the epoch that it owned before."""
    results = {"tried": 0, "fenced": 0, "accepted": 0, "failed": 0}
    data = msgspec.msgpack.encode({"number": -1})
    for shard, epoch in remembered.items():
        if part.ownership.owned.get(shard) == epoch:
            continue
        results["tried"] += 1
        commit = StateCommit(shard, epoch, "counter", f"zombie-{shard.number}", 1, data)
        try:
            await part.storage.commit_state(commit, part.info.runner.incarnation)
        except Fenced:
            results["fenced"] += 1
        except PersistenceError:
            results["failed"] += 1
        else:
            results["accepted"] += 1
    return results


def _say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


class RunnerProcess:
    """One runner process, which is ended by its own id."""

    def __init__(
        self, url: str, namespace: str, *, loop: str, shards: int = 300, raw: bool = False, hub: str = WORKLOAD
    ) -> None:
        command = [sys.executable, "-m", "benchmarks._runner", "--database", url, "--namespace", namespace,
                   "--loop", loop, "--shards", str(shards), "--hub", hub, *(["--raw"] if raw else [])]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.address = self.incarnation = self.raw = ""

    def wait_ready(self) -> "RunnerProcess":
        """Wait until it serves."""
        ready = self._read()
        self.address, self.incarnation, self.raw = ready["address"], ready["incarnation"], ready["raw"]
        return self

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command, and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def signal(self, number: signal.Signals) -> float:
        """Send a signal. Return the time right before it, by `time.perf_counter`."""
        now = time.perf_counter()
        self._process.send_signal(number)
        return now

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process, and return its exit code."""
        return self._process.wait(seconds)

    def end(self) -> None:
        """Kill the process, frozen or not, and reap it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"runner {self._process.pid} ended: {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def runner_process(url: str, namespace: str, *, loop: str, raw: bool = False) -> Iterator[RunnerProcess]:
    """Run one runner process during the block."""
    process = RunnerProcess(url, namespace, loop=loop, raw=raw)
    try:
        yield process.wait_ready()
    finally:
        process.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--hub", default=WORKLOAD)
    parser.add_argument("--raw", action="store_true", help="serve the raw streams, too")
    options = parser.parse_args()
    run(serve(options), options.loop)


if __name__ == "__main__":
    main()
