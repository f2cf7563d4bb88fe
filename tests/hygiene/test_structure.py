"""The engine has no circles, and one durable ask walks through few of its files."""

from pathlib import Path

import pytest

from tests.hygiene.sources import ROOT
from tests.hygiene.structure import circles, floors, folders, imports, report, upward
from tests.hygiene.walk import counts, walk

ENGINE = ROOT / "actorhub" / "engine"
MOST_FILES = 14
MOST_FILES_OVER_A_LINK = 17
MOST_VISITS = 2
"""To one file."""


def test_no_module_of_the_engine_is_in_a_circle() -> None:
    """Imports for type checkers count: a reader follows them, too."""
    assert circles(imports(ENGINE)) == []
    assert upward(imports(ENGINE)) == 0


def test_no_folder_of_the_engine_is_in_a_circle() -> None:
    """A folder is understood from those below it, and none of these needs it."""
    assert circles(folders(imports(ENGINE))) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    """An import for type checkers alone closes a circle, within a folder and between two."""
    for name, code in {
        "__init__.py": "",
        "low/__init__.py": "",
        "low/record.py": "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from house.high.service import Service\n",
        "high/__init__.py": "",
        "high/service.py": "from house.low.record import Record\nfrom house.high import caller\n",
        "high/caller.py": "import house.low.record\n",
    }.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(code, encoding="utf-8")
    graph = imports(tmp_path / "house")
    assert circles(graph) == [frozenset({"low.record", "high.service", "high.caller"})]
    assert circles(folders(graph)) == [frozenset({"low", "high"})]
    assert upward(folders(graph)) == 1
    assert floors(graph) == 1
    assert next(report(tmp_path / "house")).endswith("1 arrow that runs back up")


@pytest.mark.parametrize(("remote", "most"), [(False, MOST_FILES), (True, MOST_FILES_OVER_A_LINK)])
async def test_a_durable_ask_walks_through_few_files(*, remote: bool, most: int) -> None:
    """A newcomer can follow it: few files, and few ways back into one of them."""
    found = counts(await walk(remote=remote))
    assert len(found) <= most, found
    assert max(found.values()) <= MOST_VISITS, found
