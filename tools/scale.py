"""What ten million frames cost: `python tools/scale.py` measures what no benchmark has, and writes docs/scale.json.

Measured here, in seconds of CPU (of all threads, so that others at work on the machine count little): decoding video of
1920 x 1080 pixels, and everything in `predict` but decoding and the network; and the bytes that `predict` writes. The
network's rates are those of docs/benchmarks, measured where they say. The rest is multiplication.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.body.files import starter_body
from hmrcompress.data.masks import NoMasks
from hmrcompress.io.outputs import OutputRule
from hmrcompress.pipeline.boxes import FullFrame
from hmrcompress.pipeline.frames import open_source
from hmrcompress.pipeline.predict import PredictSettings, Reader, predict
from hmrcompress.records import FrameBatch, HMROutput
from hmrcompress.runtime import record

ROOT = Path(__file__).resolve().parents[1]
OUT, BENCHMARKS = ROOT / "docs" / "scale.json", ROOT / "docs" / "benchmarks"
FRAMES = 10_000_000
VIDEO_FRAMES, WIDTH, HEIGHT, FPS, BITS_A_SECOND = 60, 1920, 1080, 30, 12_000_000
ROWS = {
    "original": ("cpu_bfloat16_b1", "original", None),
    "compressed": ("cpu_bfloat16_b1", "layers + tokens, fast path", None),
    "compressed_int8": ("cpu_bfloat16_b1", "layers + tokens, fast path, int8", None),
    "compressed_stride_4": ("cpu_bfloat16_b1", "layers + tokens, fast path", "4"),
}
"""Rows of docs/scale.md: a benchmark, its row, and the stride."""
HOUR, DAY = 3600.0, 86400.0


def made_up_video(path: Path) -> None:
    """A texture that moves, with grain, as x264 writes it at the bit rate of a telephone."""
    import av

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (HEIGHT // 8 + 40, WIDTH // 8 + 40, 3), dtype=np.uint8)
    texture = coarse.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"preset": "medium"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", BITS_A_SECOND
        for number in range(VIDEO_FRAMES):
            shown = texture[2 * number : 2 * number + HEIGHT, 3 * number : 3 * number + WIDTH].astype(np.int16)
            grain = rng.integers(-9, 10, (HEIGHT, WIDTH, 1), dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(np.clip(shown + grain, 0, 255).astype(np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def standing(batch: FrameBatch) -> HMROutput:
    """A network that costs nothing: everybody stands straight."""
    count = len(batch.clip)
    turns = torch.eye(3).expand(count, 24, 3, 3)
    return HMROutput(turns[:, :1], turns[:, 1:], torch.zeros(count, 10), torch.tensor([0.9, 0, 0]).expand(count, 3),
                     torch.zeros(count, 1024))  # fmt: skip


def measured() -> dict[str, Any]:
    """Milliseconds of CPU and bytes, a frame of one person."""
    reader = Reader(standing, starter_body(), NoMasks(), torch.device("cpu"))
    bare = PredictSettings(overlay=False, glb=False, overlapped=False)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        made_up_video(room / "v.mp4")

        def decode() -> None:
            assert sum(1 for _ in open_source(room / "v.mp4").frames()) == VIDEO_FRAMES

        def whole(settings: PredictSettings) -> None:
            predict(open_source(room / "v.mp4"), FullFrame(), reader, room / "out", settings)

        whole(bare)  # what is compiled once
        decoding, rest = cpu_seconds(decode), cpu_seconds(lambda: whole(bare))
        drawn = cpu_seconds(lambda: whole(PredictSettings(overlapped=False)))
        sizes = {path.name: path.stat().st_size / VIDEO_FRAMES for path in (room / "out").iterdir()}
        video = (room / "v.mp4").stat().st_size / VIDEO_FRAMES
    return {
        "pixels": [WIDTH, HEIGHT],
        "frames": VIDEO_FRAMES,
        "decode_cpu_ms": 1000 * decoding / VIDEO_FRAMES,
        "other_cpu_ms": 1000 * (rest - decoding) / VIDEO_FRAMES,
        "overlay_cpu_ms": 1000 * (drawn - rest) / VIDEO_FRAMES,
        "bytes": {
            "video": video,
            "params": sizes["params.npz"],
            "overlay": sizes["overlay.mp4"],
            "glb": sizes["track.glb"],
        },
    }


def network_rates() -> dict[str, Any]:
    """The rows of the benchmarks that the page compares: frames a second of one thread."""
    found = {}
    for name, (file, variant, stride) in ROWS.items():
        benchmark = json.loads((BENCHMARKS / f"{file}.json").read_text())
        row = next(each for each in benchmark["rows"] if each["variant"] == variant)
        fps = row["fps"] if stride is None else row["strides"][stride]["fps"]
        found[name] = {"fps": fps, "file": f"benchmarks/{file}.json", "cpu": benchmark["cpu"]}
        if name == "original":  # in float32 it took its turns in the same measurement, on the same processor
            found["original_float32"] = found[name] | {"fps": fps / row["over_float32"]}
    return found


def multiplied(here: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
    """What `FRAMES` come to."""
    feeding = here["decode_cpu_ms"] + here["other_cpu_ms"]
    rows = {}
    for name, row in rates.items():
        network = 1000 / row["fps"]
        rows[name] = {
            "network_ms": network,
            "network_core_days": FRAMES * network / 1000 / DAY,
            "network_share": network / (network + feeding),
            "frames_a_second_of_64_cores": 64 * 1000 / (network + feeding),
            "days_of_64_cores": FRAMES * (network + feeding) / 1000 / 64 / DAY,
        }
    return {
        "frames": FRAMES,
        "hours_of_video": FRAMES / FPS / HOUR,
        "decode_core_days": FRAMES * here["decode_cpu_ms"] / 1000 / DAY,
        "other_core_days": FRAMES * here["other_cpu_ms"] / 1000 / DAY,
        "overlay_core_days": FRAMES * here["overlay_cpu_ms"] / 1000 / DAY,
        "cores_that_feed_100_frames_a_second": feeding / 10,
        "gigabytes": {name: FRAMES * each / 1e9 for name, each in here["bytes"].items()},
        "rows": rows,
    }


def main() -> int:
    """Measures, multiplies, and writes the record; with --again only multiplies."""
    torch.set_num_threads(1)
    again = json.loads(OUT.read_text())["measured"] if "--again" in sys.argv else None
    here = again or measured()
    rates = network_rates()
    made = record("scale", {"measured": here, "network": rates, "cost": multiplied(here, rates)})
    OutputRule(overwrite=True).write_json(OUT, made, "scale")
    print(json.dumps(made["cost"], indent=1))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
