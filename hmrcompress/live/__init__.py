"""Networks of other code, compressed in place, searched, healed, timed and kept as they are: `hc.live`.

`network` says what is found in a model; `apply`, `person_mask` and `unapply` compress it in place. Functions are loaded
when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrcompress.live.distances import joints, vertices
    from hmrcompress.live.files import MergedFile, merge_file
    from hmrcompress.live.healing import HealedLive, heal
    from hmrcompress.live.patching import apply, person_mask, unapply
    from hmrcompress.live.saving import restore, save
    from hmrcompress.live.searching import search
    from hmrcompress.live.structure import Network, network

__all__ = [
    "HealedLive",
    "MergedFile",
    "Network",
    "apply",
    "bench",
    "heal",
    "joints",
    "merge_file",
    "network",
    "person_mask",
    "plan_for",
    "restore",
    "save",
    "search",
    "stack_macs",
    "unapply",
    "vertices",
]
HOMES = {
    "Network": "structure",
    "network": "structure",
    "apply": "patching",
    "person_mask": "patching",
    "unapply": "patching",
    "search": "searching",
    "heal": "healing",
    "HealedLive": "healing",
    "plan_for": "plans",
    "merge_file": "files",
    "MergedFile": "files",
    "restore": "saving",
    "save": "saving",
    "stack_macs": "cost",
    "joints": "distances",
    "vertices": "distances",
}
"""The modules that they live in."""


def __getattr__(name: str) -> Any:
    if name == "bench":  # of the room that measures by turns, which lies above this one
        return import_module("hmrcompress.timing.live_bench").bench
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module 'hmrcompress.live' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
