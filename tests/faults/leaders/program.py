"""The program that tests which kill leaders run: `python -m tests.faults.leaders.program JSON`."""

from tests.faults.cluster.program import run_program
from tests.faults.leaders.hub import hub, notes

if __name__ == "__main__":
    run_program(hub, notes.into)
