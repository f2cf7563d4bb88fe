"""Parts are made bottom-up: nothing is declared now and wired later by somebody else."""

import ast
from collections.abc import Iterator

from tests.hygiene.sources import modules, place, tree

_OPTIONS_OF_STRUCTS = {"kw_only", "frozen", "eq"}
_RECORDS = {"Struct", "Protocol", "NamedTuple", "TypedDict", "Enum", "IntEnum", "dataclass"}
_GIVEN_BY_THE_ENGINE = {("Declared", "state"), ("Declared", "__declaration__")}
"""What the engine gives to users' objects; the second one is made with the class itself."""


def unvalued(code: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield attributes that are declared without a value, by line and name."""
    for node in ast.walk(code):
        if isinstance(node, ast.ClassDef) and not _is_record(node):
            for line in node.body:
                if (
                    isinstance(line, ast.AnnAssign)
                    and line.value is None
                    and isinstance(line.target, ast.Name)
                    and (node.name, line.target.id) not in _GIVEN_BY_THE_ENGINE
                ):
                    yield line.lineno, f"{node.name}.{line.target.id}"
        elif isinstance(node, ast.AnnAssign) and node.value is None and _is_own(node.target):
            yield node.lineno, ast.unparse(node.target)


def placeholders(code: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield attributes that hold a lambda until a later owner comes, by line and name."""
    for node in ast.walk(code):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if _is_own(target):
                    yield node.lineno, ast.unparse(target)


def _is_own(target: ast.expr) -> bool:
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"


def dotted_words(node: ast.AST) -> tuple[str, ...]:
    """Return the word of a name, or the last one of a chain of names."""
    match node:
        case ast.Name(id=word) | ast.Attribute(attr=word):
            return (word,)
        case _:
            return ()


def _is_record(node: ast.ClassDef) -> bool:
    parts = (*node.bases, *node.decorator_list)
    words = {word for part in parts for name in ast.walk(part) for word in dotted_words(name)}
    # A class that derives from a struct shows it by the options it gives: its fields must be given, too.
    return bool(words & _RECORDS) or bool({keyword.arg for keyword in node.keywords} & _OPTIONS_OF_STRUCTS)


def test_no_attribute_is_declared_without_a_value() -> None:
    """A forgotten wire would be an AttributeError at run time; a constructor's argument cannot be forgotten."""
    assert [f"{place(path, line)} {name}" for path in modules("actorhub") for line, name in unvalued(tree(path))] == []


def test_no_placeholder_waits_for_a_later_owner() -> None:
    """A lambda that does nothing until somebody replaces it hides that nobody did."""
    found = [f"{place(path, line)} {name}" for path in modules("actorhub") for line, name in placeholders(tree(path))]
    assert found == []


def test_the_checks_see_what_they_are_for() -> None:
    """A declaration without a value, in a class and in a constructor, and a placeholder."""
    bad = ast.parse(
        "class Part:\n"
        "    until: float\n"
        "    def __init__(self) -> None:\n"
        "        self.send: Callable[[], None]\n"
        "        self.told = lambda: None\n"
        "class Row(Struct):\n"
        "    name: str\n"
    )
    assert [name for _, name in unvalued(bad)] == ["Part.until", "self.send"]
    assert [name for _, name in placeholders(bad)] == ["self.told"]
