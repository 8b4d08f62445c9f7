"""Opening weights whatever they are wrapped in: Lightning checkpoints, bare or wrapped state dicts, safetensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.pickles import plain, read_torch_pickle
from hmrcompress.io.safetensors_file import read_safetensors
from hmrcompress.io.wrappers import WeightSet, find_sets, largest_set, leaves, undecided

PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".tar")
MOST_REPEATED = 1 << 24
"""Bytes of a tensor that repeats a few numbers, as `expand` makes it."""
CONFIGURATIONS = ("hyper_parameters", "hparams")

Marks = Sequence[Collection[str]]


@dataclass(frozen=True)
class StateFile:
    """A checkpoint file, opened but not read: `tensors` are views of the mapped file, named as in the network.

    `taken` says what was around them, `others` which other sets of weights the file holds, `by_choice` whether they
    were asked for and would not have been taken otherwise. `hyper_parameters` is the configuration pickled beside them
    as plain values, `metadata` the texts of a safetensors header.
    """

    path: Path
    taken: WeightSet
    others: tuple[WeightSet, ...] = ()
    by_choice: bool = False
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return self.taken.tensors


def open_state_file(path: Path | str, *known: Marks, weights: str | None = None) -> StateFile:
    """Opens a `.ckpt`, `.pt`, `.pth` or `.safetensors` file on the CPU, memory-mapped, executing nothing.

    known: keys by which weights are told, any one set of them; a second list is asked where nothing of the first is
    there. Whatever wraps such weights is peeled off. Of several in a file those are taken that are no average and stand
    in the usual wrapper (`wrappers.USUAL`), or those that `weights` names. A file with nothing that is known gives its
    largest dictionary of tensors. Raises UserError where the file is missing, truncated, of an unknown kind, asks for
    code, holds no weights, or several of which nothing tells which to take.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError("is a folder, expected a checkpoint file", path)
    if not path.is_file():
        raise UserError("no such file", path)
    content: Any
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        content, metadata = read_safetensors(path)
    elif path.suffix in PICKLED:
        content = read_torch_pickle(path)
    else:
        kinds = ", ".join((*PICKLED, ".safetensors"))
        raise UserError(f"got a file ending in {path.suffix!r}, expected one of {kinds}", path)
    sets = _sets(content, known, path)
    taken = _chosen(sets, weights, path)
    for name, tensor in taken.tensors.items():
        check_plain(name, tensor, path)
    by_choice = taken is not sets[0] or bool(undecided(sets))
    others = tuple(each for each in sets if each is not taken)
    return StateFile(path, taken, others, by_choice, _configuration(content, taken.keys, path), metadata)


def _sets(content: Any, known: Sequence[Marks], path: Path) -> list[WeightSet]:
    """The sets of weights in a file, at least one, the one to take first."""
    found = list(leaves(content)) if isinstance(content, (Mapping, list, tuple)) else []
    try:
        sets = next((sets for marks in known if (sets := find_sets(found, marks))), [])
    except ValueError as error:
        raise UserError(str(error), path) from error
    if sets:
        return sets
    largest = largest_set(found)
    if largest is not None:
        return [largest]
    if not isinstance(content, Mapping):
        raise UserError(f"holds a {type(content).__name__}, expected a state dict", path)
    keys = ", ".join(map(str, list(content)[:5]))
    raise UserError(f"holds no weights (its keys: {keys or 'none'})", path)


def _chosen(sets: Sequence[WeightSet], wanted: str | None, path: Path) -> WeightSet:
    """The first set, or the only one that is called `wanted` or has that word in its name."""
    if wanted is not None:
        fitting = [each for each in sets if each.name == wanted]
        fitting = fitting or [each for each in sets if wanted in each.name.split(".")]
        if len(fitting) != 1:
            fault = "no weights" if not fitting else f"{len(fitting)} sets of weights"
            raise UserError(f"holds {fault} called {wanted!r}, but {_listed(sets)}", path, "Give one of these names")
    elif unsure := undecided(sets):
        count = f"{len(unsure)} sets of weights and nothing tells which to take"
        raise UserError(f"holds {count}: {_listed(unsure)}", path, "Name one: --weights")
    taken = sets[0] if wanted is None else fitting[0]
    if taken.clash is not None:
        raise UserError(f"two tensors are called {taken.clash} once wrappers are peeled off", path)
    return taken


def _listed(sets: Sequence[WeightSet]) -> str:
    return ", ".join(each.called for each in sets)


def _configuration(content: Any, keys: Sequence[str], path: Path) -> dict[str, Any]:
    """What training left beside the weights that lie under these keys, or around them, as plain values."""
    around = [content]
    for key in keys:
        holder = around[-1]
        inner = holder if isinstance(holder, Mapping) else dict(enumerate(holder))
        around.append(next(value for name, value in inner.items() if str(name) == key))
    for holder in reversed(around):
        for name in CONFIGURATIONS:
            if isinstance(holder, Mapping) and isinstance(found := plain(holder.get(name), path), dict):
                return found
    return {}


def check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """UserError for a tensor without numbers of its own: sparse, quantized, on no device, or a few numbers that are
    claimed to be very many."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(f"{name} is not a plain tensor ({tensor.layout}, {tensor.device.type})", path)
    claimed = tensor.numel() * tensor.element_size()
    if claimed > max(tensor.untyped_storage().nbytes(), MOST_REPEATED):
        raise UserError(f"{name} claims the shape {tuple(tensor.shape)}, which the file has no bytes for", path)
