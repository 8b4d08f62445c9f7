"""The tokens that enter the layers of the untouched network, computed once and kept, in memory or on the disk.

Layers below the lowest merged one compute what they always do, so an evaluation starts at the layer where it differs.
Every batch is always the same crops, so the figures are the same, bit for bit, whatever is kept. In bfloat16 the cache
takes half; then what enters each of these layers is rounded whether it is kept or not, so that the same holds there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmrcompress.models.network import HMR2
from hmrcompress.models.vit import TokenState
from hmrcompress.runtime import autocast

CACHE_BYTES = 2 << 30
"""Most memory that the cache takes unless it is told; it also leaves three quarters of what is free."""
ALIGNED = 64
"""Bytes that the places of tensors in one piece of memory are multiples of."""
DISK_SHARE = 2
"""At most one part in two of the free disk space is taken for what memory does not hold."""

Inputs = tuple[Tensor, TokenState | None]


class _Spilled(NamedTuple):
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class _Block:
    """Tensors in one piece of memory: each by itself would lie among the large ones that a network makes and frees, of
    whose places little could then be used again or given back."""

    def __init__(self, size: int) -> None:
        self._bytes, self._used = torch.empty(size, dtype=torch.uint8), 0

    def write(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor; in memory of its own where it no longer fits."""
        size = tensor.numel() * tensor.element_size()
        if self._used + size > len(self._bytes):
            return tensor.clone()
        kept = self._bytes[self._used : self._used + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._used += -(-size // ALIGNED) * ALIGNED
        return kept


class _SpillFile:
    """Tensors in a temporary file without a name: it is gone when the process is, however that ends. It is read and
    written through the system, which keeps of it what memory it has to spare, and not mapped, which would count as the
    process's own."""

    def __init__(self, folder: Path, size: int) -> None:
        """Reserves the space at once, so that a full disk is an OSError here and not a crash while writing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except OSError:
            self._file.close()
            raise
        self._size, self._used = size, 0

    def write(self, tensor: Tensor) -> _Spilled | None:
        """Where the tensor is now, or None where it no longer fits."""
        flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
        if self._used + len(flat) > self._size:
            return None
        self._file.seek(self._used)
        self._file.write(flat.data)
        self._used += len(flat)
        return _Spilled(self._used - len(flat), tensor.shape, tensor.dtype)

    def read(self, place: _Spilled) -> Tensor:
        """A copy of the tensor."""
        flat = np.empty(place.shape.numel() * place.dtype.itemsize, np.uint8)
        self._file.seek(place.offset)
        if self._file.readinto(flat.data) != len(flat):  # type: ignore[attr-defined]
            raise OSError("the temporary file of the search's cache was cut short")
        return torch.from_numpy(flat).view(place.dtype).view(place.shape)


class LayerCache:
    """Keeps what enters some layers, by batch: as many layers in memory as fit, others in a temporary file.

    `layers` that it may keep, `layer_bytes` that one of them takes at most, `memory_bytes` to use, and a `folder` for
    the rest (None: nothing goes to the disk). What fits in neither is not kept: then fewer layers, evenly spread.
    Tokens are kept in `dtype` and come back in the one that they had.
    """

    def __init__(
        self,
        layers: Sequence[int],
        layer_bytes: int,
        memory_bytes: int,
        folder: Path | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.candidates, self.dtype = frozenset(layers), dtype
        in_memory = min(len(layers), memory_bytes // max(layer_bytes, 1))
        on_disk, self._spill = 0, None
        if folder is not None and in_memory < len(layers):
            on_disk = min(len(layers) - in_memory, _free_disk(folder) // DISK_SHARE // max(layer_bytes, 1))
            try:
                self._spill = _SpillFile(folder, on_disk * layer_bytes) if on_disk else None
            except OSError:  # the space went to somebody else, or the file system gives none
                on_disk = 0
        self.layers = evenly_spread(layers, in_memory + on_disk)
        self._in_memory = frozenset(self.layers[:in_memory])
        self._block = _Block(in_memory * layer_bytes)
        self._memory: dict[tuple[int, int], tuple[Tensor | _Spilled, Any, torch.dtype]] = {}

    @property
    def rounds(self) -> bool:
        """Whether tokens lose something in it."""
        return self.dtype != torch.float32

    def rounded(self, layer: int, tokens: Tensor) -> Tensor:
        """What enters a layer that might be kept, as it would come back."""
        return tokens.to(self.dtype).to(tokens.dtype) if self.rounds and layer in self.candidates else tokens

    def put(self, batch: int, layer: int, tokens: Tensor, state: tuple[Tensor, ...] | None) -> None:
        """Keeps a copy in main memory or on the disk, where this layer is one to keep. state: of the tokens, a
        `TokenState` or another named tuple of tensors."""
        if layer not in self.layers or (batch, layer) in self._memory:
            return
        rounded = (tokens.to(self.dtype) if self.rounds else tokens).cpu()
        if layer in self._in_memory:
            kept: Tensor | _Spilled | None = self._block.write(rounded)
        else:
            assert self._spill is not None
            kept = self._spill.write(rounded)
        if kept is not None:
            self._memory[batch, layer] = (kept, _moved(state, torch.device("cpu")), tokens.dtype)

    def nearest(self, batch: int, layer: int) -> int | None:
        """The highest layer not above `layer` whose input is kept for this batch."""
        return max((kept for kept in self.layers if kept <= layer and (batch, kept) in self._memory), default=None)

    def get(self, batch: int, layer: int, device: torch.device) -> Inputs:
        """What was kept, on `device`."""
        kept, state, dtype = self._memory[batch, layer]
        if isinstance(kept, _Spilled):
            assert self._spill is not None
            kept = self._spill.read(kept)
        return kept.to(device).to(dtype), _moved(state, device)


class PrefixTokens:
    """What enters any layer of `network` for batches by number, run from the nearest layer that `cache` keeps.

    `embed(batch)` gives what enters layer 0. `applications` counts layers times frames that were computed.
    """

    def __init__(
        self, network: HMR2, embed: Callable[[int], Inputs], cache: LayerCache, *, dtype: torch.dtype = torch.float32
    ) -> None:
        self.network, self.embed, self.cache, self.dtype = network, embed, cache, dtype
        self.device = next(network.parameters()).device
        self.applications = 0

    def at(self, batch: int, layer: int) -> Inputs:
        """Tokens (B,M,D) that enter `layer` (the number of layers: that the last one puts out), and their state."""
        start = self.cache.nearest(batch, layer)
        with torch.no_grad(), autocast(self.device, self.dtype):
            if start is None:
                start, (tokens, state) = 0, self.embed(batch)
                tokens = self.cache.rounded(0, tokens)
                self.cache.put(batch, 0, tokens, state)
            else:
                tokens, state = self.cache.get(batch, start, self.device)
            stops = self.cache.candidates if self.cache.rounds else self.cache.layers
            for stop in sorted(each for each in stops if start < each < layer) + [layer]:
                tokens, state = self.network.backbone.run_blocks(tokens, start, stop, state)
                tokens = self.cache.rounded(stop, tokens)
                self.applications += (stop - start) * len(tokens)
                self.cache.put(batch, stop, tokens, state)
                start = stop
        return tokens, state


def layer_bytes(network: HMR2, frames: int, dtype: torch.dtype = torch.float32) -> int:
    """What the tokens of so many frames take before one layer, at most."""
    rows, columns = network.config.grid
    return dtype.itemsize * frames * rows * columns * network.config.dim


def evenly_spread(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the layers, the first among them."""
    return tuple(layers[number * len(layers) // count] for number in range(count))


def usual_memory() -> int:
    """Bytes that a cache may take in memory: a quarter of what is free, at most 2 GiB."""
    import psutil

    return min(CACHE_BYTES, psutil.virtual_memory().available // 4)


def _free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    import shutil

    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def _moved(state: Any, device: torch.device) -> Any:
    if state is None:
        return None
    return type(state)(*(part.to(device) for part in state))
