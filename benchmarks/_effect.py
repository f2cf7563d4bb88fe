"""The peer: Effect's cluster on Node, in its own processes, and in its own databases on the same Postgres.

Its packages, and a Node to run them, are installed once, by `npm ci` into `build/`. If that is not possible, the
benchmarks run without the peer and say why.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from benchmarks._harness import ROOT

_SOURCE: Final = Path(__file__).parent / "peers" / "effect"
_PACKAGE: Final = ("package.json", "package-lock.json")
_INSTALL_SECONDS: Final = 300.0
_ANSWER_SECONDS: Final = 180.0
"""Longer than any sample takes. A peer that says nothing for this long is killed."""


class NoPeer(Exception):
    """The peer cannot run here. The text says why."""


@dataclass(frozen=True, slots=True)
class Program:
    """The directory of the program, and the Node that runs it."""

    directory: Path
    node: str

    @property
    def versions(self) -> dict[str, str]:
        """What is measured."""
        wanted: dict[str, Any] = json.loads((_SOURCE / "package.json").read_text())
        found = subprocess.run([self.node, "--version"], check=True, capture_output=True, text=True)
        return {"node": found.stdout.strip().removeprefix("v"), **wanted["dependencies"]}


def installed() -> Program:
    """Return the program. Install it if necessary.

    Raises:
        NoPeer: npm is missing, or it failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise NoPeer("npm is not installed")
    digest = hashlib.sha256(b"".join((_SOURCE / name).read_bytes() for name in _PACKAGE)).hexdigest()[:12]
    directory = ROOT / "build" / f"peer-effect-{digest}"
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*_PACKAGE, "cluster.mjs"):
        shutil.copyfile(_SOURCE / name, directory / name)
    complete = directory / "complete"
    if not complete.exists():
        _install(npm, directory)
        complete.touch()
    nodes = sorted(directory.glob("node_modules/node-*/bin/node"))
    node = str(nodes[0]) if nodes else shutil.which("node")
    if node is None:
        raise NoPeer("there is no Node for this machine among the peer's packages, and none is installed")
    return Program(directory, node)


def _install(npm: str, directory: Path) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NoPeer(f"npm ci did not end within {_INSTALL_SECONDS:.0f} s") from None
    if done.returncode:
        raise NoPeer(f"npm ci failed: {done.stderr.strip().splitlines()[-1:]}")


class EffectProcess:
    """One process of the peer, which is ended by its own id."""

    def __init__(self, program: Program, options: dict[str, Any], password: str) -> None:
        self._log = (program.directory / f"{options['role']}.log").open("w")
        self._process = subprocess.Popen(
            [program.node, "cluster.mjs", json.dumps(options)],
            cwd=program.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PEER_PASSWORD": password},
        )

    async def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            NoPeer: it ended instead.
        """
        await asyncio.to_thread(self._read)

    async def do(self, command: str, **options: object) -> dict[str, Any]:
        """Send a command, and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **options}) + "\n")
        self._process.stdin.flush()
        return await asyncio.to_thread(self._read)

    def end(self) -> None:
        """Kill and reap it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watch = threading.Timer(_ANSWER_SECONDS, self._process.kill)
        watch.start()
        line = self._process.stdout.readline()
        watch.cancel()
        if not line:
            code = self._process.wait()
            raise NoPeer(f"its process ended with {code}: {Path(self._log.name).read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True, slots=True)
class Effect:
    """The running peer: a cluster in one process, and a client with a runner in another process."""

    versions: dict[str, str]
    single: EffectProcess
    client: EffectProcess | None


@contextlib.asynccontextmanager
async def effect(url: str, namespace: str, *, client: bool = False) -> AsyncGenerator[Effect, None]:
    """Run the peer for a while, in databases whose names begin with `namespace`.

    Args:
        url: A database of that Postgres.
        namespace: Nobody else's.
        client: Also run a runner, and a client of it, in two more processes.

    Raises:
        NoPeer: it cannot run here.
    """
    program = await asyncio.to_thread(installed)
    async with contextlib.AsyncExitStack() as stack:

        async def start(role: str, where: dict[str, Any]) -> EffectProcess:
            password = unquote(urlsplit(url).password or "")
            process = EffectProcess(program, {"role": role, **where}, password)
            stack.callback(process.end)
            await process.wait_ready()
            return process

        alone = await _place(stack, url, f"{namespace}_effect")
        single = await start("single", alone)
        calling = None
        if client:
            shared = await _place(stack, url, f"{namespace}_effect_two")
            await start("runner", shared)
            calling = await start("client", shared)
        yield Effect(program.versions, single, calling)


async def _place(stack: contextlib.AsyncExitStack, url: str, name: str) -> dict[str, Any]:
    """Make a database. The peer locks shards by number, so a cluster in another schema would use the same locks."""
    connection = await asyncpg.connect(url)
    stack.push_async_callback(connection.close)
    try:
        await connection.execute(f"create database {name}")
    except asyncpg.InsufficientPrivilegeError as error:
        raise NoPeer(f"a database of its own cannot be made: {error}") from None
    stack.push_async_callback(connection.execute, f"drop database {name} with (force)")
    return {**_address(url), "database": name, "port": _free_port()}


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    host = query.get("host") or parts.hostname or "127.0.0.1"
    port = int(query.get("port") or parts.port or 5432)
    return {
        **({"path": f"{host}/.s.PGSQL.{port}"} if host.startswith("/") else {"host": host, "pg_port": port}),
        "user": unquote(parts.username or query.get("user") or "postgres"),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def peer_or_reason(
    url: str, namespace: str, *, wanted: bool, client: bool = False
) -> AsyncGenerator[tuple[Effect | None, dict[str, Any]], None]:
    """Yield the peer or `None`, and what to report about it in the results."""
    if not wanted:
        yield None, {"skipped": "not asked for"}
        return
    async with contextlib.AsyncExitStack() as stack:
        try:
            peer = await stack.enter_async_context(effect(url, namespace, client=client))
        except NoPeer as error:
            yield None, {"skipped": str(error)}
            return
        yield peer, {"versions": peer.versions}
