"""Several processes that train the same parameters together, through accelerate; one alone never imports it.

Launched by `accelerate launch` or `torchrun`, which say in the environment who each process is. Every process draws the
whole batch of a step from the step's number, works on its own rows of it, and the gradients are averaged: the losses
are those of one process with that batch. Files are the first process's business, so folders have to be shared by all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.io.together import process_of

if TYPE_CHECKING:
    from accelerate import Accelerator


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
        self._accelerator = _accelerator(device.type) if self.count > 1 else None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients become their mean over all processes; a missing one counts as zero."""
        if self._accelerator is None:
            return
        wanted = list(parameters)
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in wanted if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        mean = self._accelerator.reduce(flat, reduction="mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def means(self, values: Sequence[Tensor]) -> list[float]:
        """Numbers as their means over all processes."""
        stacked = torch.stack([value.detach().float() for value in values])
        if self._accelerator is not None:
            stacked = self._accelerator.reduce(stacked, reduction="mean")
        return stacked.tolist()

    def agreed(self, value: float) -> float:
        """The first process's number, where each has its own (a clock)."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.device), from_process=0))

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


@cache
def _accelerator(kind: str) -> Accelerator:
    """One for a program, made when it is first needed. UserError where accelerate is not installed."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UserError("several processes need accelerate", "training", "pip install accelerate") from error
    return Accelerator(cpu=kind == "cpu")
