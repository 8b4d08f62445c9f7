"""What stands where a layer was merged into another or dropped, so that code that counts or looks at layers goes on
working: it hands tokens on, is of a subclass of the layer's class and has parts of the same names, all empty."""

from __future__ import annotations

from typing import Any

from torch import nn


class Hollow:
    """Mixed into the layer's class: a layer of that class without weights."""

    def forward(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """The tokens as they are, in the form in which the layer gave them back."""
        return (tokens,) if self.__dict__["wraps"] else tokens

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles are made anew: the class has no name that a module could be asked for."""
        rest = {name: value for name, value in self.__dict__.items() if name not in ("wraps", "like")}
        return _again, (self.__dict__["like"], tuple(self._modules), self.__dict__["wraps"]), rest  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def hollow(block: nn.Module, *, wraps: bool) -> nn.Module:
    """The stand-in for a block. wraps: whether the block gives back a tuple."""
    made = _again(type(block), tuple(name for name, _ in block.named_children()), wraps)
    return made.train(block.training)


def _again(like: type[nn.Module], parts: tuple[str, ...], wraps: bool) -> nn.Module:
    made = type(like.__name__, (Hollow, like), {"__module__": like.__module__})
    empty: Any = object.__new__(made)
    nn.Module.__init__(empty)
    for name in parts:
        empty.add_module(name, nn.Identity())
    empty.__dict__["wraps"], empty.__dict__["like"] = wraps, like
    return empty


def is_hollow(module: nn.Module) -> bool:
    """Whether a module is such a stand-in."""
    return isinstance(module, Hollow)
