"""Makers of inputs that once failed: files as people, telephones, other programs and attackers make them.

Every module makes one or more folders; `makers` names them. The inputs are made anew by the tests (fixture `cases`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def makers() -> dict[str, Callable[[Path], None]]:
    """Kind of inputs -> what makes them in a folder."""
    from cases import checkpoints, hostile, outputs, pictures, tables, videos

    return {
        "pictures": pictures.make,
        "videos": videos.make,
        "masks": tables.make_masks,
        "boxes": tables.make_boxes,
        "bedlam": tables.make_bedlam,
        "amass": tables.make_amass,
        "pickles": hostile.make_pickles,
        "bodies": hostile.make_body_files,
        "onnx": hostile.make_onnx,
        "yaml": hostile.make_yaml,
        "checkpoints": checkpoints.make,
        "outputs": outputs.make,
    }
