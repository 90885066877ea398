"""The rooms of the package and the imports between them, read from the code.

    python scripts/architecture.py                  # print what breaks the rules: circles, imports that run upward
    python scripts/architecture.py --draw FILE      # draw the rooms as SVG
    python scripts/architecture.py --measure        # print size and shape of the code

``tests/test_architecture.py`` fails where the rules are broken, and where the picture in the documentation is old.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
PACKAGE = "stcontrast"
# from the user down to the names of slots: a room imports from the rooms of lower rows only
ROWS = (
    ("cli",),
    ("models", "pl"),
    ("tl",),
    ("fitted",),
    ("methods",),
    ("_models",),
    ("pp",),
    ("nn",),
    ("_data",),
    ("_reading", "datasets"),
    ("metrics", "_training", "_files"),
    ("_progress", "_records", "_slides"),
    ("_keys", "_settings"),
)
SAYS = {
    "cli": "command line",
    "models": "load, trained models",
    "pl": "pictures",
    "tl": "fit, predict, classify, cross_validate",
    "fitted": "the model that fit returns",
    "methods": "baselines, published, stcontrast",
    "_models": "batch_vae, contrastive, image_tower",
    "pp": "crops, encoders, image features, tissue",
    "nn": "towers, losses",
    "_data": "Spots: design, genes, folds",
    "_reading": "SpatialData, AnnData, WSIData → slides",
    "datasets": "toy, her2st",
    "metrics": "scores",
    "_training": "seeds, Lightning",
    "_files": "stores, hashes",
    "_progress": "progress bars",
    "_records": "what made a slot",
    "_slides": "the loop over slides",
    "_keys": "names of slots",
    "_settings": "settings",
}


def modules(src: Path = SRC) -> dict[str, Path]:
    """Every module by its dotted name without the package's own; the package's `__init__` is ""."""
    found = {}
    for path in sorted((src / PACKAGE).rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        name = ".".join(parts[1:]).removesuffix("__init__").removesuffix(".")
        found[name] = path
    return found


def imports(src: Path = SRC) -> dict[str, set[str]]:
    """Modules of the package that each module imports, anywhere in it: for types and inside functions too."""
    known = modules(src)
    graph = {}
    for name, path in known.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        inside = {dotted.removeprefix(PACKAGE).removeprefix(".") for dotted in found if _inside(dotted)}
        targets = {target for target in inside if target in known and target != name}
        # `from package import submodule` names both: the submodule is meant
        graph[name] = {t for t in targets if not any(other.startswith(f"{t}.") for other in targets) or _names(path, t)}
    return graph


def _inside(dotted: str) -> bool:
    return dotted == PACKAGE or dotted.startswith(f"{PACKAGE}.")


def _names(path: Path, package: str) -> bool:
    """Whether a name, not a submodule, is imported from a package."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == f"{PACKAGE}.{package}".removesuffix("."):
            prefix = f"{package}." if package else ""
            if any(f"{prefix}{alias.name}" not in known for alias in node.names):
                return True
    return False


