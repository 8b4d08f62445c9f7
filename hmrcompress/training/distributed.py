"""Several processes that train the same parameters together.

Launched by `accelerate launch` or `torchrun`, which say in the environment who each process is (accelerate then brings
them together; one alone never imports it), or brought together before by `torch.distributed`. Every process draws the
whole batch of a step from the step's number, works on its own rows of it, and the gradients are averaged: the losses
are those of one process with that batch. Files are the first process's business, so folders have to be shared by all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.io.together import process_of


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that this process works on. UserError where it cannot be shared evenly."""
    rank, count = process_of()
    if batch_size % count:
        raise UserError(f"a batch of {batch_size} cannot be shared by {count} processes", "--batch-size")
    share = batch_size // count
    return slice(rank * share, (rank + 1) * share)


class Team:
    """The processes of a run, as the training loop sees them. Alone, nothing here does anything."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count = process_of()
        self.device = device
        if self.count > 1:
            _bring_together(device.type)
        elif dist.is_initialized():
            self.rank, self.count = dist.get_rank(), dist.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients become their mean over all processes; a missing one counts as zero."""
        if self.count == 1:
            return
        wanted = list(parameters)
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in wanted if parameter.grad is not None]
        mean = self._mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def means(self, values: Sequence[Tensor]) -> list[float]:
        """Numbers as their means over all processes."""
        return self._mean(torch.stack([value.detach().float() for value in values])).tolist()

    def agreed(self, value: float) -> float:
        """The first process's number, where each has its own (a clock)."""
        if self.count == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(told, src=0)
        return float(told)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def _mean(self, values: Tensor) -> Tensor:
        """Numbers of this process's own tensor, in place, as their means over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values


@cache
def _bring_together(kind: str) -> None:
    """Once in a program, when it is first needed. UserError where accelerate is not installed."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UserError("several processes need accelerate", "training", "pip install accelerate") from error
    Accelerator(cpu=kind == "cpu")
