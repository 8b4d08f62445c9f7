"""Torch's pickled files, read without running anything that stands in them.

`torch.load(weights_only=True)` refuses the configuration objects that Lightning checkpoints carry. Here the harmless
ones are mapped to inert records; every other global is refused by its name, before any of it could be called.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError


class Inert:
    """Stands for an object of a class that is not loaded: keeps what it was made of, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __new__(cls, *args: Any) -> Inert:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _empty_mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Stands for `defaultdict(factory)`."""
    return OrderedDict()


# Configuration objects that are dictionaries, and others; in a file they name where they came from.
_MAPPINGS = (
    "yacs.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
)
_RECORDS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.BooleanNode",
    "typing.Any",
    "typing.Dict",
    "typing.List",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.bool",
    "builtins.tuple",
    "builtins.object",
)
_HARMLESS = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.set",
    "builtins.complex",
}


def read_torch_pickle(path: Path | str) -> Any:
    """The object in a file written by `torch.save`: tensors memory-mapped where the format allows it, on the CPU.

    Objects of configuration classes come as `OrderedDict` or `Inert`. Nothing in the file is ever executed. Raises
    UserError naming every other global that the file asks for, or saying that the file is truncated.
    """
    import torch

    path = Path(path)
    stand_ins: list[Any] = [(_record(name), name) for name in _RECORDS]
    stand_ins += [(OrderedDict, name) for name in _MAPPINGS] + [(_empty_mapping, "collections.defaultdict")]
    zipped = _starts_like_zip(path)
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        known = {name for _, name in stand_ins} | _HARMLESS
        unknown = [name for name in globals_in_file(path) if name not in known and not name.startswith("torch.")]
        if unknown := unknown or re.findall(r"GLOBAL ([\w.]+)", str(error)):
            shown = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
            raise UserError(
                f"the pickle asks for {shown}, which could run code and was not loaded",
                path,
                "Save the weights alone, as a state dict or safetensors",
            ) from error
        raise UserError("the file is not a checkpoint that torch.save wrote, or is damaged", path) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError("the file is truncated or not a checkpoint that torch.save wrote", path) from error


def globals_in_file(path: Path | str) -> list[str]:
    """Names of the globals that a pickle (bare, or in the zip of `torch.save`) mentions, found without loading it.

    `os.system` appears under the name of its module on this kind of machine (`posix.system`). For messages only: what
    is refused is decided by the unpickler.
    """
    try:
        if _starts_like_zip(Path(path)):
            with zipfile.ZipFile(path) as archive:
                inner = [name for name in archive.namelist() if name.endswith("data.pkl")]
                return sorted({name for one in inner for name in _globals(archive.read(one))})
        return sorted(set(_globals(Path(path).read_bytes())))
    except (zipfile.BadZipFile, OSError):
        return []


def plain(value: Any) -> Any:
    """Configuration with its stand-ins turned into plain values: dicts, lists, numbers, text; JSON can hold it.

    Namespaces become their fields, omegaconf nodes their content, paths text; what is not understood becomes None.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, Inert):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if isinstance(state, Mapping):
            return plain(state["_content"] if "_content" in state else state.get("_val", state))
        if value.args and all(isinstance(part, str) for part in value.args):
            return "/".join(value.args).replace("//", "/")
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else None


def _record(name: str) -> type[Inert]:
    """A class of its own for each name, so that records tell what they stand for."""
    return type(name.rpartition(".")[2], (Inert,), {"stands_for": name})


def _starts_like_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _globals(data: bytes) -> Iterator[str]:
    """Globals of one or several pickles in a row, up to where they cannot be parsed any more."""
    stream = memoryview(data)
    while len(stream):
        texts: list[str] = []
        end = 0
        try:
            for opcode, argument, position in pickletools.genops(bytes(stream)):
                end = (position or 0) + 1
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
                    yield f"{texts[-2]}.{texts[-1]}"
                elif isinstance(argument, str):
                    texts.append(argument)
        except Exception:  # noqa: BLE001 - pickletools raises whatever a broken file makes it raise
            return
        stream = stream[end:]
