"""Opening weights whatever they are wrapped in: Lightning checkpoints, bare or wrapped state dicts, safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.pickles import plain, read_torch_pickle
from hmrcompress.io.safetensors_file import read_safetensors

PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".tar")
WRAPPERS = ("state_dict", "model", "net")
PARALLEL_PREFIX = "module."
MOST_REPEATED = 1 << 24
"""Bytes of a tensor that repeats a few numbers, as `expand` makes it."""


@dataclass(frozen=True)
class StateFile:
    """A checkpoint file, opened but not read: `tensors` are views of the mapped file.

    `wrapper` is the key that the weights stood under (empty for bare ones), `hyper_parameters` the configuration
    pickled beside them as plain values, `metadata` the texts of a safetensors header.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str = ""
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def open_state_file(path: Path | str) -> StateFile:
    """Opens a `.ckpt`, `.pt`, `.pth` or `.safetensors` file on the CPU, memory-mapped, executing nothing.

    Raises UserError where the file is missing, truncated, of an unknown kind, asks for code, or holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError("is a folder, expected a checkpoint file", path)
    if not path.is_file():
        raise UserError("no such file", path)
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return StateFile(path, _named(tensors, path), metadata=metadata)
    if path.suffix not in PICKLED:
        kinds = ", ".join((*PICKLED, ".safetensors"))
        raise UserError(f"got a file ending in {path.suffix!r}, expected one of {kinds}", path)
    content = read_torch_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"holds a {type(content).__name__}, expected a state dict", path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            hyper = plain(content.get("hyper_parameters", content.get("hparams")), path)
            return StateFile(path, _named(content[wrapper], path), wrapper, hyper if isinstance(hyper, dict) else {})
    return StateFile(path, _named(content, path))


def _check(name: str, tensor: Tensor, path: Path) -> None:
    """UserError for a tensor without numbers of its own: sparse, quantized, on no device, or a few numbers that are
    claimed to be very many."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(f"{name} is not a plain tensor ({tensor.layout}, {tensor.device.type})", path)
    claimed = tensor.numel() * tensor.element_size()
    if claimed > max(tensor.untyped_storage().nbytes(), MOST_REPEATED):
        raise UserError(f"{name} claims the shape {tuple(tensor.shape)}, which the file has no bytes for", path)


def _named(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name; `module.` of data-parallel training is taken off."""
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(state)[:5]))
        raise UserError(f"holds no weights (its keys: {keys or 'none'})", path)
    for name, tensor in tensors.items():
        _check(name, tensor, path)
    if all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(PARALLEL_PREFIX): value for name, value in tensors.items()}
    return tensors
