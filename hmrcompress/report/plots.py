"""Pictures of figures. matplotlib is an extra and imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import MissingExtra, UserError

INK, FRAME = "#222222", "#c2185b"
INSET = 0.06
"""Of a frame, in cells, so that frames do not touch each other or the edge."""


def draw_similarity(matrix: np.ndarray, path: Path, *, title: str, groups: Sequence[Sequence[int]] = ()) -> None:
    """Writes the picture of a CKA matrix (L+1,L+1) between layers as PNG. Raises MissingExtra.

    Row 0 is what enters the first block, row i what block i-1 puts out. `groups` (blocks that a plan merges) get a
    frame around their outputs.
    """
    figure = _figure(6.4, 5.6)
    axes = figure.add_subplot()
    shown = axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="viridis", origin="lower")
    ticks = range(0, len(matrix), max(1, len(matrix) // 12))
    labels = ["in" if tick == 0 else str(tick - 1) for tick in ticks]
    axes.set_xticks(list(ticks), labels)
    axes.set_yticks(list(ticks), labels)
    axes.set_xlabel("output of block")
    axes.set_ylabel("output of block")
    merged = [group for group in groups if len(group) > 1]
    if merged:
        title += f"\nframed: blocks that become one, {len(matrix) - 1} -> {len(groups)}"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    for group in merged:
        axes.add_patch(_frame(group[0] + 0.5, len(group)))
    figure.colorbar(shown, ax=axes, label="CKA", shrink=0.85)
    figure.tight_layout()
    figure.savefig(path, dpi=150, format="png")


def check_picture(path: Path) -> None:
    """UserError for a name that does not end in .png, MissingExtra where nothing can be drawn."""
    if path.suffix != ".png":
        raise UserError("the name has to end in .png", path)
    _figure(1, 1)


def _figure(width: float, height: float) -> Any:
    """A figure (inches) that needs no display and no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _frame(corner: float, size: int) -> Any:
    from matplotlib.patches import Rectangle

    place, side = corner + INSET, size - 2 * INSET
    return Rectangle((place, place), side, side, fill=False, edgecolor=FRAME, linewidth=2.0)
