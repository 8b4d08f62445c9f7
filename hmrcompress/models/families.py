"""Which architecture a state dict belongs to, told by its keys. Builders are named, and imported when needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from hmrcompress.errors import UserError


@dataclass(frozen=True)
class Family:
    """An architecture. `network` is `module:class`; a state dict belongs to it if it has all of `has` and none of
    `lacks`; keys that start with one of `ignored` are not needed for inference."""

    name: str
    title: str
    network: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    ignored: tuple[str, ...]


FAMILIES = {
    "hmr2": Family(
        name="hmr2",
        title="HMR2.0",
        network="hmrcompress.models.network:HMR2",
        has=(
            "backbone.pos_embed",
            "backbone.patch_embed.proj.weight",
            "smpl_head.transformer.to_token_embedding.weight",
            "smpl_head.decpose.weight",
            "smpl_head.init_body_pose",
        ),
        lacks=("smpl_head.deckp.weight",),
        ignored=("discriminator.", "smpl.", "initialized"),
    ),
}

# Relatives whose files are told apart but not read: a key that only they have -> what to call them.
RELATIVES = {
    "smpl_head.deckp.weight": "CameraHMR",
    "smpl_head.decpose_grot.weight": "TokenHMR",
    "mano_head.decpose.weight": "HaMeR",
}


def family(name: str) -> Family:
    """The family of that name. Raises UserError naming those there are."""
    if name not in FAMILIES:
        raise UserError(f"got {name!r}, expected one of {', '.join(FAMILIES)}", "family")
    return FAMILIES[name]


def recognise(keys: Collection[str], where: object = "checkpoint") -> Family:
    """The family that these keys belong to. Raises UserError, naming the nearest family and a key it misses."""
    for key, title in RELATIVES.items():
        if key in keys:
            raise UserError(f"this is a {title} checkpoint, expected one of {', '.join(FAMILIES)}", where)
    nearest, missing = None, None
    for candidate in FAMILIES.values():
        absent = [key for key in candidate.has if key not in keys]
        if not absent and not any(key in keys for key in candidate.lacks):
            return candidate
        if missing is None or len(absent) < len(missing):
            nearest, missing = candidate, absent
    first = f"; {nearest.title} has {missing[0]}" if nearest and missing else ""
    examples = ", ".join(sorted(keys)[:5]) or "none"
    raise UserError(f"the keys belong to no known family{first}. The file's {len(keys)} keys begin {examples}", where)


def split_ignored(kind: Family, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(what the network takes, names of what is allowed to be left over)."""
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith(kind.ignored)}
    return wanted, tuple(name for name in state if name not in wanted)


def check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object) -> None:
    """UserError unless names and shapes agree, with the count and five examples of what does not."""
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name} {_shape(state[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    faults = []
    for found, what in ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape")):
        if found:
            faults.append(f"{len(found)} keys {what}: {', '.join(found[:5])}{' …' if len(found) > 5 else ''}")
    if faults:
        raise UserError("; ".join(faults), where)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
