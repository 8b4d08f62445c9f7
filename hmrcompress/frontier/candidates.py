"""What a search for the frontier chooses among: layers and halves of layers to remove, how the gap is patched, and how
many tokens are kept and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from hmrcompress.plan import ALL, CheckpointRef, FittedOn, PatchSettings, Plan, Removed, TokenSettings, trivial_groups

Way = Literal["drop", "merge"]
Dtype = Literal["float32", "bfloat16"]
Cutting = tuple[int, str]
"""A layer and what is removed of it: all, attention or mlp."""


@dataclass(frozen=True, order=True)
class Candidate:
    """A compressed network. `removed` rises by layer; `strength` is that of the patch, 0 for none; `keep` tokens (None:
    all) are left by dropping background or by merging; `weighted`: what stands for many patches counts as many, in
    means and in attention (a network that was trained on fewer tokens may be better without). `dtype` is what it
    computes in; `stride`: it runs on every so manieth frame, and bodies in between are interpolated. `healed` names the
    weights that were trained further, by their hash."""

    removed: tuple[Cutting, ...] = ()
    strength: float = 0.0
    keep: int | None = None
    way: Way | None = None
    weighted: bool = True
    dtype: Dtype = "float32"
    stride: int = 1
    healed: str = ""

    @property
    def key(self) -> str:
        """A text that stands for it, in journals."""
        more = [self._more()] if self._more() else []
        return json.dumps([[list(each) for each in self.removed], self.strength, self.keep, self.way, *more])

    @classmethod
    def parsed(cls, key: str) -> Self:
        """The inverse of `key`."""
        removed, strength, keep, way, *more = json.loads(key)
        named = more[0] if more else {}
        return cls(tuple((int(layer), str(part)) for layer, part in removed), float(strength), keep, way, **named)

    def _more(self) -> dict[str, Any]:
        """What is not as it is by itself."""
        plain = {"weighted": True, "dtype": "float32", "stride": 1, "healed": ""}
        return {name: getattr(self, name) for name, usual in plain.items() if getattr(self, name) != usual}

    def joined(self, other: Candidate) -> Self:
        """The same with the tokens, dtype and stride that another one has changed."""
        found = self if other.keep is None else replace(self, keep=other.keep, way=other.way, weighted=other.weighted)
        return replace(found, **{name: value for name, value in other._more().items() if name != "healed"})

    def layers(self, depth: int) -> float:
        """Layers that are left of `depth`; half a layer counts half."""
        return depth - sum(1.0 if part == ALL else 0.5 for _, part in self.removed)

    def without(self, *cuttings: Cutting) -> Self:
        """The same with more removed, and without a patch, which belongs to one set. Two halves of a layer are all."""
        parts: dict[int, set[str]] = {}
        for layer, part in (*self.removed, *cuttings):
            parts.setdefault(layer, set()).add(part)
        removed = [(layer, *(found if len(found) == 1 else {ALL})) for layer, found in parts.items()]
        return replace(self, removed=tuple(sorted(removed)), strength=0.0)  # type: ignore[arg-type]

    @property
    def tokens(self) -> TokenSettings | None:
        """The token settings of a plan."""
        if self.keep is None:
            return None
        if self.way == "drop":
            return TokenSettings.model_validate_json(
                json.dumps({"keep": self.keep, "drop_background": {}, "attention_bias": self.weighted})
            )
        return TokenSettings(keep=self.keep, size_weighted=self.weighted, attention_bias=self.weighted)

    def plan(self, checkpoint: CheckpointRef | None, depth: int, fitted_on: FittedOn | None = None) -> Plan:
        """The plan of a network of `depth` layers. A patch needs `fitted_on`."""
        patch = PatchSettings(strength=self.strength, fitted_on=fitted_on) if self.strength and fitted_on else None
        return Plan(
            checkpoint=checkpoint,
            groups=trivial_groups(depth),
            removed=tuple(Removed(layer=layer, part=part) for layer, part in self.removed),  # type: ignore[arg-type]
            patch=patch,
            tokens=self.tokens,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "removed": [{"layer": layer, "part": part} for layer, part in self.removed],
            "patch_strength": self.strength,
            "tokens": self.keep,
            "tokens_by": self.way,
            **self._more(),
        }

    def words(self, depth: int) -> str:
        """What it is, in a few words: `9 of 12 layers, patched, 96 tokens (merge)`."""
        found = [f"{self.layers(depth):g} of {depth} layers"] if self.removed else [f"all {depth} layers"]
        found += ["patched"] if self.strength else []
        way = f"{self.way}{'' if self.weighted else ', unweighted'}"
        found += [f"{self.keep} tokens ({way})"] if self.keep is not None else []
        found += [self.dtype] if self.dtype != "float32" else []
        found += [f"a stride of {self.stride}"] if self.stride > 1 else []
        found += ["healed"] if self.healed else []
        return ", ".join(found)


def singles(depth: int, candidate: Candidate, parts: Sequence[str]) -> list[Cutting]:
    """What can still be removed of a candidate: each `part` of each layer that it has in full, and the other half of
    layers of which one is gone. One layer always stays."""
    gone = dict(candidate.removed)
    found: list[Cutting] = []
    for layer in range(depth):
        part = gone.get(layer)
        if part is None:
            found += [(layer, each) for each in parts]
        elif part != ALL and len(parts) > 1:
            found.append((layer, "mlp" if part == "attention" else "attention"))
    left = sum(1 for layer in range(depth) if gone.get(layer) != ALL)
    return [] if left <= 1 else found
