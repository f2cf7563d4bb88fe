"""Whatever is put where a command takes a value, by an empty variable or a typing error, the command says so."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner, Result

from actorhub.cli import main
from actorhub.cli.filters import MessageId

NOBODY: Final = {"ACTORHUB_ADMIN": "127.0.0.1:1"}
"""Where nobody answers: what gets that far has a value that can be sent."""
ODD: Final = ("nan", "inf", "-1", "99999999999d", "999999999999", "9" * 5_000, "x\ny", "é" * 3_000, "{", "\x7f")
STARTS: Final = {"serve", "migrate"}
"""Commands that do not ask a runner: with values that are right they would begin to work."""


def _leaves(group: click.Group, *words: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _leaves(command, *words, name)
        else:
            yield *words, name


LEAVES: Final = list(_leaves(main))


def _command(words: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for word in words:
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    return found


def _lines(words: tuple[str, ...], value: str) -> Iterator[tuple[str, list[str]]]:
    """Iterate over the command lines that have the value in one place, and right values in the others."""
    parameters = _command(words).params
    right = {
        parameter.name or "": "7" if isinstance(parameter.type, MessageId) else "a"
        for parameter in parameters
        if isinstance(parameter, click.Argument)
    }
    for parameter in parameters:
        name = parameter.name or ""
        if isinstance(parameter, click.Argument):
            yield name, [*words, "--", *({**right, name: value}).values()]
        elif isinstance(parameter, click.Option) and not parameter.is_flag:
            yield name, [*words, parameter.opts[0], value, "--", *right.values()]
            yield name, [*words, f"{parameter.opts[0]}={value}", "--", *right.values()]


def _run(line: list[str], given: bytes = b"", environment: Mapping[str, str] = NOBODY) -> Result:
    return CliRunner().invoke(main, line, input=given, env={**environment})


def _is_refused(line: list[str], codes: tuple[int, ...], given: bytes = b"") -> str:
    result = _run(line, given)
    assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
    assert result.exit_code in codes, (line, result.output)
    assert result.stdout == "", line
    *usage, last = result.stderr.splitlines()
    assert last.startswith("Error: "), (line, result.stderr)
    assert all(text.startswith(("Usage: ", "Try ")) or not text for text in usage), (line, result.stderr)
    assert last.isprintable(), line
    return last


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where no file has settings."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_value_that_is_empty_or_no_text_is_refused_in_every_place(words: tuple[str, ...]) -> None:
    """An empty variable is a mistake of the script: it is neither no key nor a filter that matches all."""
    for name, line in _lines(words, ""):
        assert "empty" in _is_refused(line, (2,)), name
    for name, line in _lines(words, "caf\udce9"):
        assert r"caf\udce9" in _is_refused(line, (2,)), name


@pytest.mark.parametrize("words", [words for words in LEAVES if words[0] not in STARTS], ids=" ".join)
def test_an_odd_value_ends_a_command_with_one_line(words: tuple[str, ...]) -> None:
    """In every place: it is refused as wrong usage, or it can be sent."""
    for value in ODD:
        for _, line in _lines(words, value):
            _is_refused(line, (1, 2))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["tell", "till", "a", "pay", "--in", "99999999999d"], "is not a duration"),
        (["call", "till", "a", "pay", "--timeout", "nan"], "nan is not a number of seconds"),
        (["reply", "7", "--timeout", "nan"], "nan is not a number of seconds"),
        (["call", "till", "a", "pay", "100", "--key", ""], "--key is empty: give it a value, or leave it out"),
        (["purge", "--yes", "--type="], "--type is empty: give it a value, or leave it out"),
        (["call", "till", "a", "pay", ""], "an argument is empty"),
        (["call", "order", "o1", "add", "tea", "3.5"], "several parameters are one JSON object"),
        (["tell", "order", "o1", "add", "tea", "3.5"], "several parameters are one JSON object"),
    ],
)
def test_the_error_says_what_is_wrong_and_what_to_write(line: list[str], said: str) -> None:
    """Each names the place, so that the line of the script is found."""
    assert said in _is_refused(line, (2,))


@pytest.mark.parametrize("line", [["call", "a", "b", "c", "-"], ["tell", "a", "b", "c", "-"], ["complete", "t", "-"]])
def test_standard_input_may_hold_anything_but_nothing(line: list[str]) -> None:
    """Bytes that are not UTF-8 are for the runner to refuse; nothing at all means that a command before it failed."""
    assert "cannot be reached" in _is_refused(line, (1,), b'"caf\xe9"')
    assert "standard input is empty" in _is_refused(line, (2,), b"\n")
