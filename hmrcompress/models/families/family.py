"""What a family is: how its checkpoints are told, what they hold beside the network, where its code has the depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hmrcompress.errors import UserError
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
    """An architecture. `network` is the class of its networks; a state dict belongs to it if it has all of `has` and
    none of `lacks`; keys that start with one of `ignored` are not needed for inference; `part` is kept in another
    file."""

    name: str
    title: str
    network: type[HMR2]
    has: tuple[str, ...]
    depth_line: DepthLine
    lacks: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ("discriminator.", "smpl.", "initialized")
    part: Part | None = None


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
