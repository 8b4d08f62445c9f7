"""Whatever the code of others passes around: tensors in dictionaries, lists, named tuples and plain objects."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import logging
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
    """Hash of the tensors, arrays and plain values in a structure, of the source of functions and classes, of the names
    of modules, and of the class and the values of other objects."""
    return _Hashing().of(value)


def source_sha256(function: Any) -> str:
    """Hash of a function's source and of what it holds: values that it closes over, the object that it is a method of,
    arguments that are given already. Of any other object: its class's source and its values. Of its name where there is
    no source."""
    return "none" if function is None else _Hashing().of_code(function)


class _Hashing:
    """One walk through a value. Objects may hold each other, so that one that was met before counts as its number;
    tensors, plain values, lists and dictionaries count by what is in them, wherever they are."""

    def __init__(self) -> None:
        self.met: dict[int, tuple[str, Any]] = {}
        self.around: list[int] = []

    def of(self, value: Any) -> str:
        """Of a value and all that it holds."""
        digest = hashlib.sha256()
        self._add(value, digest)
        return digest.hexdigest()

    def of_code(self, function: Any) -> str:
        """See `source_sha256`."""
        return hashlib.sha256(repr(self._code(function)).encode()).hexdigest()

    def _code(self, function: Any) -> list[Any]:
        if isinstance(function, functools.partial):
            return [self.of_code(function.func), self.of(function.args), self.of(function.keywords)]
        if inspect.ismethod(function):
            return [self.of_code(function.__func__), self.of(function.__self__)]
        if known := self._known(function):
            return [known]
        named = inspect.isroutine(function) or inspect.isclass(function)
        try:
            text = inspect.getsource(function if named else type(function))
        except (OSError, TypeError):
            text = repr(getattr(function, "__qualname__", type(function)))
        if named:
            cells = getattr(function, "__closure__", None)  # of a class of functions, that is no tuple
            return [text, *(self.of(_held(cell)) for cell in (cells if isinstance(cells, tuple) else ()))]
        return [text, *((name, self.of(each)) for name, each in sorted(getattr(function, "__dict__", {}).items()))]

    def _known(self, value: Any) -> str:
        """Which of the objects so far it is; empty for a new one, which is kept, so that no other comes to its
        address."""
        if id(value) in self.met:
            return self.met[id(value)][0]
        self.met[id(value)] = f"met {len(self.met)}", value
        return ""

    def _add(self, value: Any, digest: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            digest.update(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping | list | tuple):
            self._add_items(value, digest)
        elif isinstance(value, set | frozenset):
            digest.update(f"set {sorted(map(self.of, value))}".encode())
        elif inspect.ismodule(value):
            digest.update(f"module {value.__name__}".encode())
        elif isinstance(value, logging.Logger):
            digest.update(f"logger {value.name}".encode())
        elif inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, functools.partial):
            digest.update(self.of_code(value).encode())
        elif (parts := _parts(value)) is None:
            text = repr(value)
            digest.update((type(value).__qualname__ if " at 0x" in text else text).encode())
        elif known := self._known(value):
            digest.update(known.encode())
        else:
            digest.update(type(value).__qualname__.encode())
            self._add(parts, digest)

    def _add_items(self, value: Any, digest: Any) -> None:
        if id(value) in self.around:
            digest.update(f"around {self.around.index(id(value))}".encode())
            return
        self.around.append(id(value))
        if isinstance(value, Mapping):
            for key in value:
                digest.update(repr(key).encode())
                self._add(value[key], digest)
        else:
            digest.update(f"[{len(value)}]".encode())
            for part in value:
                self._add(part, digest)
        self.around.pop()


def _parts(value: Any) -> dict[str, Any] | None:
    """What an object is made of: fields of a dataclass, else all attributes; None where it has none."""
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return {"items": value.tolist()}
    return getattr(value, "__dict__", None)


def _held(cell: Any) -> Any:
    """What a function closes over; None where it is not yet there."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
