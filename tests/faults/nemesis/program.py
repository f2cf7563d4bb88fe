"""The program that the nemesis runs: `python -m tests.faults.nemesis.program JSON`."""

from functools import partial
from typing import Final

from tests.faults.cluster.program import run_program
from tests.faults.nemesis.hub import hub, notes_into
from tests.faults.owners.hub import read_everything

_PACE: Final = 0.25
"""Seconds between two reads of one number in one process."""

if __name__ == "__main__":
    run_program(hub, notes_into, partial(read_everything, pace=_PACE))
