"""`hmrcompress.Predictor`: a model that takes one frame after the other, for cameras and robots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hmrcompress.api.opening import Body, Masks, Model, body_for, load, require_people
from hmrcompress.api.predict import pipeline_reader
from hmrcompress.api.running import batched, running
from hmrcompress.models.fast.running import RunPath
from hmrcompress.pipeline.box_sources import open_boxes
from hmrcompress.pipeline.boxes import BOX_SCALE, BoxSource
from hmrcompress.pipeline.frame_by_frame import FrameByFrame
from hmrcompress.runtime import pick_device

LIKELY_PEOPLE = 4
"""In a frame: what a path that prepares for a number of crops prepares for."""


class Predictor(FrameByFrame):
    """`bodies = hc.Predictor("model")(image)`: the bodies of a frame, with nothing looked at ahead."""

    def __init__(
        self,
        model: Model,
        *,
        boxes: str | BoxSource = "auto",
        box_scale: float = BOX_SCALE,
        stride_detect: int = 1,
        masks: Masks = "auto",
        buckets: Sequence[int] | None = None,
        focal: float | None = None,
        body: Body = "starter",
        device: str = "auto",
        dtype: torch.dtype | None = None,
        path: RunPath | None = None,
        seed: int = 0,
    ) -> None:
        """Arguments as of `predict`. What is not given of dtype and path is as the model's plan says. Raises
        UserError."""
        require_people(model)
        where = pick_device(device)
        people = boxes
        if isinstance(people, str):
            people = open_boxes(people, scale=box_scale, every=stride_detect, cuda=where.type == "cuda")
        checkpoint = load(model, seed=seed)
        run = running(checkpoint, where, dtype=dtype, path=path, buckets=buckets, stride=1, clips=False)
        reader = pipeline_reader(
            checkpoint,
            masks,
            body_for(checkpoint, body),
            str(where),
            dtype=run.dtype,
            buckets=run.buckets,
            path=batched(run.path, LIKELY_PEOPLE),
        )
        super().__init__(reader, people, focal)
