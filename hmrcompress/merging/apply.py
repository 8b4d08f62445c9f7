"""Token merging installed on a network: a frozen object that the backbone consults between attention and MLP."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.merging.background import kept_places, nearest_kept, patches_of
from hmrcompress.merging.tokens import Matching, highest_norms, layer_count, match, merge, schedule
from hmrcompress.models.network import HMR2, network_sha256, share
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.models.vit import Block, TokenState
from hmrcompress.plan import TokenSettings


class Unlocated(TokenState):
    """A state whose `person` is not known yet: the saliency probe finds it in the layer that it reads. Until then
    `person` (B,rows,columns) holds the shape of the grid and nothing else."""

    __slots__ = ()


class Located(NamedTuple):
    """Tokens (B,M',D) and their state; places (B,M') of those that stayed of the whole grid, where some were dropped
    just now."""

    tokens: Tensor
    state: TokenState
    places: Tensor | None = None


@dataclass(frozen=True)
class TokenMerger:
    """The backbone's `TokenReducer` for a plan's token settings. Holds settings only, so it can serve many networks;
    with a `probe` fitted on one network it finds the person itself where no mask is given."""

    settings: TokenSettings
    probe: SaliencyProbe | None = None

    def begin(self, tokens: Tensor, person_mask: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, TokenState]:
        """Without a mask nobody is there, unless a probe is to find them. Every token is one patch."""
        batch, count = tokens.shape[:2]
        unlocated = person_mask is None and self.probe is not None
        if person_mask is None:
            person_mask = torch.zeros(batch, *grid, dtype=torch.bool, device=tokens.device)
        sizes = torch.ones(batch, count, dtype=torch.float32, device=tokens.device)
        if unlocated:
            return tokens, Unlocated(person_mask, sizes)
        return self._dropped(tokens, person_mask, sizes, self.kept_places(person_mask))

    def _dropped(
        self, tokens: Tensor, person_mask: Tensor, sizes: Tensor, places: Tensor | None
    ) -> tuple[Tensor, TokenState]:
        """The whole grid's tokens and their state without the background that is to go (None: all stay). Those that
        stay count the dropped patches that they are nearest to, if a bias asks for it."""
        person = person_mask.flatten(1)
        if places is None:
            return tokens, TokenState(person, sizes)
        if self.settings.needs_sizes:
            sizes = patches_of(nearest_kept(person_mask, places), self.settings.keep)
        else:
            sizes = sizes.gather(1, places)
        kept = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        return kept, TokenState(person.gather(1, places), sizes)

    def kept_places(self, person_mask: Tensor) -> Tensor | None:
        """The patches that stay where background is dropped, (B,keep) int64; None where nothing is dropped."""
        drop, keep = self.settings.drop_background, self.settings.keep
        if drop is None or person_mask[0].numel() <= keep:
            return None
        return kept_places(person_mask, keep, ring=drop.ring, coarse=drop.coarse)

    def attention_bias(self, state: TokenState) -> Tensor | None:
        """log(size) of each token, (B,1,1,M), if the settings ask for it in the backbone."""
        return state.sizes.log()[:, None, None] if self.settings.biases_backbone else None

    def head_bias(self, state: TokenState) -> Tensor | None:
        """log(size) of each token, (B,1,1,M), if the settings ask for it in the head."""
        return state.sizes.log()[:, None, None] if self.settings.biases_head else None

    def located(self, layer: int, tokens: Tensor, state: TokenState) -> Located:
        """Once the probe's layer is reached, the person that it finds there in the attended tokens (B,M,D), if nobody
        knew before; background that is to go is then gone."""
        if not isinstance(state, Unlocated) or self.probe is None or layer < self.probe.layer:
            return Located(tokens, state)
        rows, columns = state.person.shape[1:]
        person_mask = self.probe.person(tokens, (rows, columns)).view_as(state.person)
        places = self.kept_places(person_mask)
        return Located(*self._dropped(tokens, person_mask, state.sizes, places), places)

    def removes(self, layer: int, count: int) -> int:
        """How many of `count` tokens this layer merges away."""
        settings = self.settings
        if settings.drop_background is not None:
            return 0
        return layer_count(count, settings.keep, _rate(settings), layer, settings.protect)

    def matching(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> Matching | None:
        """The pairs that this layer merges, None where it merges none; arguments as of `reduce`."""
        settings = self.settings
        tokens, state, _ = self.located(layer, tokens, state)
        removed = self.removes(layer, tokens.shape[1])
        if not removed:
            return None
        protected = highest_norms(tokens, settings.protect) if settings.protect else None
        return match(keys.mean(1) if settings.metric == "keys" else tokens, state.person, removed, protected)

    def reduce(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """Merges what this layer has to."""
        tokens, state, _ = self.located(layer, tokens, state)
        matching = self.matching(layer, tokens, keys, state)
        if matching is None:
            return tokens, state
        merged = merge(matching, tokens, *state, size_weighted=self.settings.size_weighted)
        return merged.tokens, TokenState(merged.person, merged.sizes)


def with_token_merging(network: HMR2, settings: TokenSettings | None, probe: SaliencyProbe | None = None) -> HMR2:
    """Another network over the same weights that merges tokens (None: that does not); `network` stays as it is.

    probe: fitted on these weights; it finds the person wherever no mask is given, and merging begins in the layer that
    it reads (see `delayed`), or background is dropped there. Raises UserError where the network has too few layers to
    get down to `settings.keep` tokens.
    """
    other = share(network)
    if settings is None:
        other.backbone.reducer = None
        return other
    rows, columns = network.config.grid
    settings = settled(settings, rows * columns, network.config.depth, probe)
    check_keys_to_merge_by(settings, rows * columns, network.config.without_attention)
    there = probe.to(network.backbone.pos_embed.device) if probe else None
    other.backbone.reducer = TokenMerger(settings, there)
    return other


def settled(settings: TokenSettings, tokens: int, depth: int, probe: SaliencyProbe | None) -> TokenSettings:
    """The settings by which `depth` layers merge `tokens` tokens, delayed until a probe has found the person. UserError
    where there are too few layers."""
    settings = delayed(settings, tokens, probe.layer if probe else 0)
    check_depth(settings, tokens, depth)
    return settings


def delayed(settings: TokenSettings, tokens: int, layer: int) -> TokenSettings:
    """The same settings with nothing merged below `layer`: (90, 40) of 192 from layer 1 on is 0, 40, 40, 22."""
    if layer == 0 or settings.drop_background is not None:
        return settings
    removed = schedule(tokens, settings.keep, _rate(settings), settings.protect)
    early = next((index for index, gone in enumerate(removed) if gone), layer)
    return settings.changed(schedule=[0] * max(0, layer - early) + removed)


def network_identity(network: HMR2) -> dict[str, Any]:
    """What the predictions of a network as it stands depend on: {network: hash, tokens: how they are merged or None,
    probe: hash of the one that finds the person, or None}."""
    reducer = network.backbone.reducer
    probe = reducer.probe if isinstance(reducer, TokenMerger) else None
    settings = merging_settings(network)
    return {
        "network": network_sha256(network),
        "tokens": None if settings is None else settings.model_dump(mode="json"),
        "probe": None if probe is None else probe.sha256,
    }


def merging_settings(network: HMR2) -> TokenSettings | None:
    """How a network merges tokens as it stands; None where it does not."""
    reducer = network.backbone.reducer
    return reducer.settings if isinstance(reducer, TokenMerger) else None


def fewest_layers(settings: TokenSettings | None, tokens: int, probe: SaliencyProbe | None = None) -> int:
    """How many layers are needed to merge `tokens` tokens as `settings` say (see `with_token_merging`), at least one.
    UserError where `keep` is never reached."""
    if settings is None or settings.drop_background is not None:
        return 1 if probe is None else probe.layer + 1
    settings = delayed(settings, tokens, probe.layer if probe else 0)
    return max(1, len(token_counts(settings, tokens)) - 1)


def check_depth(settings: TokenSettings, tokens: int, depth: int) -> None:
    """UserError where `depth` layers cannot bring `tokens` tokens down to `settings.keep`."""
    if (needed := len(token_counts(settings, tokens)) - 1) > depth and settings.drop_background is None:
        raise UserError(
            f"{settings.keep} tokens need {needed} merging layers, the network has {depth}",
            "tokens.keep",
            "Raise keep or per_layer",
        )


def check_keys_to_merge_by(settings: TokenSettings, tokens: int, without_attention: Collection[int]) -> None:
    """UserError where a layer without attention has to merge tokens by its attention's keys."""
    if settings.drop_background is not None or settings.metric != "keys":
        return
    merging = [
        layer for layer, gone in enumerate(schedule(tokens, settings.keep, _rate(settings), settings.protect)) if gone
    ]
    if odd := sorted(set(merging) & set(without_attention)):
        raise UserError(
            f"layer {odd[0]} merges tokens by the keys of its attention, which is removed",
            "tokens.metric",
            "Take metric: features, a schedule without that layer, or keep its attention",
        )


