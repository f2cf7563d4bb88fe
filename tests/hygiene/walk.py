"""Which files one durable ask walks through, by watching one: `python -m tests.hygiene.walk [remote]`.

The entity is resident and idle; the caller is in the runner's own process or, with `remote`, a client of it. A file is
*entered* when another file, or the event loop, calls a function of it. What one visit to a file calls in another one is
one entry, and so are turns of the event loop in one file that follow each other. To return is not to enter, and neither
is to go on after an `await`.

Left out are the ports' implementations and what only holds facts or answers a question (`LEFT_OUT`).
"""

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

import actorhub
from actorhub import Entity, Hub, handler
from actorhub.cluster import Cluster
from actorhub.testing import MemoryCluster

PACKAGE: Final = Path(actorhub.__file__).parent

LEFT_OUT: Final = (
    "core/",
    "storage/",
    "testing/",
    "transport/",
    "engine/model/",
    # Asked for a value, or told one, and done: the time, an id, a deadline, what a future of the store holds.
    "engine/durable/server_clock.py",
    "engine/ids.py",
    "engine/routing/deadlines.py",
    "engine/routing/table.py",
    "engine/runs/store_answers.py",
)
_ASKS: Final = 20
"""Asks that are watched; the shortest walk counts, since the runner's own loops run beside it."""


class Total(msgspec.Struct):
    """The state of an account."""

    cents: int = 0


class Account(Entity[Total]):
    """What is asked."""

    @handler(durable=True)
    async def deposit(self, cents: int) -> int:
        """Add to the balance."""
        self.state.cents += cents
        return self.state.cents


class Entry(msgspec.Struct):
    """One entry into a file."""

    file: str
    """Below `actorhub/`."""
    functions: list[str]
    """What was called there from outside."""
    by_event_loop: bool
    """Called by the event loop, not by the file before it."""


class Watch:
    """Notes entries; `sys.setprofile` calls it for every call of the thread."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._files: dict[FrameType, str] = {}
        """Frames that were seen, and their files: a frame that is seen again goes on after an `await`."""
        self._open: dict[tuple[FrameType, str], Entry] = {}
        """What was entered from a visit to a file, which its first frame stands for."""
        self._turn: Entry | None = None
        """The entry with which the event loop's present turn began."""

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call."""
        if event != "call" or frame in self._files:
            return
        file = self._file_of(frame)
        if not file:
            return
        function = frame.f_code.co_qualname
        visit = self._visit(frame)
        if visit is None:
            self._by_event_loop(file, function)
        elif self._file_of(visit) != file:
            entered = self._open.get((visit, file))
            if entered is None:
                entered = self._open[visit, file] = Entry(file, [], by_event_loop=False)
                self.entries.append(entered)
            entered.functions.append(function)

    def _by_event_loop(self, file: str, function: str) -> None:
        for last in (self._turn, *self.entries[-1:]):
            if last is not None and last.file == file:
                last.functions.append(function)
                self._turn = last
                return
        self._turn = Entry(file, [function], by_event_loop=True)
        self.entries.append(self._turn)

    def _visit(self, frame: FrameType) -> FrameType | None:
        """Return the first frame of the visit that called `frame`; `None`: the event loop did."""
        caller = frame.f_back
        while caller is not None and not self._file_of(caller):
            caller = caller.f_back
        first = caller
        while caller is not None and self._file_of(caller) in ("", self._file_of(first)):
            if self._file_of(caller):
                first = caller
            caller = caller.f_back
        return first

    def _file_of(self, frame: FrameType | None) -> str:
        if frame is None:
            return ""
        if frame not in self._files:
            self._files[frame] = _file(frame)
        return self._files[frame]


def _file(frame: FrameType) -> str:
    """Return the file of a frame, if it counts."""
    path = Path(frame.f_code.co_filename)
    name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""
    return "" if name.startswith(LEFT_OUT) else name


async def walk(*, remote: bool = False) -> list[Entry]:
    """Return the entries of one durable ask, in order."""
    hub = Hub()
    hub.register(Account)
    async with MemoryCluster(hub) as memory:
        runner = await memory.start_runner()
        cluster = await memory.client() if remote else runner
        await cluster.client(Account)("ada").deposit(1)
        walks = [await _watched(cluster) for _ in range(_ASKS)]
    return min(walks, key=len)


async def _watched(cluster: Cluster) -> list[Entry]:
    account = cluster.client(Account)("ada")
    watch = Watch()
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        await account.deposit(1)
    finally:
        sys.setprofile(before)
    return watch.entries


def counts(entries: list[Entry]) -> dict[str, int]:
    """Return how often each file is entered."""
    found: dict[str, int] = {}
    for entry in entries:
        found[entry.file] = found.get(entry.file, 0) + 1
    return found


def main() -> None:
    """Print the walk."""
    entries = asyncio.run(walk(remote="remote" in sys.argv))
    for entry in entries:
        print(f"{'loop →' if entry.by_event_loop else '     →'} {entry.file}: {', '.join(entry.functions)}")
    found = counts(entries)
    print(f"{len(found)} files, {len(entries)} entries, at most {max(found.values())} of one file")


if __name__ == "__main__":
    main()
