"""A process that uses the embedded Postgres of a directory until its standard input ends.

`python -m tests.storage.embedded_user DIRECTORY [UID | fork]`: prints the server's URL, and `left` when it has left.
With a UID it becomes that user once everything is imported: a test's interpreter may lie where only root can read.
With `fork` it leaves a child behind, which does nothing, and prints that one's process id next.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 - loaded on first use, which may be too late
import os
import signal
import sys
from pathlib import Path

from actorhub.storage.postgres.embedded import EmbeddedPostgres


async def _use(directory: Path) -> None:
    postgres = EmbeddedPostgres(directory)
    print(await postgres.start(), flush=True)
    if sys.argv[2:] == ["fork"]:
        print(_left_behind(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await postgres.stop()
    print("left", flush=True)


def _left_behind() -> int:
    child = os.fork()
    if child == 0:
        os.closerange(0, 3)
        while True:
            signal.pause()
    return child


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[2] != "fork":
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    asyncio.run(_use(Path(sys.argv[1])))
