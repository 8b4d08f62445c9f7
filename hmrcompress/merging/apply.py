"""Token merging installed on a network: a frozen object that the backbone consults between attention and MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.merging.tokens import match, merge, merge_count, schedule
from hmrcompress.models.network import HMR2, share
from hmrcompress.models.vit import Block, TokenState
from hmrcompress.plan import TokenSettings


@dataclass(frozen=True)
class TokenMerger:
    """The backbone's `TokenReducer` for a plan's token settings. Holds settings only, so it can serve many networks."""

    settings: TokenSettings

    def begin(self, tokens: Tensor, person_mask: Tensor | None) -> TokenState:
        """Every token is one patch; without a mask nobody is there."""
        batch, count = tokens.shape[:2]
        if person_mask is None:
            person = torch.zeros(batch, count, dtype=torch.bool, device=tokens.device)
        else:
            person = person_mask.flatten(1)
        return TokenState(person, torch.ones(batch, count, dtype=torch.float32, device=tokens.device))

    def attention_bias(self, state: TokenState) -> Tensor | None:
        """log(size) of each token, (B,1,1,M), if the settings ask for it."""
        return state.sizes.log()[:, None, None] if self.settings.attention_bias else None

    def reduce(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """Merges what this layer has to; it goes by the number of tokens, so `layer` is not used."""
        removed = merge_count(tokens.shape[1], self.settings.keep, self.settings.per_layer)
        if not removed:
            return tokens, state
        metric = keys.mean(1) if self.settings.metric == "keys" else tokens
        matching = match(metric, state.person, removed)
        merged = merge(matching, tokens, *state, size_weighted=self.settings.size_weighted)
        return merged.tokens, TokenState(merged.person, merged.sizes)


def with_token_merging(network: HMR2, settings: TokenSettings | None) -> HMR2:
    """Another network over the same weights that merges tokens (None: that does not); `network` stays as it is.

    Raises UserError where the network has too few layers to get down to `settings.keep` tokens.
    """
    other = share(network)
    if settings is None:
        other.backbone.reducer = None
        return other
    rows, columns = network.config.grid
    if (needed := len(schedule(rows * columns, settings.keep, settings.per_layer))) > network.config.depth:
        raise UserError(
            f"{settings.keep} tokens need {needed} merging layers, the network has {network.config.depth}",
            "tokens.keep",
            "Raise keep or per_layer",
        )
    other.backbone.reducer = TokenMerger(settings)
    return other


def forced_merges(network: HMR2, images: Tensor, person_mask: Tensor | None) -> Tensor:
    """How many person tokens each crop loses because too few of background are left: (B,) int64.

    images (B,3,H,W), person_mask (B,rows,columns) bool. Zero for a network without token merging.
    """
    backbone = network.backbone
    tokens, state = backbone.begin(images, person_mask)
    forced = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
    reducer = backbone.reducer
    for layer, block in enumerate(backbone.blocks):
        if state is None or not isinstance(reducer, TokenMerger) or not isinstance(block, Block):
            break
        removed = merge_count(tokens.shape[1], reducer.settings.keep, reducer.settings.per_layer)
        if not removed:
            break
        attended, keys = block.attend(tokens, reducer.attention_bias(state))
        metric = keys.mean(1) if reducer.settings.metric == "keys" else attended
        forced = forced + match(metric, state.person, removed).forced.sum(1)
        tokens, state = backbone.step(layer, tokens, state)
    return forced


def token_counts(settings: TokenSettings | None, tokens: int) -> Sequence[int]:
    """Number of tokens at the input and after each merging layer: (90, 40) of 192 -> [192, 152, 112, 90]."""
    counts = [tokens]
    for removed in [] if settings is None else schedule(tokens, settings.keep, settings.per_layer):
        counts.append(counts[-1] - removed)
    return counts
