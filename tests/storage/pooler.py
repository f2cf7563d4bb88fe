"""A pooler in transaction mode, as small as it can be: the client changes server sessions with every transaction."""

import asyncio
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

_SSL_REQUEST = 80877103
_READY = b"Z"
_IDLE = b"I"


@asynccontextmanager
async def transaction_pooler(url: str) -> AsyncGenerator[str]:
    """Serve in front of the Unix-socket `url`; yield the URL that goes through the pooler."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    path = f"{query['host'][0]}/.s.PGSQL.{parts.port or query.get('port', ['5432'])[0]}"
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        try:
            await _converse(path, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()  # the client or the test has ended

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"postgresql://{parts.username or 'postgres'}@{host}:{port}{parts.path}?sslmode=disable"
    finally:
        server.close()
        for task in conversations:
            task.cancel()
        if conversations:
            await asyncio.wait(conversations, timeout=5)


async def _converse(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    startup = await _startup(reader)
    servers = [await asyncio.open_unix_connection(path) for _ in range(2)]
    try:
        for _, server_writer in servers:
            server_writer.write(startup)
        await _until_ready(servers[0][0])
        writer.write(await _until_ready(servers[1][0]))
        async with asyncio.TaskGroup() as tasks:
            ready: asyncio.Queue[bytes] = asyncio.Queue()
            for server_reader, _ in servers:
                tasks.create_task(_relay(server_reader, writer, ready))
            while True:
                await _until_sync(reader, servers[0][1])
                if await ready.get() == _IDLE:
                    servers.reverse()
    except* (OSError, asyncio.IncompleteReadError):
        writer.close()  # the client has left
    finally:
        for _, server_writer in servers:
            server_writer.close()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: asyncio.Queue[bytes]) -> None:
    while True:
        kind, message = await _message(reader)
        writer.write(message)
        if kind == _READY:
            ready.put_nowait(message[-1:])


async def _startup(reader: asyncio.StreamReader) -> bytes:
    size, code = struct.unpack("!ii", await reader.readexactly(8))
    assert code != _SSL_REQUEST
    return struct.pack("!ii", size, code) + await reader.readexactly(size - 8)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    head = await reader.readexactly(4)
    return kind, kind + head + await reader.readexactly(struct.unpack("!i", head)[0] - 4)


async def _until_ready(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    while True:
        kind, message = await _message(reader)
        answer += message
        if kind == _READY:
            return answer


async def _until_sync(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind = b""
    while kind not in {b"S", b"Q"}:
        kind, message = await _message(reader)
        writer.write(message)
