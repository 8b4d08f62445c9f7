"""One small network's weights, wrapped as training frameworks wrap them. It is the starter network cut to two layers,
in float16: 3 heads in the backbone, 6 in the head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hmrcompress

HEADS = ("--num-heads", "3", "--head-heads", "6")


def small_state(layers: int = 2) -> dict[str, Tensor]:
    """Key -> tensor of the first layers of the starter network."""
    state = hmrcompress.load("starter").network.state_dict()
    found = {}
    for key, tensor in state.items():
        layer = re.match(r"backbone\.blocks\.(\d+)\.", key)
        if not layer or int(layer[1]) < layers:
            found[key] = tensor.detach().clone().half()
    return found


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def wrappers(state: dict[str, Tensor]) -> dict[str, Any]:
    """File name -> what torch.save is given."""
    inner = {key.replace("backbone.", "backbone._orig_mod."): tensor for key, tensor in state.items()}
    return {
        "plain.pth": state,
        "orig_mod.ckpt": {"state_dict": prefixed(state, "_orig_mod.")},
        "module_orig_mod.pth": prefixed(state, "module._orig_mod."),
        "orig_mod_module.pth": prefixed(state, "_orig_mod.module."),
        "backbone_orig_mod.ckpt": {"state_dict": inner},
        "model_prefix.ckpt": {"state_dict": prefixed(state, "model.")},
        "network_module.pth": {"state_dict": prefixed(state, "network.module.")},
        "deepspeed.pt": {"module": state, "ds_version": "0.14", "optimizer": None},
        "model_state_dict.pth": {"epoch": 1, "model_state_dict": state, "loss": 0.3},
        "ema_only.pth": {"state_dict_ema": state, "epoch": 3},
        "swa.pth": {**prefixed(state, "module."), "n_averaged": torch.tensor(5)},
    }


def make(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = small_state()
    for name, content in wrappers(state).items():
        torch.save(content, out / name)
    # Both the raw and the averaged weights: which of them is taken has to be said.
    torch.save({"state_dict": state, "state_dict_ema": {k: v * 0 for k, v in state.items()}}, out / "raw_and_ema.pth")
    hand = {key.replace("smpl_head.", "mano_head."): tensor for key, tensor in state.items()}
    for name, width in (("init_body_pose", 96), ("decpose.weight", 96), ("decpose.bias", 96)):
        key = f"mano_head.{name}"
        if key in hand:
            hand[key] = hand[key][..., :width].clone() if name.startswith("init") else hand[key][:width].clone()
    hand["mano_head.init_hand_pose"] = hand.pop("mano_head.init_body_pose")
    torch.save({"state_dict": hand}, out / "hand.ckpt")
