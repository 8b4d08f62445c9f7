"""Dtype and stride as axes of the search, and what the device's own times say against fewer MACs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from compress_worker import without_times
from scipy.spatial.transform import Rotation, Slerp
from typer.testing import CliRunner, Result

from hmrcompress.api import front
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.errors import UserError
from hmrcompress.frontier.candidates import Candidate
from hmrcompress.frontier.costs import CostTable, cost_key, way_of
from hmrcompress.frontier.depth import Sized
from hmrcompress.frontier.errors import Errors, check_strides, key_frames
from hmrcompress.frontier.joint import combinations
from hmrcompress.frontier.ledger import Ledger
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import STARTER24
from hmrcompress.models.files.folder import read_model_folder
from hmrcompress.plan import RunSettings
from hmrcompress_cli.main import app

HALF, TWICE = Candidate(dtype="bfloat16"), Candidate(stride=2)


def table(**more: Any) -> CostTable:
    """Seconds of a device whose parts take as long as they have tokens."""
    times: list[dict[int, float]] = [{192: 2.0 * each, 72: each} for each in (1.0, 2.0, 0.3)]
    return replace(CostTable("cpu", "float32", 1, 192, 1.0, *times, {}, "k"), **more)


def test_frames_that_are_taken_evenly_are_of_every_phase(tmp_path: Path, tiny_body: Any) -> None:
    """Places 2, 6, 10 and 14 of 16 frames would all be frames that a stride of 2 runs on; and in every batch, clips
    taking turns, there are as many of each phase."""
    arrays = tiny.crop_arrays(8, 16)
    crops = CropSet({name: each for name, each in arrays.items() if name != "masks"}, tiny.crop_meta())
    for frames, stride in product((1, 4), (2, 4)):
        errors = Errors("e", tiny.network(), crops, crops.sample(frames), Measure(tiny_body, STARTER24),
                        Ledger(tmp_path / "j.jsonl", {}), masks=None, fitter=None, batch_size=4)  # fmt: skip
        for part in errors.parts:
            indices = errors.indices[part]
            before, after, weight = key_frames(crops, indices, stride, errors.phases[part])
            phases = errors.phases[part] % stride
            assert np.bincount(phases, minlength=stride).tolist() == [4 // stride] * stride
            assert (indices - before == np.minimum(phases, indices % 16)).all()
            assert (weight == np.where(after > before, (indices - before) / stride, 0)).all()
    whole = np.arange(16)
    before, after, weight = key_frames(crops, whole, 4, whole)
    assert (before == whole - whole % 4).all() and (weight[:12] == (whole % 4 / 4)[:12]).all()
    assert key_frames(crops, whole[:3], 4, whole[:3] + 3)[0].tolist() == [0, 1, 1], "at most what is before it"


def test_names_and_words() -> None:
    both = replace(HALF, stride=4, keep=96, way="drop")
    assert Candidate.parsed(both.key) == both and Candidate().key == "[[], 0.0, null, null]"
    assert both.words(6) == "all 6 layers, 96 tokens (drop), bfloat16, a stride of 4"
    assert Candidate(((1, "all"),)).joined(both) == replace(both, removed=((1, "all"),))


def test_a_table_of_each_dtype_and_a_share_of_the_frames(tmp_path: Path) -> None:
    faster = replace(table(dtype="bfloat16", key="b"), embed=0.25)
    both = table(also=(faster,))
    assert both.seconds(HALF, 4) == pytest.approx(both.seconds(Candidate(), 4) - 0.75)
    assert both.seconds(TWICE, 4) == pytest.approx(both.seconds(Candidate(), 4) / 2)
    assert CostTable.from_json(json.loads(json.dumps(both.to_json())), "x") == both
    assert both.dtypes == ["float32", "bfloat16"]
    with pytest.raises(UserError, match="has no times in bfloat16"):
        table().seconds(HALF, 4)


def test_every_set_goes_with_every_dtype_and_stride() -> None:
    sizes = {4.0: Sized(Candidate(), 0.0), 2.0: Sized(Candidate(((1, "all"), (2, "all"))), 1.0)}
    tokens = {Candidate(keep=72, way="merge"): 0.5}
    both = table(also=(table(dtype="bfloat16", key="b"),))
    found = combinations(sizes, tokens, both, 4, {HALF: 0.25}, {TWICE: 4.0})
    assert len(found) == (2 + 1) * 2 * 2, "merging to 72 tokens takes three layers, and one size has two"
    costs = {each: mm for each, _, mm in found}
    assert costs[Candidate(keep=72, way="merge", dtype="bfloat16", stride=2)] == 4.75
    assert [seconds for _, seconds, _ in found] == sorted(seconds for _, seconds, _ in found)


def test_frames_between_are_on_the_way(tmp_path: Path, tiny_body: Any) -> None:
    """Against scipy's slerp and numpy's interpolation, from what the network says of the frames that it runs on."""
    write_crops(tmp_path / "c.npz", tiny.crop_arrays(clips=2, frames=6), tiny.crop_meta())
    crops = CropSet.open(tmp_path / "c.npz")
    before, after, weight = key_frames(crops, np.arange(6), 4, np.arange(6))
    assert (before.tolist(), after.tolist()) == ([0, 0, 0, 0, 4, 4], [4, 4, 4, 4, 4, 4])
    assert weight.tolist() == [0.0, 0.25, 0.5, 0.75, 0.0, 0.0]
    errors = Errors("e", tiny.network(), crops, np.arange(12), Measure(tiny_body, STARTER24),
                    Ledger(tmp_path / "j.jsonl", {}), masks=None, fitter=None, batch_size=5)  # fmt: skip
    exact = errors._whole(Candidate(), np.arange(4))
    found = errors._between(TWICE, np.arange(3), np.arange(3))
    for joint in (0, 7):
        ends = Rotation.from_matrix(exact.rotations[[0, 2], joint].numpy())
        wanted = Slerp([0, 2], ends)([0, 1, 2]).as_matrix()
        assert np.abs(found.rotations[:, joint].numpy() - wanted).max() < 1e-5
    assert torch.allclose(found.betas[1], exact.betas[[0, 2]].mean(0), atol=1e-6)
    assert errors(TWICE).distances.max() > 0 and errors(Candidate()).distances.max() == 0


def test_a_dtype_is_measured_in_it(tmp_path: Path, tiny_body: Any, tiny_crops_file: Path) -> None:
    crops = CropSet.open(tiny_crops_file)
    errors = Errors("e", tiny.network(), crops, np.arange(6), Measure(tiny_body, STARTER24),
                    Ledger(tmp_path / "j.jsonl", {}), masks=None, fitter=None)  # fmt: skip
    moved = errors(HALF).distances
    assert 0 < moved.mean() < 30, "rounding to 8 bits of mantissa moves bodies, and not far"


def test_strides_need_frames_in_a_row(tmp_path: Path) -> None:
    arrays = tiny.crop_arrays(clips=2, frames=6)
    arrays["frame"] = np.where(arrays["clip"] == 1, 2 * arrays["frame"], arrays["frame"]).astype(np.int32)
    write_crops(tmp_path / "c.npz", arrays, tiny.crop_meta())
    crops = CropSet.open(tmp_path / "c.npz")
    check_strides(crops, [0], (1, 2, 4))
    check_strides(crops, [0, 1], (1,))
    for clips, strides in (([0, 1], (1, 2)), ([0], (1, 8))):
        with pytest.raises(UserError, match="frames in a row"):
            check_strides(crops, clips, strides)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_body_file: Path) -> Iterator[list[object]]:
    """The command on a device with units for bfloat16, whose times are written down; merging is slow on it. It was run
    once, with strides, beside its data."""

    def costs(network: Any, ways: Any, *, batch: int, dtype: torch.dtype, progress: Any) -> CostTable:
        name = str(dtype).removeprefix("torch.")
        slow = {way_of(each): 99.0 for each in ways if each.way == "merge"}
        found = table(dtype=name, batch=batch, reducing=slow, key=cost_key(network, batch, dtype, ways).sha256)
        half = {
            each: {count: value / 2 for count, value in getattr(found, each).items()} for each in ("attention", "mlp")
        }
        return replace(found, **half) if name == "bfloat16" else found

    crops = tmp_path_factory.mktemp("searched") / "crops.npz"
    write_crops(crops, tiny.crop_arrays(clips=36, frames=3), tiny.crop_meta())
    line = ["compress", tiny_model, "--data", crops, "--body", tiny_body_file, "--batch-size", 6, "--preset", "quick",
            "--quiet", "--budget-mm", 500]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "measure_costs", costs)
        patch.setattr(front, "fast_dtype", lambda device: torch.bfloat16)
        clock(patch, 1.5)
        done = hmr(*line, "--strides", "1,2", "-o", crops.with_name("fast"))
        assert done.exit_code == 0, done.output
        yield line


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """What timing by turns says, one after the other."""
    left = list(times)

    def timed(*args: Any, **more: Any) -> Any:
        now = left.pop(0) if len(left) > 1 else left[0]
        figures = {"fps": 1.0, "fps_quartiles": [1.0, 1.0], "speedup": now, "speedup_quartiles": [now, now]}
        return SimpleNamespace(figures=lambda *args, **more: figures)

    monkeypatch.setattr(front, "time_interleaved", timed)


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_choice_runs_as_it_was_chosen(line: list[object], tmp_path: Path) -> None:
    folder = Path(str(line[3])).with_name("fast")
    found = json.loads((folder / "frontier.json").read_text())
    assert read_model_folder(folder).config.run == RunSettings(dtype="bfloat16", stride=2, runtime="fast")
    assert "bfloat16, a stride of 2" in found["sentence"] and "3.00 times the speed" in found["sentence"]
    listed = found["not_faster"]
    assert listed and {each["by"] for each in listed} == {"table"} and all(each["macs"] < 1 for each in listed)
    assert all("(merge" in each["words"] and each["speed"] <= 1 for each in listed)
    assert not any("(merge)" in each["words"] for each in found["points"] if each["name"] == found["chosen"])
    wrong = hmr(*line, "--strides", "0", "-o", tmp_path / "fast")
    assert wrong.exit_code == 2 and "--strides" in wrong.output


def test_what_the_clock_refuses_gives_way_to_the_next(
    line: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured of errors is in a journal, so that the clock alone decides."""
    without_times(Path(str(line[3])).with_name("fast.journal.jsonl"), tmp_path / "fast.journal.jsonl")
    clock(monkeypatch, 0.9, 1.4)
    done = hmr(*line, "-o", tmp_path / "fast")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "fast" / "frontier.json").read_text())
    (refused,) = [each for each in found["not_faster"] if each["by"] == "turns"]
    assert found["speed"]["speedup"] == 1.4 and found["chosen"] != Candidate().key
    chosen = next(each for each in found["points"] if each["name"] == found["chosen"])
    assert chosen["words"] != refused["words"] and refused["macs"] < 1
