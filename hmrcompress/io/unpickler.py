"""Pickles read without executing anything: the opcodes of protocols 0 to 5, on a machine that has nothing to call.

Names that are not on the written list (`known_globals`) are refused. Format: as the standard library's `pickletools`
describes it.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io.pickle_machine import Inert, Machine, PickleFault

REMEDY = "Only configuration objects and arrays are read; save the rest without it"
SHOWN = 5


def refuse(names: list[str], where: object, remedy: str = REMEDY) -> UserError:
    """The error that names what a pickle asks for and does not get."""
    shown = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
    return UserError(f"the pickle asks for {shown}, which could run code and was not loaded", where, remedy)


def read_pickle(path: Path | str) -> Any:
    """The object in a pickle file: plain values, `Inert` and `Named`. Text of python 2 comes as latin1 text.

    Raises UserError naming every global that is not on the list, or where the file is missing, truncated or no pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path)
    machine = Machine(path.read_bytes())
    try:
        value = load(machine)
    except PickleFault as error:
        if machine.refused:
            raise refuse(machine.refused, path) from error
        raise UserError(f"the file is truncated or not a pickle ({error})", path) from error
    if machine.refused:
        raise refuse(machine.refused, path)
    return value


def load(machine: Machine) -> Any:
    """The next object in the machine's data. Raises PickleFault where they are no pickle or break off."""
    machine.stack, machine.below, machine.memo = [], [], {}
    try:
        while True:
            code = machine.take(1)
            if code == b".":
                return machine.pop()
            operation = OPERATIONS.get(code)
            if operation is None:
                raise PickleFault(f"unknown opcode {code!r}")
            operation(machine)
    except PickleFault:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise PickleFault(f"damaged near byte {machine.at}") from error


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _quoted(text: bytes) -> str:
    """A text of protocol 0, in quotes and with escapes as python 2 wrote it."""
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise PickleFault("a text without quotes")
    return codecs.escape_decode(text[1:-1])[0].decode("latin1")


def _integer(text: bytes) -> int | bool:
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text.decode("ascii"))


def _unicode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleFault("a name that is no text")
    machine.push(machine.named(module, name))


def _global(machine: Machine) -> None:
    module, name = machine.line().decode("utf-8"), machine.line().decode("utf-8")
    machine.push(machine.named(module, name))


def _inst(machine: Machine) -> None:
    module, name = machine.line().decode("ascii"), machine.line().decode("ascii")
    machine.push(machine.called(machine.named(module, name), tuple(machine.marked())))


def _obj(machine: Machine) -> None:
    what, *args = machine.marked()
    machine.push(machine.called(what, tuple(args)))


def _reduce(machine: Machine) -> None:
    args = machine.pop()
    machine.push(machine.called(machine.pop(), args))


def _newobj(machine: Machine) -> None:
    args = machine.pop()
    machine.push(machine.made(machine.pop(), tuple(args)))


def _newobj_ex(machine: Machine) -> None:
    keywords, args = machine.pop(), machine.pop()
    record = machine.made(machine.pop(), tuple(args))
    if isinstance(record, Inert):
        record.state = keywords
    machine.push(record)


def _build(machine: Machine) -> None:
    state = machine.pop()
    machine.build(machine.stack[-1], state)


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.append(machine.stack[-1], [value])


def _appends(machine: Machine) -> None:
    items = machine.marked()
    machine.append(machine.stack[-1], items)


def _additems(machine: Machine) -> None:
    items = machine.marked()
    machine.append(machine.stack[-1], items)


def _setitem(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _setitems(machine: Machine) -> None:
    items = machine.marked()
    machine.set_items(machine.stack[-1], items)


def _dict(machine: Machine) -> None:
    made: dict[Any, Any] = {}
    machine.set_items(made, machine.marked())
    machine.push(made)


def _mark(machine: Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _persistent(machine: Machine, of: Any) -> None:
    if not machine.persistent:
        raise PickleFault("it refers to objects outside of the file")
    machine.push(("persistent", of))


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put(size: int) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        index = int(machine.line()) if size == 0 else int.from_bytes(machine.take(size), "little")
        machine.memo[index] = machine.stack[-1]

    return operation


def _get(size: int) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        machine.push(machine.memo[int(machine.line()) if size == 0 else int.from_bytes(machine.take(size), "little")])

    return operation


def _constant(make: Callable[[], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.push(make())


def _read(value: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.push(value(machine))


def _tuple(count: int) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        if len(machine.stack) < count:
            raise PickleFault(f"damaged near byte {machine.at}")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return operation


OPERATIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda machine: machine.take(1),  # PROTO
    b"\x95": lambda machine: machine.take(8),  # FRAME: only says how much follows
    b"(": _mark,
    b"0": _pop,
    b"1": lambda machine: machine.marked(),
    b"2": lambda machine: machine.push(machine.stack[-1]),
    b"N": _constant(lambda: None),
    b"\x88": _constant(lambda: True),
    b"\x89": _constant(lambda: False),
    b")": _constant(tuple),
    b"]": _constant(list),
    b"}": _constant(dict),
    b"\x8f": _constant(list),  # EMPTY_SET: kept in order
    b"I": _read(lambda machine: _integer(machine.line())),
    b"L": _read(lambda machine: int(machine.line().rstrip(b"L").decode("ascii"))),
    b"F": _read(lambda machine: float(machine.line())),
    b"G": _read(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    b"J": _read(lambda machine: _long(machine.take(4))),
    b"K": _read(lambda machine: machine.take(1)[0]),
    b"M": _read(lambda machine: int.from_bytes(machine.take(2), "little")),
    b"\x8a": _read(lambda machine: _long(machine.counted(1))),
    b"\x8b": _read(lambda machine: _long(machine.counted(4))),
    b"S": _read(lambda machine: _quoted(machine.line())),
    b"T": _read(lambda machine: machine.counted(4).decode("latin1")),
    b"U": _read(lambda machine: machine.counted(1).decode("latin1")),
    b"V": _read(lambda machine: machine.line().decode("raw-unicode-escape")),
    b"X": _read(lambda machine: _unicode(machine.counted(4))),
    b"\x8c": _read(lambda machine: _unicode(machine.counted(1))),
    b"\x8d": _read(lambda machine: _unicode(machine.counted(8))),
    b"B": _read(lambda machine: machine.counted(4)),
    b"C": _read(lambda machine: machine.counted(1)),
    b"\x8e": _read(lambda machine: machine.counted(8)),
    b"\x96": _read(lambda machine: machine.counted(8)),  # BYTEARRAY8
    b"t": _read(lambda machine: tuple(machine.marked())),
    b"l": _read(lambda machine: machine.marked()),
    b"d": _dict,
    b"\x91": _read(lambda machine: machine.marked()),  # FROZENSET: kept in order
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"a": _append,
    b"e": _appends,
    b"\x90": _additems,
    b"s": _setitem,
    b"u": _setitems,
    b"p": _put(0),
    b"q": _put(1),
    b"r": _put(4),
    b"\x94": _memoize,
    b"g": _get(0),
    b"h": _get(1),
    b"j": _get(4),
    b"c": _global,
    b"\x93": _stack_global,
    b"i": _inst,
    b"o": _obj,
    b"R": _reduce,
    b"\x81": _newobj,
    b"\x92": _newobj_ex,
    b"b": _build,
    b"P": lambda machine: _persistent(machine, machine.line().decode("ascii")),
    b"Q": lambda machine: _persistent(machine, machine.pop()),
}
"""Opcodes -> what they do. Extension codes and out-of-band buffers name things outside of the file and are not here."""
