"""What a model is, in figures that need no data: sizes, layers, tokens, parameters, multiply-accumulates."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from hmrcompress.data.conditions import CONDITION
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.hashes import sha256_file
from hmrcompress.merging.apply import token_counts, with_token_merging
from hmrcompress.metrics.cost import Cost, cost
from hmrcompress.models.families.fov import SIDE, FieldOfView, is_fov, load_fov
from hmrcompress.models.families.registry import MARKS, family, helper_of, network_class
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import NetworkConfig, build
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import TokenSettings

SMALL = 20_000_000
"""Parameters of a network that runs on one crop in less than the meta device takes."""


def network_cost(
    config: NetworkConfig, tokens: TokenSettings | None = None, probe: SaliencyProbe | None = None
) -> Cost:
    """Cost of one crop with a network of these sizes; with a probe no mask is given."""
    return _known_cost(config, tokens) if probe is None else _network_cost(config, tokens, probe)


def _network_cost(config: NetworkConfig, tokens: TokenSettings | None, probe: SaliencyProbe | None) -> Cost:
    """On the meta device, which needs no memory; a small network with nothing but zeros, as the meta device takes
    seconds to be there and most of a second to count."""
    network, device = build(config, "meta").eval(), "meta"
    if sum(parameter.numel() for parameter in network.parameters()) <= SMALL:
        network, device = network.to_empty(device="cpu"), "cpu"
        for tensor in network.state_dict().values():
            tensor.zero_()
    network = with_token_merging(network, tokens, probe)
    height, width = (config.patch * side for side in config.grid)
    more = [torch.zeros(1, CONDITION, device=device)] if network.conditioned else []
    return cost(network, torch.zeros(1, 3, height, width, device=device), None, *more)


@lru_cache(maxsize=256)
def _known_cost(config: NetworkConfig, tokens: TokenSettings | None) -> Cost:
    """It follows from the sizes alone, and counting takes a third of a second."""
    return _network_cost(config, tokens, None)


def field_of_view_cost(network: FieldOfView | None = None) -> Cost:
    """Cost of one picture with a field-of-view network on the meta device, by default CameraHMR's own."""
    if network is None:
        return _usual_field_of_view_cost()
    return cost(network, torch.empty(1, 3, SIDE, SIDE, device="meta"))


@cache
def _usual_field_of_view_cost() -> Cost:
    with torch.device("meta"):
        return field_of_view_cost(FieldOfView().eval())


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Plain values for JSON. `before` is the network that the plan was made for, `after` the model as it is.

    {model, family, sha256, dtype, network: sizes, layers, params, macs (as the paper counts), macs_with_attention:
    {before, after} each, macs_with_field_of_view likewise where the family is told focal lengths (the paper counts that
    network once a crop), tokens: {by_layer, per merge settings}, groups, ignored_keys, unknown_keys, title,
    conditioned, sixd_layout, origins (see `Checkpoint`), weights: {taken, others} (see `WeightSet.to_dict`)}; hashing a
    large file takes seconds.
    """
    config, plan = checkpoint.config, checkpoint.plan
    layers = config.depth if plan is None else plan.layers
    after = network_cost(config, checkpoint.tokens)
    before = after if plan is None else network_cost(config.whole(layers))
    rows, columns = config.grid
    conditioned, more = network_class(checkpoint.family).conditioned, {}
    if conditioned:
        lens = field_of_view_cost().macs
        more["macs_with_field_of_view"] = {"before": before.macs + lens, "after": after.macs + lens}
    settings = {} if checkpoint.tokens is None else checkpoint.tokens.model_dump(mode="json")
    return {
        "model": checkpoint.name,
        "family": checkpoint.family,
        "sha256": checkpoint.sha256,
        "dtype": checkpoint.stored_dtype,
        "network": config.to_dict(),
        "layers": {"before": layers, "after": config.depth},
        "tokens": {"by_layer": list(token_counts(checkpoint.tokens, rows * columns)), **settings},
        "params": {"before": before.parameters, "after": after.parameters},
        "macs": {"before": before.macs, "after": after.macs},
        "macs_with_attention": {"before": before.macs_with_attention, "after": after.macs_with_attention},
        "macs_of_merging": after.other_macs,
        "groups": [list(group) for group in plan.groups] if plan else [[layer] for layer in range(layers)],
        "removed": [each.model_dump() for each in plan.removed] if plan else [],
        "ignored_keys": list(checkpoint.ignored),
        "unknown_keys": list(checkpoint.unknown),
        "title": family(checkpoint.family).title,
        "conditioned": conditioned,
        **more,
        "sixd_layout": network_class(checkpoint.family).head_class.layout,
        "origins": checkpoint.origins,
        "weights": {
            "taken": checkpoint.taken.to_dict(),
            "others": [each.to_dict() for each in checkpoint.others],
        },
    }


def describe_helper(path: Path, weights: str | None = None) -> dict[str, Any] | None:
    """{model, helper, params, sha256, weights[, macs, network]} of a file that belongs to a family and is no model by
    itself (`families.HELPERS`); None for any other file. weights: which of several to take. Raises UserError for one
    that cannot be read."""
    file = open_state_file(path, *MARKS, weights=weights)
    what = helper_of(file.tensors)
    if what is None:
        return None
    found: dict[str, Any] = {"model": path.name, "helper": what, "sha256": sha256_file(path)}
    found["weights"] = {"taken": file.taken.to_dict(), "others": [each.to_dict() for each in file.others]}
    found["params"] = sum(tensor.numel() for tensor in file.tensors.values() if tensor.is_floating_point())
    if is_fov(file.tensors):
        network = load_fov(path).to("meta")
        found["network"] = asdict(network.config)
        found["macs"] = field_of_view_cost(network).macs
    return found
