"""Whatever the code of others passes around: tensors in dictionaries, lists, named tuples and plain objects."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import UserError


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with `change` applied to every tensor in dictionaries, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, change) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {
            each.name: mapped(getattr(value, each.name), change) for each in dataclasses.fields(value) if each.init
        }
        return dataclasses.replace(value, **parts)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in it, in order."""
    found: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, noted)
    return iter(found)


def kept(value: Any) -> Any:
    """A copy on the CPU, without gradients."""
    return mapped(value, lambda tensor: tensor.detach().cpu().clone())


def placed(value: Any, device: torch.device) -> Any:
    """The same on a device."""
    return mapped(value, lambda tensor: tensor.to(device))


def same(one: Any, other: Any) -> bool:
    """Whether all tensors are equal, bit for bit or NaN at the same places."""
    first, second = list(tensors(one)), list(tensors(other))
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(first, second, strict=True)
    )


def picked(value: Any, key: str) -> Any:
    """What is found at a dotted key: `mhr.pred_vertices`, `0.vertices`. UserError where there is nothing."""
    for step in key.split("."):
        try:
            if isinstance(value, Mapping):
                value = value[step]
            elif step.lstrip("-").isdigit() and isinstance(value, list | tuple):
                value = value[int(step)]
            else:
                value = getattr(value, step)
        except (KeyError, IndexError, AttributeError) as error:
            raise UserError(f"holds no {step}", f"outputs, {key}") from error
    return value


def length_of(batch: Any) -> int:
    """The number of samples in a batch: the first length of its first tensor of pictures (four dimensions), else of its
    first tensor. UserError where it holds none."""
    found = [tensor for tensor in tensors(batch) if tensor.ndim]
    if not found:
        raise UserError("a batch holds no tensor, so its samples cannot be counted", "batches", "Give count=…")
    return len(next((tensor for tensor in found if tensor.ndim == 4), found[0]))


def sha256_of(value: Any) -> str:
    """Hash of the tensors, arrays and plain values in a structure, of the source of functions, and of the class and the
    values of other objects."""
    digest = hashlib.sha256()
    _hash(value, digest)
    return digest.hexdigest()


def source_sha256(function: Any) -> str:
    """Hash of the source of a function or of an object's class and values; of its name where there is no source."""
    if function is None:
        return "none"
    if isinstance(function, functools.partial):
        parts = [source_sha256(function.func), sha256_of(function.args), sha256_of(function.keywords)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    try:
        text = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        text = repr(getattr(function, "__qualname__", type(function)))
    own: list[Any]
    if inspect.isroutine(function):
        cells = getattr(function, "__closure__", None) or ()
        own = [sha256_of(cell.cell_contents) for cell in cells if cell.cell_contents is not function]
    else:
        own = [[name, sha256_of(each)] for name, each in sorted(getattr(function, "__dict__", {}).items())]
    return hashlib.sha256((text + (repr(own) if own else "")).encode()).hexdigest()


def _hash(value: Any, digest: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            digest.update(repr(key).encode())
            _hash(value[key], digest)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}]".encode())
        for part in value:
            _hash(part, digest)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _hash({each.name: getattr(value, each.name) for each in dataclasses.fields(value)}, digest)
    elif inspect.isroutine(value) or isinstance(value, functools.partial):
        digest.update(source_sha256(value).encode())
    elif value is None or isinstance(value, str | bytes | int | float | bool):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__qualname__.encode())
        _hash(getattr(value, "__dict__", None), digest)
