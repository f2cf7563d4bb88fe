"""One HTTP request, without a client library."""

import asyncio
import ssl
from typing import Any, NamedTuple

import msgspec


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body, decoded."""
        return self.body.decode()

    @property
    def json(self) -> Any:  # noqa: ANN401 - the test knows
        """The body as JSON."""
        return msgspec.json.decode(self.body)


async def http_get(address: str, path: str, *, tls: ssl.SSLContext | None = None) -> Answer:
    """Ask `address` (`host:port`) for `path`.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)
