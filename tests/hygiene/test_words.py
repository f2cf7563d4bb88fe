"""Words, names and calls that have no place in the project."""

import ast
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.hygiene.sources import ROOT, dotted, modules, place, texts, tree

# A class of one letter keeps a pattern from matching itself.
UNFINISHED = re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX|[H]ACK)\b")
RULER = re.compile(r"^\s*(?:#|--)\s*[-=#*~_]{4,}")
OUTSIDE = re.compile(r"(?<![\w.])/[w]ork/|\.\./[s]hared\b|/tmp/[s]cratch")
DOCUMENT = re.compile(r"\b[A-Z][A-Z_]+\.md\b")
BY_NAME = re.compile(r"\b(?:[p]kill|[k]illall)\b")
VAGUE = {"base", "common", "helpers", "manager", "misc", "util", "utils"}
TASK_OWNERS = {ROOT / "actorhub/engine/supervision.py", ROOT / "actorhub/transport/tasks.py"}
ORPHANING = {"create_task", "ensure_future"}
OWNERS = re.compile(r"(?:group|tasks|tg|scope|supervisor|nursery)$", re.IGNORECASE)
BANNED_CALLS = {"asyncio.wait_for", "pickle.dumps", "pickle.loads", "time.sleep"}
BANNED_IMPORTS = {"cloudpickle", "dill", "marshal", "pickle", "shelve", "unittest"}


class Mannerism(NamedTuple):
    """A turn of phrase that readers stumble over."""

    pattern: str
    """Matched without regard to case, in text whose line breaks and comment marks are single spaces."""
    instead: str
    """Why it is refused: what to write."""
    example: str
    """Something that it refuses."""


MANNERISMS: Final = (
    Mannerism(r"\bany ?more\b", "no longer", "the runner does not own it any more"),
    Mannerism(r"\bfor ever\b", "until cancelled, without a limit, until it is deleted", "waits for ever"),
    Mannerism(
        r"(?<!there )\b(?:is|are|was|were|be) no (?!longer\b|more\b|less\b|worse\b|better\b|different\b|one\b)\w",
        "is not a …: it is …",
        "message 7 is no dead letter but pending",
    ),
    Mannerism(r"\b(?:has|have|had) (?:it|them|this) not\b", "is not declared in the code", "the code has it not"),
    Mannerism(r"\bsaid of\b", "applies to, describes", "said of a run that waits"),
    Mannerism(r"\bwhat the words mean\b", "name the words, and explain each", "What the words mean:"),
    Mannerism(r"\ball the same\b", "regardless, still, in any case", "it runs all the same"),
    Mannerism(r"\banew\b", "again", "the entity is made anew"),
    Mannerism(r"\bfor so long\b", "for this long", "a state that nobody wrote for so long"),
    Mannerism(r"; (?:it )?says which\b", "a sentence: The text names it.", "a value is wrong; says which"),
    Mannerism(r"\bnothing of (?:it|that|this|them|which)\b", "none of it", "nothing of it is committed"),
    Mannerism(r"\bhad better\b", "should", "it had better do nothing else"),
    Mannerism(r"\bin earnest\b", "in production, in reality", "in earnest there is no demo"),
    Mannerism(r"\band its likes\b", "name them", "@hourly and its likes"),
    Mannerism(
        r"\b(?:by|for|from|of|to|with|tells?|told|answers?|asks?) who (?:is|are|has|waits?|asks?|calls?|comes?|used)\b",
        "whoever, or a noun: the caller",
        "an answer for who waits",
    ),
    Mannerism(r"\blook(?:s|ed|ing)? into the (?:store|database)\b", "poll the store", "look into the store"),
    Mannerism(r"(?:\b|_)instants?(?:\b|_)", "fire time (of a schedule), moment", "each instant has one message"),
    Mannerism(
        r"\b(?:henceforth|hitherto|lest|thereof|thereupon|therein|whence|wherein|whereof|whereupon|whither)\b",
        "a word of this century",
        "the store, wherein it lies",
    ),
)

QUOTATIONS: Final = frozenset({"tests/hygiene/test_words.py"})
"""Files that quote mannerisms."""


