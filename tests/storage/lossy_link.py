"""A link to Postgres that can lose one answer: the statement is carried out, and nobody hears of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit


class LossyLink:
    """Passes everything on between clients and the server of a Unix-socket URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self._path = f"{query['host'][0]}/.s.PGSQL.{parts.port or query.get('port', ['5432'])[0]}"
        self._parts = parts
        self._tasks: set[asyncio.Task[None]] = set()
        self._losing = False
        self._open = asyncio.Event()
        self._open.set()
        self.lost = asyncio.Event()
        """Set once the answer was lost."""
        self.requests = 0
        """How often somebody has sent something: as many as there were round trips."""
        self.url = ""

    def lose_next_answer(self) -> None:
        """Cut the connection that gets the next answer, and let nobody connect until `mend`."""
        self._losing = True
        self._open.clear()
        self.lost.clear()

    def mend(self) -> None:
        """Let everybody connect again."""
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one client's bytes on."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._open.wait()
        server_reader, server_writer = await asyncio.open_unix_connection(self._path)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._requests(reader, server_writer))
                tasks.create_task(self._answers(server_reader, writer))
        except* OSError:
            writer.close()
        finally:
            server_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.requests += 1
            writer.write(data)
        raise ConnectionResetError

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._losing:
                self._losing = False
                self.lost.set()
                break
            writer.write(data)
        raise ConnectionResetError

    @asynccontextmanager
    async def served(self) -> AsyncGenerator["LossyLink"]:
        """Serve until the end."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.url = f"postgresql://{self._parts.username or 'postgres'}@{host}:{port}{self._parts.path}?sslmode=disable"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)
