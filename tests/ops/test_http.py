"""Probes, metrics and the page over HTTP, of real runners on a real Postgres."""

import asyncio
import logging
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from actorhub import Cluster, ConfigurationError, Hub, Singleton
from actorhub.hub import VERSION
from actorhub.transport.grpc import TlsFiles
from tests.ops.conftest import Ports
from tests.support import shop
from tests.support.http_get import Answer, http_get
from tests.support.postgres_server import PostgresServer
from tests.transport.certificates import Authority

PATHS = ("/livez", "/readyz", "/healthz", "/metrics", "/")
_CHECK = "/grpc.health.v1.Health/Check"

opened = asyncio.Event()


class Keeper(Singleton, name="keeper"):
    """Becomes leader once the test lets it."""

    async def on_become_leader(self) -> None:
        await opened.wait()


keeping = Hub()
keeping.register(Keeper)


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return the address that the log says HTTP is at."""
    caplog.set_level(logging.INFO, "actorhub.http")

    def address() -> str:
        found = re.findall(r"HTTP at https?://(\S+)", caplog.text)
        return str(found[-1]) if found else ""

    return address


async def _until(address: str, status: int, text: str) -> Answer:
    """Ask `/readyz` until it answers so."""
    async with asyncio.timeout(20):
        while (answer := await http_get(address, "/readyz")).status != status or text not in answer.text:
            await asyncio.sleep(0.02)
    return answer


async def test_a_serving_runner_passes_every_probe(ports: Ports, said: Callable[[], str]) -> None:
    """Probes say ok, the report names the runner, the metrics are Prometheus's, and the page needs nothing else."""
    port = await ports.open(http="127.0.0.1:0")
    answers = {path: await http_get(said(), path) for path in PATHS}
    assert {path: answer.status for path, answer in answers.items()} == dict.fromkeys(PATHS, 200)
    assert (answers["/livez"].text, answers["/readyz"].text) == ("ok\n", "ok\n")
    runner = port.cluster.runner
    assert runner is not None
    assert answers["/healthz"].json == {
        "serving": True,
        "reason": "",
        "runner": runner.address,
        "incarnation": runner.incarnation,
        "version": VERSION,
        "shards_owned": 300,
        "live_runners": 1,
        "singletons": [],
        "unreached": [],
        "lost": "",
        "address_problem": "",
        "via": "",
    }
    assert answers["/metrics"].headers["content-type"].startswith("text/plain; version=")
    assert runner.address in answers["/"].text
    assert not re.search(r"(?:src|href)=\"(?!/)|url\(|<script", answers["/"].text)
    assert (await http_get(said(), "/nothing")).status == 404


