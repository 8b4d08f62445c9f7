"""Many inputs: what they stand for, what is left of them after whatever happened, and that each is as if alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from typer.testing import CliRunner, Result

from hmrcompress.api import predict_job
from hmrcompress.errors import Notice, UserError
from hmrcompress.pipeline import many, units
from hmrcompress.pipeline.inputs import find_inputs
from hmrcompress.pipeline.units import MANIFEST
from hmrcompress_cli.main import app

OLD = 1_000_000_000
"""Seconds since 1970: files are made so old that their times can be trusted."""


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiny.crop_arrays(1, 6)["images"][number]).save(path)
    os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures of the same name in two folders."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in" / "a.png", 0)
    picture(tmp_path / "in" / "deep" / "a.png", 1)
    return tmp_path


@pytest.fixture
def predict(tiny_model: Path, tiny_body_file: Path) -> Callable[..., Result]:
    """Runs the command on inputs, with whatever flags follow."""

    def run(*words: str) -> Result:
        common = ["--body", str(tiny_body_file), "--device", "cpu", "--no-overlay", "--no-glb"]
        return CliRunner().invoke(app, ["predict", str(tiny_model), *words, *common])

    return run


def manifest(out: Path = Path("out")) -> dict[str, dict[str, Any]]:
    return {unit["folder"]: unit for unit in json.loads((out / MANIFEST).read_text())["inputs"]}


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "params.npz") as file:
        return dict(file)


def written(out: Path = Path("out")) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/params.npz")}


def test_each_input_is_as_if_alone_and_what_is_done_is_left(here: Path, predict: Callable[..., Result]) -> None:
    done = predict("in/**/*.png", "-o", "out", "--json", "record.json")
    assert done.exit_code == 0, done.output
    found = manifest()
    assert {name: (unit["input"], unit["state"]) for name, unit in found.items()} == {
        "a": ("in/a.png", "done"), "a-2": ("in/deep/a.png", "done"),
    }  # fmt: skip
    record = json.loads(Path("record.json").read_text())["predict"]
    assert (record["inputs"], record["done"], record["done_before"], record["failed"]) == (2, 2, 0, 0)
    assert record["frames"] == record["bodies"] == 2 and [u["folder"] for u in record["units"]] == ["a", "a-2"]
    for name, unit in found.items():
        assert predict(unit["input"], "-o", f"alone-{name}").exit_code == 0
        alone, one = Path(f"alone-{name}", "params.npz"), Path("out", name, "params.npz")
        assert alone.read_bytes() == one.read_bytes(), "an input by itself gives the same bytes"
    assert not np.array_equal(arrays(Path("out/a"))["body_pose"], arrays(Path("out/a-2"))["body_pose"])
    before = written()
    (leftover := Path("out", ".a-hmrcompress-0123456789ab.part")).mkdir()  # of a run that was killed behind the result
    done = predict("in/**/*.png", "-o", "out", "--json", "record.json")
    assert done.exit_code == 0 and "2 of them before" in done.output and written() == before
    assert not leftover.exists()
    assert json.loads(Path("record.json").read_text())["predict"]["done_before"] == 2


def test_results_of_other_settings_are_not_taken_for_done(here: Path, predict: Callable[..., Result]) -> None:
    """Also where a run of other inputs with the new settings lay between."""
    assert predict("in/a.png", "in/deep/a.png", "-o", "out").exit_code == 0
    picture(here / "in" / "c.png", 3)
    assert predict("in/a.png", "in/c.png", "-o", "out", "--focal", "900").exit_code == 0
    assert predict("in/a.png", "in/deep/a.png", "-o", "out", "--focal", "900").exit_code == 0
    assert all((arrays(Path("out", name))["focal"] == 900).all() for name in ("a", "a-2"))


def test_what_changed_is_done_again_and_nothing_else(
    here: Path, predict: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By contents alone: times tell nothing here."""
    monkeypatch.setattr(units, "SETTLED", 1e9)
    inputs = ["in/a.png", "in/deep/a.png"]
    assert predict(*inputs, "-o", "out").exit_code == 0
    before = written()
    picture(here / "in" / "deep" / "a.png", 2)  # another picture of the same age
    assert predict(*inputs, "-o", "out").exit_code == 0
    assert written()["a"] == before["a"] and written()["a-2"] > before["a-2"]
    Path("out/a/params.npz").unlink()
    assert predict(*inputs, "-o", "out").exit_code == 0 and written()["a"] > before["a"]
    now = written()
    os.utime("in/a.png", (OLD + 5, OLD + 5))  # touched, and still the same
    assert predict(*inputs, "-o", "out").exit_code == 0 and written() == now
    done = predict(*inputs, "-o", "out", "--focal", "900")
    assert done.exit_code == 0 and "made anew, as settings changed since" in done.stderr, done.stderr
    assert all(written()[name] > now[name] for name in now) and (arrays(Path("out/a"))["focal"] == 900).all()
    now = written()
    assert predict(inputs[1], "in/*.nothing", "-o", "out").exit_code == 2
    picture(here / "in" / "c.png", 3)
    assert predict(inputs[1], "in/c.png", "-o", "out").exit_code == 0 and written()["a-2"] > now["a-2"]
    done = predict(inputs[0], "in/c.png", "-o", "out", "--focal", "900")
    assert done.exit_code == 0 and written()["a"] == now["a"], "other inputs' settings make nothing of it anew"


