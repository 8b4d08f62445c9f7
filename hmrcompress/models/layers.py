"""Torch's layers, without values on the meta device: there they have none, and drawing them takes most of the time in
which a network is built."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear`; on the meta device nothing is drawn."""

    def reset_parameters(self) -> None:
        """Draws the values as torch does."""
        if not self.weight.is_meta:
            super().reset_parameters()


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`; on the meta device nothing is set."""

    def reset_parameters(self) -> None:
        """Sets ones and zeros."""
        if self.weight is None or not self.weight.is_meta:
            super().reset_parameters()


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`; on the meta device nothing is drawn."""

    def reset_parameters(self) -> None:
        """Draws the values as torch does."""
        if not self.weight.is_meta:
            super().reset_parameters()
