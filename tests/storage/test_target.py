"""A URL, a service file and `PG…` variables together say where to connect."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from actorhub.core.clock import SystemClock
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import PostgresStorage
from actorhub.storage.postgres.connection import Database
from actorhub.storage.postgres.target import target_of
from tests.storage.conftest import PostgresWorld


def test_the_url_beats_the_service_beats_the_variables(tmp_path: Path) -> None:
    """Each fills in what the one before leaves out; nothing secret is in the place that messages show."""
    services = tmp_path / "services"
    services.write_text(
        "# ours\n[other]\nhost=no\n[shop]\nhost=db1,db2\nport=5433\ndbname=books\npassword=sesame\n[x]\n"
    )
    environ = {"PGSERVICEFILE": str(services), "PGHOST": "no", "PGUSER": "no", "PGCONNECT_TIMEOUT": "7"}
    found = target_of("postgresql:///shop?service=shop", environ)
    assert found.place == "db1:5433,db2:5433/shop"
    assert found.limit == 7
    assert [urlsplit(address).query for address in found.addresses] == [
        f"dbname=shop&password=sesame&host={host}&port=5433&target_session_attrs=read-write" for host in ("db1", "db2")
    ]
    assert target_of("postgresql:///", {**environ, "PGSERVICE": "shop"}).place == "db1:5433,db2:5433/books"


@pytest.mark.parametrize(
    ("url", "environ", "text"),
    [
        (
            "postgresql:///?service=nowhere",
            {"PGSERVICEFILE": "/nonexistent"},
            "service 'nowhere' is not in /nonexistent",
        ),
        ("postgresql://a,b:1,c/x?port=1,2", {}, "one port for all hosts, or one for each"),
        ("postgresql://a/x?options=fast", {}, "options is not of the form"),
        ("postgresql://a/x", {"PGCHANNELBINDING": "require"}, "channel_binding must be"),
    ],
)
def test_what_cannot_be_followed_is_named(url: str, environ: Mapping[str, str], text: str) -> None:
    """A service that is not there, ports that fit no hosts, options of another form."""
    with pytest.raises(ConfigurationError, match=text):
        target_of(url, environ)


async def test_settings_of_the_server_reach_every_statement_and_handler(postgres_world: PostgresWorld) -> None:
    """`options` hold where the store has no say of its own."""
    sql = await postgres_world.sql()
    postgres_world.url += (
        "&options=-c%20work_mem%3D7MB%20--search_path%3Dnowhere&application_name=shop&connect_timeout=5"
    )
    storage = await postgres_world.storage()
    made = await storage.messages.begin()
    assert await made.connection.fetchval("show work_mem") == "7MB"
    assert await made.connection.fetchval("show search_path") == "nowhere"
    await made.roll_back()
    assert await storage.shards() == []
    named = "select count(*) from pg_stat_activity where application_name = 'shop' and datname = current_database()"
    assert await sql.fetchval(named) >= 3


async def test_of_several_hosts_the_one_that_answers_is_used(postgres_url: str, unused_tcp_port: int) -> None:
    """One that refuses, and one that accepts and stays silent, cost little."""
    ended = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", unused_tcp_port)
    parts = urlsplit(postgres_url)
    socket = parts.query.partition("host=")[2].partition("&")[0]
    hosts = f"host=127.0.0.1,127.0.0.1,{socket}&port=1,{unused_tcp_port},5432"
    storage = PostgresStorage(f"postgresql://postgres@{parts.path}?{hosts}&sslmode=disable", clock=SystemClock())
    started = time.monotonic()
    await storage.open()
    assert time.monotonic() - started < 4
    assert await storage.shards() == []
    await storage.aclose()
    ended.set()
    server.close()


async def test_connections_made_at_the_same_time_each_try_every_host(postgres_url: str) -> None:
    """What one of them finds out about a host does not take another one back to it."""
    parts = urlsplit(postgres_url)
    socket = parts.query.partition("host=")[2].partition("&")[0]
    url = f"postgresql://postgres@{parts.path}?host=127.0.0.1,{socket},127.0.0.1&port=1,5432,2&sslmode=disable"
    database = Database(url, "actorhub")
    for connection in await asyncio.gather(*(database.bare_connect("actorhub start") for _ in range(12))):
        connection.terminate()
