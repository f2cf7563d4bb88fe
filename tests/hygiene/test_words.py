"""Words, names and calls that have no place in the project."""

import ast
import re
from collections.abc import Iterator

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
            if used and isinstance(node, ast.stmt | ast.expr) and "on purpose" not in lines[node.lineno - 1]:
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
