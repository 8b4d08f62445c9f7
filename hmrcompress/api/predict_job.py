"""What `predict` does with each of many inputs, in this process or another: told in names, opened where it is done."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hmrcompress.api.opening import ModelFile, body_for, load, open_masks, require_people
from hmrcompress.api.predict import open_reader
from hmrcompress.api.running import device_for
from hmrcompress.data.people import DETECTOR_FILE
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.keys import Key
from hmrcompress.io.onnx_file import sha256_onnx
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.fast.running import RunPath
from hmrcompress.pipeline.box_sources import open_boxes
from hmrcompress.pipeline.boxes import BOX_SCALE
from hmrcompress.pipeline.frames import Source, open_source
from hmrcompress.pipeline.many import UNIT, Order, Stopped
from hmrcompress.pipeline.predict import PredictSettings, Reader
from hmrcompress.pipeline.predict import predict as predict_pipeline
from hmrcompress.pipeline.summary import Summary
from hmrcompress.runtime import Progress

WORDS = ("auto", "full")
"""Boxes that are no files."""
STEM, FOLDER = "{stem}", "{folder}"
"""In the names of boxes and masks: the input's name without its end, and the folder that it lies in."""


@dataclass(frozen=True)
class PredictJob:
    """What `predict` is told beside its inputs, in names and plain values, so that another machine can be told, too.

    `boxes` and `masks` may hold `{stem}` and `{folder}`, for files that belong to one input each.
    """

    model: str | ModelFile
    boxes: str = "full"
    box_scale: float = BOX_SCALE
    masks: str = "auto"
    buckets: tuple[int, ...] | None = None
    fps: float | None = None
    settings: PredictSettings = PredictSettings()
    body: str = "starter"
    device: str = "auto"
    dtype: torch.dtype | None = None
    path: RunPath | None = None

    def beside(self, path: Path) -> dict[str, str]:
        """The files of boxes and masks that belong to one input, by option."""
        given = {"boxes": self.boxes, "masks": self.masks}
        return {name: _place(_filled(text, path)) for name, text in given.items() if _filled(text, path) != text}

    def check(self) -> None:
        """UserError for boxes or masks that can be those of one input only."""
        files = self.boxes if self.boxes not in WORDS and ":" not in self.boxes else ""
        masks = self.masks if self.masks.startswith("files:") else ""
        for text, option in ((files, "--boxes"), (masks, "--masks")):
            if text and STEM not in text and FOLDER not in text:
                raise UserError(
                    "belongs to one input, and there are many",
                    f"{option} {text}",
                    f"Write {STEM} where its name has that of the input, {FOLDER} for the folder of the input",
                )


class OpenJob:
    """A job with its model opened; the network is made ready when the first input needs it."""

    def __init__(self, job: PredictJob, *, elsewhere: bool = False) -> None:
        """elsewhere: the work is not done here, where such a device need not be. Raises UserError."""
        require_people(job.model)
        self.job = job
        self.checkpoint = load(job.model, seed=job.settings.seed, exported=True)
        self.device = torch.device(job.device) if elsewhere else device_for(self.checkpoint, job.device)
        require_people(self.checkpoint)
        self.body = body_for(self.checkpoint, job.body)
        self._ready: tuple[bool, str, Reader, PredictSettings] | None = None

    @cached_property
    def settings(self) -> Key:
        """What all results depend on beside the inputs."""
        job = self.job
        return Key.of(
            "predict",
            ("api.predict",),
            model=self.checkpoint.contents(),
            made_for=self.checkpoint.body,
            body=self.body.sha256,
            boxes=_boxes_sha256(job.boxes),
            box_scale=job.box_scale,
            masks=_masks_sha256(job.masks),
            buckets=job.buckets,
            fps=job.fps,
            settings=replace(job.settings, overlapped=True),
            device=self.device,
            dtype=job.dtype,
            path=job.path,
        )

    def key(self, order: Order, contents: str) -> Key:
        """What the result of one input depends on; contents: hash of the input. Raises UserError, OSError."""
        own = {"input": contents, "name": order.path.name}
        own |= {name: sha256_file(path) for name, path in order.beside.items() if os.path.isfile(path)}
        if os.path.isdir(order.beside.get("masks", "")):
            own["masks"] = _masks_sha256(_filled(self.job.masks, order.path))
        return Key(self.settings.step, {**self.settings.inputs, UNIT: own})

    def do(self, order: Order, rule: OutputRule, inputs: dict[str, Any], progress: Progress) -> Summary:
        """One input into its folder. Raises UserError as `predict`."""
        job = self.job
        source = open_source(order.path, job.fps)
        job.settings.check(source)
        people = open_boxes(
            _filled(job.boxes, order.path),
            scale=job.box_scale,
            every=job.settings.stride_detect,
            cuda=self.device.type == "cuda",
        )
        reader, settings = self._reader_for(source, _filled(job.masks, order.path))
        return predict_pipeline(
            source, people, reader, order.folder, settings, inputs=inputs, overwrite=rule, progress=progress
        )

    def _reader_for(self, source: Source, masks: str) -> tuple[Reader, PredictSettings]:
        """The network made ready for such a source, where that before it was another, and the settings with its
        stride; masks are opened anew."""
        job, clips = self.job, source.fps is not None
        if self._ready is None or self._ready[0] != clips:
            self._ready = None  # two networks are more than memory may hold
            where = self.device
            try:
                made = open_reader(
                    self.checkpoint,
                    job.settings,
                    masks,
                    self.body,
                    where,
                    job.dtype,
                    job.buckets,
                    job.path,
                    clips=clips,
                )
            except UserError as error:
                raise error if masks != job.masks else Stopped(error.what, error.where, error.remedy) from error
            self._ready = clips, masks, *made
        _, first, reader, settings = self._ready
        if masks != first and reader.masks.name != "none":
            reader = replace(reader, masks=open_masks(masks))
        return reader, settings


def _filled(text: str, path: Path) -> str:
    return text.replace(STEM, path.name if path.is_dir() else path.stem).replace(FOLDER, str(path.parent))


def _place(text: str) -> str:
    """The path in `files:DIR` or `FILE`."""
    return text.removeprefix("files:")


def _boxes_sha256(boxes: str) -> str:
    """Hash of what tells boxes, where it is the same for all inputs; else how they are told. UserError."""
    kind, _, rest = boxes.partition(":")
    file = DETECTOR_FILE if boxes == "auto" else Path(rest) if kind == "onnx" and rest else None
    return boxes if file is None else sha256_onnx(file)


def _masks_sha256(masks: str) -> str:
    if STEM in masks or FOLDER in masks:
        return masks
    source = open_masks(masks)
    return str(getattr(source, "sha256", source.name))
