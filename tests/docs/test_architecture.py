"""What the documents for developers say of the code holds."""

import re
from pathlib import Path

import pytest

from actorhub.engine.ownership import former_owners, plan, roster, session
from actorhub.storage import ports
from actorhub.storage.postgres import leases
from tests.docs.documents import FOR_DEVELOPERS, ROOT, prose, rows
from tests.docs.pointers import complaints, pointers

ARCHITECTURE = ROOT / "ARCHITECTURE.md"
INVARIANTS = ROOT / "tests" / "INVARIANTS.md"
OWNERSHIP = ROOT / "docs" / "design" / "ownership.md"


def _section(document: Path, heading: str) -> str:
    return prose(document).partition(f"## {heading}\n")[2].partition("\n## ")[0]


def _invariants() -> dict[str, str]:
    """Return the evidence of each invariant by its name."""
    return {part.partition("\n")[0]: part for part in INVARIANTS.read_text(encoding="utf-8").split("\n## ")[1:]}


@pytest.mark.parametrize("document", FOR_DEVELOPERS, ids=lambda path: path.name)
def test_what_a_document_points_to_is_there(document: Path) -> None:
    """Where a document says `file`: `name`, that file, or a file of that folder, defines the name."""
    assert complaints(prose(document)) == []


def test_a_reference_to_what_is_gone_is_found() -> None:
    """A file that was moved, a function that was renamed and a test that was removed are told from those that exist."""
    good = "`tests/INVARIANTS.md`; `actorhub/hub.py`: `Hub`, `register`; `Hub` in `actorhub/hub.py`; `actorhub`: `Hub`"
    assert complaints(good) == []
    assert len(list(pointers(good))) == 3
    bad = (
        "`actorhub/hubs.py`: `Hub`; `actorhub/hub.py`: `Hub`, `enlist`; `RETENTION` in `actorhub/hub.py`; "
        "`tests/docs/test_architecture.py`: `test_nothing`"
    )
    assert [text.partition(",")[0] for text in complaints(bad)] == [
        "actorhub/hubs.py does not exist (Hub is in actorhub/hub.py)",
        "actorhub/hub.py does not define enlist",
        "tests/docs/test_architecture.py does not define test_nothing",
        "actorhub/hub.py does not define RETENTION",
    ]


def test_each_invariant_has_its_evidence() -> None:
    """For each promise of ARCHITECTURE.md, tests/INVARIANTS.md names code that keeps it and tests that would fail."""
    promised = re.findall(r"^- \*\*(.+?)\.\*\*", _section(ARCHITECTURE, "Invariants"), re.MULTILINE)
    found = _invariants()
    assert list(found) == promised
    for name, evidence in found.items():
        kept, _, tested = evidence.partition("\nTested by:\n")
        assert list(pointers(kept.partition("\nKept by:\n")[2])), name
        assert any(place.startswith(("tests/", "actorhub/conformance/")) for place, _ in pointers(tested)), name


def test_each_folder_of_the_package_has_a_line() -> None:
    """A reader finds every package in the table of folders, and nothing else."""
    table = rows(_section(ARCHITECTURE, "The picture"))
    shown = {code for folder, _ in table for code in re.findall(r"`([^`]+)`", folder)}
    inits = (path for path in (ROOT / "actorhub").rglob("__init__.py") if "_pb" not in path.parts)
    assert shown == {path.parent.relative_to(ROOT).as_posix() for path in inits}


def test_each_of_the_five_changes_names_its_files() -> None:
    """The changes that were tried on paper are numbered, file by file."""
    table = rows(_section(ARCHITECTURE, "Where to change what"))[-5:]
    for change, files in table:
        numbers = [int(number) for number in re.findall(r"\b(\d)\. ", files)]
        assert numbers == list(range(1, len(numbers) + 1)), change
        assert numbers, change


def test_the_numbers_of_ownership_are_those_of_the_code() -> None:
    """The seconds in the table of ownership are the constants'."""
    table = rows(_section(OWNERSHIP, "Numbers"))
    stated = {where.split("`")[1]: float(re.findall(r"[\d.]+", value)[0]) for _, value, where in table}
    assert stated == {
        "HEARTBEAT_INTERVAL": ports.HEARTBEAT_INTERVAL.total_seconds(),
        "LEASE": ports.LEASE.total_seconds(),
        "SESSION_IDLE_LIMIT": ports.SESSION_IDLE_LIMIT.total_seconds(),
        "OPERATION_DEADLINE": session.OPERATION_DEADLINE,
        "LIVE_WITHIN": plan.LIVE_WITHIN,
        "STALE_AFTER": plan.STALE_AFTER,
        "FORGET_AFTER": plan.FORGET_AFTER,
        "LEASE_IS_OVER": former_owners.LEASE_IS_OVER,
        "SLICE": roster.SLICE,
        "SILENCE_LIMIT": leases.SILENCE_LIMIT.total_seconds(),
    }
