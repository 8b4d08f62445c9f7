"""Whole clips through a decoder of fixed windows (`windows`): overlapping ones, or those of a live stream."""

from __future__ import annotations

import torch
from torch import Tensor

from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.windows import MAX_BATCH, ClipStream, StreamingDecoder
from hmrcompress.errors import ShapeError, UserError


def decode_clip(
    decoder: TemporalDecoder,
    features: Tensor,
    known: Tensor | None = None,
    *,
    steps: int = 1,
    overlap: int | None = None,
    seed: int = 0,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """Pose numbers (T,P) float32 of a clip of any length, where `features` (T,config.input_dim) lie, one row a frame as
    `readout.decoder_inputs` makes it.

    known (T,) bool: which frames have features (None: all; the others' are never read). Windows of `config.frames`
    share `overlap` frames (None: a third of a window), over which their numbers are cross-faded linearly; the last
    window ends with the clip; a clip shorter than a window is padded under a mask. seed: of the noise. Raises
    ShapeError, and UserError for a wrong overlap, steps, or a clip without any known frame.
    """
    known = _check(decoder, features, known)
    stream = ClipStream(decoder, overlap=overlap, steps=steps, seed=seed, max_batch=max_batch)
    return stream.push(features, known, ends=True).to(features.device)


def decode_streaming(
    decoder: TemporalDecoder,
    features: Tensor,
    known: Tensor | None = None,
    *,
    lookahead: int,
    steps: int = 1,
    seed: int = 0,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """Pose numbers (T,P) float32 of a clip as `StreamingDecoder` gives them, frame by frame, but in batches.

    Frame t depends on the features of frames up to t + lookahead and on none after. Otherwise as `decode_clip`.
    """
    known = _check(decoder, features, known)
    stream = StreamingDecoder(decoder, lookahead=lookahead, steps=steps, seed=seed, max_batch=max_batch)
    return torch.stack(stream.feed(features, known, ends=True)).to(features.device)


def _check(decoder: TemporalDecoder, features: Tensor, known: Tensor | None) -> Tensor:
    """The mask of known frames. Raises ShapeError, and UserError where there is no known frame."""
    if features.ndim != 2 or not len(features) or features.shape[1] != decoder.config.input_dim:
        raise ShapeError(f"got {tuple(features.shape)}, expected (T,{decoder.config.input_dim})", "features")
    if known is None:
        return torch.ones(len(features), dtype=torch.bool, device=features.device)
    if known.shape != features.shape[:1] or known.dtype != torch.bool:
        raise ShapeError(f"got {tuple(known.shape)} {known.dtype}, expected ({len(features)},) bool", "known")
    if not known.any():
        raise UserError("no frame of the clip has features", "known")
    return known
