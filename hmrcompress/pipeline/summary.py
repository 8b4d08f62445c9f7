"""What a run of the pipeline took, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FIRST_PASS = ("decode", "detect", "crop", "mask", "network", "decoder")
"""Stages of the first pass alone, in their order; `body model` and `write` occur in both."""
STAGES = (*FIRST_PASS, "body model", "decode again", "render", "write")


@dataclass(frozen=True)
class Summary:
    """frames read, tracks and bodies on them, crops that the network ran on. seconds: wall time of everything;
    reading_seconds: of the first pass, from the first frame's decoding to the last row. stages: seconds of work by
    stage, waiting not counted; where stages overlap they add up to more than the wall time. time: what the times of
    frames rest on (`frames.Source.time`), and the decoder's steps; notes: what was told on
    the way, a sentence each."""

    frames: int
    tracks: int
    bodies: int
    network_crops: int
    seconds: float
    reading_seconds: float
    stages: dict[str, float]
    files: list[str]
    time: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def network_busy(self) -> float:
        """Share of the first pass's wall time in which the network was at work."""
        return self.stages.get("network", 0.0) / self.reading_seconds

    @property
    def fps(self) -> float:
        """Frames per second of the first pass."""
        return self.frames / self.reading_seconds

    def ms_per_frame(self) -> dict[str, float]:
        """Milliseconds of work a frame by stage, in the order of the pipeline."""
        return {name: 1000 * self.stages[name] / self.frames for name in STAGES if name in self.stages}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "frames": self.frames,
            "tracks": self.tracks,
            "bodies": self.bodies,
            "network_crops": self.network_crops,
            "seconds": self.seconds,
            "reading_seconds": self.reading_seconds,
            "fps": self.fps,
            "network_busy": self.network_busy,
            "network_share_of_all": self.stages.get("network", 0.0) / self.seconds,
            "stages_ms_per_frame": self.ms_per_frame(),
            "files": self.files,
            "time": self.time,
            "notes": self.notes,
        }
