"""A temporal decoder as plain values and tensors, and back; `models.files.folder` stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.errors import UserError
from hmrcompress.models.families.family import check_keys
from hmrcompress.models.files.decoder_part import DecoderPart


def decoder_tensors(decoder: TemporalDecoder) -> dict[str, Tensor]:
    """Weights and statistics by name, on the CPU; they share memory with a decoder that is there already."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}


def decoder_part(decoder: TemporalDecoder) -> DecoderPart:
    """What a model folder keeps of a decoder."""
    return DecoderPart(decoder.config.to_dict(), decoder_tensors(decoder))


def build_decoder(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: object = "decoder"
) -> TemporalDecoder:
    """The decoder over these tensors: evaluation mode, float32 (half precision is widened), CPU, no gradients.

    Raises UserError for an unknown or wrong setting, and for names, shapes or dtypes that do not fit it.
    """
    sizes = DecoderConfig.from_dict(config, where)
    with torch.device("meta"):
        decoder = TemporalDecoder(sizes)
    check_keys(tensors, decoder.state_dict(), where)
    if odd := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise UserError(f"{odd[0]} is {tensors[odd[0]].dtype}, expected floating-point weights", where)
    wide = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    decoder.load_state_dict(wide, strict=True, assign=True)
    return decoder.eval().requires_grad_(False)
