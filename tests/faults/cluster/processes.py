"""Runners as real processes on a Postgres of their own, with a proxy on each of their ways."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec

from tests.faults.cluster.proxy import TcpProxy
from tests.faults.registers.history import Start, Stored, read_starts
from tests.faults.registers.hub import Applications
from tests.support.ports import claim_ports
from tests.support.postgres_server import PostgresServer
from tests.support.processes import ForkedProcess, launch
from tests.support.starter import ROOT, Command

START_SECONDS: Final = 30.0
LOCK, WORK, OTHER = "lock", "work", "other"
_STORE_MARKERS: Final = {LOCK: b"actorhub lock", WORK: b"actorhub work", OTHER: b"actorhub "}
"""Labels of connections to Postgres; the first that fits counts."""
_PROGRAM: Final = "tests.faults.registers.program"


async def until(condition: Callable[[], Any], what: str, deadline: float = START_SECONDS) -> None:
    """Wait until `condition` holds."""
    try:
        async with asyncio.timeout(deadline):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {deadline} s: {what}") from None


@dataclass
class Freeze:
    """A time in which a process was stopped; it may go on, unaware, with what it had just begun."""

    incarnation: str
    process: str
    """As its notes name it."""
    since: float
    until: float = float("inf")


class RunnerProcess:
    """One place for a runner: an address that survives its processes, and a proxy on each way to and from it.

    Verbs need no order: what a signal is sent to and is gone already stays gone.
    """

    def __init__(
        self, name: str, directory: Path, port: int, front: TcpProxy, store: TcpProxy, *, program: str = _PROGRAM
    ) -> None:
        self.name = name
        self.program = program
        """The module that its processes run."""
        self.environment: dict[str, str] = {}
        """What its processes are given besides this one's."""
        self.front = front
        """Between peers or clients and this runner, which advertises it."""
        self.store = store
        """Between this runner and Postgres, labelled by what a connection is for."""
        self.port = port
        self.generation = 0
        self.incarnation = ""
        self.frozen = False
        self.kills: dict[str, float] = {}
        """When its processes were killed, by incarnation."""
        self.freezes: list[Freeze] = []
        """When its processes were stopped, in order."""
        self._directory = directory
        self._process: ForkedProcess | subprocess.Popen[bytes] | None = None
        self._commands = -1
        """The process's standard input, whose end ends it."""
        self._out = Path()

    @property
    def lives(self) -> bool:
        """Whether its process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_stopped(self) -> bool:
        """Whether its process is stopped, by itself or by somebody else."""
        return self._process is not None and "\nState:\tT" in Path(f"/proc/{self._process.pid}/status").read_text()

    @property
    def log(self) -> str:
        """What all its processes logged."""
        return "".join(path.read_text() for path in sorted(self._directory.glob(f"{self.name}.*.log")))

    def spawn(self, url: str, **settings: Any) -> None:
        """Start a process and return at once."""
        assert not self.lives, f"{self.name} runs already"
        self.close()
        self.generation += 1
        self.incarnation = ""
        self.frozen = False
        self.front.listen_with_target()
        stem = self._directory / f"{self.name}.{self.generation}"
        self._out = stem.with_name(f"{stem.name}.out")
        arguments = {
            "database_url": url,
            "listen": f"127.0.0.1:{self.port}",
            "advertise": self.front.address,
            "grace": "5s",
            "events": str(stem.with_name(f"{stem.name}.events")),
            **settings,
        }
        stdin, log = stem.with_name(f"{stem.name}.commands"), stem.with_name(f"{stem.name}.log")
        os.mkfifo(stdin)
        self._commands = os.open(stdin, os.O_RDWR)
        for path in (self._out, log):
            path.touch()  # They are read before the process has opened them.
        environment = {**os.environ, **self.environment}
        self._process = launch(
            Command(
                self.program,
                (json.dumps(arguments),),
                str(ROOT),
                environment,
                out=str(self._out),
                err=str(log),
                stdin=str(stdin),
            )
        )

    async def ready(self) -> None:
        """Wait until the process that was spawned last takes calls."""
        assert await self.started(), f"{self.name} ended with {self.exit_code}: {self.log[-3000:]}"

    async def started(self) -> bool:
        """Wait until the process takes calls, or has ended; return which it was."""
        await until(lambda: self._said("ready") or not self.lives, f"{self.name} is ready")
        if self.lives:
            self.incarnation = self._said("incarnation")[-1]
        return self.lives

    async def statistics(self) -> Mapping[str, Any]:
        """Ask the process for its counters."""
        before = len(self._said("statistics"))
        os.write(self._commands, b"statistics\n")
        await until(lambda: len(self._said("statistics")) > before, f"{self.name} says its statistics", 15)
        found: Mapping[str, Any] = self._said("statistics")[-1]
        return found

    @property
    def exit_code(self) -> int | None:
        """How the process ended."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """End it as power loss would; but the system closes its connections, and refuses new ones."""
        if self.lives:
            self.kills[self.incarnation] = time.monotonic()
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self.front.refuse()
        self.frozen = False

    def freeze(self) -> None:
        """Stop it: its connections stay open, and nobody answers."""
        if self.lives and not self.frozen:
            self.frozen = True
            self.freezes.append(Freeze(self.incarnation, f"{self.name}.{self.generation}", time.monotonic()))
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, unaware."""
        self._signal(signal.SIGCONT)
        if self.frozen:
            self.frozen = False
            self.freezes[-1].until = time.monotonic()

    def terminate(self) -> None:
        """Ask it to leave gracefully."""
        self._signal(signal.SIGTERM)

    async def gone(self, deadline: float = 20) -> int:
        """Wait until its process ended and return how."""
        await until(lambda: not self.lives, f"{self.name} has ended", deadline)
        assert self.exit_code is not None
        return self.exit_code

    def close(self) -> None:
        """End it for good."""
        self.thaw()
        self.kill()
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _said(self, name: str) -> list[Any]:
        lines = (line for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n"))
        return [said[name] for said in map(json.loads, lines) if name in said]


class ClusterProcesses:
    """Some runners, what they are connected to, and what they did."""

    def __init__(self, postgres: PostgresServer, runners: Sequence[RunnerProcess], directory: Path) -> None:
        self.postgres = postgres
        self.url = ""
        """Where all runners find the database; empty: each through its proxy."""
        self.runners = runners
        self._directory = directory
        for one in runners:
            one.front.markers.update(
                {other.name: other.front.address.encode() for other in runners if other is not one}
            )

    @property
    def gateways(self) -> list[str]:
        """Where clients reach the runners."""
        return [one.front.address for one in self.runners]

    def spawn(self, runner: RunnerProcess, **settings: Any) -> None:
        """Start a runner's process and return at once."""
        runner.spawn(self.url or f"postgresql://postgres@{runner.store.address}/postgres?sslmode=disable", **settings)

    async def start(self, *runners: RunnerProcess) -> None:
        """Start these runners, or all of them, and wait until they own every shard together."""
        for one in runners or self.runners:
            self.spawn(one)
        for one in runners or self.runners:
            await one.ready()

    async def balanced(self, shards: int = 300, deadline: float = 20) -> None:
        """Wait until the living runners own all shards in fair parts."""
        living = [one for one in self.runners if one.lives and not one.frozen]
        async with asyncio.timeout(deadline):
            while True:
                owned = [(await one.statistics())["shards"] for one in living]
                if sum(owned) == shards and max(owned) - min(owned) <= 1:
                    return
                await asyncio.sleep(0.05)

    def cut(self, one: RunnerProcess, other: RunnerProcess) -> None:
        """Break the link between two runners, whoever opened it, and every new one."""
        one.front.cut(other.name)
        other.front.cut(one.name)

    def black_hole(self, one: RunnerProcess, other: RunnerProcess) -> None:
        """Let nothing pass between two runners, without telling them."""
        one.front.black_hole(other.name)
        other.front.black_hole(one.name)

    def heal(self) -> None:
        """Let everything pass everywhere."""
        for one in self.runners:
            for proxy in (one.front, one.store):
                for label in ("", *proxy.markers):
                    proxy.heal(label)

    async def end_sessions(self, application_name: str) -> int:
        """End the server side of connections with this name; return how many there were."""
        rows = await self.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", application_name
        )
        return len(rows)

    async def owner(self, shard: str) -> RunnerProcess | None:
        """Return the place of the runner that owns a shard, by the store."""
        rows = await self.fetch("select owner, incarnation from actorhub.shards where shard = $1", shard)
        known = {one.incarnation: one for one in self.runners}
        return known.get(rows[0]["incarnation"]) if rows else None

    async def stored(self) -> Mapping[str, Stored]:
        """Read every register from Postgres."""
        rows = await self.fetch(
            "select entity_id, version, epoch, data from actorhub.entity_state where entity_type = 'register'"
        )
        found: dict[str, Stored] = {}
        for row in rows:
            done = msgspec.msgpack.decode(row["data"], type=Applications).done
            found[row["entity_id"]] = Stored(
                row["version"], row["epoch"], [each.number for each in done], [each.epoch for each in done]
            )
        return found

    def starts(self) -> list[Start]:
        """Return every start of a handler in every process so far, in order of time."""
        return read_starts(self.events())

    def events(self, kind: str = "events") -> list[Path]:
        """Return where each process wrote down what it began; a program may tell several kinds apart."""
        return sorted(self._directory.glob(f"*.{kind}"))

    async def fetch(self, query: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Ask Postgres directly."""
        async with self.connection() as connection:
            return await connection.fetch(query, *arguments, timeout=10)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]", None]:
        """Return a connection to Postgres that no fault concerns."""
        connection = await asyncpg.connect(self.postgres.url, timeout=10)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    @asynccontextmanager
    async def transaction(self, statement: str) -> AsyncGenerator[None, None]:
        """Keep a transaction open that began with `statement`."""
        async with self.connection() as connection, connection.transaction():
            await connection.execute(statement, timeout=10)
            yield

    def report(self) -> str:
        """Return what the runners logged, but for its beginnings."""
        return "\n".join(f"{one.name}:\n{one.log[-4000:]}" for one in self.runners)


@asynccontextmanager
async def cluster_processes(
    postgres: PostgresServer,
    directory: Path,
    count: int = 3,
    *,
    program: str = _PROGRAM,
    pooler: int | None = None,
) -> AsyncGenerator[ClusterProcesses, None]:
    """Prepare places for runners; none of them is left afterwards.

    Args:
        postgres: Their database.
        directory: Where their processes write.
        count: How many.
        program: The module that they run.
        pooler: The port of a pooler through which they reach the database.
    """
    query = parse_qs(urlsplit(postgres.url).query)
    unix_socket = Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}"
    async with AsyncExitStack() as stack:
        runners: list[RunnerProcess] = []
        for number in range(count):
            port = claim_ports()
            front = await stack.enter_async_context(TcpProxy(port))
            store = await stack.enter_async_context(TcpProxy(pooler or unix_socket, _STORE_MARKERS))
            runners.append(RunnerProcess(f"r{number}", directory, port, front, store, program=program))
            stack.callback(runners[-1].close)
        yield ClusterProcesses(postgres, runners, directory)