def test_failures_are_told_with_their_reasons_and_tried_again(here: Path, predict: Callable[..., Result]) -> None:
    (here / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    picture(here / "in" / "c.png", 3)
    done = predict("in/?.png", "-o", "out")
    assert done.exit_code == 3 and done.stderr.count("\n") == 1 and "Traceback" not in done.output
    assert "1 of 3 inputs failed: in/b.png: " in done.stderr, done.stderr
    found = manifest()
    assert [found[name]["state"] for name in "abc"] == ["done", "failed", "done"] and "in/b.png" in found["b"]["reason"]
    assert not Path("out/b").exists()
    before = written()
    picture(here / "in" / "b.png", 4)
    assert predict("in/?.png", "-o", "out").exit_code == 0 and manifest()["b"]["state"] == "done"
    assert {name: written()[name] for name in before} == before


def test_results_that_somebody_edited_are_left(here: Path, predict: Callable[..., Result]) -> None:
    assert predict("in/a.png", "in/deep/a.png", "-o", "out").exit_code == 0
    mine = Path("out/a/params.npz")
    mine.write_bytes(mine.read_bytes() + b"mine")
    edited = mine.read_bytes()
    done = predict("in/a.png", "in/deep/a.png", "-o", "out")
    assert done.exit_code == 3 and "params.npz" in done.stderr and mine.read_bytes() == edited
    assert predict("in/a.png", "in/deep/a.png", "-o", "out", "--overwrite").exit_code == 0
    assert mine.read_bytes() != edited
    Path("taken").mkdir()
    Path("taken", MANIFEST).write_text("{}")
    done = predict("in/a.png", "in/deep/a.png", "-o", "taken")
    assert done.exit_code == 2 and MANIFEST in done.stderr and Path("taken", MANIFEST).read_text() == "{}"
    assert predict("in/a.png", "in/deep/a.png", "-o", "in/a.png").exit_code == 2


def test_an_input_keeps_its_folder(here: Path, predict: Callable[..., Result]) -> None:
    """Whatever else is asked for, in whichever order; and also where it was moved."""
    assert predict("in/deep/a.png", "in/a.png", "-o", "out").exit_code == 0
    before = written()
    shutil.move("in/deep", "elsewhere")
    done = predict("in/a.png", "elsewhere/a.png", "-o", "out")
    assert done.exit_code == 0 and written() == before
    assert {name: unit["input"] for name, unit in manifest().items()} == {"a": "elsewhere/a.png", "a-2": "in/a.png"}
    picture(here / "A.jpg", 5)  # no other on a file system that ignores case
    assert predict("A.jpg", "in/a.png", "-o", "out").exit_code == 0
    assert manifest()["A-3"]["state"] == "done" and written()["a"] == before["a"]


def test_boxes_and_masks_by_input(here: Path, predict: Callable[..., Result]) -> None:
    for place, side in (("in", 50), ("in/deep", 90)):
        Path(place, "a.boxes.json").write_text(json.dumps([{"frame": 0, "box": [10, 10, 10 + side, 10 + 2 * side]}]))
    boxes = ["--boxes", "{folder}/{stem}.boxes.json"]
    assert predict("in/**/*.png", "-o", "out", *boxes).exit_code == 0
    first, second = arrays(Path("out/a")), arrays(Path("out/a-2"))
    assert second["side"][0] == pytest.approx(first["side"][0] * 9 / 5)
    before = written()
    Path("in/a.boxes.json").write_text(json.dumps([{"frame": 0, "box": [10, 10, 80, 150]}]))
    assert predict("in/**/*.png", "-o", "out", *boxes).exit_code == 0
    assert written()["a"] > before["a"] and written()["a-2"] == before["a-2"]
    Path("in/deep/a.boxes.json").unlink()
    done = predict("in/**/*.png", "-o", "out", *boxes)
    assert done.exit_code == 3 and "in/deep/a.boxes.json" in done.stderr
    done = predict("in/**/*.png", "-o", "no", "--boxes", "in/a.boxes.json")
    assert done.exit_code == 2 and "belongs to one input" in done.stderr and not Path("no").exists()
    done = predict("in/**/*.png", "-o", "no", "--masks", "data")
    assert done.exit_code == 2 and "come without masks" in done.stderr, "what is wrong with all is told once"


def test_what_inputs_stand_for(here: Path) -> None:
    for name in ("v/2.mp4", "v/10.MKV", "v/.hidden.mp4", "v/notes.txt", "odd/clip[1].mp4", "p/1.png"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(b"x")

    def paths(*words: str) -> list[str]:
        return list(map(str, find_inputs(words).paths))

    assert paths("v") == ["v/2.mp4", "v/10.MKV"] and not find_inputs(["v"]).single
    assert paths("p") == ["p"] and find_inputs(["p"]).single and find_inputs(["p/1.png"]).single
    assert not find_inputs(["p/*.png"]).single and not find_inputs(["p", "v"]).single
    assert paths("odd/clip[1].mp4") == ["odd/clip[1].mp4"], "a name that is there is meant as it is"
    with pytest.warns(Notice, match=r"v/\*: left out 1 name of neither pictures nor videos: v/notes\.txt"):
        assert paths("v/*") == ["v/2.mp4", "v/10.MKV"]
    assert paths("v/n*.txt") == ["v/notes.txt"], "an end that is named is meant, whatever it is"
    with pytest.warns(Notice, match="1 of the inputs is there twice"):
        assert paths("p/1.png", "p/*.png") == ["p/1.png"]
    for words, fault in (
        ((), "got no input"),
        (("nowhere.mp4",), "nowhere.mp4: no such file or folder"),
        (("nowhere/*.mp4",), "no picture, video or folder of pictures is called so"),
    ):
        with pytest.raises(UserError, match=fault):
            find_inputs(words)


def test_results_are_no_inputs(here: Path, predict: Callable[..., Result]) -> None:
    """A second run over the folder that also holds the results of the first."""
    assert predict("in/**/*.png", "-o", "in").exit_code == 0
    Path("in/a/overlay.mp4").write_bytes(b"mine, as it is not in the manifest")
    assert [str(path) for path in find_inputs(["in/**/*.png"]).paths] == ["in/a.png", "in/deep/a.png"]
    assert [str(path) for path in find_inputs(["in/**/*.mp4"]).paths] == ["in/a/overlay.mp4"]


def test_one_run_at_a_time(here: Path, predict: Callable[..., Result]) -> None:
    from hmrcompress.io.locks import alone_in

    with alone_in(Path("out")):
        done = predict("in/**/*.png", "-o", "out")
    assert done.exit_code == 2 and "out: another process writes there" in done.stderr


def test_what_nobody_touched_is_not_read_again(
    here: Path, predict: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert units.stamp_of([here / "in" / "a.png"]) == "", "it was made a moment ago, which times are too coarse for"
    monkeypatch.setattr(units, "SETTLED", -1.0)
    assert predict("in/**/*.png", "-o", "out").exit_code == 0
    before = written()
    read: list[Path] = []
    monkeypatch.setattr(many, "contents_of", lambda path: read.append(path) or units.contents_of(path))
    assert predict("in/**/*.png", "-o", "out").exit_code == 0 and read == [] and written() == before
    picture(here / "in" / "a.png", 0)  # the same again
    assert predict("in/**/*.png", "-o", "out").exit_code == 0
    assert read == [Path("in/a.png")] and written() == before


def test_an_input_that_changes_meanwhile_has_failed(
    here: Path, predict: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    do = predict_job.OpenJob.do

    def slowly(self: Any, order: many.Order, *given: Any) -> Any:
        made = do(self, order, *given)
        if order.number:
            picture(order.path, 5)
        return made

    monkeypatch.setattr(predict_job.OpenJob, "do", slowly)
    done = predict("in/**/*.png", "-o", "out")
    assert done.exit_code == 3 and "in/deep/a.png: was changed while it was read" in done.stderr
    monkeypatch.undo()
    os.chdir(here)
    before = written()
    assert predict("in/**/*.png", "-o", "out").exit_code == 0 and written()["a-2"] > before["a-2"]
    boxes = [here / "in" / "a.json", here / "in" / "deep" / "a.json"]
    for each in boxes:
        each.write_text('[{"frame": 0, "box": [10, 10, 60, 90]}]')

    def meddled(self: Any, order: many.Order, *given: Any) -> Any:
        made = do(self, order, *given)
        if order.number:
            boxes[1].write_text('[{"frame": 0, "box": [10, 10, 70, 90]}]')
        return made

    monkeypatch.setattr(predict_job.OpenJob, "do", meddled)
    monkeypatch.chdir(here)
    done = predict("in/**/*.png", "-o", "out", "--boxes", "{folder}/{stem}.json")
    assert done.exit_code == 3 and "1 of 2 inputs failed: in/deep/a.png: was changed" in done.stderr, done.stderr


def test_what_ends_the_process_comes_last(
    here: Path, predict: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input at which a process was killed is begun after the others; one that was interrupted keeps its place."""
    picture(here / "in" / "b.png", 2)
    begun: list[str] = []
    end: list[BaseException | None] = [None]
    do = predict_job.OpenJob.do

    def at(self: Any, order: many.Order, *given: Any) -> Any:
        begun.append(order.folder.name)
        if end[0] is not None:
            raise end[0]
        return do(self, order, *given)

    monkeypatch.setattr(predict_job.OpenJob, "do", at)
    end[0] = KeyboardInterrupt()
    assert predict("in/?.png", "-o", "out").exit_code == 130
    assert manifest()["a"]["state"] == "not begun" and "begun" not in manifest()["a"]
    write = units.Manifest.write
    monkeypatch.setattr(units.Manifest, "write", lambda self, now=False: None if begun[1:] else write(self, now=now))
    assert predict("in/?.png", "-o", "out").exit_code == 130  # as killed: nothing is written any more
    assert manifest()["a"]["begun"] == 1
    monkeypatch.setattr(units.Manifest, "write", write)
    end[0] = None
    assert predict("in/?.png", "-o", "out").exit_code == 0
    assert begun == ["a", "a", "b", "a"] and "begun" not in manifest()["a"]


@pytest.mark.slow
def test_killed_anywhere_the_next_run_goes_on(tmp_path: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    """SIGKILL before every 7th file event, with nothing and with other results there: the next run ends with the very
    bytes of one that was left alone, and leaves nothing else behind."""
    worker = [sys.executable, str(Path(__file__).with_name("many_worker.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    given = [str(tmp_path / "home"), str(tiny_model), str(tiny_body_file), "7"]
    (tmp_path / "home").mkdir()
    done = subprocess.run([*worker, *given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == [] and found["places"] > 30, found
