"""Which architecture a state dict belongs to, told by its keys. Networks are named, and imported when needed."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from hmrcompress.errors import UserError

if TYPE_CHECKING:
    from hmrcompress.models.network import HMR2

BACKBONE = ("backbone.pos_embed", "backbone.patch_embed.proj.weight")


class DepthLine(NamedTuple):
    """Where the number of layers stands in the original code."""

    project: str
    file: str
    function: str
    argument: str = "depth=32"
    note: str = ""


@dataclass(frozen=True)
class Part:
    """Weights that the family needs and keeps in a file of their own. In ours they stand under `prefix`.

    `names` are those that the file has beside the checkpoint or a folder above, if `setting` of the model_config.yaml
    does not say; `wanted` how the keys begin of what is needed of it; `marks` keys by which it is told.
    """

    title: str
    prefix: str
    names: tuple[str, ...]
    setting: tuple[str, ...]
    wanted: tuple[str, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """An architecture. `network` is `module:class`; a state dict belongs to it if it has all of `has` and none of
    `lacks`; keys that start with one of `ignored` are not needed for inference; `part` is kept in another file."""

    name: str
    title: str
    network: str
    has: tuple[str, ...]
    depth_line: DepthLine
    lacks: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ("discriminator.", "smpl.", "initialized")
    part: Part | None = None


TOKENIZER = Part(
    title="tokenizer",
    prefix="smpl_head.decpose.tokenizer.",
    names=("tokenizer.pth", "tokenizer.safetensors"),
    setting=("MODEL", "TOKENIZER_CHECKPOINT_PATH"),
    wanted=("decoder.", "quantizer."),
    marks=("quantizer.codebook", "decoder.decoder.0.weight"),
)

FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="hmr2",
            title="HMR2.0",
            network="hmrcompress.models.network:HMR2",
            has=(*BACKBONE, "smpl_head.decpose.weight", "smpl_head.init_body_pose"),
            lacks=("smpl_head.deckp.weight",),
            depth_line=DepthLine(
                "4D-Humans",
                "hmr2/models/backbones/vit.py",
                "vit(cfg)",
                note="in the last of the two calls; the first is a smaller variant",
            ),
        ),
        Family(
            name="camerahmr",
            title="CameraHMR",
            network="hmrcompress.models.families.camerahmr:CameraHMR",
            has=(*BACKBONE, "smpl_head.decpose.weight", "smpl_head.deckp.weight"),
            depth_line=DepthLine("CameraHMR", "core/backbones/vit.py", "vit()"),
        ),
        Family(
            name="tokenhmr",
            title="TokenHMR",
            network="hmrcompress.models.families.tokenhmr:TokenHMR",
            has=(*BACKBONE, "smpl_head.decpose_grot.weight", "smpl_head.decpose.class_pred_layer.weight"),
            depth_line=DepthLine("TokenHMR", "tokenhmr/lib/models/backbones/vit.py", "vit(cfg)"),
            part=TOKENIZER,
        ),
        Family(
            name="hamer",
            title="HaMeR",
            network="hmrcompress.models.families.hamer:HaMeR",
            has=(*BACKBONE, "mano_head.decpose.weight", "mano_head.init_hand_pose"),
            ignored=("discriminator.", "mano.", "initialized"),
            depth_line=DepthLine("HaMeR", "hamer/models/backbones/vit.py", "vit(cfg)"),
        ),
    )
}

FIELD_OF_VIEW = ("backbone.downsample_stage_1.0.weight", "fc3.weight")
HELPERS = {
    "CameraHMR's field-of-view network, which gives focal lengths": FIELD_OF_VIEW,
    "TokenHMR's tokenizer, which belongs beside a TokenHMR checkpoint": TOKENIZER.marks,
}
"""Files that belong to a family and are no model by themselves: what they are, and the keys by which they are told."""
MARKS = (tuple(each.has for each in FAMILIES.values()), tuple(HELPERS.values()))
"""Keys by which `open_state_file` knows weights in whatever wraps them: a family's, else a helper's."""


def family(name: str) -> Family:
    """The family of that name. Raises UserError naming those there are."""
    if name not in FAMILIES:
        raise UserError(f"got {name!r}, expected one of {', '.join(FAMILIES)}", "family")
    return FAMILIES[name]


def network_class(name: str) -> type[HMR2]:
    """The class of a family's networks. Raises UserError naming the families there are."""
    module, _, attribute = family(name).network.partition(":")
    return getattr(importlib.import_module(module), attribute)


def recognise(keys: Collection[str], where: object = "checkpoint") -> Family:
    """The family that these keys belong to. Raises UserError: for a file that only belongs to a family, saying what it
    is; else naming the nearest family and a key it misses."""
    if (what := helper_of(keys)) is not None:
        raise UserError(f"this is {what}, expected a checkpoint of one of {', '.join(FAMILIES)}", where)
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


def helper_of(keys: Collection[str]) -> str | None:
    """What a file with these keys is, if it is one of `HELPERS`."""
    return next((what for what, marks in HELPERS.items() if all(key in keys for key in marks)), None)


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