async def test_probes_answer_while_a_runner_starts(said: Callable[[], str]) -> None:
    """With a database that says nothing, it is alive and not ready."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def start(url: str) -> None:
        async with shop.hub.runner(database_url=url, listen="127.0.0.1:0", http="127.0.0.1:0"):
            pytest.fail("it started without a database")

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent, asyncio.TaskGroup() as tasks:
        host, port = silent.sockets[0].getsockname()
        starting = tasks.create_task(start(f"postgresql://{host}:{port}/x"))
        while not said():
            await asyncio.sleep(0.01)
        assert (await http_get(said(), "/readyz"))[::2] == (503, b"it is starting\n")
        assert (await http_get(said(), "/livez")).status == 200
        assert (await http_get(said(), "/healthz")).json["serving"] is False
        assert (await http_get(said(), "/")).status == 200
        assert b"actorhub_entities" not in (await http_get(said(), "/metrics")).body
        starting.cancel()


async def test_a_leaving_runner_says_so_until_it_is_gone(postgres_url: str, said: Callable[[], str]) -> None:
    """While a handler holds up the shutdown the runner is alive and not ready; in the end nobody answers."""
    leave = asyncio.Event()

    async def run(hub: Hub) -> None:
        async with hub.runner(
            database_url=postgres_url, listen="127.0.0.1:0", http="127.0.0.1:0", grace=timedelta(seconds=20)
        ) as cluster:
            clusters.append(cluster)
            await leave.wait()

    clusters: list[Cluster] = []
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(shop.hub))
        while not clusters:
            await asyncio.sleep(0.01)
        gate = clusters[0].client(shop.Gate)("a")
        entering = tasks.create_task(_awaited(gate.enter()))
        while await gate.counts() != [1, 0]:
            await asyncio.sleep(0.01)
        leave.set()
        await _until(said(), 503, "it is leaving the cluster")
        assert (await http_get(said(), "/livez")).status == 200
        entering.cancel()
        await running
    with pytest.raises(OSError, match="Connect"):
        await http_get(said(), "/livez")


async def _awaited(call: "asyncio.Future[str] | object") -> None:
    await call  # type: ignore[misc]


async def test_a_runner_without_its_database_is_not_ready(
    own_postgres: PostgresServer, said: Callable[[], str]
) -> None:
    """Its ownership cannot be proved while Postgres is down; once it is back, the runner is ready again."""
    async with shop.hub.runner(database_url=own_postgres.url, listen="127.0.0.1:0", http="127.0.0.1:0"):
        await own_postgres.stop()
        await _until(said(), 503, "it cannot prove its ownership")
        assert (await http_get(said(), "/livez")).status == 200
        assert (await http_get(said(), "/metrics")).status == 200
        await own_postgres.start()
        await _until(said(), 200, "ok")


async def test_a_stale_singleton_makes_its_leader_unready(postgres_url: str, said: Callable[[], str]) -> None:
    """Strictly: its former leader's old heartbeat counts until the new one shows itself, for gRPC's health too."""
    opened.set()
    async with keeping.runner(database_url=postgres_url, listen="127.0.0.1:0") as cluster:
        async with asyncio.timeout(10):
            while not (await _heartbeats(postgres_url)):
                await asyncio.sleep(0.02)
    await _execute(postgres_url, "update actorhub.singleton set heartbeat_at = now() - interval '61 seconds'")
    opened.clear()
    async with keeping.runner(database_url=postgres_url, listen="127.0.0.1:0", http="127.0.0.1:0") as cluster:
        assert cluster.runner is not None
        await _until(said(), 503, "it leads singletons that show no sign of life: keeper")
        assert await _grpc_health(cluster.runner.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        report = (await http_get(said(), "/healthz")).json
        assert [(one["name"], one["status"]) for one in report["singletons"]] == [("keeper", "stale")]
        assert "keeper" in (await http_get(said(), "/")).text
        opened.set()
        await _until(said(), 200, "ok")
        assert await _grpc_health(cluster.runner.address) == health_pb2.HealthCheckResponse.SERVING


async def _heartbeats(url: str) -> list[object]:
    rows = await _execute(url, "select heartbeat_at from actorhub.singleton where heartbeat_at is not null")
    return list(rows)


async def _execute(url: str, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


async def _grpc_health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            _CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return int((await check(health_pb2.HealthCheckRequest())).status)


@asynccontextmanager
async def _refused(url: str, **settings: Any) -> AsyncIterator[pytest.ExceptionInfo[ConfigurationError]]:
    with pytest.raises(ConfigurationError) as caught:
        async with shop.hub.runner(database_url=url, listen="127.0.0.1:0", **settings):
            pytest.fail("it started")
    yield caught


async def test_a_taken_port_is_refused_with_the_setting_named() -> None:
    """The error says which setting cannot hold, before anything else is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        async with _refused("postgresql://127.0.0.1:1/x", http=http) as caught:
            assert f"cannot serve http = {http}: " in str(caught.value)


async def test_http_beyond_loopback_needs_tls_or_a_word() -> None:
    """As for gRPC, a runner that anyone on the network could look into does not start."""
    async with _refused("postgresql://127.0.0.1:1/x", http="0.0.0.0:0") as caught:
        assert "http = 0.0.0.0:0 without TLS lets anyone on the network look" in str(caught.value)


async def test_http_beyond_loopback_is_served_insecurely_where_asked_for(
    postgres_url: str, said: Callable[[], str]
) -> None:
    """--insecure lifts the rule."""
    async with shop.hub.runner(database_url=postgres_url, listen="127.0.0.1:0", http="0.0.0.0:0", insecure=True):
        assert (await http_get(f"127.0.0.1:{said().rpartition(':')[2]}", "/livez")).status == 200


async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the `ops` extra the error says what to install."""
    monkeypatch.delitem(sys.modules, "actorhub.ops.http", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    async with _refused("postgresql://127.0.0.1:1/x", http="127.0.0.1:0") as caught:
        assert "pip install 'actorhub[ops]'" in str(caught.value)


async def test_signals_stay_with_whoever_runs_the_hub(ports: Ports) -> None:
    """The HTTP server installs no signal handler."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    await ports.open(http="127.0.0.1:0")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_with_mutual_tls_http_asks_for_a_certificate(
    postgres_url: str, tmp_path: Path, said: Callable[[], str]
) -> None:
    """Who shows a certificate of the authority is answered over HTTPS, and nobody else."""
    authority = Authority(tmp_path / "authority")
    files = authority.issue("runner")
    async with shop.hub.runner(
        database_url=postgres_url,
        listen="127.0.0.1:0",
        http="127.0.0.1:0",
        tls_cert=files.cert,
        tls_key=files.key,
        tls_ca=files.ca,
    ):
        assert (await http_get(said(), "/readyz", tls=_client(authority.issue("prober")))).status == 200
        with pytest.raises((OSError, IndexError)):
            await http_get(said(), "/readyz", tls=ssl.create_default_context(cafile=files.ca))


def _client(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    return context
