"""The parts of the package and the imports between them, read from the code.

    python scripts/architecture.py                  # print what breaks the rules: circles, imports that run upward
    python scripts/architecture.py --draw FILE      # draw the parts as SVG
    python scripts/architecture.py --measure        # print size and shape of the code

``tests/test_architecture.py`` fails where the rules are broken, and where the committed picture is not the one that
``--draw`` draws.
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SRC = Path(__file__).parents[1] / "src"
PACKAGE = "stcontrast"
# from the user down to the names of slots: a part imports from the parts of lower rows only; "" is an empty place
ROWS = (
    ("cli",),
    ("models", "pl"),
    ("tl",),
    ("fitted",),
    ("methods", "_report"),
    ("_genespace",),
    ("_models",),
    ("pp",),
    ("nn",),
    ("_data", "_predictions"),
    ("_reading", "", "datasets"),
    ("metrics", "_training", "_files"),
    ("_progress", "_records", "_slides"),
    ("_state", "_lazy", "_cluster"),
    ("_keys", "_arguments", "_settings"),
)
ROW = {part: i for i, parts in enumerate(ROWS) for part in parts if part}
SAYS = {
    "cli": "command line",
    "models": "load; trained models",
    "pl": "figures",
    "tl": "fit, predict, classify, validate",
    "fitted": "the model that fit returns",
    "_report": "one page for the browser",
    "_predictions": "numbers of a prediction",
    "methods": "baselines, published, stcontrast",
    "_genespace": "genes to coordinates and back",
    "_models": "gene VAE, towers, fine-tuning",
    "pp": "crops, encoders, image features",
    "nn": "layers, losses",
    "_data": "spots: design, genes, folds",
    "_reading": "SpatialData, AnnData, WSIData",
    "datasets": "toy, her2st",
    "metrics": "scores",
    "_training": "seeds, threads, Lightning",
    "_files": "atomic writes, hashes, stores",
    "_progress": "stages: bars, lines in the log",
    "_records": "how a slot was made",
    "_slides": "rows of every slide",
    "_state": "what fitting sets, as arrays",
    "_arguments": "what arguments may be",
    "_keys": "names of slots",
    "_settings": "settings",
    "_lazy": "imports that wait",
    "_cluster": "workers of a dask cluster",
}
# what becomes of the data, from the slides up to the user
DATA = {
    "_reading": "read the slides",
    "_data": "one table of spots and its design",
    "methods": "a method learns from the training spots",
    "fitted": "the fitted model predicts",
    "tl": "write the prediction",
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
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                # `from package import submodule` imports the submodule, `from package import name` the package
                dotted = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if _own(one) in known else node.module for one in dotted}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "stc":
                found.add(f"{PACKAGE}.{node.attr}")  # of `import stcontrast as stc`
        inside = {own for own in map(_own, found) if own is not None}
        graph[name] = inside & (known.keys() - {name})
    return graph


def _own(dotted: str) -> str | None:
    """A dotted name without the package's own; None outside the package."""
    first, _, rest = dotted.partition(".")
    return rest if first == PACKAGE else None


def part_of(module: str) -> str:
    """The part that a module belongs to: the first of its name; "" is the package's own `__init__`."""
    return module.partition(".")[0]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a part of the same row or of a row above."""
    unknown = sorted({part_of(name) for name in graph} - ROW.keys() - {""})
    found = [f"{part}: no row in scripts/architecture.py" for part in unknown]
    for name, targets in sorted(graph.items()):
        for target in sorted(targets):
            here, there = part_of(name), part_of(target)
            if here in ("", there) or (here == "cli" and there == ""):
                continue
            if there == "" or ROW.get(there, -1) <= ROW.get(here, -1):
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


def between_parts(graph: dict[str, set[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Imports of a part from parts of lower rows: those of the transitive reduction, and the others."""
    targets: dict[str, set[str]] = {part: set() for part in ROW}
    for name, imported in graph.items():
        for here, there in ((part_of(name), part_of(target)) for target in imported):
            if ROW.get(here, len(ROWS)) < ROW.get(there, -1):
                targets[here].add(there)
    below: dict[str, set[str]] = {}
    for part in sorted(ROW, key=ROW.__getitem__, reverse=True):
        below[part] = targets[part].union(*(below[target] for target in targets[part]))
    steps, others = {}, {}
    for part, reached in targets.items():
        indirect: set[str] = set().union(*(below[target] for target in reached))
        steps[part] = [target for target in ROW if target in reached - indirect]
        others[part] = [target for target in ROW if target in reached & indirect]
    return steps, others


