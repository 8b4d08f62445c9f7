"""A network that keeps as many tokens of each crop as its person needs: one reducer a bucket, crops grouped by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.merging.apply import TokenMerger, check_depth, forced_merges, with_token_merging
from hmrcompress.merging.buckets import BUCKETS, Group, check_buckets, group, split_order
from hmrcompress.merging.tokens import Matching, layer_count, merge
from hmrcompress.models.network import HMR2, share
from hmrcompress.models.vit import TokenState
from hmrcompress.plan import TokenSettings
from hmrcompress.records import HMROutput


@dataclass(frozen=True)
class OrderedMerger(TokenMerger):
    """A `TokenMerger` that puts the tokens into `split_order` before each matching, so that no person token is merged
    as long as fewer of them than `settings.keep` are there."""

    def matching(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> Matching | None:
        """The pairs that this layer merges; places are those after reordering."""
        return super().matching(layer, *self._ordered(layer, tokens, keys, state))

    def reduce(self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """Merges what this layer has to."""
        tokens, keys, state = self._ordered(layer, tokens, keys, state)
        matching = super().matching(layer, tokens, keys, state)
        if matching is None:
            return tokens, state
        merged = merge(matching, tokens, *state, size_weighted=self.settings.size_weighted)
        return merged.tokens, TokenState(merged.person, merged.sizes)

    def _ordered(
        self, layer: int, tokens: Tensor, keys: Tensor, state: TokenState
    ) -> tuple[Tensor, Tensor, TokenState]:
        """The same in the order of this layer's matching; keys come as the mean over heads (B,1,M,C)."""
        keys = keys.mean(1, keepdim=True)
        removed = layer_count(tokens.shape[1], self.settings.keep, self.settings.per_layer, layer)
        if not removed:
            return tokens, keys, state
        order = split_order(state.person, removed)
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        keys = keys.gather(2, order[:, None, :, None].expand_as(keys))
        return tokens, keys, TokenState(state.person.gather(1, order), state.sizes.gather(1, order))


class AdaptiveTokens(nn.Module):
    """A network (images, person_mask, condition) -> HMROutput that runs each crop in the smallest bucket in which
    nothing of its person is merged. Weights are those of `network`, which stays as it is.

    settings: how tokens are merged, or background is dropped; `keep` and `schedule` give way to the buckets. Every
    bucket's network may be replaced by `prepare(network)`, for a faster one of the same signature.
    """

    def __init__(
        self,
        network: HMR2,
        settings: TokenSettings,
        buckets: Sequence[int] = BUCKETS,
        *,
        prepare: Callable[[HMR2], nn.Module] = lambda network: network,
    ) -> None:
        """Raises UserError for buckets that do not fit, too few layers, and settings that protect tokens: those take
        sources away that the buckets count on."""
        super().__init__()
        if settings.protect:
            raise UserError("protected tokens and buckets exclude each other", "tokens.protect", "Set it to 0")
        rows, columns = network.config.grid
        self.config, self.settings = network.config, settings.changed(schedule=None)
        self.buckets = check_buckets(buckets, rows * columns)
        self.dropping = settings.drop_background is not None
        self.plain = {keep: self._network(network, keep) for keep in self.buckets}
        self.networks = nn.ModuleDict({str(keep): prepare(made) for keep, made in self.plain.items()})

    def settings_of(self, keep: int) -> TokenSettings | None:
        """How tokens are merged in a bucket; None in that of the whole grid."""
        return None if keep == self.buckets[-1] else self.settings.changed(keep=keep)

    def groups(self, person_mask: Tensor | None) -> list[Group]:
        """A batch's rows by bucket: person_mask (B,rows,columns) bool. Raises UserError without masks, which say how
        much a person needs."""
        if person_mask is None:
            raise UserError("adaptive tokens need person masks before the network runs", "buckets", "See --masks")
        return group(person_mask.flatten(1), self.buckets, dropping=self.dropping)

    def forward(self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None) -> HMROutput:
        """images (B,3,H,W), person_mask (B,H/16,W/16) bool, condition (B,3) where the family reads one -> HMROutput in
        the order of the batch. Raises UserError."""
        groups = self.groups(person_mask)
        assert person_mask is not None
        made = []
        for keep, rows in groups:
            told = () if condition is None else (condition[rows],)
            made.append(self.networks[str(keep)](images[rows], person_mask[rows], *told))
        back = torch.cat([rows for _, rows in groups]).argsort()
        return HMROutput.joined(made).mapped(lambda part: part[back])

    def forced_merges(self, images: Tensor, person_mask: Tensor | None) -> Tensor:
        """Person tokens that each crop loses, (B,) int64: counted, not assumed. As `apply.forced_merges`. UserError
        without masks."""
        forced = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        groups = self.groups(person_mask)
        assert person_mask is not None
        for keep, rows in groups:
            forced[rows] = forced_merges(self.plain[keep], images[rows], person_mask[rows])
        return forced

    def _network(self, network: HMR2, keep: int) -> HMR2:
        settings = self.settings_of(keep)
        if settings is None or self.dropping:
            return with_token_merging(network, settings).eval()
        rows, columns = network.config.grid
        check_depth(settings, rows * columns, network.config.depth)
        other = share(network)
        other.backbone.reducer = OrderedMerger(settings)
        return other.eval()
