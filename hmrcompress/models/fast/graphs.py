"""A network on static shapes: batches are padded to one of a few sizes, each with buffers of its own, and on CUDA all
kernels of a size are captured once, in one graph, and replayed with a single launch.

At small batches a GPU waits for Python to launch the next of several hundred kernels; a graph makes that one. Nothing
in the networks depends on data: token merging removes the same number of tokens from every crop. What a graph holds are
addresses, so inputs are copied into buffers that stay where they are, and outputs are copied out of others.

On the CPU the same buffers are filled and the network is simply called. That is of use where a compiler wants few
shapes, and lets tests run everything but the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError, first_line
from hmrcompress.models.fast.compiled import Compiled
from hmrcompress.records import HMROutput

LARGEST = 32
WARMUP = 3
"""Runs before a capture: libraries choose algorithms and take memory that a capture may not take."""

Output = HMROutput | Tensor
Inputs = tuple[Tensor | None, ...]


def batch_buckets(sizes: Sequence[int] = (LARGEST,)) -> tuple[int, ...]:
    """What batches are padded to: the sizes that are expected, and 1, 2, 4, … below the largest. UserError below 1."""
    if not sizes or min(sizes) < 1:
        raise UserError(f"got {', '.join(map(str, sizes)) or 'none'}, expected numbers from 1", "batch sizes")
    return tuple(sorted({*sizes, *(1 << power for power in range((max(sizes) - 1).bit_length()))}))


class StaticBatches(nn.Module):
    """A network, ready to run, called with tensors (B,…) or None, all of one B, that gives an HMROutput or a tensor
    (B,…): `HMR2` (images, person_mask, condition), its fast form, or its backbone. The same call, for inference alone.

    buckets: batch sizes, rising. A batch is padded with its last crop to the smallest that holds it, and what is larger
    than the largest is cut. capture: replay CUDA graphs (None: on CUDA). compiled: through torch.compile. Results are
    copies. Buffers are made, and a graph is captured, at the first call with a size; not for several threads at once.
    """

    def __init__(
        self,
        network: nn.Module,
        buckets: Sequence[int] = (),
        *,
        capture: bool | None = None,
        compiled: bool = False,
    ) -> None:
        """UserError for buckets that do not rise from at least 1."""
        super().__init__()
        self.network, self.buckets, self.compiled = network, tuple(buckets or batch_buckets()), compiled
        if self.buckets[0] < 1 or any(low >= high for low, high in pairwise(self.buckets)):
            raise UserError(f"got {', '.join(map(str, self.buckets))}, expected rising numbers from 1", "batch sizes")
        self.capture = capture
        self._compiled = Compiled(network) if compiled else None
        self._made: dict[tuple[Any, ...], _Bucket] = {}
        self._pool: Any = None

    def forward(self, *inputs: Tensor | None) -> Output:
        """As the network's, which also says what is wrong with inputs."""
        given = [part for part in inputs if part is not None]
        sizes = {part.shape[:1] for part in given}
        if len(sizes) != 1 or not given[0].ndim or not given[0].numel():
            return self.network(*inputs)
        count, largest = len(given[0]), self.buckets[-1]
        if count <= largest:
            return self._bucket(inputs)(inputs)
        starts = range(0, count, largest)
        cut = [tuple(None if part is None else part[at : at + largest] for part in inputs) for at in starts]
        return _joined([self._bucket(part)(part) for part in cut])

    def part(self, name: str) -> StaticBatches:
        """A submodule of the network, run in the same way."""
        inner = cast(nn.Module, getattr(self.network, name))
        return StaticBatches(inner, self.buckets, capture=self.capture, compiled=self.compiled)

    def _bucket(self, inputs: Inputs) -> _Bucket:
        first = next(part for part in inputs if part is not None)
        size = next(size for size in self.buckets if size >= len(first))
        kind = first.device.type
        # Autocast is baked into a graph as much as shapes are.
        cast_to = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        looks = tuple(None if part is None else (part.shape[1:], part.dtype, part.device) for part in inputs)
        if (key := (size, cast_to, looks)) not in self._made:
            capture = first.is_cuda if self.capture is None else self.capture
            if capture and self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            bucket = _Bucket(self.network if self._compiled is None else self._compiled, inputs, size)
            if self._compiled is not None:
                # Before it is compiled: wrong inputs are told by the network, and weights laid out at first use.
                bucket.call(self.network)
            if capture:
                bucket.capture(self._pool)
            self._made[key] = bucket
        return self._made[key]


class _Bucket:
    """Static inputs, filled from the first batch, static outputs, and what makes the ones of the others."""

    def __init__(self, run: Callable[..., Any], inputs: Inputs, size: int) -> None:
        self.run, self.graph, self.outputs = run, cast(Any, None), cast(Output, None)
        # Buffers made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.inputs = tuple(None if part is None else part.new_empty(size, *part.shape[1:]) for part in inputs)
            self._fill(inputs)

    def __call__(self, inputs: Inputs) -> Output:
        with torch.inference_mode(False), torch.no_grad():
            self._fill(inputs)
            if self.graph is None:
                self.outputs = self.call(self.run)
            else:
                self.graph.replay()
            return _first(self.outputs, next(len(part) for part in inputs if part is not None))

    def call(self, run: Callable[..., Any]) -> Output:
        """What `run` makes of the static inputs."""
        with torch.inference_mode(False), torch.no_grad():
            return run(*self.inputs)

    def capture(self, pool: Any) -> None:
        """Runs on a side stream, then captures there, with memory of `pool`, which the graphs of a network share: they
        never run at the same time, and what they put out has been copied before the next one runs. UserError where that
        fails, such as for want of memory."""
        device = next(part.device for part in self.inputs if part is not None)
        kind = device.type
        # Weights that autocast has cast and keeps would be freed under the graph.
        precision = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        try:
            with torch.inference_mode(False), torch.no_grad(), precision:
                self.graph, self.outputs = _captured(self.run, self.inputs, device, pool)
        except RuntimeError as error:
            raise UserError(f"no CUDA graph ({first_line(error)})", "graphs", "Try to set graphs to false") from error

    def _fill(self, inputs: Inputs) -> None:
        for buffer, part in zip(self.inputs, inputs, strict=True):
            if buffer is not None and part is not None:
                buffer[: len(part)].copy_(part)
                # Crops of the batch itself, so that nothing in the padding is larger than what is there anyway.
                buffer[len(part) :].copy_(part[-1:])


def _captured(run: Callable[..., Any], inputs: Inputs, device: torch.device, pool: Any) -> tuple[Any, Output]:
    """A CUDA graph that reads `inputs`, and the outputs that it writes."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                run(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which decode pictures and pin memory, may go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            outputs = run(*inputs)
    return graph, outputs


def _first(output: Output, count: int) -> Output:
    """Copies of the first rows."""
    if isinstance(output, Tensor):
        return output[:count].clone()
    return output.mapped(lambda part: part[:count].clone())


def _joined(outputs: list[Output]) -> Output:
    first = outputs[0]
    return torch.cat(cast(list[Tensor], outputs)) if isinstance(first, Tensor) else first.joined(cast(Any, outputs))
