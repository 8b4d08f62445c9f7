"""The tables that `hmrcompress bench` prints."""

from __future__ import annotations

from typing import Any

from hmrcompress_cli.common import Printer

COLUMNS = ("", "batch", "before fps", "after fps", "speed-up", "middle half", "MAC ratio", "of it reached")
CLIP_COLUMNS = ("", "frames run", "frames/s", "speed-up", "middle half", "network s", "decoder s", "rotations s")
RUNTIME_COLUMNS = ("", "batch", "frames/s", "speed-up", "middle half", "over torch", "middle half")
RIVALS = ("onnxruntime", "onnx", "openvino")
"""What a network may be run by beside torch, as records name it."""
FUSED = (
    "com.microsoft:MultiHeadAttention",
    "com.microsoft:SkipLayerNormalization",
    "com.microsoft:BiasGelu",
    "com.microsoft:DynamicQuantizeMatMul",
    "com.microsoft:MatMulIntegerToFloat",
)
"""Types of nodes worth telling of, where a graph has them."""


def show(printer: Printer, figures: dict[str, Any], device: str) -> None:
    """What `bench` measured: networks by batch size, another run time beside them, whole clips."""
    measured = figures["bench"]
    count = measured["threads"]
    threads = f", {count} thread{'s' if count > 1 else ''}" if device == "cpu" else ""
    place = f"{measured['dtype']} on {device}{threads}"
    for key, words in (("fast", "fast path"), ("compiled", "compiled"), ("cuda_graphs", "CUDA graphs")):
        place += f", {words}" if measured[key] else ""
    if measured["batch_sizes"]:
        _show_networks(printer, figures, place)
    for name in RIVALS:
        if name in measured:
            _show_runtime(printer, measured, name)
    if "pipeline" in figures:
        _show_pipeline(printer, figures["pipeline"], place)


def show_adaptive(printer: Printer, found: dict[str, Any], place: str) -> None:
    """The untouched network, a fixed number of tokens, and as many as each person needs."""
    named = {"plain": "all tokens", "fixed": f"{found['keep']} tokens", "adaptive": "adaptive tokens"}
    macs = found["macs"] | {"adaptive": found["adaptive"]["mean_macs_with_attention"]}
    rows = [
        (
            named[name],
            size,
            measured["fps"][name],
            f"{measured['speedup'][name]:.2f}x" if name in measured["speedup"] else None,
            _range(measured["speedup_quartiles"][name]) if name in measured["speedup"] else None,
            f"{macs['plain'] / macs[name]:.2f}",
        )
        for size, measured in found["batch_sizes"].items()
        for name in named
    ]
    columns = ("", "batch", "frames/s", "speed-up", "middle half", "MAC ratio")
    printer.table(f"people of every size: {place}", columns, rows)
    buckets = ", ".join(f"{count} at {keep}" for keep, count in found["adaptive"]["buckets"].items())
    printer.say(f"crops by kept tokens: {buckets}; mean {found['adaptive']['mean_kept']:.1f}")


def _show_networks(printer: Printer, figures: dict[str, Any], place: str) -> None:
    measured, layers, tokens = figures["bench"], figures["layers"], figures["tokens"]
    rows = [
        (
            part,
            size,
            found[part]["fps"]["before"],
            found[part]["fps"]["after"],
            f"{found[part]['speedup']:.2f}x",
            _range(found[part]["speedup_quartiles"]),
            f"{found[part]['macs_ratio']:.2f}",
            f"{found[part]['share_of_macs_ratio']:.0%}",
        )
        for size, found in measured["batch_sizes"].items()
        for part in ("network", "backbone")
    ]
    printer.table(f"{measured['names']['after']} against {measured['names']['before']}: {place}", COLUMNS, rows)
    weighed = [
        f"{layers['before']} -> {layers['after']} layers",
        f"{tokens['before']} -> {tokens['after']} tokens",
        f"{figures['params']['before'] / 1e6:.1f} -> {figures['params']['after'] / 1e6:.1f} M parameters",
        "{before:.2f} -> {after:.2f} GMACs".format(**{k: v / 1e9 for k, v in figures["macs_with_attention"].items()}),
    ]
    if peak := figures.get("peak_memory_bytes"):
        weighed.append(f"{peak['before'] / 1e6:.0f} -> {peak['after'] / 1e6:.0f} MB at most")
    printer.say(", ".join(weighed))
    last = list(measured["batch_sizes"])[-1]
    backbone = measured["batch_sizes"][last]["backbone"]
    printer.say(
        f"{figures['speedup']:.2f}x the frames/s at batch {last}, the backbone {backbone['speedup']:.2f}x: "
        f"{backbone['share_of_macs_ratio']:.0%} of what its MACs promise"
    )