def forced_merges(network: HMR2, images: Tensor, person_mask: Tensor | None) -> Tensor:
    """How many person tokens each crop loses because too few of background are left: (B,) int64, merged or dropped.

    images (B,3,H,W), person_mask (B,rows,columns) bool. Zero for a network without token merging.
    """
    backbone, reducer = network.backbone, network.backbone.reducer
    forced = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
    if not isinstance(reducer, TokenMerger):
        return forced
    if person_mask is not None and reducer.settings.drop_background is not None:
        places, person = reducer.kept_places(person_mask), person_mask.flatten(1)
        return forced if places is None else (person.sum(1) - person.gather(1, places).sum(1))
    tokens, state = backbone.begin(images, person_mask)
    assert state is not None
    for layer in range(len(counts_of(network)) - 1):
        block = cast(Block, backbone.blocks[layer])
        attended, keys = block.attend(tokens, reducer.attention_bias(state))
        found = reducer.located(layer, attended, state)
        if found.places is not None and reducer.probe is not None:
            forced = (
                forced + reducer.probe.person(attended, backbone.grid_of(images)).sum(1) - found.state.person.sum(1)
            )
        matching = reducer.matching(layer, found.tokens, keys, found.state)
        if matching is not None:
            forced = forced + matching.forced.sum(1)
        tokens, state = reducer.reduce(layer, attended, keys, state)
        tokens = block.feed(tokens)
    return forced


