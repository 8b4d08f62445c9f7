"""Pictures or a video in; SMPL parameters, an overlay and an animated mesh out.

First pass: decode, boxes, crops and masks, network, temporal decoder, body, rows on disk; each in a thread of its own,
joined by bounded queues (or one after the other, for a profile). Second pass: the pictures once more, with everybody
drawn over them; by then every body is known, also those that a decoder has to wait for. Memory is bounded in both.
"""

from __future__ import annotations

import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import MaskSource
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.windows import check_stride
from hmrcompress.errors import UserError, hearing, tell
from hmrcompress.evaluation.timelines import LONGEST_HOLE
from hmrcompress.io.figures import json_text
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.outputs import OutputRule
from hmrcompress.metrics.pose import Outputs
from hmrcompress.pipeline.boxes import Box, BoxSource
from hmrcompress.pipeline.bvh import write_bvh
from hmrcompress.pipeline.camera import default_focal
from hmrcompress.pipeline.checked_boxes import CheckedBoxes
from hmrcompress.pipeline.columns import columns_of, motions_of
from hmrcompress.pipeline.drawing import Shown, overlay, picture_name, video_writer, write_png
from hmrcompress.pipeline.frames import Frame, Picture, Source
from hmrcompress.pipeline.glb import write_glb
from hmrcompress.pipeline.overlap import StageClock, background
from hmrcompress.pipeline.store import RowStore
from hmrcompress.pipeline.summary import Summary
from hmrcompress.pipeline.tracks import STEPS_A_SECOND, Prediction, Rows, TrackStream
from hmrcompress.pipeline.work import Work, work_batches
from hmrcompress.records import CROP, CropSize
from hmrcompress.runtime import Progress, no_progress

PARAMS, OVERLAY, PICTURES, GLB, SUMMARY = "params.npz", "overlay.mp4", "overlay", "track.glb", "summary.json"
BVH = "bvh"
"""A folder with a file for each track."""
INPUTS = "inputs"
"""What a result depends on, in its summary, where it is one of many."""
KIND = FolderKind("predict", SUMMARY, (PARAMS, OVERLAY, f"{PICTURES}/*.png", GLB, f"{BVH}/*.bvh"))
FRAMES_AHEAD, BATCHES_AHEAD = 4, 2
LONGEST_FOCAL = 1e7
"""Pixels: a telescope's. With longer ones bodies would be further away than numbers tell."""
BYTES_AHEAD = 128 << 20
"""Frames that wait in a queue take no more, but for the last of them."""
LIKE_TRAINED = (0.75, 1.33)
"""Rates that a decoder takes as they are, as shares of the one it was trained at: such speeds it has seen."""
LATEST_START = 3600.0
"""Seconds that a video may begin after the clock of its file, or the overlay does not."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Reader:
    """What reads bodies off crops. outputs: the network with its token merging. decoder and codec: both or neither, for
    sequences only; steps_a_second: frames a second that the decoder was trained at. body, decoder and codec lie where
    the network does. crop: the size of the crops that it takes. root_centred: the network's camera places the root
    joint, not the body model's origin (so the starter network; HMR2.0 and its kin place the origin)."""

    outputs: Outputs
    body: BodyModel
    masks: MaskSource
    device: torch.device
    decoder: TemporalDecoder | None = None
    codec: PoseCodec | None = None
    crop: CropSize = CROP
    root_centred: bool = False
    steps_a_second: float = STEPS_A_SECOND


@dataclass(frozen=True)
class PredictSettings:
    """stride: the network runs on every k-th frame of a sequence; None: as the model's plan says, or on each.
    stride_detect: a detector does. steps: of denoising. limit: frames. focal: of the pictures in pixels, None for
    HMR2.0's guess. overlapped: stages run at the same time."""

    batch_size: int = 32
    stride: int | None = None
    stride_detect: int = 1
    steps: int = 1
    limit: int | None = None
    focal: float | None = None
    overlay: bool = True
    glb: bool = True
    bvh: bool = False
    antialias: bool = True
    overlapped: bool = True
    seed: int = 0

    def check(self, source: Source) -> None:
        """UserError for what makes no sense."""
        for value, flag in (
            (1 if self.stride is None else self.stride, "--stride"),
            (self.stride_detect, "predict.stride_detect"),
            (self.steps, "predict.steps"),
            (self.batch_size, "--batch-size"),
        ):
            if value < 1:
                raise UserError(f"got {value}, expected at least 1", flag)
        if self.focal is not None and not 1 <= self.focal <= LONGEST_FOCAL:
            raise UserError(f"got {self.focal:g}, expected pixels, 1 to {LONGEST_FOCAL:,.0f}", "--focal")
        if source.camera is not None and self.limit is None:
            raise UserError("goes on for ever", source.path, "Say with --limit how many frames to take")
        if source.camera is not None and self.overlay:
            raise UserError("cannot be seen twice, as an overlay needs", source.path, "Add --no-overlay")
        for stride, flag in ((self.stride or 1, "--stride"), (self.stride_detect, "predict.stride_detect")):
            if stride > 1 and source.fps is None:
                raise UserError("unrelated pictures have nothing in between", flag, "--fps makes them a sequence")


