"""A few shapes of SVG, drawn the same at every call: enough for the pictures of the documentation."""

from __future__ import annotations

from html import escape
from pathlib import Path

INK, SOFT, LINE = "#1f2933", "#52606d", "#9aa5b1"
PAPER, BLUE, GREEN, SAND = "#ffffff", "#e3ecfb", "#e2f3e6", "#fbf1dc"
FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Drawing:
    """A picture of `width` x `height` pixels on white. Places are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = BLUE, round: float = 8, edge: str = LINE
    ) -> None:
        """A rectangle with round corners."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round:g}"'
        self.parts.append(f'<rect {place} fill="{fill}" stroke="{edge}"/>')

    def text(
        self, x: float, y: float, words: str, *, size: float = 14, bold: bool = False, ink: str = INK,
        anchor: str = "middle", mono: bool = False,
    ) -> None:  # fmt: skip
        """A line of text whose base line is at y; anchor: start, middle or end of it is at x."""
        more = ' font-weight="600"' if bold else ""
        more += ' font-family="ui-monospace, Consolas, monospace"' if mono else ""
        place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} fill="{ink}"{more}>{escape(words)}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a head at the last."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(
            f'<path d="M {path}" fill="none" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def write(self, path: Path) -> None:
        """Writes the picture as SVG."""
        path.write_text(str(self))

    def __str__(self) -> str:
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{SOFT}"/></marker>'
        )
        size = f'width="{self.width}" height="{self.height}"'
        title, box = escape(self.title), f"0 0 {self.width} {self.height}"
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {size} role="img" aria-label="{title}" '
            f'font-family="{escape(FONT)}">',
            f"<title>{title}</title>",
            f"<defs>{head}</defs>",
            f'<rect {size} rx="12" fill="{PAPER}"/>',
            *self.parts,
            "</svg>",
        ]
        return "".join(f"{line}\n" for line in lines)
