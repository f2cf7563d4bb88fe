"""The documents: their files, their code blocks, their tables, and the parts that are made from the code."""

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Final

import click
import msgspec

from actorhub.cli import COMMANDS, main
from actorhub.core.config import SETTINGS, Setting
from actorhub.ops.metrics import FAMILIES
from tests.hygiene.structure import report
from tests.hygiene.walk import counts, walk

ROOT: Final = Path(__file__).resolve().parent.parent.parent
FOR_DEVELOPERS: Final = (
    ROOT / "ARCHITECTURE.md",
    ROOT / "tests" / "INVARIANTS.md",
    *sorted((ROOT / "docs" / "design").glob("*.md")),
)
"""Documents about the code: what they name is defined where they say."""
DOCUMENTS: Final = tuple(sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *FOR_DEVELOPERS}))

_FENCE: Final = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME: Final = re.compile(r"# (\w+\.py)\n")


class Block(msgspec.Struct, frozen=True):
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def file_name(self) -> str:
        """What the first line says that the block is saved as; empty for a fragment."""
        found = _FILE_NAME.match(self.text)
        return found[1] if found else ""


def blocks(document: Path, language: str) -> list[Block]:
    """Return the document's blocks in that language, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, found.start(2)), found[1], found[2])
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def prose(document: Path) -> str:
    """Return the document without its fenced blocks."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def section(document: Path, name: str) -> str:
    """Return what stands between `<!-- name -->` and `<!-- /name -->`."""
    return document.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def rows(table: str) -> list[list[str]]:
    """Return the cells of the tables in `table`, head and ruler lines left out."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    kept = [line for line, below in zip(lines, [*lines[1:], ""], strict=True) if not _ruler(line) and not _ruler(below)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in kept]


def _ruler(line: str) -> bool:
    return bool(line) and set(line) <= set("|-: ")


def made_parts() -> Iterator[tuple[Path, str, str]]:
    """Yield document, name and text of each part that is made from the code."""
    yield ROOT / "docs" / "operating.md", "settings", settings_table()
    yield ROOT / "docs" / "operating.md", "commands", commands_table()
    yield ROOT / "docs" / "operating.md", "metrics", metrics_table()
    yield ROOT / "ARCHITECTURE.md", "structure", structure()
    yield ROOT / "ARCHITECTURE.md", "walk", walk_list()


@cache
def command_flags() -> dict[str, frozenset[str]]:
    """Return the flags of each command; of a group, those of its commands too."""
    context = click.Context(main)
    commands = {one.name: main.get_command(context, one.name) for one in COMMANDS}
    return {name: frozenset(_flags(command)) | {"--help"} for name, command in commands.items() if command is not None}


def _flags(command: click.Command) -> set[str]:
    found = {option for parameter in command.params for option in parameter.opts}
    if isinstance(command, click.Group):
        for one in command.commands.values():
            found |= _flags(one)
    return found


def settings_table() -> str:
    """Return the table of settings."""
    flags = frozenset[str]().union(*command_flags().values())
    lines = [
        "| flag | environment | in `actorhub.toml` | default | allowed | what it is |",
        "|---|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        allowed = setting.allowed.replace("|", "\\|")
        flag = f"`{setting.flag}`" if setting.flag in flags else "none"
        cells = (flag, f"`{setting.env}`", f"`{name}`", _default(setting), allowed, setting.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _default(setting: Setting) -> str:
    match setting.default:
        case None | ():
            return "none"
        case bool() as flag:
            return f"`{str(flag).lower()}`"
        case timedelta() as duration:
            seconds = duration.total_seconds()
            return f"`{seconds / 86400:g}d`" if seconds >= 86400 else f"`{seconds:g}s`"
        case value:
            return f"`{value}`"


def commands_table() -> str:
    """Return the table of commands."""
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `actorhub {command.name}` | {command.help} |" for command in COMMANDS]
    return "\n".join(lines) + "\n"


def metrics_table() -> str:
    """Return the table of metrics."""
    lines = ["| name | kind | labels | what it is |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels) or "none"
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines) + "\n"


@cache
def modules() -> tuple[Path, ...]:
    """Return the hand-written modules and SQL files of the package."""
    found = [*(ROOT / "actorhub").rglob("*.py"), *(ROOT / "actorhub").rglob("*.sql")]
    return tuple(sorted(path for path in found if "_pb" not in path.parts))


def structure() -> str:
    """Return what there is to say of how the engine hangs together."""
    return "\n".join(("```text", *report(ROOT / "actorhub" / "engine"), "```")) + "\n"


def walk_list() -> str:
    """Return the files that a durable ask enters, in order, each time with what is called there."""
    entries = asyncio.run(walk())
    lines = [
        f"{number}. `actorhub/{entry.file}`: {', '.join(f'`{_short(name)}`' for name in entry.functions)}"
        for number, entry in enumerate(entries, start=1)
    ]
    found = counts(entries)
    lines += ["", f"{len(found)} files, none of which is entered more than {max(found.values())} times."]
    return "\n".join(lines) + "\n"


def _short(function: str) -> str:
    return function.rpartition(".")[2]
