"""What the starter world consists of, and how fast it renders."""

from __future__ import annotations

import time
from typing import Any

import torch

from hmrcompress.body.files import starter_body
from hmrcompress.io.home import cache_home
from hmrcompress.starter.data.shards import ShardSettings, make_shard
from hmrcompress.starter.scene.filming import render_clip, surface_of
from hmrcompress.starter.scene.world import FPS, SPLITS, VERSION, make_clip

TIMED_CLIPS, TIMED_FRAMES = 4, 60


def describe() -> dict[str, Any]:
    """Version, body, splits and the place of the cache."""
    body = starter_body()
    splits = {
        split.name: f"{split.clips} clips of {split.frames} frames at {FPS:g} frames/s" for split in SPLITS.values()
    }
    return {
        "world": VERSION,
        "body": body.name,
        "faces_sha256": body.faces_sha256,
        **splits,
        "cache": str(cache_home()),
    }


def render_speed() -> dict[str, float]:
    """Crops per second on one core, posing included: clips at 256 x 192, and training crops at 128 x 96.

    The first, compiling frames are not timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        body = starter_body()
        surface = surface_of(body)
        clips = [make_clip(SPLITS["dev"], index, body, TIMED_FRAMES) for index in range(TIMED_CLIPS)]
        next(render_clip(clips[0], body, surface))
        make_shard(0, 0, body, surface, [], ShardSettings(crops=16))
        started = time.perf_counter()
        frames = sum(1 for clip in clips for _ in render_clip(clip, body, surface))
        middle = time.perf_counter()
        make_shard(0, 1, body, surface, [], ShardSettings(crops=frames))
        ended = time.perf_counter()
    finally:
        torch.set_num_threads(threads)
    return {"clips 256x192": frames / (middle - started), "training crops 128x96": frames / (ended - middle)}
