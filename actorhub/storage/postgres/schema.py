"""The steps of a namespace's schema, and how they are applied: migrations, then additions.

A step is a file `NNNN_name.sql`, or a folder `NNNN_name` of files that are applied in the order of their names. A
migration is for all: a release refuses a schema with one that it does not know. An addition is something that earlier
releases may ignore, so they go on with the schema, and can be started again on it.
"""

import re
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final, Literal

import asyncpg
import msgspec

from actorhub.core.address import NAME_PATTERN, lock_key
from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.connection import Connection, Database, begin, close
from actorhub.storage.postgres.errors import FOREIGN_ERRORS, summary, translate
from actorhub.storage.postgres.grants import check_grants, grants_sql
from actorhub.storage.postgres.queries import queries, quoted

LOCK_TIMEOUT: Final = "30s"
_STEP: Final = re.compile(r"(\d{4})_([a-z0-9_]+?)(?:\.sql)?")
_BOOKKEEPING: Final = """\
create table if not exists migration (
    number integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);
create table if not exists addition (
    number integer not null,
    name text primary key,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);
"""


class Step(msgspec.Struct, frozen=True):
    """One change of the schema. Once released, its text never changes."""

    kind: Literal["migration", "addition"]
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What tells whether the applied text was this one."""
        return sha256(self.sql.encode()).hexdigest()

    @property
    def recorded(self) -> str:
        """The step, and the row that says it was applied."""
        values = f"({self.number}, '{self.name}', '{self.checksum}')"
        return f"{self.sql}\ninsert into {self.kind} (number, name, checksum) values {values};"

    @property
    def unless_applied(self) -> str:
        """A statement for the step and its row, which does nothing where it was applied before."""
        applied = f"select from {self.kind} where name = '{self.name}'"
        body = f"execute $step$\n{self.recorded}\n$step$"
        return f"do $migrate$ begin if not exists ({applied}) then {body}; end if; end $migrate$;\n"


@cache
def migrations() -> Sequence[Step]:
    """Return every migration that this release knows, in order."""
    return _steps("migration")


@cache
def additions() -> Sequence[Step]:
    """Return every addition that this release knows, in order."""
    return _steps("addition")


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
    """Return one script that does what `migrate` does, and grants `roles` what they need.

    It makes `namespace` from nothing, or applies what it lacks.
    """
    schema = quoted(check_namespace(namespace))
    missing = f"to_regnamespace('{schema}') is null"
    steps = "\n".join(step.unless_applied for step in (*migrations(), *additions()))
    return (
        f"begin;\nselect pg_advisory_xact_lock({_lock(namespace)});\n"
        f"do $migrate$ begin if {missing} then create schema {schema}; end if; end $migrate$;\n"
        f"set local search_path = {schema};\n\n{_BOOKKEEPING}\n{steps}\n{grants_sql(namespace, roles)}commit;\n"
    )


async def migrate(url: str, namespace: str) -> int:
    """Apply the steps that the namespace lacks, all or none; return how many those were.

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
        if not await _lacking(connection, namespace):
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


def missing_migrations(applied: Sequence[tuple[int, str, str]]) -> Sequence[Step]:
    """Return the migrations to apply, given (number, name, checksum) of those that were.

    Raises:
        ConfigurationError: something was applied that this release does not know, or knows differently.
    """
    known = {(step.number, step.name) for step in migrations()}
    for number, name, _ in applied:
        if (number, name) not in known:
            raise ConfigurationError(
                f"the schema has migration {number} ({name}), which this release does not know: "
                "install the newer release"
            )
    return _missing(migrations(), applied)


def missing_additions(applied: Sequence[tuple[int, str, str]]) -> Sequence[Step]:
    """Return the additions to apply, given those that were. What a newer release added is its own business.

    Raises:
        ConfigurationError: one was applied that this release knows differently.
    """
    return _missing(additions(), applied)


def _missing(steps: Sequence[Step], applied: Sequence[tuple[int, str, str]]) -> Sequence[Step]:
    checksums = {name: checksum for _, name, checksum in applied}
    for step in steps:
        if checksums.get(step.name, step.checksum) != step.checksum:
            raise ConfigurationError(
                f"{step.kind} {step.number} ({step.name}) was applied with another text: this release cannot use that "
                "schema; use the release that made it, or another namespace"
            )
    return [step for step in steps if step.name not in checksums]


async def _apply(connection: Connection, namespace: str) -> int:
    await connection.execute("select pg_advisory_xact_lock($1)", _lock(namespace))
    # `create schema if not exists` wants the right to create one even where it exists.
    if not await connection.fetchval(queries()["namespace_exists"], namespace):
        await connection.execute(f"create schema {quoted(namespace)}")
    await connection.execute(f"set local search_path = {quoted(namespace)}")
    await connection.execute(_BOOKKEEPING)
    steps = await _lacking(connection, namespace)
    for step in steps:
        await connection.execute(step.recorded)
    return len(steps)


async def _lacking(connection: Connection, namespace: str) -> Sequence[Step]:
    """Return the steps to apply, in order."""
    migrated = await _applied(connection, namespace, "migration", "migrations")
    added = await _applied(connection, namespace, "addition", "additions")
    return [*missing_migrations(migrated), *missing_additions(added)]


async def _applied(connection: Connection, namespace: str, table: str, query: str) -> Sequence[tuple[int, str, str]]:
    if not await connection.fetchval(queries()["step_table"], namespace, table):
        return []
    return [(row["number"], row["name"], row["checksum"]) for row in await connection.fetch(queries()[query])]


def _steps(kind: Literal["migration", "addition"]) -> Sequence[Step]:
    entries = (resources.files(__package__ or "") / f"{kind}s").iterdir()
    found = [(match, entry) for entry in entries if (match := _STEP.fullmatch(entry.name))]
    return sorted(
        (Step(kind, int(match[1]), match[2], _text(entry)) for match, entry in found),
        key=lambda step: (step.number, step.name),
    )


def _text(entry: Traversable) -> str:
    files = sorted(entry.iterdir(), key=lambda file: file.name) if entry.is_dir() else [entry]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _lock(namespace: str) -> int:
    return lock_key(namespace, "migration")
