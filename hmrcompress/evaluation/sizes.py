"""How large a network is before and after a plan: layers, parameters, multiply-accumulates of one crop."""

from __future__ import annotations

from typing import Any

from hmrcompress.merging.describe import network_cost
from hmrcompress.models.network import NetworkConfig
from hmrcompress.plan import Plan


def sizes(config: NetworkConfig, plan: Plan | None) -> dict[str, Any]:
    """{layers, params, macs, macs_with_attention: {before[, after]}} of a network with this (merged) configuration.

    Counted without any weights; MACs with and without the products of attention, see `metrics.cost`. Without a plan
    there is no after.
    """
    stages = {"before": config.whole(plan.layers) if plan else config}
    if plan:
        stages["after"] = config
    found: dict[str, Any] = {name: {} for name in ("layers", "params", "macs", "macs_with_attention")}
    for when, wanted in stages.items():
        counted = network_cost(wanted, plan.tokens if plan and when == "after" else None)
        figures = (wanted.depth, counted.parameters, counted.macs, counted.macs_with_attention)
        for name, value in zip(found, figures, strict=True):
            found[name][when] = value
    return found
