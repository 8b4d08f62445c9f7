"""Frames that a model was searched or trained on are known again, frame by frame, and scoring on them is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import their_data
import tiny
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.data.crops import CropSet
from hmrcompress.data.formats import open_format
from hmrcompress.data.provenance import KEY, record, records_in, seen
from hmrcompress.errors import UserError
from hmrcompress.models.files.folder import read_model_folder
from hmrcompress.plan import Plan
from hmrcompress.searching.search import SearchSettings
from hmrcompress.training.loop import LoopSettings
from hmrcompress_cli.main import app

OPTIONS: dict[str, Any] = {"masks": "none", "device": "cpu"}


def again(**meta: Any) -> CropSet:
    return CropSet(tiny.crop_arrays(), tiny.crop_meta() | meta)


def test_exactly_these_frames(tiny_crops: CropSet) -> None:
    kept = record(tiny_crops, np.array([9, 2, 5, 2]))
    assert json.loads(json.dumps(kept)) == kept and len(kept["frames"]) == len("number:") + 3 * 8
    everything = np.arange(12)
    assert np.flatnonzero(seen(kept, tiny_crops, everything)).tolist() == [2, 5, 9]
    assert seen(kept, tiny_crops, np.array([5, 4, 9])).tolist() == [True, False, True]
    # The same data under another name, and other data under the same name and split (such as the first of its clips).
    assert seen(kept, again(name="other", split="val"), everything).sum() == 3
    arrays = {name: values[:6] for name, values in tiny.crop_arrays().items()}
    fewer = CropSet(arrays, tiny.crop_meta())
    assert fewer.sha256 != tiny_crops.sha256
    assert np.flatnonzero(seen(kept, fewer, np.arange(6))).tolist() == [2, 5]
    # Other data with the same numbers.
    changed = tiny.crop_arrays()
    changed["images"][0] += 1
    assert not seen(kept, CropSet(changed, tiny.crop_meta() | {"split": "val"}), everything).any()


def test_a_record_without_frames_holds_them_all(tiny_crops: CropSet) -> None:
    kept = record(tiny_crops, np.array([1])) | {"frames": None}
    assert seen(kept, tiny_crops, np.arange(12)).all()
    assert not seen(kept | {"split": "val", "sha256": "0"}, tiny_crops, np.arange(12)).any()
    with pytest.raises(UserError, match="damaged"):
        seen(kept | {"frames": "number:???"}, tiny_crops, np.arange(12))


def test_records_are_found_wherever_they_stand() -> None:
    one, two = {"frames": "a"}, {"frames": "b"}
    assert list(records_in({"heal": {KEY: one, "steps": 3}, "list": [{"x": {KEY: two}}], "y": None})) == [one, two]


def test_pictures_are_known_in_another_readers_data(tmp_path: Path, tiny_body_file: Path, tiny_model: Path) -> None:
    """Searched on 3DPW as it is distributed, scored on the npz of 4D-Humans: the same pictures of one sequence."""
    for name in ("raw", "npz", "bodies"):
        (tmp_path / name).mkdir()
    raw, npz = their_data.write_3dpw(tmp_path / "raw"), their_data.write_4dhumans(tmp_path / "npz")
    bodies = their_data.write_bodies(tmp_path / "bodies")
    settings = SearchSettings(tau_mm=1e6, frames_per_clip=2, batch_size=4)
    found = hc.search(
        tiny_model, f"3dpw:{raw}", journal=tmp_path / "journal.jsonl", settings=settings, body=str(bodies),
        regressor=bodies / "regressor17.npy", **OPTIONS,
    )  # fmt: skip
    found.plan.write(tmp_path / "plan.yaml")
    assert found.plan == Plan.read(tmp_path / "plan.yaml")
    hc.merge(tiny_model, tmp_path / "plan.yaml", tmp_path / "merged")
    crops = open_format(f"4dhumans:{npz}")
    used = open_format(f"3dpw:{raw}")
    frames = {int(used.frame[row]) for row in used.sample(2)}
    assert 1 < len(frames) < 6
    options = OPTIONS | {"body": str(tiny_body_file), "protocol": "starter24"}
    result = hc.evaluate(tmp_path / "merged", f"4dhumans:{npz}", **options)
    assert result.leaked == len(frames)
    assert result.to_json()["leak"] is True and result.to_json()["leak_frames"] == len(frames)
    assert crops.pictures is not None
    other = [row for row, name in enumerate(crops.pictures) if "office" in name]
    record_of_search = found.plan.search and found.plan.search.data.model_dump()
    assert record_of_search and not seen(record_of_search, crops, np.array(other)).any()


def test_the_command_warns(tmp_path: Path, tiny_body_file: Path, tiny_crops_file: Path, tiny_model: Path) -> None:
    body = ["--body", str(tiny_body_file), "--device", "cpu", "--masks", "none"]
    run = CliRunner().invoke
    search = [
        "search",
        str(tiny_model),
        "--data",
        f"crops:{tiny_crops_file}",
        "--frames-per-clip",
        "2",
        "--tau",
        "1e6",
        "--set",
        "search.tokens=null",
    ]
    assert run(app, [*search, "-o", str(tmp_path / "plan.yaml"), *body]).exit_code == 0
    assert (
        run(app, ["merge", str(tiny_model), "--plan", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "m")]).exit_code
        == 0
    )
    done = run(
        app,
        ["eval", str(tmp_path / "m"), "--data", f"crops:{tiny_crops_file}", "--json", str(tmp_path / "e.json"), *body],
    )
    assert done.exit_code == 0
    assert "warning: 4 of the 12 frames were searched or trained on" in " ".join(done.stderr.split())
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["leak"] is True and figures["leak_frames"] == 4


def test_what_a_probe_and_a_healing_saw_is_kept(
    tmp_path: Path, tiny_body_file: Path, tiny_crops: CropSet, tiny_model: Path
) -> None:
    """The last clip is held out for validation, so six of twelve frames were trained on."""
    options: dict[str, Any] = {"body": str(tiny_body_file), "device": "cpu"}
    hc.fit_probe(tiny_model, tmp_path / "probed", tiny_crops, images=12, layer=1, **options)
    (kept,) = records_in(read_model_folder(tmp_path / "probed").config.provenance)
    assert seen(kept, tiny_crops, np.arange(12)).tolist() == [True] * 6 + [False] * 6
    result = hc.evaluate(tmp_path / "probed", tiny_crops, masks="none", **options)
    assert result.leaked == 6
    plan = {"schema": 1, "checkpoint": hc.load(tiny_model).reference.model_dump(), "groups": [[0], [1], [2, 3]]}
    hc.merge(tiny_model, Plan.from_dict(plan), tmp_path / "merged")
    hc.heal(
        tmp_path / "merged", tmp_path / "healed", tiny_crops, teacher=tiny_model, masks="none", images=4, batch_size=4,
        loop=LoopSettings(1), **options,
    )  # fmt: skip
    assert hc.evaluate(tmp_path / "healed", tiny_crops, masks="none", **options).leaked == 6
