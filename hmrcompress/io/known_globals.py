"""The written list of names that a pickle may ask for. None of them is ever imported: each stands for an inert record.

A name that is not on this list is refused. Adding one is safe as long as nothing is imported or called for it.
"""

from __future__ import annotations

_NUMPY_CORES = ("numpy.core", "numpy._core")
_NUMPY_SCALARS = (
    "bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "str_", "bytes_",
)  # fmt: skip

MAPPINGS = (
    "collections.OrderedDict",
    "collections.Counter",
    "yacs.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
)
"""Classes that are dictionaries; only their items are kept."""

DEFAULT_MAPPING = "collections.defaultdict"

ARRAY = tuple(f"{core}.multiarray._reconstruct" for core in _NUMPY_CORES)
ARRAY_IN_ONE = tuple(f"{core}.numeric._frombuffer" for core in _NUMPY_CORES)
SCALAR = tuple(f"{core}.multiarray.scalar" for core in _NUMPY_CORES)
SPARSE = tuple(
    f"scipy.sparse.{module}{kind}_{form}"
    for kind in ("csc", "csr", "coo")
    for form in ("matrix", "array")
    for module in (f"{kind}.", f"_{kind}.", "")
)
CHUMPY_OPERATIONS = tuple(
    f"chumpy.{module}.{name}"
    for module in ("ch", "ch_ops", "reordering")
    for name in (
        "Ch", "MatVecMult", "add", "subtract", "multiply", "divide", "Select", "Reshape", "transpose", "Concatenate",
        "AtleastNd",
    )
)  # fmt: skip
NEW_OBJECT = ("copy_reg._reconstructor", "copyreg._reconstructor", "copy_reg.__newobj__", "copyreg.__newobj__")
ENCODE, EMPTY_BYTES = "_codecs.encode", "builtins.bytes"
"""How python 3 writes bytes at protocols 0 to 2."""
CONTAINERS = ("builtins.set", "builtins.frozenset", "builtins.bytearray", "builtins.complex")

RECORDS = (
    *ARRAY,
    *ARRAY_IN_ONE,
    *SCALAR,
    *SPARSE,
    *CHUMPY_OPERATIONS,
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{name}" for name in _NUMPY_SCALARS),
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(f"pathlib._local.{kind}" for kind in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.SCMode",
    "omegaconf.base.UnionNode",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum", "InterpolationResult")
    ),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Tuple", "Union", "Optional")),
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "tuple", "bytes", "object")),
)
"""What becomes a record that keeps its arguments and its state and does nothing."""

KNOWN = frozenset((*MAPPINGS, DEFAULT_MAPPING, *RECORDS, *NEW_OBJECT, ENCODE, *CONTAINERS))


def modern_name(module: str, name: str) -> str:
    """`module.name` with the module of builtins called as python 3 does."""
    return f"{'builtins' if module in ('__builtin__', 'builtins') else module}.{name}"
