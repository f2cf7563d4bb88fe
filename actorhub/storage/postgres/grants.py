"""What a role may do in a schema that is somebody else's: what it must be granted, and what of that is missing."""

from collections.abc import Sequence
from typing import Final

from actorhub.core.errors import ConfigurationError
from actorhub.storage.postgres.connection import Connection
from actorhub.storage.postgres.queries import queries, quoted

_TABLE: Final = "select, insert, update, delete"


def grants_sql(namespace: str, roles: Sequence[str]) -> str:
    """Return statements that make `roles` where they are missing, and grant them what runners and clients need.

    Tables and functions that later migrations of the same owner make are granted as well.
    """
    schema = quoted(namespace)
    lines: list[str] = []
    for role in roles:
        name = '"' + role.replace('"', '""') + '"'
        create = f"execute format('create role %I login', {_literal(role)})"
        lines += [
            f"do $$ begin if to_regrole({_literal(name)}) is null then {create}; end if; end $$;",
            f"grant usage on schema {schema} to {name};",
            f"grant {_TABLE} on all tables in schema {schema} to {name};",
            f"grant execute on all functions in schema {schema} to {name};",
            f"alter default privileges in schema {schema} grant {_TABLE} on tables to {name};",
            f"alter default privileges in schema {schema} grant execute on functions to {name};",
        ]
    return "".join(f"{line}\n" for line in lines)


async def check_grants(connection: Connection, namespace: str) -> None:
    """Check that the user of `connection` may use the schema, if that is there.

    Raises:
        ConfigurationError: it may not; says what to grant.
    """
    rows = await connection.fetch(queries()["missing_grants"], namespace)
    if rows:
        wanted = "; ".join(f"grant {row['privileges']} on {row['objects']} to {row['role']}" for row in rows)
        raise ConfigurationError(
            f"role {rows[0]['role']} lacks privileges in schema {namespace}: let its owner run: {wanted}"
        )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
