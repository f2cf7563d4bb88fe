"""What the server must be, checked at start."""

from typing import Final

import asyncpg
import msgspec

from actorhub.core.errors import ConfigurationError
from actorhub.core.logger import get_logger

_log: Final = get_logger(__name__)

OLDEST_VERSION: Final = 140000
_LOCKS_KEPT_FREE: Final = 0.2
"""Share of the lock table for everything that is not a shard."""


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is checked."""

    version: str
    version_number: int
    fsync: bool
    synchronous_commit: str
    full_page_writes: bool
    encoding: str
    standby: bool
    lock_slots: int
    """How many locks the server's lock table holds, all clients together."""


def server_facts(row: asyncpg.Record) -> ServerFacts:
    """Return the facts in a row of query `server`."""
    return msgspec.convert(dict(row), ServerFacts)


def check_server(facts: ServerFacts, where: str) -> None:
    """Warn where acknowledged commits may be lost.

    Raises:
        ConfigurationError: the server cannot serve; names it and the remedy.
    """
    if facts.version_number < OLDEST_VERSION:
        raise ConfigurationError(
            f"Postgres at {where} is version {facts.version}: actorhub needs 14 or newer, "
            "which can end silent sessions: upgrade it"
        )
    if facts.standby:
        raise ConfigurationError(f"Postgres at {where} is a read-only standby: name the primary in the database URL")
    if facts.encoding != "UTF8":
        raise ConfigurationError(
            f"the database at {where} has encoding {facts.encoding}: "
            "create one with encoding UTF8 and name it in the URL"
        )
    unsafe = {
        "fsync": not facts.fsync,
        "full_page_writes": not facts.full_page_writes,
        "synchronous_commit": facts.synchronous_commit == "off",
    }
    for setting in (name for name, off in unsafe.items() if off):
        _log.warning(
            "Postgres at %s runs with %s=off: a crash loses acknowledged commits: set it to on", where, setting
        )


def check_lock_table(facts: ServerFacts, shards: int, where: str) -> None:
    """Check that the server's lock table has room for a lock per shard.

    Raises:
        ConfigurationError: there is not enough room; says what to set.
    """
    room = int(facts.lock_slots * (1 - _LOCKS_KEPT_FREE))
    if shards > room:
        factor = -(-shards // max(room, 1))
        raise ConfigurationError(
            f"{shards} shards need a lock each, the lock table of Postgres at {where} has room for {room}: "
            f"raise max_locks_per_transaction at least {factor}-fold and restart Postgres, or use fewer shards"
        )
