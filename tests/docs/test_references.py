"""What the documents point to exists: files, headings, targets, commands, flags, messages."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, blocks, command_flags, modules, prose, rows

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _shown(document: Path) -> list[str]:
    """Return the command lines of a document: in console blocks, and in code within the text."""
    lines = [line[2:] for block in blocks(document, "console") for line in block.text.splitlines() if line[:2] == "$ "]
    return lines + CODE.findall(prose(document))


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file that exists, and a heading in it."""
    for link in LINK.findall(prose(document)):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = (document.parent / name).resolve() if name else document
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


@each_document
def test_named_paths_exist(document: Path) -> None:
    """Code such as `actorhub/hub.py` or `tests/faults` names something in the project."""
    for text in CODE.findall(prose(document)):
        if re.fullmatch(r"(?:actorhub|benchmarks|docs|examples|protos|tests)/[\w./]*\w", text):
            assert (ROOT / text).exists(), text


@each_document
def test_make_targets_exist(document: Path) -> None:
    """Each `make target` is a target of the Makefile."""
    named = {found[1] for line in _shown(document) if (found := re.match(r"make ([a-z-]+)", line))}
    assert named <= TARGETS


@each_document
def test_commands_and_flags_exist(document: Path) -> None:
    """Each `actorhub command --flag` is a command with such a flag."""
    for line in _shown(document):
        if found := re.match(r"actorhub ([a-z][a-z-]*)(.*)", line):
            assert found[1] in command_flags(), line
            named = set(re.findall(r"(?<!\S)--[a-z-]+", found[2].partition(" #")[0]))
            assert named <= command_flags()[found[1]], line


@each_document
def test_flags_in_the_text_exist(document: Path) -> None:
    """Each `--flag value` that stands alone in the text is a flag of some command."""
    named = {text.split()[0] for text in CODE.findall(prose(document)) if text.startswith("--")}
    assert named <= frozenset[str]().union(*command_flags().values())


@each_document
def test_modules_that_are_run_exist(document: Path) -> None:
    """Each `python -m module` names a module of the project."""
    for line in _shown(document):
        if found := re.search(r"python -m ([a-z_.]+)(?: ([a-z_ ]+))?", line):
            path = ROOT / found[1].replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line
            if found[1] == "benchmarks":
                for name in (found[2] or "").split():
                    assert (ROOT / "benchmarks" / f"bench_{name}.py").exists(), line


def test_every_message_in_the_operators_table_is_one_of_the_code() -> None:
    """Each message of the table is part of a text in the package, with … where that has a value."""
    texts = _texts()
    document = ROOT / "docs" / "operating.md"
    table = rows(document.read_text(encoding="utf-8").partition("## Messages and remedies")[2].partition("\n## ")[0])
    assert len(table) > 20
    for message, *_ in table:
        quoted = CODE.findall(message)[0]
        pieces = [piece.strip() for piece in quoted.split("…") if piece.strip()]
        assert any(all(piece in text for piece in pieces) for text in texts), quoted


def _texts() -> list[str]:
    """Return every string of the package, with … where something is put in."""
    found: list[str] = []
    for path in modules():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.Constant(value=str(text)):
                        found.append(re.sub(r"%[a-z]|%\.\d[a-z]", "…", text))
                    case ast.JoinedStr(values=values):
                        found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values))
                    case _:
                        pass
    return found
