"""TokenHMR (Dwivedi et al., CVPR 2024): HMR2.0's backbone, and a head that reads the body's pose out as tokens.

A mixer makes tokens of the head's features and scores each over a codebook; the codebook's entries, weighted by the
scores, are decoded to six numbers a joint by the decoder of a tokenizer that was trained before. Root, hands, shape and
camera are linear read-outs. Rotations are stacked as rows. Key names are those of the original checkpoints and of the
tokenizer's file, which stands under `smpl_head.decpose.tokenizer.` (the original hides it from its checkpoints).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.models.families.family import BACKBONE, DepthLine, Family, Part
from hmrcompress.models.heads import SMPLHead
from hmrcompress.models.layers import LayerNorm, Linear
from hmrcompress.models.network import HMR2, NetworkConfig, Shape, count_numbers

HANDS = 2
"""Joints that are read out linearly beside the root: SMPL's two hands, the last ones."""
TOKENIZER = Part(
    title="tokenizer",
    prefix="smpl_head.decpose.tokenizer.",
    names=("tokenizer.pth", "tokenizer.safetensors"),
    setting=("MODEL", "TOKENIZER_CHECKPOINT_PATH"),
    wanted=("decoder.", "quantizer."),
    marks=("quantizer.codebook", "decoder.decoder.0.weight"),
)


@dataclass(frozen=True)
class TokenHMRConfig(NetworkConfig):
    """Every size of a TokenHMR network; the defaults are the published one.

    pose_tokens of token_dim numbers pass mixer_depth mixers, whose hidden layers have mixer_tokens (across tokens) and
    mixer_channels (across channels) units; codes of code_dim numbers are in the codebook. The tokenizer's decoder has
    convolutions of decoder_width channels: decoder_steps from pose_tokens places down to one a joint, then
    decoder_blocks of decoder_depth residual units, whose dilations are powers of `dilation`.
    """

    family: ClassVar[str] = "tokenhmr"
    pose_tokens: int = 160
    token_dim: int = 64
    mixer_depth: int = 4
    mixer_tokens: int = 64
    mixer_channels: int = 256
    codes: int = 2048
    code_dim: int = 256
    decoder_width: int = 512
    decoder_steps: int = 4
    decoder_blocks: int = 1
    decoder_depth: int = 2
    dilation: int = 3

    @property
    def token_joints(self) -> int:
        """Joints whose rotations the tokens give: neither the root nor the hands."""
        return self.num_joints - 1 - HANDS


class _NormedLinear(nn.Module):
    """A linear layer, a norm over its output (eps 1e-5), ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ff = nn.Sequential(Linear(inputs, outputs), LayerNorm(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class _MixerMLP(nn.Module):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        # The third place was a dropout; it keeps the second linear layer at index 3.
        self.ff = nn.Sequential(Linear(size, hidden), nn.GELU(), nn.Identity(), Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class _Mixer(nn.Module):
    """Mixes across tokens, then across channels: (B,T,C) -> (B,T,C)."""

    def __init__(self, config: TokenHMRConfig) -> None:
        super().__init__()
        self.layernorm1 = LayerNorm(config.token_dim)
        self.MLP_token = _MixerMLP(config.pose_tokens, config.mixer_tokens)
        self.layernorm2 = LayerNorm(config.token_dim)
        self.MLP_channel = _MixerMLP(config.token_dim, config.mixer_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.MLP_token(self.layernorm1(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.MLP_channel(self.layernorm2(tokens))


class _Resized(nn.Module):
    """The nearest of L places for each of `places`: (B,C,L) -> (B,C,places)."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=self.places, mode="nearest")


class _ResidualUnit(nn.Module):
    """ReLU, a dilated convolution, ReLU, a convolution of one place; added to the input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


class _ResidualUnits(nn.Module):
    """Units of falling dilation, the last one's is 1."""

    def __init__(self, width: int, depth: int, dilation: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(_ResidualUnit(width, dilation**power) for power in reversed(range(depth))))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def places_between(tokens: int, joints: int, steps: int) -> list[int]:
    """How many places the decoder's steps have: from `tokens` to `joints` in `steps` equal strides, rounded down;
    160, 21, 4 -> 125, 90, 55, 21."""
    return [int(joints + (tokens - joints) * step / steps) for step in reversed(range(steps))]


class _PoseDecoder(nn.Module):
    """Codes in their places to six numbers a joint: (B,code_dim,T) -> (B,6,joints)."""

    def __init__(self, config: TokenHMRConfig) -> None:
        super().__init__()
        width = config.decoder_width
        layers: list[nn.Module] = [nn.Conv1d(config.code_dim, width, 3, padding=1), nn.ReLU()]
        for places in places_between(config.pose_tokens, config.token_joints, config.decoder_steps):
            layers += [_Resized(places), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
        for _ in range(config.decoder_blocks):
            units = _ResidualUnits(width, config.decoder_depth, config.dilation)
            layers.append(nn.Sequential(units, nn.Conv1d(width, width, 3, padding=1)))
        self.decoder = nn.Sequential(*layers, nn.Conv1d(width, 6, 3, padding=1))

    def forward(self, codes: Tensor) -> Tensor:
        return self.decoder(codes)


class _Codebook(nn.Module):
    """The weighted mean of the codebook's entries: weights (B,T,K) that sum to one -> codes (B,T,code_dim)."""

    codebook: Tensor

    def __init__(self, codes: int, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codes, code_dim))

    def forward(self, weights: Tensor) -> Tensor:
        return F.linear(weights, self.codebook.T)


