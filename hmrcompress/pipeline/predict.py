"""Pictures or a video in; SMPL parameters, an overlay and an animated mesh out.

First pass: decode, boxes, crops and masks, network, temporal decoder, body, rows on disk; each in a thread of its own,
joined by bounded queues (or one after the other, for a profile). Second pass: the pictures once more, with everybody
drawn over them; by then every body is known, also those that a decoder has to wait for. Memory is bounded in both.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import MaskSource
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError, hearing, tell
from hmrcompress.evaluation.sequences import LONGEST_HOLE
from hmrcompress.io.atomic import atomic_folder, json_text, write_json
from hmrcompress.metrics.pose import Outputs
from hmrcompress.pipeline.boxes import Box, BoxSource
from hmrcompress.pipeline.camera import default_focal
from hmrcompress.pipeline.checked_boxes import CheckedBoxes
from hmrcompress.pipeline.columns import columns_of, motions_of
from hmrcompress.pipeline.drawing import Shown, overlay, video_writer, write_png
from hmrcompress.pipeline.frames import Frame, Source
from hmrcompress.pipeline.glb import write_glb
from hmrcompress.pipeline.overlap import StageClock, background
from hmrcompress.pipeline.store import RowStore
from hmrcompress.pipeline.summary import Summary
from hmrcompress.pipeline.tracks import Prediction, Rows, TrackStream
from hmrcompress.pipeline.work import Work, work_batches
from hmrcompress.runtime import Progress, no_progress

PARAMS, OVERLAY, PICTURES, GLB, SUMMARY = "params.npz", "overlay.mp4", "overlay", "track.glb", "summary.json"
FRAMES_AHEAD, BATCHES_AHEAD = 4, 2
LONGEST_FOCAL = 1e7
"""Pixels: a telescope's. With longer ones bodies would be further away than numbers tell."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Reader:
    """What reads bodies off crops. outputs: the network with its token merging. decoder and codec: both or neither, for
    sequences only. body, decoder and codec lie where the network does. root_centred: the network's camera places the
    root joint, not the body model's origin (so the starter network; HMR2.0 and its kin place the origin)."""

    outputs: Outputs
    body: BodyModel
    masks: MaskSource
    device: torch.device
    decoder: TemporalDecoder | None = None
    codec: PoseCodec | None = None
    root_centred: bool = False


@dataclass(frozen=True)
class PredictSettings:
    """stride: the network runs on every k-th frame of a sequence. steps: of denoising. limit: frames. focal: of the
    pictures in pixels, None for HMR2.0's guess. overlapped: stages run at the same time."""

    batch_size: int = 32
    stride: int = 1
    steps: int = 1
    limit: int | None = None
    focal: float | None = None
    overlay: bool = True
    glb: bool = True
    antialias: bool = True
    overlapped: bool = True
    seed: int = 0

    def check(self, source: Source) -> None:
        """UserError for what makes no sense."""
        for value, flag in ((self.stride, "--stride"), (self.steps, "--steps"), (self.batch_size, "--batch-size")):
            if value < 1:
                raise UserError(f"got {value}, expected at least 1", flag)
        if self.focal is not None and not 1 <= self.focal <= LONGEST_FOCAL:
            raise UserError(f"got {self.focal:g}, expected pixels, 1 to {LONGEST_FOCAL:,.0f}", "--focal")
        if self.stride > 1 and source.fps is None:
            raise UserError("unrelated pictures have nothing in between", "--stride", "--fps makes them a sequence")


def predict(
    source: Source,
    boxes: BoxSource,
    reader: Reader,
    out: Path,
    settings: PredictSettings | None = None,
    *,
    clock: StageClock | None = None,
    progress: Progress = no_progress,
) -> Summary:
    """Writes the folder `out`, whole or not at all: params.npz, overlay.mp4 (PNG files for pictures), track.glb (for
    sequences and single pictures) and summary.json. Raises UserError, also where nobody is on any frame."""
    settings, clock = settings or PredictSettings(), clock or StageClock()
    settings.check(source)
    begun, checked = time.perf_counter(), CheckedBoxes(boxes, same_size=source.is_video)
    with hearing() as told, atomic_folder(out, replaceable=lambda folder: (folder / SUMMARY).is_file()) as folder:
        if source.left_out:
            pictures = f"{len(source.files)} {'picture' if len(source.files) == 1 else 'pictures'}"
            tell(f"{pictures}; left out: {source.left_out}", source.path)
        rows = folder / ".rows"
        rows.mkdir()
        store = RowStore(rows)
        try:
            newest, crops = _read_all(source, checked, reader, store, settings, clock, progress)
        finally:
            store.close()
        read, frames = time.perf_counter(), checked.frames
        whole = settings.limit is None or frames < settings.limit
        checked.finish(whole=whole, length=len(source.files))
        with clock("write"):
            about = {"fps": source.fps, "source": source.path.name, "boxes": boxes.name, "body": reader.body.name}
            store.write_npz(folder / PARAMS, {"meta": np.array(json_text(about))})
            if settings.glb and (source.fps is not None or frames == 1):
                write_glb(folder / GLB, motions_of(store, reader.body, source.fps or 1.0), reader.body)
        if settings.overlay:
            _draw_all(source, Shown(store, reader.body), folder, settings, newest, clock, progress)
        tracks = np.unique(store.column("track"))
        summary = Summary(
            frames=frames,
            tracks=len(tracks),
            bodies=store.count,
            network_crops=crops,
            seconds=time.perf_counter() - begun,
            reading_seconds=read - begun,
            stages=dict(clock.seconds),
            files=sorted(path.name for path in folder.iterdir() if path != rows),
            notes=told,
        )
        del store
        shutil.rmtree(rows)
        write_json(folder / SUMMARY, summary.to_json() | about)
    return summary


