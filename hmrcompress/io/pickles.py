"""Torch's pickled files, read without running anything that stands in them.

A file is first gone through by our own machine, which executes nothing and names every global that is not on the
written list; only then does `torch.load(weights_only=True)` map its tensors, with the harmless configuration objects,
which it would refuse, mapped to inert records.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.errors import UserError
from hmrcompress.io.array_pickles import DAMAGED, Decoder
from hmrcompress.io.known_globals import DEFAULT_MAPPING, MAPPINGS, RECORDS
from hmrcompress.io.npz import UNREADABLE
from hmrcompress.io.pickle_machine import Inert, Machine, PickleFault
from hmrcompress.io.unpickler import load, refuse
from hmrcompress.io.zips import check_zip

TORCH = ("torch.",)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
TAR_MAGIC = (257, b"ustar")
REMEDY = "Save the weights alone, as a state dict or safetensors"
NOT_TORCH = "the file is truncated or not a checkpoint that torch.save wrote"
LONGEST_LIST = 4096
BYTES_OF_A_VALUE, LONGEST_CONFIGURATION = 64, 1 << 26


def read_torch_pickle(path: Path | str) -> Any:
    """The object in a file written by `torch.save`: tensors memory-mapped where the format allows it, on the CPU.

    Objects of configuration classes come as `OrderedDict` or `Inert`. Nothing in the file is ever executed. Raises
    UserError naming every other global that the file asks for, or saying that the file is truncated or of a kind
    (TorchScript, tar) that holds code or is no longer read.
    """
    import torch

    path = Path(path)
    zipped = _starts_like_zip(path)
    refused = _scan_zip(path) if zipped else _scan_bare(path)
    if refused:
        raise refuse(refused, path, REMEDY)
    stand_ins: list[Any] = [(_record(name), name) for name in RECORDS]
    stand_ins += [(OrderedDict, name) for name in MAPPINGS] + [(_empty_mapping, DEFAULT_MAPPING)]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if unknown := re.findall(r"GLOBAL ([\w.]+)", str(error)):
            raise refuse(unknown, path, REMEDY) from error
        raise UserError("the file is not a checkpoint that torch.save wrote, or is damaged", path) from error
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch raise whatever it may
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(NOT_TORCH, path) from error


def _scan_zip(path: Path) -> list[str]:
    """Globals in the pickle of a zip that are not on the list. UserError where it is no zip of `torch.save`."""
    entries = check_zip(path)
    inner = [entry for entry in entries if entry.filename.endswith("/data.pkl") or entry.filename == "data.pkl"]
    if any("/code/" in entry.filename or entry.filename.endswith("constants.pkl") for entry in entries):
        raise UserError("a TorchScript program, expected weights", path, REMEDY)
    check_zip(path, stored=True)
    if len(inner) != 1:
        raise UserError(NOT_TORCH, path)
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(inner[0])
    except UNREADABLE as error:
        raise UserError(NOT_TORCH, path) from error
    return _scan(Machine(data, persistent=True, also_known=TORCH), path, 1)


def _scan_bare(path: Path) -> list[str]:
    """The same for the format before torch 1.6: five pickles, then bytes; or any other pickle."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise UserError(NOT_TORCH, path)
        file.seek(TAR_MAGIC[0])
        if file.read(len(TAR_MAGIC[1])) == TAR_MAGIC[1]:
            raise UserError("a tar of a very old torch", path, "Load it and save it again with torch 1.x")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _scan(Machine(data, persistent=True, also_known=TORCH), path, LEGACY_PICKLES)


def _scan(machine: Machine, path: Path, count: int) -> list[str]:
    for number in range(count):
        try:
            value = load(machine)
        except PickleFault as error:
            if machine.refused:
                break
            raise UserError(NOT_TORCH, path) from error
        if count > 1 and number == 0 and value != LEGACY_MAGIC:
            if machine.refused:
                break
            raise UserError("a plain pickle, expected a checkpoint that torch.save wrote", path)
    return machine.refused


def plain(value: Any, where: object) -> Any:
    """Configuration with its stand-ins turned into plain values: dicts, lists, numbers, text; JSON can hold it.

    Namespaces become their fields, omegaconf nodes their content, paths text, numpy values numbers and lists; NaN and
    infinity become text, arrays of more than 4096 values a text that says so, and what is not understood None. None is
    also what comes of configuration that contains itself. Raises UserError, naming `where`, for one that stands for far
    more than a file could hold: lists of lists of one list, many deep.
    """
    try:
        values = Decoder().value(value)
    except DAMAGED:
        return None
    try:
        return _json(values, [LONGEST_CONFIGURATION])
    except MemoryError as error:
        raise UserError("its configuration stands for far more than there is in the file", where, REMEDY) from error


def _json(value: Any, left: list[int]) -> Any:
    left[0] -= BYTES_OF_A_VALUE + (len(value) if isinstance(value, str) else 0)
    if left[0] < 0:
        raise MemoryError("stands for more than it holds")
    if isinstance(value, dict):
        left[0] -= sum(map(len, value))
        return {key: _json(item, left) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        if value.size > LONGEST_LIST:
            return f"array of {value.dtype}, {'x'.join(map(str, value.shape))}, left out"
        value = value.tolist()
    if isinstance(value, list):
        return [_json(item, left) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _empty_mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Stands for `defaultdict(factory)`."""
    return OrderedDict()


def _record(name: str) -> type[Inert]:
    """A class of its own for each name, so that records tell what they stand for."""
    return type(name.rpartition(".")[2], (Inert,), {"stands_for": name})


def _starts_like_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
