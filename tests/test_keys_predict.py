"""Results of many inputs are kept under all that they depend on: the model, the settings, and what belongs to each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept import ON_THE_CPU, Contents, Step, World, check
from PIL import Image

from hmrcompress.api.predict_job import OpenJob, PredictJob
from hmrcompress.models.fast.running import RunPath
from hmrcompress.pipeline.many import Order
from hmrcompress.pipeline.predict import PredictSettings
from hmrcompress.pipeline.units import contents_of

PICTURE = np.zeros((20, 30, 3), np.uint8)


def key_of(source: Path, **given: Any) -> Any:
    """The key of an input under a job."""
    job = PredictJob(**given)
    opened = OpenJob(job)
    return dict(opened.key(Order(0, source, source.parent / "out", job.beside(source)), contents_of(source)).inputs)


def of_predict(world: World) -> Iterator[Step]:
    folder = world.home / "pictures"
    folder.mkdir()
    path = folder / "a.png"
    Image.fromarray(PICTURE).save(path)
    Image.fromarray(PICTURE + 1).save(folder / "b.png")
    for name, side in (("a", 9), ("b", 8)):
        (folder / f"{name}.json").write_text(f'[{{"frame": 0, "box": [0, 0, {side}, 9]}}]')
        (folder / f"{name}.masks").mkdir()
        Image.fromarray(np.full((256, 192), side, np.uint8)).save(folder / f"{name}.masks" / "0000_000000.png")
    given = {"model": str(world.model), "body": str(world.body), "device": "cpu"}
    yield Step(
        PredictJob,
        lambda **changes: key_of(path, **{**given, **changes}),
        {},
        {
            "model": [str(world.model2), str(world.probe2), Contents(world.model, world.model2)],
            "body": [str(world.body2), Contents(world.body, world.body2)],
            "boxes": ["auto", "{folder}/{stem}.json"], "box_scale": [1.5], "masks": ["none", "self", "files:{stem}"],
            "buckets": [(64,)], "fps": [25.0], "dtype": [torch.bfloat16],
            "path": [RunPath(fast=True), RunPath(int8=True), RunPath(compiled=True), RunPath(graphs=False)],
            "settings": [PredictSettings(limit=3)],
        },
        {"device": ON_THE_CPU},
    )  # fmt: skip
    beside = {"boxes": "{folder}/{stem}.json", "masks": "files:{folder}/{stem}.masks"}
    yield Step(
        key_of,
        lambda **changes: key_of(**{**given, **beside, "source": path, **changes}),
        {},
        {
            "source": [
                folder / "b.png",
                Contents(path, folder / "b.png"),
                Contents(folder / "a.json", folder / "b.json"),
                Contents(folder / "a.masks", folder / "b.masks"),
            ]
        },
        {"given": "see above"},
    )
    base = PredictSettings()
    others = {
        "batch_size": [3], "stride": [2], "steps": [3], "limit": [4], "focal": [500.0], "overlay": [False],
        "glb": [False], "antialias": [False], "seed": [7],
    }  # fmt: skip
    known = set(others) | {"overlapped"}
    changes = {name: values for name, values in others.items()}
    changes |= {name: [_other(getattr(base, name))] for name in vars(base) if name not in known}
    yield Step(
        PredictSettings,
        lambda **changes: key_of(path, **given, settings=replace(base, **changes)),
        {},
        changes,
        {"overlapped": "when stages run, not what they do"},
    )


def _other(value: Any) -> Any:
    """Another value of a setting that this table does not know by name."""
    return not value if isinstance(value, bool) else (value or 0) + 1


def test_results_of_predict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(of_predict(world))
