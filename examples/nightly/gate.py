"""Boundaries between steps: the job reports that it reached one, and waits until the demo lets it continue."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import date
from typing import Final

import msgspec

from actorhub import current

STEPS: Final = ("load", "rollup", "write", "publish")
BOUNDARIES: Final = ("begins", *(f"{step} {place}" for step in STEPS for place in ("runs", "is stored")))
"""The boundaries of a day, in order. At `runs` a step has done its work, and none of it is committed yet."""


class Visit(msgspec.Struct, frozen=True):
    """The report of a leader that it reached a boundary."""

    day: date
    boundary: str
    runner: str
    """Address of the leading runner."""
    epoch: int


class Gate:
    """The job's side of the boundaries. In production there is no demo, and the job does not wait.

    Args:
        address: `host:port` of the demo, or empty if there is none.
    """

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")

    async def reached(self, day: date, boundary: str) -> None:
        """Report a boundary. Return when the demo lets the job continue, or has ended."""
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
    """A visit as the demo sees it: the leader waits until it may continue, dies, or loses its leadership."""

    def __init__(self, visit: Visit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visit = visit
        self._reader = reader
        self._writer = writer

    @property
    def is_there(self) -> bool:
        """Whether the leader is still waiting."""
        return not self._reader.at_eof()

    def let_go_on(self) -> None:
        """Let the leader continue."""
        self._writer.write(b"go\n")
        self._writer.close()


@asynccontextmanager
async def gate_keeper(receive: Callable[[Visitor], None]) -> AsyncGenerator[str, None]:
    """Listen for leaders, and yield the address. `receive` is called with every visitor."""

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
        server.close()  # not waited for: leaders that still wait at the gate end with their processes
