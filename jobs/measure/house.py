"""Measure how the package is built: rooms, imports between them, and sizes of functions and modules.

python -m jobs.measure.house [--json] [PACKAGE]

A room is a folder or a module directly inside the package; the package's own `__init__` is one too. An arrow leads
from a room to one that it imports, even inside a function, only for types, or as a string "module:name". A room is one
floor above the highest of those that it imports; rooms of a circle share a floor. A circle is a group of rooms, or of
modules, that lead to each other.
"""

import argparse
import ast
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

LONG = 40  # lines of a function
Graph = dict[str, set[str]]


def modules_of(package: Path) -> dict[str, Path]:
    """Maps the dotted name of every module of a package to its file."""
    paths = sorted(package.rglob("*.py"))
    names = (".".join(path.relative_to(package.parent).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports anywhere in its code."""
    parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                imported = f"{target}.{alias.name}"
                yield from (m for m in [imported if imported in modules else target] if m in modules)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            yield from (m for m in [node.value.split(":")[0]] if m in modules)


def module_graph(modules: Mapping[str, Path]) -> Graph:
    """The modules that each module imports, itself excepted."""
    return {name: set(imports(name, path, modules)) - {name} for name, path in modules.items()}


def room_of(module: str) -> str:
    """The room of a module; that of the package's `__init__` has the name of the package."""
    return module.split(".")[:2][-1]


def merge(graph: Graph, group: Callable[[str], str]) -> Graph:
    """The graph between groups of nodes."""
    merged: Graph = {group(node): set() for node in graph}
    for node, targets in graph.items():
        merged[group(node)] |= {group(target) for target in targets} - {group(node)}
    return merged


def reachable(graph: Graph) -> Graph:
    """The nodes that each node leads to, directly or not."""
    reached: Graph = {}
    for start in graph:
        seen, waiting = set[str](), list(graph[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph[node]
        reached[start] = seen
    return reached


def circles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that lead to each other, largest first."""
    reached = reachable(graph)
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in graph
        if node in reached[node]
    }
    return sorted((list(group) for group in groups), key=lambda group: (-len(group), group))


def floors(graph: Graph) -> list[list[str]]:
    """The nodes by their height above those that import nothing; nodes of a circle share a floor."""
    lead = {node: min(circle) for circle in circles(graph) for node in circle}
    merged = merge(graph, lambda node: lead.get(node, node))
    heights: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in heights:
            heights[node] = 1 + max(map(height, merged[node]), default=-1)
        return heights[node]

    levels: list[list[str]] = [[] for _ in range(1 + max(map(height, merged), default=-1))]
    for node in sorted(graph):
        levels[height(lead.get(node, node))].append(node)
    return levels


def function_lengths(path: Path) -> dict[str, int]:
    """Maps the name and line of every function in a file to its number of lines, without decorators."""
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {f"{f.name}:{f.lineno}": (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}


def measure(package: Path) -> dict[str, Any]:
    """All figures of a package, as JSON. Raises ValueError if the folder holds no functions."""
    modules = modules_of(package)
    graph = module_graph(modules)
    rooms = merge(graph, room_of)
    sizes = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules.items()}
    lengths = {
        f"{name}.{function}": length
        for name, path in modules.items()
        for function, length in function_lengths(path).items()
    }
    if not lengths:
        raise ValueError(f"{package}: no functions")
    longest, largest = max(lengths, key=lengths.__getitem__), max(sizes, key=sizes.__getitem__)
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in modules.items()}
    return {
        "rooms": len(rooms),
        "floors": floors(rooms),
        "arrows": sum(map(len, rooms.values())),
        "room_circles": circles(rooms),
        "module_circles": circles(graph),
        "functions": {
            "count": len(lengths),
            "median": median(lengths.values()),
            "p90": quantiles(lengths.values(), n=10)[-1] if len(lengths) > 1 else lengths[longest],
            "longest": [longest, lengths[longest]],
            "share_long": sum(length > LONG for length in lengths.values()) / len(lengths),
        },
        "modules": {"count": len(sizes), "lines": sum(sizes.values()), "longest": [largest, sizes[largest]]},
        "without_docstring": [
            name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)
        ],
    }


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The figures as text."""
    functions, modules = figures["functions"], figures["modules"]
    yield f"rooms      {figures['rooms']} on {len(figures['floors'])} floors, {figures['arrows']} arrows"
    for height, rooms in reversed(list(enumerate(figures["floors"], 1))):
        yield f"  floor {height:<2} {', '.join(rooms)}"
    for kind in ("room", "module"):
        groups = figures[f"{kind}_circles"]
        yield f"circles    of {kind}s: {'; '.join(', '.join(group) for group in groups) or 'none'}"
    yield (
        f"functions  {functions['count']}: median {functions['median']:.0f} lines, 90th percentile "
        f"{functions['p90']:.0f}, longest {functions['longest'][1]} ({functions['longest'][0]}), "
        f"{functions['share_long']:.1%} over {LONG}"
    )
    yield (
        f"modules    {modules['count']}, {modules['lines']} lines; longest {modules['longest'][1]} "
        f"({modules['longest'][0]})"
    )
    yield f"no docstring  {', '.join(figures['without_docstring']) or 'none'}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, nargs="?", default=Path(__file__).parents[2] / "armo_ray")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    figures = measure(args.package.resolve())
    print(json.dumps(figures, indent=2) if args.json else "\n".join(lines(figures)))


if __name__ == "__main__":
    main()
