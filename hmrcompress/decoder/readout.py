"""The network's own read-out of every frame's pose, as the temporal decoder uses it: the point that it starts from.

A transformer that sees features alone has to learn first what the network's linear head knows. So the head's pose may
follow the features of a frame (`DecoderConfig.readout`): the decoder then looks for what is wrong with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.layers import hide
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.records import BodyParams

SPANS = (1.0, 2.5, 5.0, 10.0)
"""Deviations, in frames, of the kernels that read-outs are averaged with before any training."""


class Blend(nn.Module):
    """Averages read-outs over time: Gaussian kernels of several learned widths, of which every pose number has its own
    mixture, weighted by a confidence that is read from each frame's features.

    What comes out is never more than a mean of what went in, so a few hundred numbers learn it from a few hundred clips
    without learning those clips by heart, which a transformer does.
    """

    def __init__(self, feature_dim: int, pose_dim: int) -> None:
        super().__init__()
        self.log_spans = nn.Parameter(torch.tensor(SPANS).log())
        self.mixture = nn.Parameter(torch.zeros(len(SPANS), pose_dim))
        self.confidence = nn.Linear(feature_dim, len(SPANS))
        nn.init.zeros_(self.confidence.weight)
        nn.init.zeros_(self.confidence.bias)

    def forward(self, pose: Tensor, features: Tensor, read: Tensor, valid: Tensor) -> Tensor:
        """pose (B,T,P) without gaps, features (B,T,D) normalised, of which those of the frames `read` (B,T) count,
        valid (B,T) bool -> (B,T,P). In a gap the confidence is interpolated as the pose was."""
        time = torch.arange(pose.shape[1], device=pose.device)
        apart = (time[:, None] - time).to(pose.dtype) / self.log_spans.exp()[:, None, None]
        sure = filled(self.confidence(hide(features, read)), read).mT[:, :, None]
        logits = (sure - 0.5 * apart.square()).masked_fill(~valid[:, None, None], float("-inf"))
        # Where no frame exists there is nothing to average; such rows are hidden, but must not be NaN.
        weights = logits.masked_fill(~valid[:, None, :, None], 0.0).softmax(-1)
        return torch.einsum("bhts,bsp,hp->btp", weights, pose, self.mixture.softmax(0))


def decoder_inputs(config: DecoderConfig, codec: PoseCodec, features: Tensor, params: BodyParams) -> Tensor:
    """What a decoder reads of N frames, (N, config.input_dim) float32: the features (N,D) of a network and, where the
    decoder wants them, the pose numbers of what its linear head says (params, camera frame). Raises ShapeError."""
    features = features.float()
    return torch.cat([features, codec.encode(params).to(features)], 1) if config.readout else features


def filled(values: Tensor, known: Tensor) -> Tensor:
    """Rows (B,T,C) between known (B,T) ones: linear in time from the one before to the one after, those before the
    first and after the last known row held. Zeros where none is known; rows that are not known are never read."""
    total = values.shape[1]
    time = torch.arange(total, device=values.device)
    earlier = time[:, None] >= time
    before = torch.where(known[:, None] & earlier, time, -1).amax(-1)
    after = torch.where(known[:, None] & earlier.mT, time, total).amin(-1)
    first = torch.where(before < 0, after, before).clamp(max=total - 1)
    last = torch.where(after >= total, before, after).clamp(min=0)
    share = (time - first).to(values.dtype) / (last - first).clamp(min=1)
    rows = hide(values, known)
    low, high = (rows.gather(1, place[..., None].expand_as(rows)) for place in (first, last))
    return torch.lerp(low, high, share[..., None])
