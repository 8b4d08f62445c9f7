"""The two networks that a bench compares: a model, or one cut for the purpose, and the original it came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from hmrcompress.data.conditions import CONDITION
from hmrcompress.errors import UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.merge import merge_network
from hmrcompress.metrics.cost import Cost, cost
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, NetworkConfig, build
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.records import FrameBatch
from hmrcompress.timing.rounds import Predict

NETWORK, BACKBONE = "network", "backbone"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Contender:
    """A network with all layers as they are, on the CPU or elsewhere, and the token merging it runs with."""

    network: HMR2
    tokens: TokenSettings | None = None
    name: str = ""

    @property
    def config(self) -> NetworkConfig:
        """Its sizes."""
        return self.network.config

    def costs(self) -> dict[str, Cost]:
        """Of one crop, `network` and `backbone`, counted on the meta device."""
        return dict(_costs(self.config, self.tokens))


@cache
def _costs(config: NetworkConfig, tokens: TokenSettings | None) -> dict[str, Cost]:
    """A forward pass on the meta device takes a second where there are many layers, and rows of a table ask alike."""
    made = with_token_merging(build(config, "meta").eval(), tokens)
    height, width = (config.patch * side for side in config.grid)
    images = torch.empty(1, 3, height, width, device="meta")
    mask = torch.empty(1, *config.grid, dtype=torch.bool, device="meta")
    more = [torch.empty(1, CONDITION, device="meta")] if made.conditioned else []
    return {NETWORK: cost(made, images, mask, *more), BACKBONE: cost(made.backbone, images, mask)}


class Rival(Protocol):
    """The compressed network run by something else than torch, timed beside the two (`exporting.onnx_runtime`)."""

    @property
    def name(self) -> str:
        """Of what runs it, `onnxruntime`; the key of its figures."""

    def runner(self, batch: FrameBatch) -> Predict:
        """What runs it once on this batch."""

    def to_json(self) -> dict[str, Any]:
        """How it is run."""


def contenders(
    checkpoint: Checkpoint,
    against: Checkpoint | None,
    *,
    layers: int | None,
    tokens: TokenSettings | None,
    seed: int,
    alone: bool = False,
) -> tuple[Contender, Contender]:
    """Original and compressed. `layers` and `tokens` cut a model that nothing was merged in, for speed only.

    Without `against` the original is the model itself where it was cut, else a network of the original's size with
    random weights. `alone`: a model that nothing is merged in is the one and the other (the same object twice). Raises
    UserError where there is nothing to compare or the sizes do not fit.
    """
    plan, name = checkpoint.plan, checkpoint.name
    if alone and plan is None and against is None and layers is None and tokens is None:
        single = Contender(checkpoint.network, None, name)
        return single, single
    if plan is None and layers is None and tokens is None:
        raise UserError(
            "nothing is merged in this model", name, "Give --layers or --keep-tokens, or a compressed folder"
        )
    if plan is not None and (layers is not None or tokens is not None):
        raise UserError("is compressed already, so it cannot be cut", name, "Leave --layers and --keep-tokens out")
    wanted = checkpoint.config if plan is None else checkpoint.config.whole(plan.layers)
    if against is not None:
        if against.config != wanted:
            raise UserError(f"is not a network that {name} could come from: their sizes differ", against.name)
        original = Contender(against.network, against.tokens, against.name)
    elif plan is None:
        original = Contender(checkpoint.network, None, name)
    else:
        original = Contender(build(wanted, seed=seed).eval(), None, "random weights")
    if plan is not None:
        return original, Contender(checkpoint.network, checkpoint.tokens, name)
    made = checkpoint.network if layers is None else cut(checkpoint.network, layers)
    return original, Contender(made, tokens, f"{name}, cut")


def cut_from_the_top(layers: int, keep: int) -> tuple[tuple[int, ...], ...]:
    """Groups of `layers` layers that leave `keep`: the last of them holds all that is too many. UserError."""
    if not 1 <= keep <= layers:
        raise UserError(f"got {keep}, expected 1 … {layers} for a network of {layers} layers", "--layers")
    return (*((layer,) for layer in range(keep - 1)), tuple(range(keep - 1, layers)))


def cut(network: HMR2, layers: int) -> HMR2:
    """The network with `layers` layers, groups cut from the top; its weights are those of `network`, no copies.

    For speed only: what it predicts is worth nothing.
    """
    groups = cut_from_the_top(network.config.depth, layers)
    return merge_network(network, Plan(groups=groups, merge_rule="keep_last"))
