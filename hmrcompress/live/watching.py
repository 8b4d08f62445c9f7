"""What a call of a model shows of its first block: how many tokens it gets, from what grid, with what arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Seen:
    """The first call: `tokens` that the block got and bytes of a number in them, `grid` of patches that the stem made,
    and the block's other arguments. None: no call has been seen. `calls`: how many there were in all."""

    tokens: int | None = None
    calls: int = 0
    itemsize: int = 4
    grid: tuple[int, int] | None = None
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None


@contextmanager
def watched(block: nn.Module, stem: nn.Module | None) -> Iterator[Seen]:
    """Looks on while the model is called inside; nothing is changed."""
    seen = Seen()

    def at_stem(module: nn.Module, args: Any, output: Any) -> None:
        if seen.tokens is None and isinstance(output, Tensor) and output.ndim == 4:
            seen.grid = int(output.shape[2]), int(output.shape[3])

    def at_block(module: nn.Module, args: Any, kwargs: Any) -> None:
        tokens, rest = (args[0], args[1:]) if args else (next(iter(kwargs.values())), ())
        seen.calls += len(tokens) if isinstance(tokens, list | tuple) else 1
        if seen.tokens is not None:
            return
        if isinstance(tokens, list | tuple):
            rest = tuple(part[0] if isinstance(part, list) and part else part for part in rest)
            tokens = tokens[0]
        seen.itemsize = tokens.dtype.itemsize
        seen.tokens, seen.arguments = int(tokens.shape[1]), (tuple(rest), dict(kwargs))

    handles = [block.register_forward_pre_hook(at_block, with_kwargs=True)]
    if stem is not None:
        handles.append(stem.register_forward_hook(at_stem))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
