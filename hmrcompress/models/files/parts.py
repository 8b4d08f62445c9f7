"""Weights that a family keeps in a file beside its checkpoints (`families.Part`): found, read, put under our prefix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.models.families.family import Family, Part
from hmrcompress.models.network import HMR2


def find_part(part: Part, checkpoint: Path, configuration: Mapping[str, Any], given: Path | str | None) -> Path | None:
    """The part's file: `given`, else what the configuration names, else by its usual names; the last two beside the
    checkpoint or one folder above. None where there is none. UserError where `given` is not there."""
    if given is not None:
        if not Path(given).is_file():
            raise UserError(f"no such file, expected the {part.title}", given)
        return Path(given)
    named: Any = configuration
    for key in part.setting:
        named = named.get(key) if isinstance(named, Mapping) else None
    names = [str(named), Path(str(named)).name] if isinstance(named, str) and named else []
    folders = (checkpoint.absolute().parent, checkpoint.absolute().parent.parent)
    for name in (*names, *part.names):
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return None


def missing_part(part: Part, kind: Family, checkpoint: Path) -> UserError:
    """What to raise where a checkpoint is loaded whose part is not found."""
    return UserError(
        f"this {kind.title} checkpoint needs its {part.title}, which is a file of its own and was not found",
        checkpoint,
        f"Put it beside the checkpoint as {part.names[0]}, or give --{part.title} FILE",
    )


def read_part(part: Part, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is needed of a part's file, under the part's prefix, and the hyper-parameters stored in it. UserError."""
    file = open_state_file(path, [part.marks])
    if missing := [key for key in part.marks if key not in file.tensors]:
        raise UserError(f"no key {missing[0]}, so this is no {part.title}", path)
    tensors = {part.prefix + name: value for name, value in file.tensors.items() if name.startswith(part.wanted)}
    return tensors, file.hyper_parameters


def stand_in(part: Part, kind: type[HMR2]) -> dict[str, Tensor]:
    """Tensors without values for a part that is missing, at the published sizes, so that the rest can be described."""
    with torch.device("meta"):
        like = kind(kind.config_class()).state_dict()
    return {name: tensor for name, tensor in like.items() if name.startswith(part.prefix)}
