"""What Postgres knows about durable messages once a run is over."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.durable.history import Book, Commit, Ledger, Row, Run, Sent, Witness, read_runs
from tests.faults.durable.hub import WITNESS_TABLE, Applications

_UNSETTLED: Final = "select count(*) from actorhub.message where entity_type = 'book'"
_ROWS: Final = """
    select message_id, entity_id, state from actorhub.messages
    where entity_type = 'book' and ($1::text[] is null or entity_id = any($1))
"""
_WITNESSES: Final = """
    select content, message_id, entity, epoch, attempt, position from public.witness
    where $1::text[] is null or entity = any($1)
"""
_LEDGERS: Final = """
    select entity_id, version, epoch, data from actorhub.entity_state
    where entity_type = 'book' and ($1::text[] is null or entity_id = any($1))
"""


async def make_witness_table(processes: ClusterProcesses) -> None:
    """Make the users' table that handlers write to."""
    await processes.fetch(WITNESS_TABLE)


async def settled(processes: ClusterProcesses, deadline: float) -> None:
    """Wait until no message of a book is pending; after `deadline` seconds it is the judge's to say so."""
    try:
        async with asyncio.timeout(deadline):
            while (await processes.fetch(_UNSETTLED))[0][0]:
                await asyncio.sleep(0.05)
    except TimeoutError:
        return


async def read_book(
    processes: ClusterProcesses,
    sent: Sequence[Sent],
    *,
    runs: Sequence[Run] | None = None,
    entities: Sequence[str] | None = None,
    is_calm: bool = False,
) -> Book:
    """Return everything that was noted and stored, or what concerns these entities, whose runs were read already."""
    rows = await processes.fetch(_ROWS, entities)
    witnesses = await processes.fetch(_WITNESSES, entities)
    ledgers = await processes.fetch(_LEDGERS, entities)
    return Book(
        sent=sent,
        runs=read_runs(processes.events()) if runs is None else runs,
        ledgers={row["entity_id"]: ledger_of(row["version"], row["epoch"], row["data"]) for row in ledgers},
        witnesses=[Witness(*row) for row in witnesses],
        rows=[Row(*row) for row in rows],
        is_calm=is_calm,
    )


def ledger_of(version: int, epoch: int, data: bytes) -> Ledger:
    """Return the commits in a book's stored state."""
    done = msgspec.msgpack.decode(data, type=Applications).done
    return Ledger(version, epoch, [Commit(*msgspec.structs.astuple(each)) for each in done])
