"""Optimisers of the starter network: Muon for the matrices inside the transformers, AdamW for everything else.

Measured on the dense stage, 9,600 crops from the same state: joint-spot cross-entropy 2.02 with Muon, 2.08 with AdamW
alone at the same rate, for 15 % more time a step on two CPU cores.
"""

from __future__ import annotations

import torch
from torch import nn

from hmrcompress.errors import UserError
from hmrcompress.models.network import HMR2


def make_optimisers(network: HMR2, dense: nn.Module, weight_decay: float) -> list[torch.optim.Optimizer]:
    """The two optimisers over all parameters of both modules. Raises UserError where torch has no Muon (before 2.9)."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"torch {torch.__version__} has no Muon optimiser", "starter train", "It needs torch 2.9 or later"
        )
    inside = (network.backbone.blocks, network.smpl_head.transformer.transformer)
    matrices = [p for module in inside for p in module.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for module in (network, dense) for p in module.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)
    # The update is scaled to AdamW's typical size, so that one learning rate serves both.
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [adam, muon]
