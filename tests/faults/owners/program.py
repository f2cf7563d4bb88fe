"""The program that tests about former owners run: `python -m tests.faults.owners.program JSON`."""

import asyncio
import json
import logging
import sys
from pathlib import Path

from tests.faults.cluster.program import main
from tests.faults.owners.hub import events, hub, read_everything

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    events.into(Path(given.pop("events")))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s")
    asyncio.run(main(given, hub, read_everything))