def _ahead(items: Iterator[Item], depth: int, settings: PredictSettings) -> Iterator[Item]:
    return background(items, depth) if settings.overlapped else items


def _located(frames: Iterator[Frame], boxes: BoxSource, clock: StageClock) -> Iterator[tuple[Frame, list[Box]]]:
    for frame in frames:
        with clock("detect"):
            found = boxes.boxes(frame)
        yield frame, found


def _predicted(
    works: Iterator[Work], reader: Reader, clock: StageClock
) -> Iterator[tuple[Work, list[Prediction | None]]]:
    """Work with the network's answers, None for boxes that it did not run on. Raises UserError for NaN."""
    for work in works:
        answers: list[Prediction | None] = [None] * len(work.seen)
        if work.batch is not None:
            with clock("network"):
                made = reader.outputs(work.batch).to(device="cpu", dtype=torch.float32)
            rotations = made.params.rotations
            finite = rotations.isfinite().flatten(1).all(1) & made.betas.isfinite().all(1) & made.cam.isfinite().all(1)
            if not finite.all():
                number = int(work.batch.frame[int((~finite).nonzero()[0])])
                raise UserError("the network predicts NaN or infinity", f"frame {number}", "Try --dtype float32")
            places = [place for place, each in enumerate(work.seen) if each.run]
            for row, place in enumerate(places):
                answers[place] = Prediction(made.features[row], rotations[row], made.betas[row], made.cam[row])
        yield work, answers


def _read_all(
    source: Source,
    boxes: BoxSource,
    reader: Reader,
    store: RowStore,
    settings: PredictSettings,
    clock: StageClock,
    progress: Progress,
) -> tuple[int, int]:
    """The first pass. One more than the number of the last frame, and how many crops the network ran on."""
    sequence = source.fps is not None
    frames = _ahead(clock.timed("decode", source.frames(settings.limit)), FRAMES_AHEAD, settings)
    located = _ahead(_located(frames, boxes, clock), FRAMES_AHEAD, settings)
    works = _ahead(
        work_batches(
            located,
            batch_size=settings.batch_size,
            stride=settings.stride,
            masks=reader.masks,
            focal=settings.focal,
            antialias=settings.antialias,
            pinned=reader.device.type == "cuda",
            clock=clock,
        ),
        BATCHES_AHEAD,
        settings,
    )
    answered = _ahead(_predicted(works, reader, clock), BATCHES_AHEAD, settings)
    streams: dict[int, TrackStream] = {}
    newest, crops, expected = -1, 0, source.count(settings.limit)

    def keep(made: list[Rows]) -> None:
        for rows in made:
            with clock("body model"):
                focal = [settings.focal or default_focal((int(w), int(h))) for w, h in rows.size.tolist()]
                columns = columns_of(rows, reader.body, np.array(focal), root_centred=reader.root_centred)
            with clock("write"):
                store.append(columns)

    for work, answers in answered:
        by_track: dict[int, list[int]] = {}
        for place, seen in enumerate(work.seen):
            by_track.setdefault(seen.box.track, []).append(place)
        for track, places in by_track.items():
            with clock("decoder"):
                stream = streams.setdefault(track, _stream(track, reader, settings, sequence))
                if sequence:
                    made = stream.push([work.seen[i] for i in places], [answers[i] for i in places])
                else:
                    made = [r for i in places for r in stream.push([work.seen[i]], [answers[i]]) + stream.flush()]
            keep(made)
        newest = max(newest, work.newest)
        for track in [t for t, stream in streams.items() if newest - stream.newest > LONGEST_HOLE + 1]:
            with clock("decoder"):
                made = streams.pop(track).flush()
            keep(made)
        crops += 0 if work.batch is None else len(work.batch.clip)
        progress("reading", newest + 1, expected or newest + 1)
    for stream in streams.values():
        with clock("decoder"):
            made = stream.flush()
        keep(made)
    return newest + 1, crops


def _stream(track: int, reader: Reader, settings: PredictSettings, sequence: bool) -> TrackStream:
    decoder, codec = (reader.decoder, reader.codec) if sequence else (None, None)
    return TrackStream(track, decoder=decoder, codec=codec, steps=settings.steps, seed=settings.seed)


def _draw_all(
    source: Source,
    shown: Shown,
    folder: Path,
    settings: PredictSettings,
    frames: int,
    clock: StageClock,
    progress: Progress,
) -> None:
    """The second pass: everybody's mesh over each frame."""

    def posed() -> Iterator[tuple[Frame, np.ndarray, np.ndarray]]:
        again = _ahead(clock.timed("decode again", source.frames(settings.limit)), FRAMES_AHEAD, settings)
        for frame in again:
            with clock("body model"):
                rows = shown.on(frame.number)
                vertices = shown.vertices(rows) if len(rows) else np.zeros((0, 0, 3), np.float32)
            yield frame, rows, vertices

    def drawn() -> Iterator[tuple[Frame, np.ndarray]]:
        for frame, rows, vertices in _ahead(posed(), FRAMES_AHEAD, settings):
            with clock("render"):
                picture = overlay(frame, shown, vertices, rows)
            yield frame, picture

    pictures = _ahead(drawn(), FRAMES_AHEAD, settings)
    if not source.is_video:
        for frame, picture in pictures:
            with clock("write"):
                write_png(folder / PICTURES / f"{frame.number:06d}_{Path(frame.name).stem}.png", picture)
            progress("drawing", frame.number + 1, frames)
        return
    with video_writer(folder / OVERLAY, source.fps or 1.0) as write:
        for frame, picture in pictures:
            with clock("write"):
                write(picture)
            progress("drawing", frame.number + 1, frames)
