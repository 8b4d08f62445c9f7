"""Compress pretrained transformer networks for human mesh recovery: layer merging, token merging, and the evidence.

`import hmrcompress as hc; hc.load, hc.search, hc.merge, hc.evaluate, hc.bench, hc.export_onnx, hc.predict,
hc.profile`; for networks of other code `hc.live` with `hc.apply, hc.person_mask, hc.unapply`; for cameras `hc.load_fov,
hc.focal_lengths`; to train `hc.heal, hc.fit_probe, hc.fit_decoder`. The functions live in `hmrcompress.api`,
`hmrcompress.predicting` and `hmrcompress.tuning` and are loaded when first used, so that importing the package costs
next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrcompress import live
    from hmrcompress.api import (
        apply,
        bench,
        evaluate,
        export_onnx,
        focal_lengths,
        load,
        load_fov,
        merge,
        person_mask,
        search,
        unapply,
    )
    from hmrcompress.predicting import predict, profile
    from hmrcompress.tuning import extract_features, fit_decoder, fit_probe, heal

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "apply",
    "bench",
    "evaluate",
    "export_onnx",
    "extract_features",
    "fit_decoder",
    "fit_probe",
    "focal_lengths",
    "heal",
    "live",
    "load",
    "load_fov",
    "merge",
    "person_mask",
    "predict",
    "profile",
    "search",
    "unapply",
]

TUNING = ("extract_features", "fit_decoder", "fit_probe", "heal")
"""Those of them that live in `hmrcompress.tuning`."""
PREDICTING = ("predict", "profile")
"""Those that live in `hmrcompress.predicting`."""


def __getattr__(name: str) -> Any:
    if name == "live":
        return import_module(f"{__name__}.live")
    if name in __all__:
        module = "tuning" if name in TUNING else "predicting" if name in PREDICTING else "api"
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module 'hmrcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
