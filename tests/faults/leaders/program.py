"""The program that tests which kill leaders run: `python -m tests.faults.leaders.program JSON`."""

import asyncio
import json
import logging
import sys
from pathlib import Path

from tests.faults.cluster.program import main
from tests.faults.leaders.hub import hub, notes

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    notes.into(Path(given.pop("events")))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s")
    asyncio.run(main(given, hub))
