"""`hmrcompress search` and `eval` from end to end on the tiny world, and what they do with broken input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from test_search import DEPTH, deep_network
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.plan import Plan
from hmrcompress_cli.main import app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "deep"
    network = deep_network()
    write_model_folder(folder, network.state_dict(), network.config)
    return folder


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--device", "cpu")])


def refused(result: Result) -> str:
    """The one sentence of a command that refused its input."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("hmrcompress: ")
    return line


def test_search_merge_eval(model: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    """The search's figures come back in the evaluation of its result on the same frames, which is called a leak."""
    plan, out = tmp_path / "plan.yaml", tmp_path / "merged"
    common = ("--body", tiny_body_file, "--data", tiny_crops_file)
    done = hmr("search", model, *common, "-o", plan, "--tau", 0.05, "--keep-tokens", 150, "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.output
    assert f"{DEPTH - 1} evaluations" in done.stdout and f"{DEPTH} -> " in done.stdout
    record = Plan.read(plan).search
    assert record is not None and record.frames == 12 and (tmp_path / "plan.journal.jsonl").exists()
    again = hmr("search", model, *common, "-o", tmp_path / "again.yaml", "--tau", 0.05, "--keep-tokens", 150,
                "--journal", tmp_path / "plan.journal.jsonl")  # fmt: skip
    assert "(0 of them now)" in again.stdout
    assert (tmp_path / "again.yaml").read_bytes() == plan.read_bytes()

    hc.merge(model, plan, out)
    done = hmr("eval", out, *common, "--against", model, "--json", tmp_path / "e.json")
    assert done.exit_code == 0, done.output
    assert "warning: 12 of the 12 frames were searched or trained on" in done.stderr
    searched, figures = (json.loads((tmp_path / name).read_text()) for name in ("s.json", "e.json"))
    assert (
        list(figures["stages"]) == ["mean_pose", "baseline", "merged", "tokens_alone", "merged_tokens"]
        and figures["leak"] is True
    )
    assert figures["stages"]["baseline"]["mpjpe_mm"] == pytest.approx(record.base_mpjpe_mm, rel=1e-6)
    assert figures["stages"]["merged"]["mpjpe_mm"] == pytest.approx(record.final_mpjpe_mm, rel=1e-6)
    assert figures["layers"] == searched["layers"] == {"before": DEPTH, "after": len(Plan.read(plan).groups)}
    assert figures["tokens"]["counts"] == [192, 152, 150] and figures["macs"]["after"] < figures["macs"]["before"]
    for made, command in ((searched, "search"), (figures, "eval")):
        assert (made["schema"], made["command"], made["seed"], made["device"]) == (1, command, 0, "cpu")
        assert {"versions", "cpu"} <= set(made)
    for stage in ("mean pose", "baseline", "merged tokens"):
        assert re.search(rf"{stage} +\d+\.\d +\d+\.\d +\d+\.\d +\d+\.\d", done.stdout)


def test_searching_for_a_size(model: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    """The number of layers asked for, and what it took."""
    plan, figures = tmp_path / "plan.yaml", tmp_path / "figures.json"
    common = ("--body", tiny_body_file, "--data", tiny_crops_file, "--frames-per-clip", 3, "--json", figures)
    given = ("target=teacher", "cache_gb=0.0001", "layers=4")
    options = ("--method", "eclm", *(word for each in given for word in ("--set", f"search.{each}")))
    done = hmr("search", model, *common, "-o", plan, *options)
    assert done.exit_code == 0, done.output
    found = Plan.read(plan)
    assert found.search is not None and len(found.groups) == found.search.layers == 4
    assert (found.search.method, found.search.target, found.search.base_mpjpe_mm) == ("eclm", "teacher", 0.0)
    assert found.search.tau_mm == found.search.final_mpjpe_mm
    told = json.loads(figures.read_text())["search"]
    assert told["evaluations"] == len(told["candidates"])
    assert f"{DEPTH} -> 4 layers, 0.00 -> {told['final_mpjpe_mm']:.2f} mm" in done.stdout
    assert f"{told['counts']['applications']} layer applications" in done.stdout
    assert done.stdout.rstrip().endswith(str(plan)) and sorted(path.name for path in tmp_path.iterdir()) == [
        "figures.json", "plan.journal.jsonl", "plan.yaml",
    ]  # fmt: skip


def test_eval_of_a_checkpoint(model: Path, tiny_crops_file: Path, tiny_body_file: Path) -> None:
    base = ("eval", model, "--data", f"crops:{tiny_crops_file}", "--body", tiny_body_file, "--limit", 6)
    done = hmr(*base, "--masks", "none")
    assert done.exit_code == 0 and "mean pose" in done.stdout and "baseline" in done.stdout
    assert "6 frames of 2 clips" in done.stdout
    quiet = hmr(*base, "--quiet")
    assert quiet.exit_code == 0 and quiet.output == ""


def test_another_checkpoint_than_the_one_it_was_made_from_is_refused(
    model: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path
) -> None:
    other = write_model_folder(tmp_path / "other", tiny.network().state_dict(), tiny.CONFIG).path
    plan = {
        "schema": 1, "checkpoint": hc.load(model).reference.model_dump(), "groups": [[0, 1], [2], [3], [4], [5, 6]],
        "merge_rule": "mean", "tokens": None, "search": None,
    }  # fmt: skip
    hc.merge(model, Plan.from_dict(plan), tmp_path / "merged")
    base = ("eval", tmp_path / "merged", "--data", tiny_crops_file, "--body", tiny_body_file, "--against")
    done = hmr(*base, other, "--json", tmp_path / "e.json")
    assert done.exit_code == 2 and "was made from" in done.stderr and "--against other: merged was" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "e.json").exists()
    assert hmr(*base, model).exit_code == 0


def broken_data(kind: str, folder: Path) -> Path:
    arrays: dict[str, Any] = tiny.crop_arrays()
    path = folder / "data.npz"
    if kind == "nan":
        arrays["images"] = (arrays["images"] / 255).astype(np.float32)
        arrays["images"][9, 10, 10, 1] = np.nan
    if kind == "keys":
        del arrays["poses"]
    np.savez(path, meta=json.dumps(tiny.crop_meta()), **arrays)
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:-1000])
    return folder / "nowhere.npz" if kind == "missing" else path


