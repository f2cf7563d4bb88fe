"""Probes, metrics and a page over HTTP. Needs the `ops` extra."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from actorhub.core.clock import Clock
from actorhub.core.config import HostPort, Settings
from actorhub.core.errors import ConfigurationError
from actorhub.core.logger import get_logger
from actorhub.engine.link_acceptor import LinkAcceptor
from actorhub.engine.supervision import Supervisor
from actorhub.ops.channels import tls_files
from actorhub.ops.health import health_report, obstacle
from actorhub.ops.page import page
from actorhub.ops.prometheus import CONTENT_TYPE, Exposition
from actorhub.ops.reading import Reading, read
from actorhub.transport.grpc.addresses import is_loopback, join_address, numeric_host

_log: Final = get_logger("actorhub.http")

_CLOSING: Final = 2.0
"""Seconds that requests have to finish when the server ends."""
_REQUESTS: Final = 256
"""Connections and requests at a time; further ones are answered with 503."""
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}

_encode: Final = msgspec.json.Encoder().encode


@asynccontextmanager
async def serve_http(
    settings: Settings, at: HostPort, acceptor: LinkAcceptor, clock: Clock
) -> AsyncGenerator[str, None]:
    """Serve during the block; yield the address that is really bound.

    Raises:
        ConfigurationError: the address cannot be bound, or may not be without TLS; or a TLS file cannot be read.
    """
    config = uvicorn.Config(
        _app(acceptor),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_REQUESTS,
        timeout_graceful_shutdown=int(_CLOSING),
    )
    config.load()
    config.ssl = _tls(settings)
    with await _listening(settings, at, has_tls=config.ssl is not None) as listening:
        address = join_address(at.host, listening.getsockname()[1])
        server = _Server(config)
        supervisor = Supervisor(clock)
        # A copy of the socket for each run: uvicorn closes what it is given, and the loop may have to start it again.
        serving = supervisor.loop("http", lambda: server.serve([listening.dup()]))
        _log.info("HTTP at %s://%s", "http" if config.ssl is None else "https", address)
        try:
            yield address
        finally:
            # Uvicorn finishes the requests that it has, within its own limit. What is left then is cancelled, so that a
            # probe that holds its connection cannot hold up the end of the process.
            server.should_exit = True
            await asyncio.wait((serving,), timeout=_CLOSING)
            await supervisor.aclose(1.0)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the process's signal handlers alone: they belong to whoever runs the hub."""
        yield


class _Answers:
    """What each path answers."""

    def __init__(self, acceptor: LinkAcceptor) -> None:
        self._acceptor = acceptor
        self._exposition = Exposition(self._reading)

    async def livez(self, _: Request) -> Response:
        """Whether the event loop answers."""
        return PlainTextResponse("ok\n", headers=_HEADERS)

    async def readyz(self, _: Request) -> Response:
        """Whether this runner takes work, and if not, why."""
        reason = obstacle(self._acceptor)
        return PlainTextResponse(f"{reason or 'ok'}\n", 503 if reason else 200, _HEADERS)

    async def healthz(self, _: Request) -> Response:
        """How this runner is."""
        return Response(_encode(health_report(self._acceptor)), headers=_HEADERS, media_type="application/json")

    async def metrics(self, _: Request) -> Response:
        """The metrics as they are now."""
        return Response(self._exposition.text(), headers=_HEADERS, media_type=CONTENT_TYPE)

    async def page(self, _: Request) -> Response:
        """The page."""
        return HTMLResponse(page(health_report(self._acceptor), self._reading()), headers=_HEADERS)

    def _reading(self) -> Reading | None:
        runner = self._acceptor.runner
        return None if runner is None else read(runner)


def _app(acceptor: LinkAcceptor) -> Starlette:
    answers = _Answers(acceptor)
    return Starlette(
        routes=[
            Route("/livez", answers.livez),
            Route("/readyz", answers.readyz),
            Route("/healthz", answers.healthz),
            Route("/metrics", answers.metrics),
            Route("/", answers.page),
        ]
    )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    files = tls_files(settings)
    if files is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(files.cert, files.key)
    except OSError as exc:
        raise ConfigurationError(f"the TLS files do not hold a certificate, its key and its authority: {exc}") from exc
    return context


async def _listening(settings: Settings, at: HostPort, *, has_tls: bool) -> socket.socket:
    numeric = await numeric_host(at.host)
    if not (has_tls or settings.insecure or is_loopback(numeric)):
        raise ConfigurationError(
            f"http = {at} without TLS lets anyone on the network look in: set ACTORHUB_TLS_CERT, _KEY and _CA, "
            "listen on 127.0.0.1, or say --insecure"
        )
    listening = socket.socket(socket.AF_INET6 if ":" in numeric else socket.AF_INET)
    try:
        # The port of a runner that has just ended can be used at once. One that is in use still cannot.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((numeric, at.port))
        listening.listen()
    except OSError as exc:
        listening.close()
        raise ConfigurationError(
            f"cannot serve http = {at}: {exc.strerror or exc}: another process uses the port, or the address is not "
            "one of this host: choose another --http"
        ) from exc
    return listening
