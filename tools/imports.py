"""Draws who imports whom within leap_rl, from the code: the diagram of docs/architecture.md.

    python -m tools.imports            prints the diagram (Mermaid), a node for each room: a folder or a file

Imports within functions count, and those for types alone do not. The registry of processes names its entries as text:
they are no imports, and the one exception.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "leap_rl"
Graph = dict[str, set[str]]


def module_graph(root: Path = Path(PACKAGE)) -> Graph:
    """Returns, for each module of the package, the modules of the package that it imports."""
    files = {_name(file, root): file for file in sorted(root.rglob("*.py"))}
    return {name: set(_imports(name, file, files)) - {name} for name, file in files.items()}


def _name(file: Path, root: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, file: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in _nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [found for found in (inner, node.module) if found in files][:1]


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes but those below ``if TYPE_CHECKING``."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _nodes(child)


def rooms(graph: Graph) -> Graph:
    """Returns the same graph between rooms: a folder of the package with all that is in it, or a file beside them."""
    found: Graph = {}
    for name, imported in graph.items():
        found.setdefault(room_of(name), set()).update(map(room_of, imported))
    return {room: imported - {room} for room, imported in found.items()}


def room_of(name: str) -> str:
    """Returns the room of a module: "leap_rl.processes.a2c.network" → "processes/a2c"; "leap_rl.runs.run" →
    "runs"."""
    _, *parts = name.split(".")
    if parts[:1] == ["processes"] and len(parts) > 1:
        folder = Path(PACKAGE, *parts[:2]).is_dir()
        return "/".join(parts[:2]) if folder else "processes"
    return parts[0] if parts else PACKAGE


def circles(graph: Graph) -> list[list[str]]:
    """Returns the sets of nodes, each sorted, that reach one another (strongly connected components of two or more)."""
    reached = {node: _reached(graph, node) for node in graph}
    found = {tuple(sorted(other for other in reached[node] if node in reached.get(other, set()))) for node in graph}
    return sorted(list(nodes) for nodes in found if len(nodes) > 1)


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for imported in graph.get(waiting.pop(), ()):
            if imported not in seen:
                seen.add(imported)
                waiting.append(imported)
    return seen


def diagram(graph: Graph) -> str:
    """Returns the graph as Mermaid draws it, without arrows that others imply: whoever imports a room may rely on what
    that one imports."""
    lines = ["flowchart TD"]
    for room, imported in sorted(graph.items()):
        implied = {reached for other in imported for reached in _reached(graph, other)}
        for other in sorted(imported - implied):
            lines.append(f"    {room.replace('/', '_')}[{room}] --> {other.replace('/', '_')}[{other}]")
    return "\n".join(lines)


def main() -> None:
    print(diagram(rooms(module_graph())))


if __name__ == "__main__":
    main()
