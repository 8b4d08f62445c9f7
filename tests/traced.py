"""Graphs are traced once a session: tracing takes nearly all the time of tests that export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hmrcompress.exporting import onnx, onnx_runtime
from hmrcompress.exporting.runtimes import runtime
from hmrcompress.models.network import HMR2, network_sha256
from hmrcompress.plan import TokenSettings
from hmrcompress.records import FrameBatch

MERGED = TokenSettings(schedule=(40, 62), protect=5, size_weighted=True, attention_bias="cross")
"""What tests merge by that do not ask for settings of their own, so that they share a graph."""


def traced_once() -> Callable[[HMR2, FrameBatch], Any]:
    """`exporting.onnx.traced_graph`, which remembers what it traced by all that a graph depends on. Every caller gets a
    program of its own, as some change theirs."""
    import onnx_ir
    import torch

    real = onnx.traced_graph
    known: dict[tuple[Any, ...], Any] = {}

    def traced(network: HMR2, batch: FrameBatch) -> Any:
        key = _key(network)
        if key not in known:
            known[key] = onnx_ir.serde.serialize_model(real(network, batch).model)
        return torch.onnx.ONNXProgram(onnx_ir.serde.deserialize_model(known[key]), None)

    return traced


def _key(network: HMR2) -> tuple[Any, ...]:
    merger = network.backbone.reducer
    if merger is None:
        return network_sha256(network), None, None
    probe = getattr(merger, "probe", None)
    return network_sha256(network), merger.settings, None if probe is None else probe.sha256


def use(patch: pytest.MonkeyPatch) -> None:
    """Has everything that exports trace once."""
    traced = traced_once()
    for module in (onnx, onnx_runtime, runtime):
        patch.setattr(module, "traced_graph", traced)
