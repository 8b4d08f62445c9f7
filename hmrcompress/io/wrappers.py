"""Finds weights in whatever wraps them: dictionaries in dictionaries, prefixes and wrappers inside of names.

Training code saves networks as `{"state_dict": …}`, `{"model": {"module": …}}`, `{"state_dict_ema": …}`, all names
behind `module.`, `_orig_mod.` or `model.`, with `_orig_mod.` in the middle of a name, and as any mixture of these. So
no combination is written down here: a file's tensors are laid out flat, each under all the keys that lead to it, and a
set of weights is every prefix under which the keys of something known (`marks`) lie.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRANSPARENT = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""What data-parallel training, `torch.compile`, FSDP, activation checkpointing and Fabric put into names."""
USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", *TRANSPARENT)
"""Wrappers that say nothing of whose weights they hold; of several sets those under the first are taken."""
AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged?|polyak|shadow)(_|\d|$)", re.IGNORECASE)
COUNTER = "n_averaged"
"""What torch's AveragedModel stores beside `module.`."""
DEEPEST, MOST_SETS = 16, 64


class Leaf(NamedTuple):
    """A tensor of a file: the keys of the dictionaries that lead to it, its own key, and the tensor."""

    keys: tuple[str, ...]
    name: str
    tensor: Tensor

    @property
    def parts(self) -> list[str]:
        """All of its names, split at dots."""
        return ".".join((*self.keys, self.name)).split(".")


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file.

    tensors: by the names that they have once everything is peeled off. keys: of the dictionaries around them, outermost
    first. prefix: what all their names began with then (`module.`). within: how many names had which wrapper in their
    middle. beside: names in the same dictionary that do not begin so. average: None for weights as they were trained,
    else the word that tells that they are an average. counter: over how many, where that is stored. clash: a name that
    two of the tensors have.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    prefix: str = ""
    within: dict[str, int] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    average: str | None = None
    counter: int | None = None
    clash: str | None = None

    @property
    def name(self) -> str:
        """What tells it from others in the same file: `state_dict_ema`, `student.module`; empty for bare weights."""
        return ".".join((*self.keys, self.prefix)).strip(".")

    @property
    def called(self) -> str:
        """Its name, and whether it is an average."""
        kind = "as trained" if self.average is None else "an average"
        count = "" if self.counter is None else f" of {self.counter}"
        return f"{self.name or 'bare'} ({kind}{count})"

    def told(self) -> WeightSet:
        """What is told of it, without the tensors."""
        return replace(self, tensors={}, beside=())

    def to_dict(self) -> dict[str, Any]:
        """{name, called, keys, prefix, within, average[, average_of]} for JSON."""
        found = {
            "name": self.name,
            "called": self.called,
            "keys": list(self.keys),
            "prefix": self.prefix,
            "within": dict(self.within),
        }
        counted = {} if self.counter is None else {"average_of": self.counter}
        return {**found, "average": self.average, **counted}


def leaves(content: Any) -> Iterator[Leaf]:
    """The tensors of nested dictionaries and lists, outer ones first. What is there twice is met once, and nothing
    below `DEEPEST` dictionaries."""
    seen = {id(content)}
    queue: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for keys, holder in queue:  # the queue grows on the way
        items = holder.items() if isinstance(holder, Mapping) else enumerate(holder)
        for key, value in items:
            if isinstance(value, Tensor):
                yield Leaf(keys, str(key), value)
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen and len(keys) < DEEPEST:
                seen.add(id(value))
                queue.append(((*keys, str(key)), value))


def find_sets(found: Sequence[Leaf], marks: Sequence[Collection[str]]) -> list[WeightSet]:
    """The sets of weights among tensors that hold all keys of one of `marks`, the one to take first; those that are the
    same tensors under another name are left out. ValueError for more than `MOST_SETS`."""
    split = [leaf.parts for leaf in found]
    firsts = {tuple(next(iter(mark)).split(".")) for mark in marks}
    starts: dict[tuple[str, ...], Leaf] = {}
    for leaf, parts in zip(found, split, strict=True):
        solid = [place for place, part in enumerate(parts) if part not in TRANSPARENT]
        for first in firsts:
            ending = solid[-len(first) :]
            if tuple(parts[place] for place in ending) == first:
                starts.setdefault(tuple(parts[: ending[0]]), leaf)
    if len(starts) > MOST_SETS:
        raise ValueError(f"holds more than {MOST_SETS} sets of weights")
    made = []
    for start, leaf in starts.items():
        deeper = [other for other in starts if len(other) > len(start) and other[: len(start)] == start]
        weights = _set_at(start, leaf, found, split, deeper)
        if any(all(key in weights.tensors for key in mark) for mark in marks):
            made.append(weights)
    distinct: list[WeightSet] = []
    for weights in sorted(made, key=_rank):
        if not any(_same(weights, other) for other in distinct):
            distinct.append(weights)
    return distinct


