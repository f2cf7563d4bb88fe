"""The real PgBouncer, where it is installed."""

import asyncio
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

from actorhub.storage.postgres.programs import server_account

PROGRAM: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
MISSING: Final = "pgbouncer is not installed: Debian and others have it as package pgbouncer, package indexes do not"
_START_SECONDS: Final = 10.0


@asynccontextmanager
async def pgbouncer(
    url: str, mode: Literal["session", "transaction", "statement"], **settings: object
) -> AsyncGenerator[str]:
    """Run PgBouncer in front of the Unix-socket `url`; yield the URL that goes through it."""
    assert PROGRAM is not None
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    database = parts.path.removeprefix("/")
    with (
        tempfile.TemporaryDirectory(prefix="ahpb-", dir="/tmp") as directory,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        port = free.getsockname()[1]
        free.close()
        place = Path(directory)
        place.chmod(0o755)
        (place / "users").write_text('"postgres" ""\n')
        lines = [
            "[databases]",
            f"{database} = host={query['host'][0]} port={query['port'][0]} dbname={database} user=postgres",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = any",
            f"auth_file = {place / 'users'}",
            f"pool_mode = {mode}",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (place / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        account = server_account(place / "none")
        command = [PROGRAM, *(["-u", account.name] if account else []), str(place / "pgbouncer.ini")]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await _accepts(port):
                    assert process.returncode is None, "pgbouncer did not start"
                    await asyncio.sleep(0.02)
            yield f"postgresql://postgres@127.0.0.1:{port}/{database}?sslmode=disable"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
