"""Every flag and every setting of `predict` reaches what it asks: none is read and forgotten."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

from hmrcompress.api.predict import predict
from hmrcompress.pipeline.predict import PredictSettings
from hmrcompress.recipe.schema import Predict
from hmrcompress_cli.predict import asked_of

PLAIN: dict[str, Any] = {
    "boxes": "full", "masks": "auto", "stride": None, "fps": None, "focal": None, "no_overlay": False, "no_glb": False,
    "device": "cpu", "dtype": None, "fast": None, "batch_size": 32, "body": "starter", "limit": None, "seed": 0,
}  # fmt: skip
FLAGS: dict[str, Any] = {
    "boxes": "auto", "masks": "none", "stride": 3, "fps": 12.0, "focal": 700.0, "no_overlay": True, "no_glb": True,
    "dtype": "float32", "fast": True, "batch_size": 7, "body": "body.npz", "limit": 5, "seed": 11,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "box_scale": 1.7, "stride_detect": 4, "steps": 3, "bvh": True, "antialias": False, "overlapped": False,
    "buckets": (2,), "compile": True, "graphs": False,
}  # fmt: skip
CLUSTER = {"workers", "worker_cpus"}
"""What only `--on` reads."""


def test_the_table_names_every_setting() -> None:
    assert {*SETTINGS, *CLUSTER, "fast"} >= set(Predict.model_fields)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_arrives(name: str) -> None:
    plain = asked_of({**PLAIN, "settings": Predict()})
    assert asked_of({**PLAIN, name: FLAGS[name], "settings": Predict()}) != plain


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_arrives(name: str) -> None:
    plain, settings = Predict(), Predict.model_validate({name: SETTINGS[name]})
    given = {**PLAIN, "fast": True} if name in ("buckets", "compile", "graphs") else PLAIN
    assert asked_of({**given, "settings": settings}) != asked_of({**given, "settings": plain})
    if name in {"box_scale"} | {each.name for each in fields(PredictSettings)}:
        asked = asked_of({**given, "settings": settings})
        assert SETTINGS[name] in (asked.get(name), getattr(asked["settings"], name, None)), "under its own name"


def test_what_is_asked_is_what_predict_takes() -> None:
    assert set(asked_of({**PLAIN, "settings": Predict()})) <= set(inspect.signature(predict).parameters)
