"""What a model folder keeps of a temporal decoder: settings and tensors. `decoder.files` makes a network of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hmrcompress.io.hashes import sha256_arrays, sha256_json


@dataclass(frozen=True, eq=False)
class DecoderPart:
    """config: plain values, as `config.json` holds them; tensors: weights and statistics by name, as stored."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def complete(self) -> bool:
        """Whether it decodes: a motion VAE alone, without a denoiser, waits for `finetune --stage decoder`."""
        return any(name.startswith("denoiser.") for name in self.tensors)

    @property
    def sha256(self) -> str:
        """Hash of settings and tensors."""
        return sha256_json([dict(self.config), sha256_arrays(self.tensors)])

    def half(self) -> DecoderPart:
        """The same with float16 weights, for shipping. Statistics, which belong to no module (names without a dot),
        keep their precision: float16 is off by up to 0.24 mm between half a metre and one."""
        tensors = {
            name: tensor.to(torch.float16) if "." in name and tensor.dtype == torch.float32 else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)