def _lines(pattern: re.Pattern[str], *, prose: bool = True) -> list[str]:
    return [
        f"{place(path, number)} {line.strip()}"
        for path in texts()
        if prose or path.suffix != ".md"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def _imports(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name.partition(".")[0] for alias in names)
        case ast.ImportFrom(module=str(module)):
            yield module.partition(".")[0]
        case _:
            pass


def test_nothing_is_left_unfinished() -> None:
    """No file holds a note that says that something is still to be done."""
    assert _lines(UNFINISHED) == []


def test_no_comment_is_a_ruler() -> None:
    """A section heading is the moment to make a file, so no comment draws a line."""
    assert _lines(RULER, prose=False) == []


def test_no_file_names_a_path_outside_the_project() -> None:
    """A clone works anywhere: no file names a path of the machine that it was written on."""
    assert _lines(OUTSIDE) == []


def test_processes_are_ended_by_their_own_id() -> None:
    """No file ends processes by name."""
    assert _lines(BY_NAME) == []


def test_every_document_that_is_named_exists() -> None:
    """A reference such as ARCHITECTURE in capitals with its suffix leads to a file that the reader can open."""
    named = {(name, place(path)) for path in texts() for name in DOCUMENT.findall(path.read_text(encoding="utf-8"))}
    there = {path.name for path in texts()}
    assert sorted((name, where) for name, where in named if name not in there) == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    """Modules and packages are named by what they hold."""
    parts = {part for path in modules() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert {part for part in parts if VAGUE & set(part.strip("_").split("_"))} == set()


def test_every_task_has_an_owner() -> None:
    """Tasks are made by a task group or by one of the two modules that own tasks, never by the loop."""
    found: list[str] = []
    for path in modules():
        if path in TASK_OWNERS:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ORPHANING:
                owner = dotted(node.func.value)
                if not OWNERS.search(owner):
                    found.append(f"{place(path, node.lineno)} {owner}.{node.func.attr}")
    assert found == []


def test_no_banned_call_or_import() -> None:
    """No code, tests and examples included, uses wait_for, pickle or mocks, or sleeps in a thread but "on purpose"."""
    found: list[str] = []
    for path in modules():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree(path)):
            used = [name for name in _imports(node) if name in BANNED_IMPORTS]
            if isinstance(node, ast.Call) and dotted(node.func) in BANNED_CALLS:
                used.append(dotted(node.func))
            if used and isinstance(node, ast.stmt | ast.expr) and "on purpose" not in lines[node.lineno - 1].lower():
                found.append(f"{place(path, node.lineno)} {', '.join(used)}")
    assert found == []


def test_nothing_is_a_stub() -> None:
    """No function of the package raises NotImplementedError."""
    found = [
        place(path, node.lineno)
        for path in modules("actorhub")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Raise) and node.exc is not None and dotted(node.exc) == "NotImplementedError"
    ]
    assert found == []


def test_every_suppression_of_a_linter_names_its_rule() -> None:
    """A comment that silences a linter names the rule, and silences a line, not a file."""
    bare = re.compile(r"#\s*(?:[n]oqa(?!:)|[t]ype:\s*ignore(?!\[)|[p]yright:(?!\s*ignore\[)|[r]uff:\s*noqa)")
    assert _lines(bare, prose=False) == []


def test_the_texts_are_in_plain_english() -> None:
    """Code, documents, SQL and protos are free of the mannerisms, and the failure says what to write instead."""
    found = [
        f"{place(path, line)} {quoted!r}: write {mannerism.instead}"
        for path in texts()
        if place(path) not in QUOTATIONS
        for line, quoted, mannerism in _mannerisms(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("mannerism", MANNERISMS, ids=lambda mannerism: mannerism.example)
@pytest.mark.parametrize("gap", [" ", "\n", "\n    # ", "\n-- "])
def test_a_mannerism_is_found_wherever_its_line_breaks(mannerism: Mannerism, gap: str) -> None:
    """Each phrase is refused in prose, in comments and in SQL, with the line on which it starts."""
    text = f"first line\n{gap.join(mannerism.example.split())}"
    assert [found for _, _, found in _mannerisms(text)] == [mannerism]
    assert not list(_mannerisms("There is no owner, and it is no longer there: who is next is not known."))


def _mannerisms(text: str) -> Iterator[tuple[int, str, Mannerism]]:
    """Yield the line, the words and the entry of each mannerism in `text`."""
    flat, lines = "", list[int]()
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.split():
            if word not in {"#", "--", "//", "*", "-", ">"}:
                flat += f"{word} "
                lines += [number] * (len(word) + 1)
    for mannerism in MANNERISMS:
        for found in re.finditer(mannerism.pattern, flat, re.IGNORECASE):
            yield lines[found.start()], found[0], mannerism
