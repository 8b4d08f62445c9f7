"""Reading and writing safetensors without holding a second copy: memory-mapped in, tensor by tensor out."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.atomic import whole_file
from hmrcompress.io.seals import FIELD, UNKNOWN, seal_text

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(
    path: Path | str, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, seal: str = ""
) -> None:
    """Writes CPU-readable tensors to `path` atomically, one at a time; the same state gives the same bytes. With
    `seal`, a kind of file, there is room in the header for what `io.seals.seal` fills in.

    Tensors are laid out by falling item size, then by name, so that each starts at a multiple of its item size.
    Raises UserError for a dtype that the format does not have.
    """
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    sealed = {FIELD: seal_text(seal, UNKNOWN)} if seal else {}
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {}), **sealed}}
    offset = 0
    for name in names:
        tensor = state[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise UserError(f"tensor {name} is {tensor.dtype}, which safetensors files cannot hold", path)
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            flat = state[name].detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)


def require_finite(state: Mapping[str, Tensor], where: object) -> None:
    """UserError for weights that are NaN or infinite, which no network can use; `where`: what they are of."""
    for name in sorted(state):
        tensor = state[name].detach()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(f"{name} holds NaN or infinity", where, "Was it damaged, or did its training diverge?")


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata of the header). Tensors are views of the mapped file: nothing is read before its use.

    Raises UserError for a file that is truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the file is truncated or not a safetensors file ({reason})", path) from error
