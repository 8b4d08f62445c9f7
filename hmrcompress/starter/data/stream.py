"""Fresh crops of the starter world for training that needs no labels: the `Stream` of `starter:train`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hmrcompress.body.files import starter_body
from hmrcompress.data.masks import PERSON_THRESHOLD, MaskSource, person_tokens
from hmrcompress.errors import UserError
from hmrcompress.io.code import code_sha256
from hmrcompress.records import CROP, CropSize
from hmrcompress.starter.data.batches import to_tensors
from hmrcompress.starter.data.rendering import ShardSource, StageCrops
from hmrcompress.starter.network.recipe import Recipe, Stage
from hmrcompress.starter.scene.world import VERSION
from hmrcompress.training.streams import Crops

SHARD_CROPS = 512
REUSE = 3.0
WINDOW = 16
ENDLESS = 20_000_000
"""Crops of a run whose length is not known ahead."""


class ShardStream:
    """Crops rendered in the background while training goes on; each is seen REUSE times on average, mirrored and
    recoloured at random. Person masks are coverages of the token grid itself: its windows lie two pixels off those of
    `data.masks`.

    folder: where shards are kept as long as they are needed; size: of the crops; done: steps of the run that are behind
    it. To be closed, or used in a `with` statement. Raises UserError for masks that these crops do not have.
    """

    name = "starter:train"
    seen: dict[str, str] | None = None

    def __init__(
        self,
        folder: Path,
        masks: MaskSource,
        *,
        batch_size: int,
        seed: int = 0,
        images: int | None = None,
        done: int = 0,
        workers: int = 1,
        size: CropSize = CROP,
    ) -> None:
        if masks.name not in ("data", "self", "none"):
            raise UserError(f"got {masks.name!r}, expected data, self or none with {self.name}", "--masks")
        self.masked, self.batch_size = masks.name == "data", batch_size
        self.stage = Stage("crops", images or ENDLESS, size.pixels, True, 0.0, 0.0, batch=batch_size)
        self.recipe = Recipe(stages=(self.stage,), shard_crops=SHARD_CROPS, reuse=REUSE, window=WINDOW)
        self.identity: dict[str, Any] = {
            "data": [self.name, VERSION],
            "code": code_sha256("starter.data.stream"),
            "body": starter_body().sha256,
            "shards": [SHARD_CROPS, REUSE, WINDOW],
            "images": images,
            "seed": seed,
            "batch_size": batch_size,
            "masks": masks.name,
            **({} if size == CROP else {"size": [*size.pixels, size.patch]}),
        }
        seen = min(done * batch_size, self.stage.images - 1)
        self.source = ShardSource(folder, seed, self.recipe, None, seen=seen, workers=workers, patch=size.patch)
        self.crops = StageCrops(self.recipe, seed, self.source)

    def batch(self, step: int) -> Crops:
        """`batch_size` crops, drawn by (seed, step)."""
        crops, rng = self.crops.draw(step * self.batch_size, self.batch_size, rank=0)
        rows, columns = crops["parts"].shape[1:3]
        images, target = to_tensors(crops, rng)
        if not self.masked:
            return Crops(images, None)
        coverage = (1 - target.parts[..., -1]).unflatten(1, (rows, columns))
        return Crops(images, person_tokens(coverage, PERSON_THRESHOLD))

    def close(self) -> None:
        """Stops the rendering."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