class Tokenizer(nn.Module):
    """What is needed of the tokenizer's file: weights over the codebook (B,T,K) -> six numbers a joint (B,J,6)."""

    def __init__(self, config: TokenHMRConfig) -> None:
        super().__init__()
        self.decoder = _PoseDecoder(config)
        self.quantizer = _Codebook(config.codes, config.code_dim)

    def forward(self, weights: Tensor) -> Tensor:
        return self.decoder(self.quantizer(weights).transpose(1, 2)).transpose(1, 2)


class TokenClassifier(nn.Module):
    """Features (B,width) -> weights over the codebook (B,T,K), and from these the pose of the body's joints."""

    def __init__(self, width: int, config: TokenHMRConfig) -> None:
        super().__init__()
        self.tokens = config.pose_tokens
        self.mixer_trans = _NormedLinear(width, config.pose_tokens * config.token_dim)
        self.mixer_head = nn.ModuleList(_Mixer(config) for _ in range(config.mixer_depth))
        self.mixer_norm_layer = _NormedLinear(config.token_dim, config.token_dim)
        self.class_pred_layer = Linear(config.token_dim, config.codes)
        self.tokenizer = Tokenizer(config)

    def weights(self, features: Tensor) -> Tensor:
        """The softmax of the scores, (B,T,K)."""
        tokens = self.mixer_trans(features).unflatten(-1, (self.tokens, -1))
        for mixer in self.mixer_head:
            tokens = mixer(tokens)
        return self.class_pred_layer(self.mixer_norm_layer(tokens)).softmax(-1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B,width) -> (B,6J), joint by joint."""
        return self.tokenizer(self.weights(features)).flatten(1)


class TokenHead(SMPLHead):
    """Root, tokens, hands, in the order of SMPL's joints, are added to the mean pose; rotations are stacked as rows."""

    layout = "rows"

    def __init__(self, *, config: TokenHMRConfig, **sizes: Any) -> None:
        self._config = config
        super().__init__(**sizes)

    def make_pose_readout(self, width: int, pose: int) -> None:
        """The root's six numbers, the tokens, the hands' twelve."""
        self.decpose_grot = Linear(width, 6)
        self.decpose_hands = Linear(width, 6 * HANDS)
        self.add_module("decpose", TokenClassifier(width, self._config))

    def read_pose(self, features: Tensor) -> Tensor:
        """Features (B,width) -> (B,6J)."""
        return torch.cat([self.decpose_grot(features), self.decpose(features), self.decpose_hands(features)], dim=-1)


class TokenHMR(HMR2):
    """images (B,3,H,W) -> HMROutput. (The original takes squares and cuts 32 columns off either side itself.)"""

    config_class = TokenHMRConfig
    head_class = TokenHead

    @classmethod
    def head_arguments(cls, config: NetworkConfig) -> dict[str, Any]:
        return super().head_arguments(config) | {"config": config}

    @classmethod
    def part_sizes(cls, hyper_parameters: Mapping[str, Any], where: object) -> dict[str, Any]:
        """What a tokenizer's file tells beside its weights: {dilation}. UserError for rotations that are not 6D."""
        given = hyper_parameters.get("ARCH")
        told = given if isinstance(given, Mapping) else {}
        if (kind := told.get("ROT_TYPE", "rot6d")) != "rot6d":
            raise UserError(f"decodes rotations of the type {kind!r}, expected 'rot6d'", where)
        dilation = told.get("DILATION_RATE", TokenHMRConfig.dilation)
        if not isinstance(dilation, int) or dilation < 1:
            raise UserError(f"hparams.ARCH.DILATION_RATE: got {dilation!r}, expected a whole number", where)
        return {"dilation": dilation}

    @classmethod
    def head_sizes(cls, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Any]:
        scores, tokenizer = "smpl_head.decpose", TOKENIZER.prefix
        token_dim = shape(f"{scores}.class_pred_layer.weight")[1]
        codes, code_dim = shape(f"{tokenizer}quantizer.codebook")
        decoder = f"{tokenizer}decoder.decoder."
        layers = [name.removeprefix(decoder).split(".") for name in state if name.startswith(decoder)]
        steps = sum(len(place) == 2 and place[1] == "weight" for place in layers) - 2
        blocks = sorted({place[0] for place in layers if len(place) > 2})
        inputs = shape("smpl_head.transformer.to_token_embedding.weight")[1]
        return {
            "token_input": "zero" if inputs == 1 else "mean_shape",
            "num_joints": shape("smpl_head.init_body_pose")[1] // 6,
            "pose_tokens": shape(f"{scores}.mixer_trans.ff.0.weight")[0] // token_dim,
            "token_dim": token_dim,
            "mixer_depth": count_numbers(state, f"{scores}.mixer_head."),
            "mixer_tokens": shape(f"{scores}.mixer_head.0.MLP_token.ff.0.weight")[0],
            "mixer_channels": shape(f"{scores}.mixer_head.0.MLP_channel.ff.0.weight")[0],
            "codes": codes,
            "code_dim": code_dim,
            "decoder_width": shape(f"{decoder}0.weight")[0],
            "decoder_steps": steps,
            "decoder_blocks": len(blocks),
            "decoder_depth": count_numbers(state, f"{decoder}{blocks[0]}.0.model.") if blocks else 0,
        }


FAMILY = Family(
    name="tokenhmr",
    title="TokenHMR",
    network=TokenHMR,
    has=(*BACKBONE, "smpl_head.decpose_grot.weight", "smpl_head.decpose.class_pred_layer.weight"),
    depth_line=DepthLine("TokenHMR", "tokenhmr/lib/models/backbones/vit.py", "vit(cfg)"),
    part=TOKENIZER,
)