def largest_set(found: Sequence[Leaf]) -> WeightSet | None:
    """The dictionary with the most tensors, for weights of nothing that is known; None where there are no tensors. Only
    wrappers that all its names begin with are peeled off."""
    holders: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for leaf in found:
        holders.setdefault(leaf.keys, {})[leaf.name] = leaf.tensor
    if not holders:
        return None
    sets = [WeightSet(tensors, keys, average=_average(keys)) for keys, tensors in holders.items()]
    chosen = min(sets, key=lambda each: (-len(each.tensors), _rank(each)))
    tensors, prefix = chosen.tensors, ""
    while len(heads := {name.partition(".")[0] for name in tensors}) == 1 and heads <= TRANSPARENT:
        if any("." not in name for name in tensors):
            break
        prefix += f"{next(iter(heads))}."
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return WeightSet(tensors, chosen.keys, prefix, average=chosen.average)


def undecided(sets: Sequence[WeightSet]) -> list[WeightSet]:
    """Those of the sets among which nothing tells which to take, where there are several."""
    if not sets:
        return []
    alike = [each for each in sets if _kind(each) == _kind(sets[0])]
    return alike if len(alike) > 1 and _kind(sets[0])[1] else []


def _set_at(
    start: tuple[str, ...],
    mark: Leaf,
    found: Sequence[Leaf],
    split: Sequence[Sequence[str]],
    deeper: Sequence[tuple[str, ...]],
) -> WeightSet:
    """What lies under a prefix and not under a deeper one. `mark` is a tensor of it."""
    tensors: dict[str, Tensor] = {}
    within: dict[str, int] = {}
    beside, counter, clash = [], None, None
    for leaf, parts in zip(found, split, strict=True):
        rest = parts[len(start) :] if tuple(parts[: len(start)]) == start else []
        counted = len(rest) == 1 and leaf.tensor.numel() == 1  # a count of steps, a flag
        if (
            not rest
            or rest[0] in TRANSPARENT
            or counted
            or any(tuple(parts[: len(other)]) == other for other in deeper)
        ):
            if leaf.keys == mark.keys:
                beside.append(leaf.name)
                if parts[-1] == COUNTER and leaf.tensor.numel() == 1 and leaf.tensor.dtype == torch.int64:
                    counter = int(leaf.tensor)
            continue
        name = ".".join(part for part in rest if part not in TRANSPARENT)
        if name in tensors and not _one_storage(tensors[name], leaf.tensor):
            clash = name
        tensors[name] = leaf.tensor
        for wrapper in TRANSPARENT.intersection(rest):
            within[wrapper] = within.get(wrapper, 0) + 1
    keys: tuple[str, ...] = ()
    for key in mark.keys:
        if len(".".join((*keys, key)).split(".")) > len(start):
            break
        keys = (*keys, key)
    dictionaries = len(".".join(keys).split(".")) if keys else 0
    prefix = "".join(f"{part}." for part in start[dictionaries:])
    average = _average(start) or (COUNTER if counter is not None else None)
    return WeightSet(tensors, keys, prefix, within, tuple(beside), average, counter, clash)


def _average(parts: Sequence[str]) -> str | None:
    return next((part for part in parts if AVERAGED.search(part)), None)


def _kind(weights: WeightSet) -> tuple[bool, int]:
    """Weights as they were trained come before averages, and those in the usual wrappers before others."""
    unusual = sum(part not in USUAL for part in weights.name.split(".")) if weights.name else 0
    return weights.average is not None, unusual


def _rank(weights: WeightSet) -> tuple[Any, ...]:
    parts = weights.name.split(".") if weights.name else []
    return (*_kind(weights), [USUAL.index(part) if part in USUAL else len(USUAL) for part in parts], weights.name)


def _same(one: WeightSet, other: WeightSet) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        _one_storage(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def _one_storage(one: Tensor, other: Tensor) -> bool:
    """Whether two names stand for the same numbers in the same place of the file. One that is no plain tensor stands
    for itself alone."""
    return (
        one.layout == other.layout == torch.strided
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.stride() == other.stride()
        and one.data_ptr() == other.data_ptr()
    )
