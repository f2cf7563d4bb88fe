"""The tests in docs/testing.md pass, in a project that is set up as it says."""

import re
import tomllib
from pathlib import Path

from tests.docs.documents import ROOT, blocks
from tests.testing.sessions import run

GUIDE = ROOT / "docs" / "testing.md"


def test_the_tests_of_the_guide_pass(tmp_path: Path) -> None:
    """Every module is saved under its name, and pytest runs with the settings that the guide advises."""
    modules = [block for block in blocks(GUIDE, "python") if block.file_name]
    for block in modules:
        (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
    (advised,) = blocks(GUIDE, "toml")
    options = tomllib.loads(advised.text)["tool"]["pytest"]["ini_options"]
    session = run(tmp_path, settings="".join(f"{name} = {value}\n" for name, value in options.items()))
    assert session.status == 0, session.output
    shown = [f"{block.file_name}::{name}" for block in modules for name in re.findall(r"def (test_\w+)", block.text)]
    assert len(shown) > 5
    assert sorted(session.passed) == sorted(shown)


def test_the_first_test_takes_ten_lines() -> None:
    """What a newcomer types before the first green dot stays short."""
    (first,) = [block for block in blocks(GUIDE, "python") if block.file_name == "test_wallet.py"]
    assert len([line for line in first.text.splitlines()[1:] if line.strip()]) <= 10
