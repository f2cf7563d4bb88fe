"""An entity whose annotations mean names of this module, wherever it is derived from."""

from __future__ import annotations

import msgspec

from actorhub import Entity


class Note(msgspec.Struct):
    number: int = 0


class Uncle(Entity):
    async def put(self, note: Note) -> Note:
        return note
