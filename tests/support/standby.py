"""Copies of a running server's data: a standby of it, or the data as it is at one moment."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from typing_extensions import override

from actorhub.storage.postgres.programs import find_programs, server_account
from tests.support.postgres_server import Origin, PostgresServer

_SECONDS: Final = 60


class BaseBackup(Origin):
    """What `pg_basebackup` makes of a running server: a standby of it, or a copy that recovers by itself."""

    def __init__(self, primary: PostgresServer, *, is_standby: bool) -> None:
        self._primary = primary
        self._is_standby = is_standby

    @override
    def copy(self, data: Path) -> None:
        account = server_account(data)
        data.mkdir(mode=0o700)
        if account:
            os.chown(data, account.uid, account.gid)
        arguments = [f"--pgdata={data}", f"--dbname=host={self._primary.data} port=5432 user=postgres"]
        arguments += ["--wal-method=stream", "--checkpoint=fast", *(["--write-recovery-conf"] * self._is_standby)]
        with tempfile.TemporaryFile() as output:
            code = find_programs(account).run("pg_basebackup", *arguments, timeout=_SECONDS, output=output)
            output.seek(0)
            assert code == 0, output.read().decode(errors="replace")
        for left in data.glob(".s.PGSQL.*"):
            left.unlink()  # The primary's socket is in its data directory.


class Snapshot(Origin):
    """The data of a server that is stopped, as it was at one moment: what copying files keeps."""

    def __init__(self, data: Path) -> None:
        self._data = data

    @override
    def copy(self, data: Path) -> None:
        subprocess.run(["cp", "-a", str(self._data), str(data)], check=True, cwd="/")


def url_of(*servers: PostgresServer, database: str = "postgres") -> str:
    """Return the URL of a database that is on the first of these servers that can be written to."""
    hosts = ",".join(str(server.data) for server in servers)
    assert all(urlsplit(server.url).query.endswith("port=5432") for server in servers)
    return f"postgresql://postgres@/{database}?host={hosts}&port=5432"


async def cut_off(standby: PostgresServer) -> None:
    """Have a standby receive nothing more from its primary."""
    await standby.sql("alter system set primary_conninfo = ''")
    await standby.sql("select pg_reload_conf()")
    while await standby.sql("select 1 from pg_stat_wal_receiver"):
        pass


async def promote(standby: PostgresServer) -> None:
    """Make a standby the primary."""
    assert await standby.sql("select pg_promote(true, 30)") == [(True,)]
