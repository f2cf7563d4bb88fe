"""The program that fault tests of durable messages run: `python -m tests.faults.durable.program JSON`."""

from tests.faults.cluster.program import run_program
from tests.faults.durable.hub import hub, notes

if __name__ == "__main__":
    run_program(hub, notes.into)