def room_of(module: str) -> str:
    """The room that a module is in: its first part; "" is the package's own `__init__`."""
    return module.partition(".")[0]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a room of the same row or of a row above."""
    row = {room: i for i, rooms in enumerate(ROWS) for room in rooms}
    unknown = sorted({room_of(name) for name in graph} - set(row) - {""})
    found = [f"{room}: no row in scripts/architecture.py" for room in unknown]
    for name, targets in sorted(graph.items()):
        for target in sorted(targets):
            here, there = room_of(name), room_of(target)
            if here in ("", there) or (here == "cli" and there == ""):
                continue
            if there == "" or row.get(there, -1) <= row.get(here, -1):
                found.append(f"{name} imports {target or PACKAGE}")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or not (strongly connected components; Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            start = stack.index(name)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def draw(graph: dict[str, set[str]]) -> str:
    """Rooms as boxes, row by row, and every import between two of them as a line, as SVG."""
    between = Counter(
        (room_of(name), room_of(target))
        for name, targets in graph.items()
        for target in targets
        if room_of(name) and room_of(target) and room_of(name) != room_of(target)
    )
    sizes = Counter(room_of(name) for name in graph)
    width, height, gap, box = 980, 54, 30, 250
    place = {}
    for i, rooms in enumerate(ROWS):
        for j, room in enumerate(rooms):
            x = width / 2 + (j - (len(rooms) - 1) / 2) * (box + 40) - box / 2
            place[room] = (x, 16 + i * (height + gap))
    total = 16 + len(ROWS) * (height + gap)
    lines = []
    for (here, there), n in sorted(between.items()):
        x0, y0 = place[here][0] + box / 2, place[here][1] + height
        x1, y1 = place[there][0] + box / 2, place[there][1]
        # far rooms: a bow to the side, the further the wider
        rows = round((y1 - y0 + height) / (height + gap))
        side = 1 if (sorted(between).index((here, there)) % 2) else -1
        bow = 0 if rows <= 1 else side * (box / 2 + 14 * rows)
        thick = min(1 + n / 12, 4)
        lines.append(
            f'<path d="M{x0:.0f} {y0:.0f} C{x0 + bow:.0f} {y0 + 20:.0f} {x1 + bow:.0f} {y1 - 20:.0f} {x1:.0f} {y1:.0f}" '
            f'stroke-width="{thick:.1f}" marker-end="url(#arrow)"><title>{here} → {there}: {n} imports</title></path>'
        )
    boxes = []
    for room, (x, y) in place.items():
        files = f"{sizes[room]} file" + "s" * (sizes[room] != 1)
        boxes.append(
            f'<rect x="{x:.0f}" y="{y}" width="{box}" height="{height}" rx="6"/>'
            f'<text x="{x + box / 2:.0f}" y="{y + 20}" class="room">{room} <tspan class="files">{files}</tspan></text>'
            f'<text x="{x + box / 2:.0f}" y="{y + 40}" class="says">{SAYS[room]}</text>'
        )
    style = (
        "text{font-family:sans-serif;text-anchor:middle}.room{font-size:15px;font-weight:bold}"
        ".files{font-size:11px;font-weight:normal;fill:#666}.says{font-size:12px;fill:#333}"
        "path{fill:none;stroke:#7a93b0;opacity:.55}rect{fill:#f4f7fb;stroke:#4a6a8f}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}">'
        f"<style>{style}</style><defs><marker id='arrow' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
        "markerHeight='7' markerUnits='userSpaceOnUse' orient='auto'><path d='M0 0L8 4L0 8z' "
        "style='fill:#4a6a8f;stroke:none;opacity:1'/></marker></defs>\n"
        '<rect width="100%" height="100%" style="fill:white;stroke:none"/>\n'
        + "\n".join([*lines, *boxes])
        + "\n</svg>\n"
    )


def measure(src: Path = SRC) -> dict[str, str]:
    """Size and shape of the code, by name."""
    known, graph = modules(src), imports(src)
    texts = [path.read_text() for path in known.values()]
    lines = sum(len(text.splitlines()) for text in texts)
    containers = overhead = 0
    for text in texts:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                decorated = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
                named = any("NamedTuple" in ast.unparse(base) for base in node.bases)
                containers += decorated or named
        for node in tree.body:
            of_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            if isinstance(node, ast.Import | ast.ImportFrom) or of_types or names:
                overhead += (node.end_lineno or node.lineno) - node.lineno + 1
    return {
        "files": str(len(known)),
        "lines": str(lines),
        "lines of code": str(sum(_code_lines(text) for text in texts)),
        "dataclasses and NamedTuples": str(containers),
        "import circles": str(len(circles(graph))),
        "imports that run upward": str(len(upward(graph))) if (src / PACKAGE / "_reading").exists() else "-",
        "imports, TYPE_CHECKING, __all__": f"{overhead} lines",
        "their share of the lines of code": f"{overhead / sum(_code_lines(text) for text in texts):.0%}",
    }


def _code_lines(text: str) -> int:
    """Lines that are neither blank, nor comment, nor docstring."""
    kept = set()
    tree = ast.parse(text)
    documented = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                documented |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not re.match(r"\s*#", line) and number not in documented:
            kept.add(number)
    return len(kept)


def main() -> int:
    """Print, draw or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--src", type=Path, default=SRC)
    arguments = parser.parse_args()
    graph = imports(arguments.src)
    if arguments.draw is not None:
        arguments.draw.write_text(draw(graph))
        return 0
    if arguments.measure:
        for name, value in measure(arguments.src).items():
            print(f"{name:34s} {value}")
        return 0
    broken = [*upward(graph), *(" ↔ ".join(group) for group in circles(graph))]
    print("\n".join(broken) or "No circle, and no import that runs upward.")
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
