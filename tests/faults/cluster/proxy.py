"""A TCP proxy whose connections can be cut and starved, told apart by what their clients say first."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

Mode: TypeAlias = Literal["open", "cut", "black hole", "held answers"]

_LOOKED_AT_BYTES: Final = 4096
_CHUNK_BYTES: Final = 65536


class _Connection:
    """One client and its connection to the target."""

    def __init__(self) -> None:
        self.label = ""
        self.writers: list[asyncio.StreamWriter] = []
        self.may_ask = asyncio.Event()
        self.may_answer = asyncio.Event()

    def apply(self, mode: Mode) -> None:
        if mode == "cut":
            for writer in self.writers:
                writer.transport.abort()
        _allow(self.may_ask, mode != "black hole")
        _allow(self.may_answer, mode not in ("black hole", "held answers"))


def _allow(gate: asyncio.Event, is_open: bool) -> None:
    if is_open:
        gate.set()
    else:
        gate.clear()


class TcpProxy:
    """Passes bytes between its clients and one target, as long as it is let.

    `cut` resets connections, the present and the new ones. `black_hole` keeps them open, takes new ones, and passes
    nothing; what was underway arrives after `heal`, as it does after a real partition. `hold_answers` lets the target
    hear everything, and its clients nothing. Each verb takes a label: it then concerns only the connections whose first
    bytes contain the label's marker.
    """

    def __init__(self, target: int | Path, markers: Mapping[str, bytes] | None = None) -> None:
        """Prepare a proxy.

        Args:
            target: A port of this host, or a Unix socket.
            markers: What the first bytes of a labelled client contain.
        """
        self.port = 0
        self.connections = 0
        """How many clients connected so far."""
        self.held_bytes = 0
        """How many bytes arrived so far that had to wait."""
        self.markers = dict(markers or {})
        self._target = target
        self._modes: dict[str, Mode] = {}
        self._open: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._awaiting_target: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        async with asyncio.timeout(5):
            while self._serving:
                await asyncio.sleep(0.005)

    def refuse(self) -> None:
        """Take no connections until `listen`, as if the target listened itself and were gone."""
        if self._awaiting_target is not None:
            self._awaiting_target.cancel()
            self._awaiting_target = None
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def listen(self) -> None:
        """Take connections, at the same port as before."""
        if self._listener is None:
            # Not by `asyncio.start_server`, which in Python 3.11 leaves a connection open that comes while it closes.
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def listen_with_target(self) -> None:
        """Take connections again once the target does, which is about to start."""
        if self._listener is None and self._awaiting_target is None:
            self._awaiting_target = asyncio.Task(self._listen_with_target())

    async def _listen_with_target(self) -> None:
        while True:
            try:
                _, writer = await self._connect()
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.transport.abort()
                self._awaiting_target = None
                return self.listen()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(str(self._target))
        return await asyncio.open_connection("127.0.0.1", self._target)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            client, _ = listener.accept()
            serving = asyncio.Task(self._take(client))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)

    async def _take(self, client: socket.socket) -> None:
        await self._serve(*await asyncio.open_connection(sock=client))

    def cut(self, label: str = "") -> None:
        """Reset connections now, and new ones until `heal`."""
        self._set(label, "cut")

    def black_hole(self, label: str = "") -> None:
        """Pass nothing until `heal`, without telling anybody."""
        self._set(label, "black hole")

    def hold_answers(self, label: str = "") -> None:
        """Pass what clients say, and nothing of what they are told until `heal`; after `cut` they never hear it."""
        self._set(label, "held answers")

    def heal(self, label: str = "") -> None:
        """Pass everything again."""
        self._set(label, "open")

    def _set(self, label: str, mode: Mode) -> None:
        self._modes[label] = mode
        for connection in list(self._open):
            connection.apply(self._mode(connection))

    def _mode(self, connection: _Connection) -> Mode:
        everybody = self._modes.get("", "open")
        return self._modes.get(connection.label, "open") if everybody == "open" else everybody

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection()
        connection.writers.append(writer)
        connection.apply(self._mode(connection))
        self._open.add(connection)
        try:
            back_reader, back_writer = await self._connect()
            connection.writers.append(back_writer)
            connection.apply(self._mode(connection))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(connection, reader, back_writer, is_client=True))
                tasks.create_task(self._pass(connection, back_reader, writer, is_client=False))
        except* OSError:
            pass  # The target is down, or the client went away: both ends are closed below.
        finally:
            self._open.discard(connection)
            for each in connection.writers:
                each.transport.abort()

    async def _pass(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_client: bool
    ) -> None:
        gate = connection.may_ask if is_client else connection.may_answer
        seen = b""
        while data := await reader.read(_CHUNK_BYTES):
            if is_client and not connection.label and len(seen) < _LOOKED_AT_BYTES:
                seen += data
                self._label(connection, seen)
            if not gate.is_set():
                self.held_bytes += len(data)
                await gate.wait()
            writer.write(data)
            await writer.drain()
        # The other direction ends with this one: nobody here uses half-open connections.
        raise ConnectionResetError

    def _label(self, connection: _Connection, seen: bytes) -> None:
        for name, marker in self.markers.items():
            if marker in seen:
                connection.label = name
                connection.apply(self._mode(connection))
                return
