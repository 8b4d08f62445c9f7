"""The machine that pickles are read by: a stack of values, with nothing in it that could be called.

Where a pickle asks for a class or a function there is a `Named` text; where it calls one or makes an object there is an
`Inert` record of the arguments. Memory stays in proportion to the length of the data: nothing is allocated by a number
that they merely claim, and keys are flat, so that hashing them cannot take for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from mmap import mmap
from typing import Any

from hmrcompress.io.known_globals import (
    CONTAINERS,
    DEFAULT_MAPPING,
    EMPTY_BYTES,
    ENCODE,
    KNOWN,
    MAPPINGS,
    NEW_OBJECT,
    modern_name,
)

FLAT_KEYS = (str, bytes, int, float, bool, type(None))


class Inert:
    """Stands for an object of a class that is not loaded: keeps what it was made of, does nothing.

    stands_for: `module.name` of what was called or of the class; args: the arguments; state: what was set afterwards;
    items: what was appended; entries: (key, value) that were set.
    """

    stands_for = ""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __new__(cls, *args: Any) -> Inert:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Named:
    """A class or function that a pickle names; text, and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name


class PickleFault(ValueError):
    """The bytes are not a pickle, or one that breaks off."""


class Machine:
    """The stack, the marks and the memo of a pickle that is read from `data`.

    `refused` are the names asked for that are not on the list. `persistent`: whether persistent ids (the storages of
    torch) are allowed; each is kept as ("persistent", id). `also_known`: beginnings of names that are let pass too.
    """

    def __init__(self, data: bytes | mmap, *, persistent: bool = False, also_known: tuple[str, ...] = ()) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent, self.also_known = persistent, also_known
        self.refused: list[str] = []
        self._copied = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count < 0 or self.at + count > len(self.data):
            raise PickleFault("it breaks off")
        part = self.data[self.at : self.at + count]
        self.at += count
        return part

    def counted(self, size: int) -> bytes:
        """Bytes behind their own number, which is little-endian in `size` bytes."""
        return self.take(int.from_bytes(self.take(size), "little"))

    def line(self) -> bytes:
        """Up to the end of the line."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise PickleFault("it breaks off")
        part, self.at = self.data[self.at : end], end + 1
        return part

    def push(self, value: Any) -> None:
        """On the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Off the stack."""
        if not self.stack:
            raise PickleFault(f"damaged near byte {self.at}")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Everything down to the last mark."""
        if not self.below:
            raise PickleFault(f"damaged near byte {self.at}")
        items, self.stack = self.stack, self.below.pop()
        return items

    def named(self, module: str, name: str) -> Named:
        """A global, refused later if it is not on the list."""
        full = modern_name(module, name)
        if full not in KNOWN and not full.startswith(self.also_known or ("\0",)) and full not in self.refused:
            self.refused.append(full)
        return Named(full)

    def called(self, what: Any, args: Any) -> Any:
        """What stands for `what(*args)`."""
        if not isinstance(args, tuple):
            raise PickleFault(f"damaged near byte {self.at}")
        name = what.name if isinstance(what, Named) else ""
        if name in NEW_OBJECT and args:
            return self.made(args[0], args[3:])
        if name == ENCODE and args and isinstance(args[0], str):
            self.copying(len(args[0]))
            return args[0].encode("latin1")
        if name == EMPTY_BYTES and not args:
            return b""
        return self.made(what, args)

    def made(self, what: Any, args: tuple[Any, ...]) -> Any:
        """What stands for a new object of a class."""
        name = what.name if isinstance(what, Named) else ""
        if name in MAPPINGS or name == DEFAULT_MAPPING:
            given = args[0] if args and name != DEFAULT_MAPPING else ()
            self.copying(len(given))
            return OrderedDict(_pairs(given))
        if name in CONTAINERS and args and isinstance(args[0], (list, tuple)):
            self.copying(len(args[0]))
            return list(args[0])
        record = Inert(*args)
        record.stands_for = name
        return record

    def copying(self, count: int) -> None:
        """Keeps what is copied in proportion to the data: one value can be named often, and copied each time."""
        self._copied += count
        if self._copied > 4 * len(self.data) + 4096:
            raise PickleFault("it copies more than there is in it")

    def append(self, target: Any, items: list[Any]) -> None:
        """Into a list, or into the items of a record."""
        if isinstance(target, Inert):
            record_items = target.__dict__.setdefault("items", [])
            record_items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise PickleFault(f"damaged near byte {self.at}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Keys and values into a dictionary, or into the entries of a record."""
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Inert):
            target.__dict__.setdefault("entries", []).extend(pairs)
        elif isinstance(target, dict):
            for key, value in pairs:
                target[_flat(key)] = value
        else:
            raise PickleFault(f"damaged near byte {self.at}")

    def build(self, target: Any, state: Any) -> None:
        """State of a record; that of a dictionary (flags of its class) is left out."""
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):
            raise PickleFault(f"damaged near byte {self.at}")


def _flat(key: Any) -> Any:
    """A key that takes no time to hash: a flat value, or a tuple of such."""
    if isinstance(key, FLAT_KEYS) or (isinstance(key, tuple) and all(isinstance(part, FLAT_KEYS) for part in key)):
        return key
    raise PickleFault(f"a {type(key).__name__} as a key")


def _pairs(items: Any) -> list[tuple[Any, Any]]:
    found = list(items.items()) if isinstance(items, dict) else list(items)
    return [(_flat(key), value) for key, value in found]
