"""Boundaries between steps: where the job says that it came to one, and waits until the demo lets it go on."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import date
from typing import Final

import msgspec

from actorhub import current

STEPS: Final = ("load", "rollup", "write", "publish")
BOUNDARIES: Final = ("begins", *(f"{step} {place}" for step in STEPS for place in ("runs", "is stored")))
"""Of a day, in order. A step that `runs` has done its work, and nothing of it is committed yet."""


class Visit(msgspec.Struct, frozen=True):
    """A leader that came to a boundary."""

    day: date
    boundary: str
    runner: str
    """Address of the runner that leads."""
    epoch: int


class Gate:
    """The job's side of the boundaries; in earnest there is no demo, and nobody waits.

    Args:
        address: `host:port` of the demo; empty: there is none.
    """

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")

    async def reached(self, day: date, boundary: str) -> None:
        """Return when the demo lets the job go on, or is gone."""
        if not self._port:
            return
        here = current()
        visit = Visit(day, boundary, here.runner.address, here.epoch)
        reader, writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            writer.write(msgspec.json.encode(visit) + b"\n")
            await reader.readline()
        finally:
            writer.close()


class Visitor:
    """A visit as the demo sees it: the leader waits until it is let go on, dies, or loses its leadership."""

    def __init__(self, visit: Visit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visit = visit
        self._reader = reader
        self._writer = writer

    @property
    def is_there(self) -> bool:
        """Whether it still waits."""
        return not self._reader.at_eof()

    def let_go_on(self) -> None:
        """End its wait."""
        self._writer.write(b"go\n")
        self._writer.close()


@asynccontextmanager
async def gate_keeper(receive: Callable[[Visitor], None]) -> AsyncGenerator[str, None]:
    """Hold the demo's side open, and yield its address; `receive` is called with every visitor."""

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line.endswith(b"\n"):
            receive(Visitor(msgspec.json.decode(line, type=Visit), reader, writer))
        else:
            writer.close()

    server = await asyncio.start_server(welcome, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()  # not waited for: who still stands at the gate leaves with its process
