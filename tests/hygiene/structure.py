"""How the modules of a folder hang together, from their own imports: `python -m tests.hygiene.structure [FOLDER]`.

An arrow leads from a module to one that it imports. Imports for type checkers count like all others: a reader follows
them, too. FOLDER is a package's directory, of this checkout or of another one; `actorhub/engine` by default.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, frozenset[str]]


def imports(folder: Path) -> Graph:
    """Return which modules of a package each of its modules imports."""
    names = {_dotted(path, folder): path for path in sorted(folder.rglob("*.py"))}
    return {
        name: frozenset(target for target in _targets(path, names, folder) if target != name)
        for name, path in names.items()
        if path.name != "__init__.py"
    }


def folders(graph: Graph) -> Graph:
    """Return the same graph between the package's folders; a module in no folder stands for itself."""
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        found.setdefault(_room(name), set()).update(_room(target) for target in targets)
    return {room: frozenset(targets - {room}) for room, targets in found.items()}


def circles(graph: Graph) -> list[frozenset[str]]:
    """Return the groups of nodes that reach each other in a circle (strongly connected components, by Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            at = stack.index(node)
            group = frozenset(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def upward(graph: Graph) -> int:
    """Return how many arrows must go so that no circle is left, taken off one by one where most circles pass."""
    left = {node: set(targets) for node, targets in graph.items()}
    removed = 0
    while groups := circles({node: frozenset(targets) for node, targets in left.items()}):
        group = max(groups, key=len)
        arrows = [(node, target) for node in sorted(group) for target in sorted(left[node] & group)]
        # An arrow from a node that many need to one that needs many runs up.
        node, target = max(arrows, key=lambda arrow: _needed(left, arrow[0], group) + len(left[arrow[1]] & group))
        left[node].discard(target)
        removed += 1
    return removed


def floors(graph: Graph) -> int:
    """Return the length of the longest way down; a circle counts as one floor."""
    groups = circles(graph)
    room = {node: min(group) for group in groups for node in group}
    down: dict[str, set[str]] = {}
    for node, targets in graph.items():
        down.setdefault(room.get(node, node), set()).update(room.get(target, target) for target in targets)
    depth: dict[str, int] = {}

    def deep(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((deep(target) for target in down.get(node, ()) if target != node), default=0)
        return depth[node]

    return max(map(deep, down), default=0)


def report(folder: Path) -> Iterator[str]:
    """Yield what there is to say of a package, line by line."""
    modules = imports(folder)
    for what, graph in (("modules", modules), ("folders", folders(modules))):
        groups = circles(graph)
        inside = f" ({sum(map(len, groups))} of the {what} in {'it' if len(groups) == 1 else 'them'})" if groups else ""
        up = upward(graph)
        yield (
            f"{len(graph)} {what}, {sum(map(len, graph.values()))} arrows, {floors(graph)} floors, "
            f"{_counted(len(groups), 'circle')}{inside}, "
            f"{_counted(up, 'arrow')} that {'runs' if up == 1 else 'run'} back up"
        )
        for group in groups:
            yield f"  circle: {', '.join(sorted(group))}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _needed(graph: Mapping[str, set[str]], node: str, group: Iterable[str]) -> int:
    return sum(node in graph[other] for other in group)


def _dotted(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def _targets(path: Path, names: Mapping[str, Path], folder: Path) -> Iterator[str]:
    prefix = ".".join((*_package(folder), ""))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        else:
            continue
        for name in wanted:
            found = name.removeprefix(prefix)
            if found != name and found in names and names[found].name != "__init__.py":
                yield found


def _package(folder: Path) -> list[str]:
    parts = [folder.name]
    while (folder := folder.parent).joinpath("__init__.py").exists():
        parts.insert(0, folder.name)
    return parts


if __name__ == "__main__":
    at = Path(sys.argv[1] if len(sys.argv) > 1 else "actorhub/engine").resolve()
    print(*report(at), sep="\n")
