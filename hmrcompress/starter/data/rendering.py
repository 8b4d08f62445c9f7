"""Rendering of training shards in the background, a few ahead of the training that reads them."""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.body.files import starter_body
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.keys import KEY_FILE, Key, folder_of
from hmrcompress.io.outputs import OutputRule
from hmrcompress.motion.clip import Motion
from hmrcompress.records import CROP
from hmrcompress.starter.data.batches import Pool, Shard
from hmrcompress.starter.data.captured import load_captured, training_files
from hmrcompress.starter.data.shards import (
    KIND,
    SHARD_NAME,
    ShardSettings,
    make_shard,
    read_shard,
    shard_path,
    write_shard,
)
from hmrcompress.starter.network.recipe import Recipe
from hmrcompress.starter.scene.filming import surface_of
from hmrcompress.training.background import Background

STAGE_STRIDE = 10_000
"""Shards of stage s are numbered from s * STAGE_STRIDE, so that stages never share crops."""
POLL_SECONDS = 0.2


def shard_range(recipe: Recipe, stage: int, within: int) -> tuple[int, int]:
    """(first, newest) shard number that a batch may draw from after `within` crops of a stage."""
    newest = 1 + int(within / (recipe.reuse * recipe.shard_crops))
    return max(0, newest - recipe.window + 1), newest


def schedule(recipe: Recipe, seen: int = 0) -> list[tuple[int, int]]:
    """(stage, number) of every shard still wanted after `seen` crops, in the order of first use."""
    current, within = recipe.at(seen)
    wanted = []
    for number, stage in enumerate(recipe.stages[current:], start=current):
        first = shard_range(recipe, number, within)[0] if number == current else 0
        last = shard_range(recipe, number, stage.images - 1)[1]
        wanted += [(number, index) for index in range(first, last + 1)]
    return wanted


def settings_of(recipe: Recipe, stage: int, captured: bool, patch: int = CROP.patch) -> ShardSettings:
    """How the crops of a stage are rendered; patch: pixels of the patches that are labelled."""
    chosen = recipe.stages[stage]
    mocap = recipe.mocap if captured else 0.0
    return ShardSettings(chosen.size, recipe.shard_crops, chosen.difficulty, mocap, patch)


def _render(
    folder: str,
    seed: int,
    recipe: Recipe,
    motions: str | None,
    wanted: list[tuple[int, tuple[int, int]]],
    used: Any,
    ahead: int,
    patch: int,
) -> None:
    body = starter_body()
    surface = surface_of(body)
    captured: Sequence[Motion] = load_captured(None if motions is None else Path(motions))
    for place, (stage, index) in wanted:
        while place > used.value + ahead:
            time.sleep(POLL_SECONDS)
        settings = settings_of(recipe, stage, bool(captured), patch)
        path = shard_path(Path(folder), stage * STAGE_STRIDE + index, settings)
        if not path.exists():
            write_shard(path, make_shard(seed, stage * STAGE_STRIDE + index, body, surface, captured, settings))


def shard_home(folder: Path, seed: int, motions: Path | None) -> Path:
    """Where shards of this seed and these motions lie, as this code renders them: a folder below `folder`, which is
    made. Names of shards say the rest (`shards.shard_path`)."""
    named = {"motions": str(motions or "procedural"), "seed": str(seed)}
    return folder_of(folder, shard_key(seed, motions), named, f"crops to train on in {folder}")


def shard_key(seed: int, motions: Path | None) -> Key:
    """What shards depend on beside what their names say."""
    captured = None if motions is None else [sha256_file(file) for file in training_files(motions).files]
    return Key.of("shards", ("starter.data.shards",), seed=seed, motions=captured, body=starter_body().sha256)


def _remove_others(folder: Path, own: Path) -> None:
    """Removes the shards of a run that other code rendered, or of other motions, which are of no use to it."""
    others = [path for path in folder.iterdir() if path != own and (path / KEY_FILE).is_file()]
    for place in (folder, *others):
        for path in list(place.iterdir()):
            if SHARD_NAME.fullmatch(path.name):
                OutputRule().remove_file(path, KIND)


class ShardReader:
    """The shards of a run in `folder` (`shard_home`), which somebody else renders. patch: of `settings_of`."""

    def __init__(self, folder: Path, recipe: Recipe, captured: bool, patch: int = CROP.patch) -> None:
        self.folder, self.recipe, self.captured, self.patch = folder, recipe, captured, patch

    def path(self, stage: int, index: int) -> Path:
        """The file of a shard."""
        settings = settings_of(self.recipe, stage, self.captured, self.patch)
        return shard_path(self.folder, stage * STAGE_STRIDE + index, settings)

    def advance(self, stage: int, newest: int) -> None:
        """Takes note of how far training has come."""

    def load(self, stage: int, index: int) -> dict[str, Any]:
        """A shard, once it is rendered."""
        path = self.path(stage, index)
        while not path.exists():
            time.sleep(POLL_SECONDS)
        return read_shard(path)


class ShardSource(ShardReader):
    """Background processes that render the shards of a run, and the way to read them.

    Shards lie below `folder` (`shard_home`), which is the run's own; those that it is done with are deleted as
    `advance` is called, those that other code rendered at once.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        recipe: Recipe,
        motions: Path | None,
        *,
        seen: int,
        workers: int,
        ahead: int = 4,
        patch: int = CROP.patch,
    ) -> None:
        if motions is not None and workers:
            training_files(motions).tell()
        super().__init__(shard_home(folder, seed, motions), recipe, motions is not None, patch)
        if workers:
            _remove_others(folder, self.folder)
        self.wanted = schedule(recipe, seen)
        self.place = {shard: place for place, shard in enumerate(self.wanted)}
        self.used = mp.get_context("spawn").Value("q", 0)
        self.renderers = Background("training crops")
        numbered = list(enumerate(self.wanted))
        for worker in range(workers):
            part = numbered[worker::workers]
            named = None if motions is None else str(motions)
            self.renderers.start(_render, str(self.folder), seed, recipe, named, part, self.used, ahead, patch)

    def advance(self, stage: int, newest: int) -> None:
        """Tell the renderers how far training has come."""
        self.used.value = max(self.used.value, self.place.get((stage, newest), 0))
        for old in range(newest - self.recipe.window - 1, max(-1, newest - self.recipe.window - 4), -1):
            if old >= 0:
                OutputRule().remove_file(self.path(stage, old), KIND)

    def close(self) -> None:
        """Stop the renderers."""
        self.renderers.close()

    def load(self, stage: int, index: int) -> dict[str, Any]:
        """A shard, once it is rendered. UserError where that failed."""
        path = self.path(stage, index)
        self.renderers.wait(path, others=not self.renderers.started)
        return read_shard(path)


class StageCrops:
    """Crops of the stages of a recipe, each drawn from shards of its own. Those of a resumed run are the same."""

    def __init__(self, recipe: Recipe, seed: int, shards: ShardReader) -> None:
        self.recipe, self.seed, self.shards = recipe, seed, shards
        self._pools: dict[int, Pool] = {}

    def draw(self, seen: int, count: int, rank: int) -> tuple[Shard, np.random.Generator]:
        """See `Pool.draw`, after `seen` crops in all; past the end of the recipe as at its end."""
        number, within = self.recipe.at(min(seen, self.recipe.images - 1))
        newest = shard_range(self.recipe, number, within)[1]
        self.shards.advance(number, newest)
        if number not in self._pools:
            load = partial(self.shards.load, number)
            self._pools = {number: Pool(load, self.recipe.window, self.seed)}
        return self._pools[number].draw(seen, count, rank, newest)
