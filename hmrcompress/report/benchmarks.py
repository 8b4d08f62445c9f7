"""The runs of `hmrcompress bench --suite` as Markdown: nothing in it that is not in their JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmrcompress.io.jsons import read_json
from hmrcompress.report.results import require_complete

COMMAND = "bench suite"
INTRODUCTION = """# Benchmarks

Measured by `make bench` (`hmrcompress bench --suite benchmarks -o docs/benchmarks`) and written by
`hmrcompress report`; every figure stands in a JSON file of the results' folder. Weights are random, for speed does not
depend on them. **original** is PyTorch as the authors of HMR2.0 run it: eager, attention multiplied out, nothing fused
(`hmrcompress.timing.reference`, tested equal to our network). All rows of a table take turns, round by round;
frames/s are medians, **ratio** the median of the ratios to the original within each round, **over float32** that to
the original in float32. **MACs** is how many times fewer multiply-accumulates there are, products of attention
included, **of it** what of that the ratio reaches. **Of bare products** is the time that the row's matrix products take
by themselves (`torch.mm` and `torch.bmm` with the network's own weights, in the table's dtype) over what the row takes:
what it does beside them is the rest. Rows of other runtimes are the network as they run it at their fastest, in float32
unless they say otherwise, int8 in every linear layer of the backbone. A row marked * is not steady: the middle half
of its rounds spans more than 15 % of the median. **Memory** is the peak of a process that runs the row and nothing
else, less what that process took before the network.
"""
STEADY = 0.15
"""The middle half of a row's rounds may span this share of their median."""
DECODER = """
Clips of {frames} frames: the network on every k-th frame, then the temporal decoder ({name}) and the conversion of its
poses to rotations, both in float32.
"""


def read_runs(folder: Path | str) -> list[dict[str, Any]]:
    """The records of a suite in a folder, CPU first, by batch size and dtype; none where it holds none. UserError."""
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        record = read_json(path)
        if isinstance(record, dict) and record.get("command") == COMMAND:
            require_complete(lambda run: (run["batch_size"] + 0, markdown([run])), record, path)
            found.append(record)
    return sorted(
        found, key=lambda run: (run["settings"]["run"]["device"], run["batch_size"], run["dtype"] != "float32")
    )


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The whole text, one section a run."""
    parts = [INTRODUCTION]
    if not any(run["settings"]["run"]["device"] == "cuda" for run in runs):
        parts.append(
            "CUDA was not measured: there was no GPU. The suite (`recipes/benchmarks.yaml`) holds runs for one, which\n"
            "are measured where there is one.\n"
        )
    return "\n".join(parts + [section(run) for run in runs])


def section(run: dict[str, Any]) -> str:
    """Heading, table of variants, table of clips where a decoder took part, and what it was measured on."""
    device = run["settings"]["run"]["device"].upper()
    lines = [f"## {device}, {run['dtype']}, batch {run['batch_size']}", ""]
    heads = ["", "layers", "tokens", "frames/s", "ratio", "middle half", "MACs", "of it"]
    over, weighed, bare = (
        any(key in row for row in run["rows"]) for key in ("over_float32", "peak_memory_bytes", "share_of_bare")
    )
    heads += ["of bare products"] * bare + ["over float32"] * over + ["memory"] * weighed
    lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in run["rows"]:
        low, high = row["speedup_quartiles"]
        name = row["variant"] + " *" * (row.get("spread", 0.0) > STEADY)
        cells = [
            name, str(row["layers"]), str(row["tokens"]), f"{row['fps']:.2f}", f"{row['speedup']:.2f}x",
            f"{low:.2f} to {high:.2f}", f"{row['macs_ratio']:.2f}x", f"{row['share_of_macs_ratio']:.0%}",
        ]  # fmt: skip
        if bare:
            cells.append(f"{row['share_of_bare']:.0%}")
        if over:
            cells.append(f"{row['over_float32']:.1f}x")
        if weighed:
            known = "peak_memory_bytes" in row
            cells.append(f"{(row['peak_memory_bytes'] - row['program_bytes']) / 1e6:.0f} MB" if known else "–")
        lines.append(f"| {' | '.join(cells)} |")
    clips = [(row["variant"], row["strides"]) for row in run["rows"] if "strides" in row]
    if clips:
        lines += [DECODER.format(frames=243, name=run["decoder"]["name"])]
        heads = ["", "stride", "frames/s", "ratio"] + ["over float32"] * over
        lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
        for name, strides in clips:
            for stride, found in strides.items():
                cells = [name, stride, f"{found['fps']:.2f}", f"{found['speedup']:.2f}x"]
                if over:
                    cells.append(f"{found['over_float32']:.1f}x")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _measured_on(run), ""])


def _measured_on(run: dict[str, Any]) -> str:
    threads = run["threads"]
    place = run["cpu"] if run["settings"]["run"]["device"] == "cpu" else run["device"]
    if run.get("cuda_graphs"):
        place += ", the fast path as CUDA graphs"
    versions = run["versions"]
    return (
        f"{place}, {threads} thread{'s' if threads > 1 else ''}, {run['rounds']} rounds; "
        f"torch {versions['torch']}, Python {versions['python']}, commit {run.get('commit', 'unknown')[:12]}."
    )
