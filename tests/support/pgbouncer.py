"""The real PgBouncer, where it is installed."""

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

from actorhub.storage.postgres.programs import server_account
from tests.support.ports import claim_ports

PROGRAM: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
MISSING: Final = "pgbouncer is not installed: systems have a package of that name, Python's index has none"
_START_SECONDS: Final = 10.0

Mode = Literal["session", "transaction", "statement"]


@contextmanager
def pgbouncer(url: str, mode: Mode, port: int | None = None, **settings: object) -> Generator[str]:
    """Run PgBouncer in front of the Unix-socket `url`, at a port of its own; yield the URL that goes through it."""
    assert PROGRAM is not None
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    database = parts.path.removeprefix("/")
    port = port or claim_ports()
    with tempfile.TemporaryDirectory(prefix="ahpb-", dir="/tmp") as directory:
        place = Path(directory)
        place.chmod(0o755)
        users = "".join(f'"{user}" ""\n' for user in ("postgres", "app"))
        (place / "users").write_text(users)
        lines = [
            "[databases]",
            f"{database} = host={query['host'][0]} port={query['port'][0]} dbname={database}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {place / 'users'}",
            f"pool_mode = {mode}",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (place / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        account = server_account(place / "none")
        command = [PROGRAM, *(["-u", account.name] if account else []), str(place / "pgbouncer.ini")]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_for(port, process, place / "log")
            yield f"postgresql://postgres@127.0.0.1:{port}/{database}?sslmode=disable"
        finally:
            process.kill()
            process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.02)
    raise AssertionError(f"pgbouncer did not start: {log.read_text(errors='replace')}")
