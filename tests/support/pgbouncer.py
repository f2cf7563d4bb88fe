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


class PgBouncer:
    """A PgBouncer in front of the Unix-socket `url`, which can be started again."""

    def __init__(self, url: str, mode: Mode, place: Path, **settings: object) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        database = parts.path.removeprefix("/")
        self.port = claim_ports()
        self._place = place
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"
        """What goes through it."""
        self._process: subprocess.Popen[bytes] | None = None
        users = "".join(f'"{user}" ""\n' for user in ("postgres", "app"))
        (place / "users").write_text(users)
        lines = [
            "[databases]",
            f"{database} = host={query['host'][0]} port={query['port'][0]} dbname={database}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {place / 'users'}",
            f"pool_mode = {mode}",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (place / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert PROGRAM is not None
        account = server_account(self._place / "none")
        command = [PROGRAM, *(["-u", account.name] if account else []), str(self._place / "pgbouncer.ini")]
        with (self._place / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _wait_for(self.port, self._process, self._place / "log")

    def stop(self) -> None:
        """End it at once, with everybody's connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(url: str, mode: Mode, **settings: object) -> Generator[PgBouncer]:
    """Run PgBouncer in front of the Unix-socket `url`."""
    with tempfile.TemporaryDirectory(prefix="ahpb-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        made = PgBouncer(url, mode, Path(directory), **settings)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@contextmanager
def pgbouncer(url: str, mode: Mode, **settings: object) -> Generator[str]:
    """Run PgBouncer in front of the Unix-socket `url`; yield the URL that goes through it."""
    with running(url, mode, **settings) as made:
        yield made.url


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.02)
    raise AssertionError(f"pgbouncer did not start: {log.read_text(errors='replace')}")
