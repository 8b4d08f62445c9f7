"""The linear patch in place of removed layers: weighted ridge regression from its normal equations. Pure tensors.

A group of layers l..h becomes layer l with another second MLP matrix. With u (H,) the hidden activations of layer l and
r (D,) what is missing behind it, the patch minimises `sum_i w_i |r_i - (W u_i + b)|^2 + lambda |W|^2` (b is free);
then `fc2.weight += W, fc2.bias += b`, which costs nothing at run time. lambda is `ridge` times the mean variance of the
hidden activations, and the ridge is the one that does best on data left out of the fit.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

RIDGES = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
USUAL_RIDGE = 1e-4
"""Taken where no data could be left out."""


class Patch(NamedTuple):
    """weight (D,H) and bias (D,), float64; `ridge` that they were fitted with, infinite for a patch of zeros."""

    weight: Tensor
    bias: Tensor
    ridge: float


class NormalEquations:
    """The sums over tokens that a fit needs, in float64: memory O(H^2 + H D), however many tokens are added."""

    def __init__(self, hidden: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.gram = torch.zeros(hidden + 1, hidden + 1, dtype=torch.float64, device=device)
        """sum w (u,1) (u,1)^T."""
        self.cross = torch.zeros(hidden + 1, dim, dtype=torch.float64, device=device)
        """sum w (u,1) r^T."""
        self.power = torch.zeros((), dtype=torch.float64, device=device)
        """sum w |r|^2."""

    def add(self, hidden: Tensor, missing: Tensor, weights: Tensor) -> None:
        """hidden (n,H), missing (n,D), weights (n,) not negative, of any float type."""
        rows = torch.nn.functional.pad(hidden.double(), (0, 1), value=1.0)
        missing, weights = missing.double(), weights.double()
        weighted = rows * weights[:, None]
        self.gram += weighted.T @ rows
        self.cross += weighted.T @ missing
        self.power += (weights * missing.square().sum(1)).sum()

    def plus(self, other: NormalEquations) -> Self:
        """The equations of both data together; a new object."""
        both = type(self)(len(self.gram) - 1, self.cross.shape[1], self.gram.device)
        both.gram, both.cross, both.power = self.gram + other.gram, self.cross + other.cross, self.power + other.power
        return both

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.gram[-1, -1])

    def loss(self, patch: Patch) -> float:
        """`sum w |r - (W u + b)|^2` of these data under a patch."""
        solution = torch.cat([patch.weight, patch.bias[:, None]], dim=1).T
        return float(self.power - 2 * (solution * self.cross).sum() + (solution * (self.gram @ solution)).sum())


def no_patch(equations: NormalEquations) -> Patch:
    """The patch of zeros: the span is removed and nothing stands in for it."""
    bias = torch.zeros_like(equations.cross[0])
    return Patch(torch.zeros_like(equations.cross[:-1].T), bias, math.inf)


def solve(equations: NormalEquations, ridge: float) -> Patch | None:
    """The patch for a ridge relative to the mean variance of the hidden activations, by Cholesky.

    None where the equations are not positive definite in float64 or not finite; zeros where no data have any weight.
    """
    total = equations.weight
    if total == 0:
        return no_patch(equations)
    mean_hidden, mean_missing = equations.gram[:-1, -1] / total, equations.cross[-1] / total
    centred = equations.gram[:-1, :-1] - total * torch.outer(mean_hidden, mean_hidden)
    target = equations.cross[:-1] - total * torch.outer(mean_hidden, mean_missing)
    penalty = ridge * centred.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(centred + penalty * torch.eye(len(centred)).to(centred))
    if failed or not factor.isfinite().all():
        return None
    weight = torch.cholesky_solve(target, factor).T.contiguous()
    return Patch(weight, mean_missing - weight @ mean_hidden, ridge)


def fit(fitted: NormalEquations, left_out: NormalEquations) -> Patch:
    """The patch from all data, with the ridge for which a patch from `fitted` alone loses least on `left_out`.

    Zeros compete too, so that a patch that does not carry over to other data is not used.
    """
    if left_out.weight == 0 or fitted.weight == 0:
        return solve(fitted.plus(left_out), USUAL_RIDGE) or no_patch(fitted)
    tried = [patch for ridge in RIDGES if (patch := solve(fitted, ridge)) is not None]
    losses = [(left_out.loss(patch), patch.ridge) for patch in (*tried, no_patch(fitted))]
    _, ridge = min((each for each in losses if not math.isnan(each[0])), default=(0.0, math.inf))
    if math.isinf(ridge):
        return no_patch(fitted)
    return solve(fitted.plus(left_out), ridge) or no_patch(fitted)