@pytest.mark.parametrize("command", ["search", "eval"])
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nan", "data.npz: images of tiny, clip 1, frame 3 hold NaN or infinity"),
        ("torn", "data.npz: not a readable npz"),
        ("keys", "data.npz: no array poses"),
        ("missing", "nowhere.npz: no such file"),
    ],
)
def test_broken_data(
    model: Path, tiny_body_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    command: str, kind: str, sentence: str,
) -> None:  # fmt: skip
    data = broken_data(kind, tmp_path_factory.mktemp("data"))
    outputs = ("--json", tmp_path / "figures.json", *(("-o", tmp_path / "plan.yaml") if command == "search" else ()))
    assert sentence in refused(hmr(command, model, "--data", data, "--body", tiny_body_file, *outputs))
    assert list(tmp_path.iterdir()) == []


def test_masks_of_another_size(
    model: Path, tiny_crops: CropSet, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for clip, frame in zip(tiny_crops.clip, tiny_crops.frame, strict=True):
        Image.new("L", (256, 256)).save(masks / f"{clip:04d}_{frame:06d}.png")
    line = refused(
        hmr("search", model, "--data", tiny_crops_file, "--body", tiny_body_file, "-o", tmp_path / "plan.yaml",
            "--with-tokens", "--masks", f"files:{masks}")
    )  # fmt: skip
    assert "0000_000001.png: the mask is 256x256 pixels, expected 192x256" in line or "0000_000000.png" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks"]


def test_wrong_options(model: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    base = ("search", model, "--data", tiny_crops_file, "--body", tiny_body_file, "-o", tmp_path / "plan.yaml")
    for options, sentence in {
        ("--method", "magic"): "expected one of eclm",
        ("--merge-rule", "magic"): "expected one of eq4",
        ("--set", "search.target=magic"): "input should be 'truth' or 'teacher'",
        ("--set", "search.layers=99"): f"expected 1 … {DEPTH}",
        ("--dtype", "int8"): "expected one of float32",
        ("--tau", "nan"): "finite tau",
        ("--masks", "magic"): "expected data, self, none, auto, files:DIR or onnx:FILE",
        ("--set", "search.protocol=magic"): "expected one of starter24",
    }.items():
        assert sentence in refused(hmr(*base, *options))
    assert "is a folder" in refused(hmr(*base[:-1], tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_set_aside_journal_is_told(model: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    base = ("search", model, "--data", tiny_crops_file, "--body", tiny_body_file, "-o", tmp_path / "plan.yaml")
    assert hmr(*base, "--frames-per-clip", 1).exit_code == 0
    done = hmr(*base, "--frames-per-clip", 2)
    assert done.exit_code == 0 and "data and frames changed since, so it is now plan.journal.jsonl.1" in done.stderr


def test_a_folder_of_crops_serves_as_well(model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", tiny.crop_arrays(), tiny.crop_meta())
    done = hmr("eval", model, "--data", tmp_path / "crops", "--body", tiny_body_file)
    assert done.exit_code == 0, done.output
