"""Compress pretrained transformer networks for human mesh recovery: layer merging, token merging, and the evidence.

`import hmrcompress as hc; hc.load, hc.compress, hc.pick, hc.search, hc.merge, hc.evaluate, hc.bench, hc.export,
hc.export_onnx, hc.predict, hc.profile`; for networks of other code `hc.live`, `hc.apply, hc.person_mask, hc.unapply`;
for cameras `hc.Predictor, hc.load_fov, hc.focal_lengths`; to train `hc.heal, hc.fit_probe, hc.fit_decoder`. Each lives
in a module of `hmrcompress.api` or of the room that it belongs to, and is loaded when first used, so that importing the
package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrcompress import live
    from hmrcompress.api.bench import bench
    from hmrcompress.api.compress import compress
    from hmrcompress.api.evaluate import evaluate
    from hmrcompress.api.export import export, export_onnx
    from hmrcompress.api.finetune import fit_probe, heal
    from hmrcompress.api.finetune_decoder import extract_features, fit_decoder
    from hmrcompress.api.merge import apply, merge
    from hmrcompress.api.opening import load
    from hmrcompress.api.pick import pick
    from hmrcompress.api.predict import predict, profile
    from hmrcompress.api.predict_many import predict_many
    from hmrcompress.api.predictor import Predictor
    from hmrcompress.api.search import search
    from hmrcompress.live.patching import person_mask, unapply
    from hmrcompress.models.families.fov import focal_lengths, load_fov

__version__ = "0.1.0"

HOMES = {
    "Predictor": "api.predictor",
    "apply": "api.merge",
    "bench": "api.bench",
    "compress": "api.compress",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "export_onnx": "api.export",
    "extract_features": "api.finetune_decoder",
    "fit_decoder": "api.finetune_decoder",
    "fit_probe": "api.finetune",
    "focal_lengths": "models.families.fov",
    "heal": "api.finetune",
    "load": "api.opening",
    "load_fov": "models.families.fov",
    "merge": "api.merge",
    "person_mask": "live.patching",
    "pick": "api.pick",
    "predict": "api.predict",
    "predict_many": "api.predict_many",
    "profile": "api.predict",
    "search": "api.search",
    "unapply": "live.patching",
}
"""The module, below this package, in which each name of the package lives."""
__all__ = [
    "Predictor",
    "__version__",
    "apply",
    "bench",
    "compress",
    "evaluate",
    "export",
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
    "pick",
    "predict",
    "predict_many",
    "profile",
    "search",
    "unapply",
]


def __getattr__(name: str) -> Any:
    if name == "live":
        return import_module(f"{__name__}.live")
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module 'hmrcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
