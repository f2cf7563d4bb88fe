"""The program that fault tests of registers run: `python -m tests.faults.registers.program JSON`."""

from tests.faults.cluster.program import run_program
from tests.faults.registers.hub import hub, notes

if __name__ == "__main__":
    run_program(hub, notes.into)
