"""Compress pretrained transformer networks for human mesh recovery: layer merging, token merging, and the evidence.

`import hmrcompress as hc; hc.load, hc.search, hc.merge, hc.evaluate, hc.export_onnx`. The functions live in
`hmrcompress.api` and are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrcompress.api import evaluate, export_onnx, load, merge, search

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "export_onnx", "load", "merge", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hmrcompress import api

        return getattr(api, name)
    raise AttributeError(f"module 'hmrcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
