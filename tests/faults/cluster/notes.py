"""What processes of fault tests write down before they do anything else, and how it is read while they go on."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec


class Notes:
    """Where a process writes down what happens in it: a file that survives the process, or memory."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._file = -1

    def into(self, path: Path) -> None:
        """Write to a file from now on."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, *values: object) -> None:
        """Write a line, whole, before anything else happens."""
        line = msgspec.json.encode(values)
        if self._file < 0:
            self.lines.append(line.decode())
        else:
            os.write(self._file, line + b"\n")


class NotesReader:
    """Reads what was written since it read last, so that a long run need not be kept in memory.

    Args:
        find: Returns the files; each is named by its process.
    """

    def __init__(self, find: Callable[[], Iterable[Path]]) -> None:
        self._find = find
        self._read: dict[Path, int] = {}
        """How many bytes of each file were read."""

    def read(self) -> list[list[Any]]:
        """Return each new line's values, and its process; a line that a kill cut short never becomes whole."""
        found: list[list[Any]] = []
        for path in self._find():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            found += [[*msgspec.json.decode(line), path.stem] for line in whole.splitlines()]
        return found