def _show_runtime(printer: Printer, measured: dict[str, Any], name: str) -> None:
    """The compressed network in another runtime, against the original and against itself in torch."""
    how = measured[name]
    rows = [
        (
            "network",
            size,
            found[name]["fps"],
            f"{found[name]['speedup']:.2f}x",
            _range(found[name]["speedup_quartiles"]),
            f"{found[name]['over_torch']:.2f}x",
            _range(found[name]["over_torch_quartiles"]),
        )
        for size, found in measured["batch_sizes"].items()
    ]
    provider = how["providers"][0].removesuffix("ExecutionProvider") if "providers" in how else how["computes_in"]
    title = f"{measured['names']['after']} in {name} {how['version']}, {provider}: {how['dtype']}"
    printer.table(title, RUNTIME_COLUMNS, rows)
    if "graph" in how:
        _show_graph(printer, how)
    if how["parity"] is not None:
        printer.say(
            f"differs from torch in float32 by {how['parity']['max_abs_diff']:.1e} at most, "
            f"joints by {how['parity']['joints_mm']:.1e} mm"
        )


def _show_graph(printer: Printer, how: dict[str, Any]) -> None:
    """What onnxruntime made of the graph."""
    fused = ", ".join(f"{how['nodes'][name]} {name.rpartition(':')[2]}" for name in FUSED if name in how["nodes"])
    printer.say(f"{how['graph']} graph: {fused or 'nothing fused'}; products in {_counts(how['products'])}")
    if "refused" in how:
        printer.say(f"the fused graph was not used: {how['refused']}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _show_pipeline(printer: Printer, clips: dict[str, Any], place: str) -> None:
    """Whole clips by stride, and what the decoder costs."""
    before, decoder = clips["before"], clips["decoder"]
    rows = [("uncompressed network", clips["clip_frames"], before["fps"], None, None, before["seconds"], None, None)]
    for stride, found in clips["strides"].items():
        spent = found["seconds"]
        rows.append(
            (
                f"stride {stride}",
                found["network_frames"],
                found["fps"],
                f"{found['speedup']:.2f}x",
                _range(found["speedup_quartiles"]),
                *(f"{spent[part]:.3f}" for part in ("network", "decoder", "pose")),
            )
        )
    title = f"clips of {clips['clip_frames']} frames, networks at batch {clips['batch_size']}: {place}"
    printer.table(title, CLIP_COLUMNS, rows)
    if before["timed_on"] < clips["clip_frames"]:
        printer.say(f"networks were timed on {before['timed_on']} frames at most, and their times scaled to the clip")
    printer.say(
        f"the decoder ({decoder['name']}, {decoder['params'] / 1e6:.1f} M parameters, {decoder['windows']} x "
        f"{decoder['window_frames']} frames) takes {decoder['seconds']:.3f} s for a clip, "
        f"{decoder['share_of_backbone']:.3%} of the uncompressed backbone's {decoder['backbone_seconds']:.1f} s"
    )


def _range(quartiles: list[float]) -> str:
    return "–".join(f"{ratio:.2f}" for ratio in quartiles)
