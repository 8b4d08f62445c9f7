"""What a recipe names, opened when it is first asked for: shared by recipes and ablations."""

from __future__ import annotations

from functools import cached_property

from hmrcompress.api import opening
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.recipe.ablations import Ablations
from hmrcompress.recipe.schema import Recipe
from hmrcompress.runtime import Progress


class Opened:
    """Model, body and data of a recipe, on the CPU. Each raises UserError where it cannot be opened."""

    def __init__(self, recipe: Recipe | Ablations, progress: Progress) -> None:
        self._recipe, self.progress = recipe, progress

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The network that the recipe starts from, and that everything is compared with."""
        return opening.load(self._recipe.model_file(), seed=self._recipe.seed)

    @cached_property
    def body(self) -> BodyModel:
        """The body that errors are measured on."""
        return opening.body_for(self.checkpoint, self._recipe.body)

    @cached_property
    def calib(self) -> CropSet:
        """What is searched and fitted on."""
        return self._data(self._recipe.data.search, "calib")

    @cached_property
    def test(self) -> CropSet:
        """What the figures come from."""
        return self._data(self._recipe.data.eval, "val")

    def _data(self, text: str, split: str) -> CropSet:
        clips = self._recipe.data.clips
        size = self.checkpoint.config.crop
        return opening.open_data(text, body=self.body, split=split, clips=clips, size=size, progress=self.progress)
