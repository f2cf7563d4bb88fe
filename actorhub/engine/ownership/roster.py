"""The runner table, of which a heartbeat reads a slice.

A heartbeat that read the whole table would cost each runner time in proportion to the number of runners, and the
database its square. The table is read as a whole only when there is a reason: when this runner starts or has a new lock
session, when a link to an unknown runner opens or one breaks, when shards are released, and when the last slice had
something new. Otherwise a heartbeat reads the next few rows, and those of runners that are suspected or late. So a
change of which no link told is seen at once in a small cluster, and in a large one when its turn comes, which is after
as many heartbeats as there are slices. Placement stays the same function of the same rows on every runner.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from actorhub.storage.ports import LiveRunner, TableSlice

SLICE: Final = 16
"""Rows that a heartbeat reads, besides its own and those that are watched."""


class Roster:
    """The rows as last read, each at its time."""

    def __init__(self) -> None:
        self._rows: dict[str, LiveRunner] = {}
        self._reads_all = True
        self._after = ""
        """Where the next slice begins."""
        self._round: set[str] = set()
        """What the slices have had since the last one that began at the beginning."""

    @property
    def rows(self) -> Mapping[str, LiveRunner]:
        """The registered runners by incarnation."""
        return self._rows

    def read_all(self) -> None:
        """Have the next heartbeat read the whole table."""
        self._reads_all = True

    def next_slice(self, watched: Collection[str]) -> TableSlice | None:
        """Return what the next heartbeat should read, `watched` in any case; `None`: everything."""
        if self._reads_all or len(watched) > SLICE:
            self._reads_all = False
            return None
        return TableSlice(after=self._after, most=SLICE, besides=tuple(watched))

    def take(self, rows: Sequence[LiveRunner], asked: TableSlice | None, me: str) -> bool:
        """Take in what a heartbeat has read; return whether runners came, left or declare something else."""
        read = {row.info.runner.incarnation: row for row in rows}
        before = self._rows
        is_new = any(name not in before or before[name].info != row.info for name, row in read.items())
        if asked is None:
            self._rows, self._after, self._round = read, "", set()
            return is_new or len(read) != len(before)
        before.update(read)
        gone = {name for name in asked.besides if name in before and name not in read}
        part = [name for name in read if name != me and name not in asked.besides]
        self._round.update(read)
        if len(part) < asked.most:
            gone |= before.keys() - self._round
            self._after, self._round = "", set()
        else:
            self._after = part[-1]
        for name in gone:
            before.pop(name, None)
        if is_new or gone:
            self._reads_all = True  # Where one thing has changed, so may others have.
        return is_new or bool(gone)
