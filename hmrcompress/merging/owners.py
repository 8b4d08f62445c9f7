"""Which token each patch of a picture ends up in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.merging.apply import Located, TokenMerger
from hmrcompress.merging.tokens import destinations
from hmrcompress.models.network import HMR2, share
from hmrcompress.models.vit import TokenState
from hmrcompress.records import FrameBatch

GONE = -1


@dataclass(frozen=True)
class _Recorder(TokenMerger):
    """A token merger that writes down where patches go: `owners[-1]` (B,N)."""

    owners: list[Tensor] = field(default_factory=list)

    def _dropped(
        self, tokens: Tensor, person_mask: Tensor, sizes: Tensor, places: Tensor | None
    ) -> tuple[Tensor, TokenState]:
        batch, count = tokens.shape[:2]
        if places is None:
            self.owners.append(torch.arange(count).repeat(batch, 1))
        else:
            owner = torch.full((batch, count), GONE)
            self.owners.append(owner.scatter(1, places.cpu(), torch.arange(places.shape[1]).repeat(batch, 1)))
        return super()._dropped(tokens, person_mask, sizes, places)

    def reduce(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        located: Located = self.located(layer, tokens, state)
        matching = self.matching(layer, located.tokens, keys, located.state)
        if matching is not None:
            places, owner = destinations(matching, located.tokens.shape[1]).cpu(), self.owners[-1]
            moved = places.gather(1, owner.clamp(min=0))
            self.owners.append(torch.where(owner == GONE, owner, moved))
        return super().reduce(layer, located.tokens, keys, located.state)


@torch.no_grad()
def patch_owners(network: HMR2, batch: FrameBatch) -> Tensor:
    """(B,N) int64: the token that each of the grid's N patches has been merged into after the last layer, numbered as
    the head sees them; -1 for patches that were dropped.

    network: with token merging, in evaluation mode. batch: on its device, with the masks that guide it. Raises
    UserError where the network merges no tokens.
    """
    merger = network.backbone.reducer
    if not isinstance(merger, TokenMerger):
        raise UserError("merges no tokens", "network")
    other = share(network)
    recorder = _Recorder(merger.settings, merger.probe)
    other.backbone.reducer = recorder
    other(*batch.inputs())
    return recorder.owners[-1]
