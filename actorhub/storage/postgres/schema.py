"""The numbered migrations of a namespace, and how they are applied.

A migration is a file `NNNN_name.sql`, or a folder `NNNN_name` of files that are applied in the order of their names.
"""

import re
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import asyncpg
import msgspec

from actorhub.core.address import NAME_PATTERN, lock_key
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.connection import Connection, Database, begin, close
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, summary, translate
from actorhub.storage.postgres.grants import check_grants, grants_sql
from actorhub.storage.postgres.queries import queries, quoted

LOCK_TIMEOUT: Final = "30s"
_MIGRATION: Final = re.compile(r"(\d{4})_([a-z0-9_]+?)(?:\.sql)?")
_BOOKKEEPING: Final = """\
create table if not exists migration (
    number integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);
"""


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema. Once released, its text never changes."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What tells whether the applied text was this one."""
        return sha256(self.sql.encode()).hexdigest()


@cache
def migrations() -> tuple[Migration, ...]:
    """Return every migration that this release knows, in order."""
    entries = (resources.files(__package__ or "") / "migrations").iterdir()
    found = [(match, entry) for entry in entries if (match := _MIGRATION.fullmatch(entry.name))]
    known = (Migration(int(match[1]), match[2], _text(entry)) for match, entry in found)
    return tuple(sorted(known, key=lambda migration: migration.number))


def check_namespace(namespace: str) -> str:
    """Return `namespace` if it may name a schema.

    Raises:
        ConfigurationError: it may not; says what is allowed.
    """
    if not NAME_PATTERN.fullmatch(namespace) or namespace.startswith("pg_") or namespace == "information_schema":
        raise ConfigurationError(
            f"namespace {namespace!r} cannot name a schema: use lower-case letters, digits and underscores, "
            "a letter first, 31 at most, not pg_"
        )
    return namespace


def migration_sql(namespace: str, roles: Sequence[str] = ()) -> str:
    """Return one script that makes `namespace` from nothing, with what `migrate` writes down about it, for `roles`."""
    steps = "\n".join(f"{step.sql}\n{_record(step)}" for step in migrations())
    return (
        f"begin;\ncreate schema if not exists {quoted(check_namespace(namespace))};\n"
        f"set local search_path = {quoted(namespace)};\n\n{_BOOKKEEPING}\n{steps}\n"
        f"{grants_sql(namespace, roles)}commit;\n"
    )


async def migrate(url: str, namespace: str) -> int:
    """Apply the migrations that the namespace lacks, all or none; return how many those were.

    Any number of processes may call it at once. An up-to-date namespace is only read.

    Raises:
        ConfigurationError: the schema is newer than this release or was changed, or cannot be reached or made.
        PersistenceError: Postgres failed, or another process migrates for longer than `LOCK_TIMEOUT`.
    """
    database = Database(url, check_namespace(namespace))
    connection = await database.first_connect("actorhub migrate")
    try:
        return await migrate_over(connection, database)
    finally:
        await close(connection)


async def migrate_over(connection: Connection, database: Database) -> int:
    """Like `migrate`, over a connection that has no settings, nor needs a session of its own."""
    namespace = database.namespace
    try:
        # In one transaction, so that a pooler does not change the session in between.
        await connection.execute(begin(database.settings({"lock_timeout": LOCK_TIMEOUT})))
        await check_grants(connection, namespace)
        if not missing(await _applied(connection, namespace)):
            await connection.execute("rollback")
            return 0
        applied = await _apply(connection, namespace)
        await connection.execute("commit")
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(
            f"the database user may not change schema {namespace}: {summary(exc)}: let its owner run the output of "
            "actorhub migrate --print-sql"
        ) from exc
    except FOREIGN_ERRORS as exc:
        raise translate(exc, f"migrate schema {namespace}") from exc
    return applied


def missing(applied: Sequence[tuple[int, str, str]]) -> Sequence[Migration]:
    """Return the migrations to apply, given (number, name, checksum) of those that were.

    Raises:
        ConfigurationError: something was applied that this release does not know, or knows differently.
    """
    known = {migration.number: migration for migration in migrations()}
    for number, name, checksum in applied:
        if number not in known:
            raise ConfigurationError(
                f"the schema has migration {number} ({name}), this release knows {max(known)}: "
                "install the newer release"
            )
        if known[number].checksum != checksum:
            raise ConfigurationError(
                f"migration {number} ({name}) was applied with another text: this release cannot use that schema; "
                "use the release that made it, or another namespace"
            )
    done = {number for number, _, _ in applied}
    return [migration for migration in migrations() if migration.number not in done]


async def _apply(connection: Connection, namespace: str) -> int:
    await connection.execute("select pg_advisory_xact_lock($1)", lock_key(namespace, "migration"))
    # `create schema if not exists` wants the right to create one even where it exists.
    if not await connection.fetchval(queries()["namespace_exists"], namespace):
        await connection.execute(f"create schema {quoted(namespace)}")
    await connection.execute(f"set local search_path = {quoted(namespace)}")
    await connection.execute(_BOOKKEEPING)
    steps = missing(await _applied(connection, namespace))
    for step in steps:
        await connection.execute(f"{step.sql}\n{_record(step)}")
    return len(steps)


async def _applied(connection: Connection, namespace: str) -> Sequence[tuple[int, str, str]]:
    if not await connection.fetchval(queries()["migration_table"], namespace):
        return []
    return [(row["number"], row["name"], row["checksum"]) for row in await connection.fetch(queries()["migrations"])]


def _text(entry: Traversable) -> str:
    files = sorted(entry.iterdir(), key=lambda file: file.name) if entry.is_dir() else [entry]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _record(step: Migration) -> str:
    values = f"({step.number}, '{step.name}', '{step.checksum}')"
    return f"insert into migration (number, name, checksum) values {values};\n"  # noqa: S608 - our own file's name
