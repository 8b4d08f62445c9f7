"""The rooms of the package and the floors they stand on: `python tools/rooms.py` draws them.

A room is a folder or a single file at the top of `hmrcompress`. It stands on the lowest floor that is above all rooms
that it imports, also inside functions. Writes docs/pictures/rooms.svg and prints the floors; ends with 1 where rooms
import each other in a circle.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

from svg import BLUE, GREEN, SAND, SOFT, Drawing

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "rooms.svg"
PACKAGES = {"hmrcompress": "hmrcompress", "hmrcompress_cli": "cli"}
"""Packages of ours, and their folders."""
COMMANDS = "cli"
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
"""What imports are among, and what they lie in."""


def rooms(root: Path = ROOT) -> dict[str, set[str]]:
    """Every room, with the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            place = path.relative_to(root / folder).parts
            room = COMMANDS if package != "hmrcompress" else place[0].removesuffix(".py")
            if room == "__init__":  # the lazy front of the package
                continue
            found.setdefault(room, set())
            found[room] |= {other for name in imported(path) if (other := _room_of(name, root)) not in (None, room)}  # type: ignore[misc]
    return {room: others & set(found) for room, others in found.items()}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, but for what only a type checker sees."""
    names: set[str] = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        stack.extend(each for each in ast.iter_child_nodes(node) if isinstance(each, STATEMENTS))
    return names


def _room_of(name: str, root: Path) -> str | None:
    parts = name.split(".")
    if parts[0] == "hmrcompress_cli":
        return COMMANDS
    if parts[0] != "hmrcompress" or len(parts) < 2:
        return None
    here = root / "hmrcompress" / parts[1]
    return parts[1] if here.is_dir() or here.with_suffix(".py").exists() else None  # `hmrcompress.__version__`


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, the lowest first. ValueError naming a circle."""
    heights: dict[str, int] = {}

    def height(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(" -> ".join([*above[above.index(room) :], room]))
        if room not in heights:
            heights[room] = 1 + max((height(other, (*above, room)) for other in sorted(graph[room])), default=-1)
        return heights[room]

    for room in sorted(graph):
        height(room, ())
    return [sorted(room for room in graph if heights[room] == floor) for floor in range(max(heights.values()) + 1)]


def picture(levels: list[list[str]], root: Path = ROOT) -> Drawing:
    """The floors, the highest on top; files that stand alone are sand-coloured."""
    step, drawing = 50, Drawing(1000, 76 + 50 * len(levels), "The rooms of hmrcompress, by floor")
    drawing.text(24, 36, "A room imports only from floors below its own", size=15, ink=SOFT, anchor="start")
    for number, level in enumerate(reversed(levels)):
        y = 56 + step * number
        drawing.text(40, y + 25, str(len(levels) - 1 - number), size=14, ink=SOFT)
        width = min(210.0, 900 / len(level) - 10)
        left = 520 - (width + 10) * len(level) / 2
        for place, room in enumerate(level):
            alone = (root / "hmrcompress" / f"{room}.py").exists()
            fill = SAND if alone else GREEN if room == COMMANDS else BLUE
            x = left + (width + 10) * place
            drawing.box(x, y, width, 40, fill=fill)
            drawing.text(x + width / 2, y + 25, f"{room}.py" if alone else f"{room}/", size=15, mono=True)
    return drawing


if __name__ == "__main__":
    try:
        levels = floors(rooms())
    except ValueError as circle:
        sys.exit(f"rooms import each other in a circle: {circle}")
    PICTURE.parent.mkdir(exist_ok=True)
    picture(levels).write(PICTURE)
    sys.stdout.write("".join(f"{number:3d}  {', '.join(level)}\n" for number, level in reversed([*enumerate(levels)])))
