"""`hmrcompress.Predictor`: a model that takes one frame after the other, for cameras and robots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hmrcompress.api.opening import Body, Masks, Model, load, require_people
from hmrcompress.api.predict import open_reader
from hmrcompress.models.fast.running import RunPath
from hmrcompress.pipeline.box_sources import open_boxes
from hmrcompress.pipeline.boxes import BOX_SCALE, BoxSource
from hmrcompress.pipeline.frame_by_frame import FrameByFrame
from hmrcompress.pipeline.predict import PredictSettings
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
        """Arguments as of `predict`. What is not given of dtype, path and buckets is as the model's plan says. Raises
        UserError."""
        require_people(model)
        where = pick_device(device)
        people = boxes
        if isinstance(people, str):
            people = open_boxes(people, scale=box_scale, every=stride_detect, cuda=where.type == "cuda")
        checkpoint = load(model, seed=seed)
        settings = PredictSettings(batch_size=LIKELY_PEOPLE, stride=1, seed=seed)
        reader, _ = open_reader(checkpoint, settings, masks, body, where, dtype, buckets, path, clips=False)
        super().__init__(reader, people, focal)
