"""What a grouping of layers costs in a live network: its own forward, with layers below the first merged one replayed.

The tokens that enter a layer of the untouched network are kept, as in the native search. To measure a candidate the
model is called as always; blocks below the layer that is known hand their tokens on, and that layer gets what was kept.
So none of the model's code is rewritten. Whether the replay is right is checked, not believed: every pass compares the
tokens that enter the first block with those of the pass that was kept (crops that depend on earlier passes may differ),
and before anything is measured with it the untouched network is replayed once and has to give what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmrcompress.errors import UserError, tell
from hmrcompress.live.distances import Distance, measured
from hmrcompress.live.masks import Masks
from hmrcompress.live.passes import LiveState
from hmrcompress.live.patching import apply, person_mask, unapply
from hmrcompress.live.structure import Network
from hmrcompress.live.trees import kept, placed, same
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.searching.cache import LayerCache
from hmrcompress.searching.eclm import Groups, grouping
from hmrcompress.searching.error import FrameProbe

Run = Callable[[Any, Any], Any]
"""run(model, batch) -> outputs."""
MOST_PASSES = 1 << 20
"""Passes of the backbone in one batch, at most."""


class Prefix:
    """The `Replay` of a search, over a cache. `applications`: layers times samples computed below `first`."""

    def __init__(self, cache: LayerCache, device: torch.device) -> None:
        self.cache, self.device, self.off = cache, device, False
        self.applications = 0
        self._batch = self._first = self._pass = 0

    def batch(self, number: int, first: int) -> None:
        """A batch is about to run, with layers from `first` on changed."""
        self._batch, self._first, self._pass = number, first, 0

    def begin(self, tokens: Tensor, state: LiveState | None) -> tuple[int, Any]:
        """See `Replay`. What it notes is the key of the pass, None where it is not the one that was kept."""
        key = self._batch * MOST_PASSES + self._pass
        self._pass += 1
        if self.off:
            return 0, None
        if self.cache.nearest(key, 0) is None:
            return 0, key
        before = self.cache.get(key, 0, self.device)
        if not same(before, (self.cache.rounded(0, tokens), state)):
            return 0, None
        return self.cache.nearest(key, self._first) or 0, key

    def enter(
        self, layer: int, start: int, key: Any, tokens: Tensor, state: LiveState | None
    ) -> tuple[Tensor, LiveState | None]:
        """See `Replay`."""
        if layer < self._first:
            self.applications += len(tokens)
        if key is None or layer > self._first:
            return tokens, state
        if layer == start and self.cache.nearest(key, layer) == layer:
            tokens, found = self.cache.get(key, layer, self.device)
            return tokens, found if isinstance(found, LiveState) else None
        tokens = self.cache.rounded(layer, tokens)
        self.cache.put(key, layer, tokens, state)
        return tokens, state


class LiveProbe(FrameProbe):
    """The `FrameProbe` of a live network in evaluation mode. `counts` are the numbers of samples in the batches."""

    def __init__(
        self,
        network: Network,
        batches: Sequence[Any],
        sizes: Sequence[int],
        run: Run,
        distance: Distance,
        *,
        merge_rule: str,
        cache: LayerCache,
        tokens: TokenSettings | None = None,
        masks: Callable[[Any], Masks] | None = None,
        probe: SaliencyProbe | None = None,
    ) -> None:
        starts = np.cumsum([0, *sizes]).tolist()
        super().__init__(starts[-1], [slice(*ends) for ends in pairwise(starts)], network.depth)
        self.network, self.batches, self.sizes, self.run, self.distance = network, batches, sizes, run, distance
        self.merge_rule, self.tokens, self.masks, self.mask_probe = merge_rule, tokens, masks, probe
        self.device = next(network.blocks.parameters()).device
        self.cache, self.prefix = cache, Prefix(cache, self.device)
        self._teacher: dict[int, Any] = {}
        self._checked = False

    @property
    def applications(self) -> int:
        """See `FrameProbe`."""
        return self.prefix.applications

    @contextmanager
    def candidate(self, groups: Groups) -> Iterator[Callable[[int, int], np.ndarray]]:
        """See `FrameProbe`."""
        untouched = len(groups) == self.depth
        if not untouched:
            self._prepare()
        with self._applied(groups):

            def errors(number: int, first: int) -> np.ndarray:
                outputs = self._outputs(number, first)
                if untouched:
                    self._teacher[number] = kept(self._worth(outputs))
                teacher = placed(self._teacher[number], self.device)
                return measured(self.distance, outputs, teacher, self.batches[number], self.sizes[number])

            yield errors

    @contextmanager
    def _applied(self, groups: Groups) -> Iterator[None]:
        plan = Plan(checkpoint=self.network.reference, groups=groups, merge_rule=self.merge_rule, tokens=self.tokens)  # type: ignore[arg-type]
        model = self.network.model
        apply(model, plan, network=self.network, probe=self.mask_probe, replay=self.prefix)
        try:
            yield
        finally:
            unapply(model)

    def _outputs(self, number: int, first: int) -> Any:
        batch, model = self.batches[number], self.network.model
        self.prefix.batch(number, first)
        given = self.tokens is not None and self.masks is not None
        with torch.no_grad(), person_mask(model, self.masks(batch)) if given and self.masks else nullcontext():
            return self.run(model, batch)

    def _worth(self, outputs: Any) -> Any:
        """What of the untouched network's outputs the distance wants to see again."""
        keep = getattr(self.distance, "kept", None)
        return outputs if keep is None else keep(outputs)

    def _prepare(self) -> None:
        """The untouched network's outputs, of batches whose error came from a journal too, and the check of the
        replay."""
        missing = [number for number in range(len(self.batches)) if number not in self._teacher]
        if not missing and self._checked:
            return
        untouched = grouping(self.depth, [])
        with self._applied(untouched):
            for number in missing:
                self._teacher[number] = kept(self._worth(self._outputs(number, self.depth)))
            if not self._checked:
                self._checked = True
                self._check()

    def _check(self) -> None:
        """Replays the first batch in the untouched network, from as high up as is kept; not among the counts."""
        before = self.prefix.applications
        again = kept(self._worth(self._outputs(0, self.depth)))
        self.prefix.applications = before
        if same(again, self._teacher[0]):
            return
        if self.prefix.off or not self.cache.layers:
            raise UserError("does not give the same outputs twice", "run", "Switch off whatever is drawn at random")
        self.prefix.off = True
        tell(
            "reads more of its backbone than the last layer, or draws at random, so layers are not replayed",
            type(self.network.model).__name__,
        )
