"""The program that tests about former owners run: `python -m tests.faults.owners.program JSON`."""

from tests.faults.cluster.program import run_program
from tests.faults.owners.hub import hub, notes, read_everything

if __name__ == "__main__":
    run_program(hub, notes.into, read_everything)
