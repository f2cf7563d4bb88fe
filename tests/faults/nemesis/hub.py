"""The hub of the nemesis: the entities of all fault tests together.

The environment variable `NEMESIS_MUTANT` names a defect of the product to run with; nothing but this module reads it.
"""

import os
from pathlib import Path

from actorhub import Hub
from tests.faults import mutants
from tests.faults.durable import hub as durable
from tests.faults.leaders import hub as leaders
from tests.faults.owners import hub as owners
from tests.faults.registers import hub as registers
from tests.faults.sagas import hub as sagas

hub = Hub()
for cls in (
    durable.Book,
    leaders.Leader,
    owners.Till,
    registers.Register,
    registers.Relay,
    sagas.Books,
    sagas.Order,
    sagas.Payment,
    sagas.Stock,
):
    hub.register(cls)


def notes_into(path: Path) -> None:
    """Write down what happens in this process, each kind in a file of its own."""
    registers.notes.into(path.with_suffix(".starts"))
    durable.notes.into(path.with_suffix(".runs"))
    leaders.notes.into(path.with_suffix(".turns"))
    owners.notes.into(path.with_suffix(".acts"))


mutants.apply(os.environ.get("NEMESIS_MUTANT", ""))
