"""Optimisers of the starter network: Muon for the matrices inside the transformers, AdamW for everything else.

Measured on the dense stage, 9,600 crops from the same state: joint-spot cross-entropy 2.02 with Muon, 2.08 with AdamW
alone at the same rate.
"""

from __future__ import annotations

import torch
from torch import nn

from hmrcompress.models.network import HMR2
from hmrcompress.training.muon import Muon


def make_optimisers(network: HMR2, dense: nn.Module, weight_decay: float) -> list[torch.optim.Optimizer]:
    """[AdamW, Muon] over all parameters of both modules."""
    inside = (network.backbone.blocks, network.smpl_head.transformer.transformer)
    matrices = [p for module in inside for p in module.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for module in (network, dense) for p in module.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)
    return [adam, Muon(matrices, lr=1e-3, weight_decay=weight_decay)]
