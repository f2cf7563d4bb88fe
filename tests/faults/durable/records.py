"""What Postgres knows about durable messages once a run is over."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tests.faults.cluster.processes import ClusterProcesses
from tests.faults.durable.history import Book, Commit, Ledger, Row, Sent, Witness, read_runs
from tests.faults.durable.hub import WITNESS_TABLE, Applications

_UNSETTLED: Final = "select count(*) from actorhub.messages where state in ('pending', 'scheduled')"


async def make_witness_table(processes: ClusterProcesses) -> None:
    """Make the users' table that handlers write to."""
    await processes.fetch(WITNESS_TABLE)


async def settled(processes: ClusterProcesses, deadline: float) -> None:
    """Wait until no message is pending; after `deadline` seconds it is the judge's to say so."""
    try:
        async with asyncio.timeout(deadline):
            while (await processes.fetch(_UNSETTLED))[0][0]:
                await asyncio.sleep(0.05)
    except TimeoutError:
        return


async def read_book(processes: ClusterProcesses, sent: Sequence[Sent], *, is_calm: bool = False) -> Book:
    """Return everything that was noted and stored."""
    witnesses = await processes.fetch(
        "select content, message_id, entity, epoch, attempt, position from public.witness"
    )
    rows = await processes.fetch("select message_id, entity_id, state from actorhub.messages")
    return Book(
        sent=sent,
        runs=read_runs(processes.events()),
        ledgers=await _ledgers(processes),
        witnesses=[Witness(*row) for row in witnesses],
        rows=[Row(*row) for row in rows],
        is_calm=is_calm,
    )


async def _ledgers(processes: ClusterProcesses) -> Mapping[str, Ledger]:
    rows = await processes.fetch(
        "select entity_id, version, epoch, data from actorhub.entity_state where entity_type = 'book'"
    )
    return {row["entity_id"]: ledger_of(row["version"], row["epoch"], row["data"]) for row in rows}


def ledger_of(version: int, epoch: int, data: bytes) -> Ledger:
    """Return the commits in a book's stored state."""
    done = msgspec.msgpack.decode(data, type=Applications).done
    return Ledger(version, epoch, [Commit(*msgspec.structs.astuple(each)) for each in done])