def predict(
    source: Source,
    boxes: BoxSource,
    reader: Reader,
    out: Path,
    settings: PredictSettings | None = None,
    *,
    clock: StageClock | None = None,
    inputs: Mapping[str, Any] | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> Summary:
    """Writes the folder `out`, whole or not at all: params.npz, overlay.mp4 (PNG files for pictures), track.glb and bvh
    (for sequences and single pictures) and summary.json. What a user has to know of the source is told, and stands in
    the summary, as does `inputs`, what the result depends on. Raises UserError, also where nobody is on any frame, and
    as `io.outputs`."""
    rule = OutputRule.of(overwrite, source)
    settings, clock = settings or PredictSettings(), clock or StageClock()
    settings.check(source)
    begun, checked = time.perf_counter(), CheckedBoxes(boxes, same_size=source.is_video, crop=reader.crop)
    with hearing() as told, rule.folder(out, KIND) as folder:
        if source.left_out:
            pictures = f"{len(source.files)} {'picture' if len(source.files) == 1 else 'pictures'}"
            tell(f"{pictures}; left out: {source.left_out}", source.path)
        rows = folder / ".rows"
        rows.mkdir()
        store = RowStore(rows)
        try:
            read_all = _read_all(source, checked, reader, store, settings, clock, progress)
        finally:
            store.close()
        read, frames = time.perf_counter(), checked.frames
        for note in source.notes() + read_all.notes():
            tell(note, source.path)
        whole = settings.limit is None or frames < settings.limit
        checked.finish(whole=whole, length=len(source.files))
        with clock("write"):
            timing = source.time() | read_all.decoder
            about = {"fps": source.average(), "source": source.path.name, "boxes": boxes.name, "body": reader.body.name}
            about |= {"segments": source.log.segments}
            store.write_npz(folder / PARAMS, {"meta": np.array(json_text(about | {"time": timing}))})
            if (settings.glb or settings.bvh) and (source.fps is not None or frames == 1):
                motions = motions_of(store, reader.body)
                if settings.glb:
                    write_glb(folder / GLB, motions, reader.body)
                if settings.bvh:
                    (folder / BVH).mkdir()
                    for motion in motions:
                        write_bvh(folder / BVH / f"track_{motion.track:04d}.bvh", motion, reader.body)
        if settings.overlay:
            _draw_all(source, Shown(store, reader.body), folder, settings, read_all.end, clock, progress)
        tracks = np.unique(store.column("track"))
        summary = Summary(
            frames=frames,
            tracks=len(tracks),
            bodies=store.count,
            network_crops=read_all.crops,
            seconds=time.perf_counter() - begun,
            reading_seconds=read - begun,
            stages=dict(clock.seconds),
            files=sorted(path.name for path in folder.iterdir() if path != rows),
            time=timing,
            notes=told,
        )
        del store
        shutil.rmtree(rows)
        made_of = {} if inputs is None else {INPUTS: dict(inputs)}
        (folder / SUMMARY).write_text(json_text(summary.to_json() | about | made_of), encoding="utf-8")
    return summary


@dataclass
class _Read:
    """What the first pass gave: one more than the number of the last frame, and how many crops the network ran on;
    decoder: its steps a second, and whether frames were put on them."""

    end: int
    crops: int
    decoder: dict[str, Any]

    def notes(self) -> list[str]:
        """What was done to the times of frames."""
        if not self.decoder.get("resampled"):
            return []
        steps = f"{self.decoder['decoder_fps']:g} steps a second"
        return [f"its frames were put on the decoder's {steps}, and its poses taken back to the frames' own times"]


def _ahead(items: Iterator[Item], depth: int, settings: PredictSettings) -> Iterator[Item]:
    return background(items, depth) if settings.overlapped else items


def _frames_ahead(items: Iterator[Item], settings: PredictSettings, image: Callable[[Item], Picture]) -> Iterator[Item]:
    """`_ahead` for items with a picture each, of which fewer wait where they are large."""
    if not settings.overlapped:
        return items
    return background(items, FRAMES_AHEAD, lambda item: image(item).nbytes, BYTES_AHEAD)


def _located(
    frames: Iterator[Frame], boxes: BoxSource, times: array[float], clock: StageClock
) -> Iterator[tuple[Frame, list[Box]]]:
    """Frames with their people; notes the seconds of every frame by its number, those that could not be read in
    between."""
    for frame in frames:
        missing, seconds = frame.number - len(times), frame.seconds or 0.0
        last = times[-1] if times else 0.0
        times.extend(last + (seconds - last) * (place + 1) / (missing + 1) for place in range(missing))
        times.append(seconds)
        with clock("detect"):
            found = boxes.boxes(frame)
        yield frame, found


def predicted(
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
) -> _Read:
    """The first pass."""
    sequence = source.fps is not None
    times, rate = array("d"), _steps_a_second(source, reader)
    if reader.decoder is not None and source.fps is not None:
        check_stride((settings.stride or 1) * rate / source.fps, reader.decoder.config.frames)
    decoded = clock.timed("decode", source.frames(settings.limit))
    frames = _frames_ahead(decoded, settings, lambda frame: frame.image)
    located = _frames_ahead(_located(frames, boxes, times, clock), settings, lambda item: item[0].image)
    works = _ahead(
        work_batches(
            located,
            batch_size=settings.batch_size,
            stride=settings.stride or 1,
            masks=reader.masks,
            focal=settings.focal,
            antialias=settings.antialias,
            pinned=reader.device.type == "cuda",
            size=reader.crop,
            clock=clock,
        ),
        BATCHES_AHEAD,
        settings,
    )
    answered = _ahead(predicted(works, reader, clock), BATCHES_AHEAD, settings)
    streams: dict[int, TrackStream] = {}
    newest, crops, expected, even = -1, 0, source.count(settings.limit), True

    def keep(made: list[Rows]) -> None:
        for rows in made:
            with clock("body model"):
                sizes = [(int(width), int(height)) for width, height in rows.size.tolist()]
                focal = [settings.focal or default_focal(size, reader.crop) for size in sizes]
                columns = columns_of(rows, reader.body, np.array(focal), root_centred=reader.root_centred)
                if not sequence:
                    del columns["time"]
            with clock("write"):
                store.append(columns)

    for work, answers in answered:
        by_track: dict[int, list[int]] = {}
        for place, seen in enumerate(work.seen):
            by_track.setdefault(seen.box.track, []).append(place)
        for track, places in by_track.items():
            with clock("decoder"):
                stream = streams.get(track) or _stream(track, reader, settings, times if sequence else None, rate)
                streams[track] = stream
                if sequence:
                    made = stream.push([work.seen[i] for i in places], [answers[i] for i in places])
                else:
                    made = [r for i in places for r in stream.push([work.seen[i]], [answers[i]]) + stream.flush()]
            keep(made)
        newest = max(newest, work.newest)
        for track in [t for t, stream in streams.items() if newest - stream.newest > LONGEST_HOLE + 1]:
            with clock("decoder"):
                gone = streams.pop(track)
                made = gone.flush()
            even &= gone.even
            keep(made)
        crops += 0 if work.batch is None else len(work.batch.clip)
        progress("reading", newest + 1, expected or newest + 1)
    for stream in streams.values():
        with clock("decoder"):
            made = stream.flush()
        even &= stream.even
        keep(made)
    decoder = {"decoder_fps": rate, "resampled": not even} if sequence and reader.decoder is not None else {}
    return _Read(newest + 1, crops, decoder)


def _steps_a_second(source: Source, reader: Reader) -> float:
    """Of the decoder: those of the source where it is even and near what the decoder was trained at."""
    like = 0.0 if source.fps is None else source.fps / reader.steps_a_second
    even = not source.stamped or (source.header is not None and source.header.even)
    return source.fps if source.fps and even and LIKE_TRAINED[0] <= like <= LIKE_TRAINED[1] else reader.steps_a_second


def _stream(
    track: int, reader: Reader, settings: PredictSettings, times: array[float] | None, rate: float
) -> TrackStream:
    decoder, codec = (None, None) if times is None else (reader.decoder, reader.codec)
    return TrackStream(
        track, decoder=decoder, codec=codec, steps=settings.steps, seed=settings.seed, times=times, rate=rate
    )


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
    first, largest = source.log.first or 0.0, source.log.largest
    start = first if source.header is None or source.header.start is None else source.header.start
    start = start if 0 <= first - start <= LATEST_START else first

    def posed() -> Iterator[tuple[Frame, np.ndarray, np.ndarray]]:
        again = clock.timed("decode again", source.frames(settings.limit))
        for frame in _frames_ahead(again, settings, lambda frame: frame.image):
            with clock("body model"):
                rows = shown.on(frame.number)
                vertices = shown.vertices(rows) if len(rows) else np.zeros((0, 0, 3), np.float32)
            yield frame, rows, vertices

    def drawn() -> Iterator[tuple[Frame, np.ndarray]]:
        for frame, rows, vertices in _frames_ahead(posed(), settings, lambda item: item[0].image):
            with clock("render"):
                picture = overlay(frame, shown, vertices, rows)
            yield frame, picture

    pictures = _frames_ahead(drawn(), settings, lambda item: item[1])
    if not source.is_video:
        for frame, picture in pictures:
            with clock("write"):
                write_png(folder / PICTURES / picture_name(frame), picture)
            progress("drawing", frame.number + 1, frames)
        return
    tick = None if source.header is None or source.stated else source.header.tick
    with video_writer(folder / OVERLAY, source.fps or 1.0, tick=tick, size=largest) as write:
        for frame, picture in pictures:
            with clock("write"):
                write(picture, None if frame.seconds is None else frame.seconds - start)
            progress("drawing", frame.number + 1, frames)
