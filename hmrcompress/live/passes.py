"""One pass of tokens through a compressed stack of other code: what is merged where, and everything put back at the
end. Tensors and a `TokenMerger`; what calls it is `live.forwards`.

Tokens are prefix, patches, suffix. Prefix and suffix stay as they are and where they are; patches are dropped before
the first block or merged between the halves of blocks. `place` says which patch's position a token has: its own, or
that of the token that others were merged into; rotary positions follow it. The last block hands back one token for
every patch of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmrcompress.merging.apply import TokenMerger, Unlocated
from hmrcompress.merging.background import nearest_kept
from hmrcompress.merging.tokens import Matching, destinations, merge
from hmrcompress.models.vit import TokenState


class LiveState(NamedTuple):
    """Of tokens that stand for patches: person (B,M) bool, sizes (B,M), place (B,M) int64 of the patch whose position
    each has; owner (B,patches) int64, the token that each patch is in."""

    person: Tensor
    sizes: Tensor
    place: Tensor
    owner: Tensor


@dataclass
class Pass:
    """A pass on its way: the next layer, its grid, and the state of its tokens. `unlocated` until a probe has found
    the person, `whole` as long as every token is one patch. `start`: the layer that it begins at where what enters it
    is known already, with the `note` of whoever knows. `entered`: the tokens of the first layer, all three parts."""

    layer: int
    grid: tuple[int, int]
    state: LiveState
    unlocated: bool
    whole: bool
    start: int = 0
    note: Any = None
    entered: Tensor = field(default_factory=lambda: torch.empty(0))

    def resume(self, state: LiveState, *, unlocated: bool) -> None:
        """Goes on from a state that was kept."""
        self.state, self.unlocated = state, unlocated
        self.whole = state.sizes.shape == state.owner.shape and bool((state.sizes == 1).all())


class Split(NamedTuple):
    """Tokens (B,…,D): in front, of patches, behind."""

    front: Tensor
    patches: Tensor
    behind: Tensor

    def joined(self, patches: Tensor) -> Tensor:
        """With other tokens of patches."""
        return torch.cat([self.front, patches, self.behind], dim=1)


def split(tokens: Tensor, prefix: int, suffix: int) -> Split:
    """Views of the three parts."""
    stop = tokens.shape[1] - suffix
    return Split(tokens[:, :prefix], tokens[:, prefix:stop], tokens[:, stop:])


def begun(merger: TokenMerger, patches: Tensor, mask: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, Pass]:
    """Tokens of patches (B,M,D) as they enter the first block -> those that stay, and the pass."""
    batch, count = patches.shape[:2]
    kept, state = merger.begin(patches, mask, grid)
    everything = torch.arange(count, device=patches.device).expand(batch, -1)
    if isinstance(state, Unlocated):
        nobody = torch.zeros(batch, count, dtype=torch.bool, device=patches.device)
        live = LiveState(nobody, state.sizes, everything, everything)
        return kept, Pass(0, grid, live, unlocated=True, whole=True)
    person = mask if mask is not None else torch.zeros(batch, *grid, dtype=torch.bool, device=patches.device)
    places = merger.kept_places(person)
    if places is None:
        return kept, Pass(0, grid, LiveState(*state, everything, everything), unlocated=False, whole=True)
    live = LiveState(*state, places, nearest_kept(person, places))
    return kept, Pass(0, grid, live, unlocated=False, whole=False)


def located(merger: TokenMerger, run: Pass, layer: int, patches: Tensor) -> Tensor:
    """Attended tokens of patches (B,M,D) -> those that stay once the probe, in its layer, has found the person."""
    if not run.unlocated:
        return patches
    grid = run.grid
    shape = torch.zeros(len(patches), *grid, dtype=torch.bool, device=patches.device)
    found = merger.located(layer, patches, Unlocated(shape, run.state.sizes))
    if isinstance(found.state, Unlocated):
        return patches
    run.unlocated = False
    place, owner = run.state.place, run.state.owner
    if found.places is not None:
        assert merger.probe is not None
        person = merger.probe.person(patches, grid).view(-1, *grid)
        place, owner, run.whole = found.places, nearest_kept(person, found.places), False
    run.state = LiveState(*found.state, place, owner)
    return found.tokens


def merged(merger: TokenMerger, run: Pass, layer: int, patches: Tensor, keys: Tensor) -> Tensor:
    """Attended tokens of patches (B,M,D) and their keys (B,heads,M,d) -> what the layer leaves of them."""
    state = run.state
    matching = merger.matching(layer, patches, keys, TokenState(state.person, state.sizes))
    if matching is None:
        return patches
    made = merge(matching, patches, state.person, state.sizes, size_weighted=merger.settings.size_weighted)
    owner = destinations(matching, patches.shape[1]).gather(1, state.owner)
    run.state = LiveState(made.person, made.sizes, _places(matching, state.place), owner)
    run.whole = False
    return made.tokens


def restored(run: Pass, patches: Tensor) -> Tensor:
    """Each patch's token: (B,M,D) -> (B,patches,D)."""
    return patches.gather(1, run.state.owner[..., None].expand(-1, -1, patches.shape[-1]))


def bias_of(merger: TokenMerger, run: Pass, prefix: int, suffix: int) -> Tensor | None:
    """log(size) for the logits of attention, (B,1,1,prefix+M+suffix); None where the plan has none or all sizes are 1.
    Tokens that are no patches count once."""
    if run.whole or run.unlocated:
        return None
    bias = merger.attention_bias(TokenState(run.state.person, run.state.sizes))
    return bias if bias is None else torch.nn.functional.pad(bias, (prefix, suffix))


def _places(matching: Matching, place: Tensor) -> Tensor:
    """Positions of what remains after a merge: those of A that stay, then those of B."""
    return torch.cat([place[:, 0::2].gather(1, matching.kept), place[:, 1::2]], dim=1)