BOX, HEIGHT, GAP, GUTTER, LANE, TOP = 206, 44, 36, 76, 11, 14


class Picture:
    """Boxes in rows, and lines that run between them: along rows in the gaps, down in the gutters."""

    def __init__(self, left: float) -> None:
        self.left = left
        self.column = {part: j for parts in ROWS for j, part in enumerate(parts) if part}
        self.lines: list[str] = []
        self.dots: list[str] = []
        # lines above each row that lead to boxes which have no side at the gutter
        self.tracks: dict[int, dict[tuple[str, str], list[float]]] = {}

    def x(self, part: str) -> float:
        """The left side of a box."""
        return self.left + self.column[part] * (BOX + GUTTER)

    def y(self, part: str) -> float:
        """The upper side of a box."""
        return TOP + ROW[part] * (HEIGHT + GAP)

    def line(self, points: Iterable[tuple[float, float]], kind: str, *, arrow: bool = True) -> None:
        """A line through these points."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        marker = f' marker-end="url(#{kind})"' if arrow else ""
        self.lines.append(f'<path d="M{path}" class="{kind}"{marker}/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        """Where a line leaves another; lines that only cross have no dot."""
        self.dots.append(f'<circle cx="{x:g}" cy="{y:g}" r="{3.2 if kind == "step" else 2.6}" class="{kind}-dot"/>')

    def into(self, part: str, lane: float, kind: str, *, gutter: int) -> float:
        """Lead from a lane into a box: into its side if the lane is in the gutter next to it, else from above."""
        x, y = self.x(part), self.y(part)
        if gutter in (self.column[part] - 1, self.column[part]):
            from_left = gutter < self.column[part]
            # boxes on both sides of a gutter: the lines into them lie at different heights
            height = y + (0.5 if from_left and kind == "step" else 0.3) * HEIGHT
            self.line([(lane, height), (x if from_left else x + BOX, height)], kind)
            return height
        tracks = self.tracks.setdefault(ROW[part], {})
        lanes = tracks.setdefault((part, kind), [])
        height = y - 9 - 6 * list(tracks).index((part, kind))
        port = x + BOX * (0.25 if kind == "other" else 0.68)
        if lanes:
            # the nearer lane meets the line of the other one
            self.dot(min(lane, lanes[-1], key=lambda other: abs(port - other)), height, kind)
        lanes.append(lane)
        self.line([(lane, height), (port, height), (port, y)], kind)
        return height

    def steps(self, targets: dict[str, list[str]]) -> None:
        """Straight arrows to the next row; else a lane in a gutter for each part that imports."""
        lanes: dict[int, list[int]] = {}
        for here in sorted(targets, key=ROW.__getitem__):
            x, y, column = self.x(here), self.y(here), self.column[here]
            straight = [t for t in targets[here] if self.column[t] == column and ROW[t] == ROW[here] + 1]
            for there in straight:
                self.line([(x + BOX / 2, y + HEIGHT), (x + BOX / 2, self.y(there))], "step")
            far = sorted((t for t in targets[here] if t not in straight), key=ROW.__getitem__)
            if not far:
                continue
            gutters = [g for g in (column, column - 1) if 0 <= g < max(self.column.values())]
            gutter = max(gutters, key=lambda g: sum(self.column[t] in (g, g + 1) for t in far))
            ends = lanes.setdefault(gutter, [])
            free = next((k for k, end in enumerate(ends) if end < ROW[here]), len(ends))
            ends[free : free + 1] = [ROW[far[-1]]]
            lane = self.left + BOX + gutter * (BOX + GUTTER) + 18 + LANE * free
            start = y + 0.7 * HEIGHT
            heights = [self.into(there, lane, "step", gutter=gutter) for there in far]
            self.line(
                [(x + BOX if gutter == column else x, start), (lane, start), (lane, max(heights))], "step", arrow=False
            )
            for height in set(heights) - {max(heights)}:
                self.dot(lane, height, "step")

    def others(self, targets: dict[str, list[str]]) -> None:
        """A lane to the left of the boxes for each part that imports, the first row outermost; a dot is an import."""
        for k, here in enumerate(sorted((part for part in targets if targets[part]), key=ROW.__getitem__)):
            lane = 12 + LANE * k
            x, y = self.x(here), self.y(here)
            start = [(x, y + 0.7 * HEIGHT), (lane, y + 0.7 * HEIGHT)]
            if self.column[here]:
                start = [(x + 18, y + HEIGHT), (x + 18, y + HEIGHT + 7), (lane, y + HEIGHT + 7)]
            heights = [self.into(there, lane, "other", gutter=-1) for there in targets[here]]
            self.line([*start, (lane, max(heights))], "other", arrow=False)
            for height in heights:
                self.dot(lane, height, "other")

    def data(self) -> list[str]:
        """The way of the data, up the second column."""
        x = self.left + BOX + GUTTER + 34
        middle = {part: self.y(part) + HEIGHT / 2 for part in DATA}
        bottom, top = max(middle.values()) + 12, min(middle.values()) - 12
        drawn = [
            f'<path d="M{x:g} {bottom:g}V{top:g}" class="data"/>',
            f'<path d="M{x - 12:g} {top + 2:g}h24l-12 -16z" class="data-tip"/>',
        ]
        for part, text in DATA.items():
            y = middle[part]
            drawn.append(f'<path d="M{self.x(part) + BOX + 2:g} {y:g}H{x - 8:g}" class="data-lead"/>')
            drawn.append(f'<circle cx="{x:g}" cy="{y:g}" r="4.5" class="data-dot"/>')
            drawn.append(f'<text x="{x + 18:g}" y="{y + 4:g}" class="data-text">{text}</text>')
        return drawn


def draw(graph: dict[str, set[str]]) -> str:
    """The parts, the imports between them, and the way of the data, as SVG."""
    steps, others = between_parts(graph)
    picture = Picture(left=34 + LANE * sum(map(bool, others.values())))
    picture.others(others)
    picture.steps(steps)
    boxes = []
    for part in ROW:
        x, y = picture.x(part), picture.y(part)
        boxes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="5" class="box"/>'
            f'<text x="{x + BOX / 2:g}" y="{y + 18:g}" class="part">{part}</text>'
            f'<text x="{x + BOX / 2:g}" y="{y + 35:g}" class="says">{SAYS[part]}</text>'
        )
    legend_x, legend = picture.left + BOX + GUTTER, []
    texts = {
        "step": "imports from the part that the arrow points to",
        "other": "further imports, one for each dot",
        "data": "the way of the data",
    }
    for i, (kind, text) in enumerate(texts.items()):
        y = TOP + 8 + 20 * i
        tip = "" if kind == "data" else f' marker-end="url(#{kind})"'
        legend.append(f'<path d="M{legend_x:g} {y}h30" class="{kind}"{tip}/>')
        legend.append(f'<text x="{legend_x + 40:g}" y="{y + 4}" class="legend">{text}</text>')
    width = picture.left + 3 * BOX + 2 * GUTTER + 12
    height = TOP + len(ROWS) * (HEIGHT + GAP) - GAP + TOP
    style = (
        "text{font-family:Helvetica,Arial,'DejaVu Sans',sans-serif;fill:#222}.part{font-size:14px;font-weight:bold}"
        ".part,.says{text-anchor:middle}.says{font-size:11px;fill:#444}.legend{font-size:11px;fill:#444}"
        ".box{fill:#eef3f9;stroke:#2f5d8c;stroke-width:1.2}path{fill:none}.step{stroke:#2f5d8c;stroke-width:2}"
        ".other{stroke:#a9b4c0;stroke-width:1}.step-dot{fill:#2f5d8c}.other-dot{fill:#8493a3}"
        ".data{stroke:#e6a23c;stroke-width:9}.data-tip{fill:#e6a23c}.data-dot{fill:#fff;stroke:#b87412;stroke-width:1.5}"
        ".data-lead{stroke:#e6a23c;stroke-width:1;stroke-dasharray:2 4}.data-text{font-size:12px;fill:#8a5508}"
    )
    tips = "".join(
        f'<marker id="{kind}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="{size}" markerHeight="{size}" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:{color}"/></marker>'
        for kind, size, color in (("step", 10, "#2f5d8c"), ("other", 7, "#8493a3"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}">\n<style>{style}</style>\n<defs>{tips}</defs>\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join([*picture.data(), *picture.lines, *picture.dots, *boxes, *legend])
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
        arguments.draw.write_text(draw(graph), encoding="utf-8")
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