def counts_of(network: HMR2) -> Sequence[int]:
    """Number of tokens at the input of a network as it stands, and after each of its layers up to the last that merges
    or drops some (see `token_counts`)."""
    reducer = network.backbone.reducer
    rows, columns = network.config.grid
    counts = token_counts(merging_settings(network), rows * columns)
    if isinstance(reducer, TokenMerger) and reducer.probe is not None and reducer.settings.drop_background is not None:
        return [rows * columns] * reducer.probe.layer + list(counts)
    return counts


def token_counts(settings: TokenSettings | None, tokens: int) -> Sequence[int]:
    """Number of tokens at the input and after each merging layer: (90, 40) of 192 -> [192, 152, 112, 90].

    Where background is dropped before the first layer: [192, 90]. UserError where `keep` is never reached.
    """
    if settings is None:
        return [tokens]
    if settings.drop_background is not None:
        return [tokens, settings.keep] if tokens > settings.keep else [tokens]
    removed = schedule(tokens, settings.keep, _rate(settings), settings.protect)
    return [tokens, *(tokens - gone for gone in accumulate(removed))]


def _rate(settings: TokenSettings) -> int | tuple[int, ...]:
    """Tokens merged away per layer: one number for all, or a list of them."""
    return settings.per_layer if settings.schedule is None else settings.schedule
