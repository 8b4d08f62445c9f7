"""Boxes in other units, origins, resolutions, places, sizes and on other frames: refused, or told with the numbers."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.tables import rows
from PIL import Image
from typer.testing import CliRunner, Result

from hmrcompress.body.model import BodyModel
from hmrcompress.data.box_limits import LARGEST
from hmrcompress.data.formats import open_format
from hmrcompress.data.warp import crop
from hmrcompress.errors import UserError, hearing
from hmrcompress.pipeline.boxes import Box, FullFrame, read_boxes
from hmrcompress.pipeline.checked_boxes import MOST_PEOPLE, CheckedBoxes
from hmrcompress.pipeline.columns import columns_of
from hmrcompress.pipeline.frames import Frame
from hmrcompress.pipeline.tracks import Rows
from hmrcompress_cli.main import app

pytestmark = pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
SIZE = (192, 256)


@pytest.fixture(scope="module")
def folder(cases: Callable[[str], Path]) -> Path:
    return cases("boxes")


def frame(number: int, size: tuple[int, int] = SIZE) -> Frame:
    return Frame(number, np.zeros((size[1], size[0], 3), np.uint8), f"frame {number}")


def checked(
    path: Path, frames: int = 20, size: tuple[int, int] = SIZE, *, same_size: bool = True, whole: bool = True
) -> tuple[list[int], list[str]]:
    """Bodies on each frame of a video, and what is told. UserError as predict raises it."""
    with hearing() as told:
        boxes = CheckedBoxes(read_boxes(path), same_size=same_size)
        found = [len(boxes.boxes(frame(number, size))) for number in range(frames)]
        boxes.finish(whole=whole)
    return found, told


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("normalised.json", r"0.49, 0.52 with a side of 0.88, less than 2 pixels. Are these shares of the picture\?"),
        ("tiny.json", r"100.001, 100.001 with a side of 0.00133333, less than 2 pixels. Leave it out"),
        ("giant.json", r"0, 0 with a side of 2.66667e\+07, which no picture has pixels for"),
        ("side_1e12.json", r"5, 5 with a side of 1e\+12, which no picture"),
        ("side_1e300.json", r"5, 5 with a side of 1e\+300, which no picture"),
        ("centre_1e300.json", r"1e\+300, 1e\+300 with a side of 1e-300, which no picture"),
        ("nested.json", "not JSON .nested"),
        ("nested_box.json", "not JSON .nested"),
        ("zip_bomb.npz", "unfolds from 0.8 MB to 800 MB, which was not read"),
        ("outside.json", r"all of its 20 boxes lie beside the picture: a square around 2100, 2150 .* on 192x256"),
        ("other_resolution.json", r"frame 0: a square around 1900, 2650 with a side of 5400 on a picture of 192x256"),
        ("all_past.json", r"nobody was found .* past the end: 20 of its 20 boxes \(frames 100 to 119\)"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused_with_the_numbers(folder: Path, name: str, fault: str) -> None:
    """B18, B19, B27, C4, C6, D5, D8."""
    with pytest.raises(UserError, match=f"{name}: .*{fault}"):
        checked(folder / name)


def test_good_boxes_say_nothing(folder: Path) -> None:
    assert checked(folder / "good.json") == ([1] * 20, [])


def test_frames_without_boxes_and_boxes_past_the_end_are_told(folder: Path) -> None:
    """B20."""
    found, told = checked(folder / "one_based.json")
    assert found == [0] + [1] * 19
    assert (
        "1 of its 20 boxes (frame 20), as there are 20 frames, counted from 0; are its frames counted from 1?"
        in told[0]
    )
    assert told[1].endswith("one_based.json: no box on 1 of 20 frames: 0") and len(told) == 2
    found, told = checked(folder / "past_the_end.json")
    assert found == [1] * 20 and len(told) == 1
    assert "past the end: 30 of its 50 boxes (frames 20 to 49), as there are 20 frames, counted from 0" in told[0]
    assert checked(folder / "past_the_end.json", 5, whole=False)[1] == [], "a limit misses nothing"


def test_gaps_are_told_with_the_first_frames(tmp_path: Path) -> None:
    listed = [{"frame": number, "box": [40, 20, 150, 245]} for number in (0, 9, 19)]
    (tmp_path / "b.json").write_text(json.dumps(listed))
    assert checked(tmp_path / "b.json")[1] == [
        f"{tmp_path / 'b.json'}: no box on 17 of 20 frames: 1, 2, 3, 4, 5 and 12 more"
    ]


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ([150, 10, 400, 250], "boxes whose middle is outside of the picture: 20 (frame 0: a square around 275, 130"),
        ([-300, 20, -150, 250], None),
        ([4, 4, 70, 100], "no box reaches further than"),
        ([-30, 20, 150, 400], ""),
        ([0, 0, 192, 256], ""),
    ],
)
def test_doubtful_places_are_told(tmp_path: Path, box: list[float], told: str | None) -> None:
    """None: beside the picture, refused."""
    path = rows(tmp_path / "b.json", 20, box)
    if told is None:
        with pytest.raises(UserError, match="boxes lie beside the picture"):
            checked(path)
        return
    found, sentences = checked(path)
    assert found == [1] * 20 and len(sentences) == (1 if told else 0) and all(told in each for each in sentences)


def test_single_boxes_beside_the_picture_are_left_out_and_told(tmp_path: Path) -> None:
    listed = [{"frame": n, "track": t, "box": [40 + 400 * t, 20, 150 + 400 * t, 245]} for n in range(3) for t in (0, 1)]
    (tmp_path / "b.json").write_text(json.dumps(listed))
    found, told = checked(tmp_path / "b.json", 3)
    assert found == [1, 1, 1] and len(told) == 1
    assert (
        "boxes beside the picture, left out: 3 (frame 0: a square around 495, 132 with a side of 270 on 192x256"
        in told[0]
    )
    for number in range(3):
        Image.new("RGB", SIZE).save(tmp_path / f"{number}.png")
    elsewhere = [{"frame": n, "box": [900, 20, 999, 245]} for n in range(3)]
    (tmp_path / "e.json").write_text(json.dumps(elsewhere))
    with pytest.raises(UserError, match=r"e.json: all of its boxes lie beside the pictures \(frame 0"):
        checked(tmp_path / "e.json", 3, same_size=False)


def test_the_size_that_boxes_were_made_for_is_compared(tmp_path: Path) -> None:
    def file(size: tuple[int, int]) -> Path:
        centre, side = np.full((20, 2), 90.0), np.full(20, 200.0)
        np.savez(tmp_path / "b.npz", frame=np.arange(20), centre=centre, side=side, image_size=np.tile(size, (20, 1)))
        return tmp_path / "b.npz"

    assert checked(file(SIZE))[1] == []
    with pytest.raises(UserError, match="frame 0: its boxes are of a picture of 96x128, this one has 192x256"):
        checked(file((96, 128)))


def test_a_bound_on_people_is_told(tmp_path: Path) -> None:
    """The largest are read, in the order of the file."""
    rng = np.random.default_rng(0)
    side, count = rng.uniform(20, 200, 3 * MOST_PEOPLE), 3 * MOST_PEOPLE
    centre = rng.uniform(50, 150, (count, 2))
    np.savez(tmp_path / "b.npz", frame=np.zeros(count, int), track=np.arange(count), centre=centre, side=side)
    boxes = CheckedBoxes(read_boxes(tmp_path / "b.npz"), same_size=True)
    found = boxes.boxes(frame(0))
    assert [box.track for box in found] == sorted(np.argsort(-side)[:MOST_PEOPLE])
    with hearing() as told:
        boxes.finish(whole=True)
    assert (
        len(told) == 1
        and f"more than {MOST_PEOPLE} people, of whom the largest were read: 1 (300 on frame 0)" in told[0]
    )

    class Crowd:
        name = "plug-in"

        def boxes(self, frame: Frame) -> list[Box]:
            return [Box(track, (96.0, 128.0), 100.0) for track in range(MOST_PEOPLE + 1)]

    assert len(CheckedBoxes(Crowd(), same_size=False).boxes(frame(0))) == MOST_PEOPLE


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"frame": 1e30, "box": [0, 0, 9, 9]}, "frame: expected 1 whole numbers from 0 to 1,000,000,000"),
        ({"frame": -1, "box": [0, 0, 9, 9]}, "frame: expected 1 whole numbers"),
        ({"frame": 0, "track": 10**12, "box": [0, 0, 9, 9]}, "track: expected"),
        ({"frame": 0, "track": "7", "box": [0, 0, 9, 9]}, "track: got <U1, expected numbers"),
        ({"frame": True, "box": [0, 0, 9, 9]}, "frame: got bool, expected numbers"),
        ({"frame": 0, "box": [100, 100, 50, 80]}, "left, top, right, bottom. Of left, top, width, height add"),
        ({"frame": 0, "box": [[0, 0], [9, 9]]}, r"box: got shape \(1, 2, 2\)"),
        ({"frame": 0, "box": [0, 0, 9, None]}, "box: got object, expected numbers"),
        ({"frame": 0, "box": [0, 0, 9, 9], "centre": [9, 9], "side": 9}, "has box and centre, side, of which only one"),
        ({"frame": 0, "centre": [9, 9], "side": 0}, "with a side of 0, less than 2 pixels"),
        ({"frame": 0, "centre": [9, 9], "side": -50}, "with a side of -50, less than 2 pixels"),
        ({"frame": 0, "centre": [-2 * LARGEST, 9], "side": 50}, "which no picture has pixels for"),
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    (tmp_path / "b.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=f"b.json: .*{fault}"):
        read_boxes(tmp_path / "b.json")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    np.savez(tmp_path / "b.npz", frame=[0], centre=[[value, 9]], side=[50.0])
    with pytest.raises(UserError, match="centre: .*expected finite numbers"):
        read_boxes(tmp_path / "b.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C4: 0.8 MB took a gigabyte."""
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *of: pytest.fail("unpacked"))
    tracemalloc.start()
    with pytest.raises(UserError, match="unfolds from"):
        read_boxes(folder / "zip_bomb.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_crop_costs_no_more_than_its_picture() -> None:
    """C6, also below the bound: the blur before a large box of a small picture never ended."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (256, 192, 3), dtype=np.uint8)
    tracemalloc.start()
    made = crop(picture, np.array([96.0, 128.0]), LARGEST, antialias=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.shape == (256, 192, 3) and peak < 64 << 20
    wide = np.repeat(picture[:1], 40_000, axis=1).reshape(1, -1, 3)
    tracemalloc.start()
    crop(wide, np.array([1e6, 0.5]), LARGEST, antialias=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 << 20


def predicted(tiny_model: Path, body: Path, source: Path, out: Path, *more: str) -> Result:
    command = [
        "predict",
        str(tiny_model),
        str(source),
        "--body",
        str(body),
        "--no-overlay",
        "--no-glb",
        "--set",
        "predict.overlapped=false",
    ]
    return CliRunner().invoke(app, [*command, "--device", "cpu", "-o", str(out), *more])


def test_predict_writes_no_infinities(
    tiny_model: Path, tiny_body_file: Path, tmp_path: Path, folder: Path, cases: Callable[[str], Path]
) -> None:
    """B27, D8."""
    picture = cases("pictures") / "reference.png"
    for more, fault in (
        (["--boxes", str(folder / "centre_1e300.json")], "which no picture has pixels for"),
        (["--boxes", str(folder / "side_1e300.json")], "which no picture has pixels for"),
        (["--boxes", str(folder / "side_1e12.json")], "which no picture has pixels for"),
        (["--focal", "1e300"], "--focal: got 1e+300, expected pixels, 1 to 10,000,000"),
        (["--focal", "inf"], "--focal: got inf"),
        (["--focal", "nan"], "--focal: got nan"),
        (["--focal", "1e-300"], "--focal: got 1e-300"),
        (["--fps", "1e-300"], "--fps: got 1e-300"),
        (["--fps", "nan"], "--fps: got nan"),
    ):
        done = predicted(tiny_model, tiny_body_file, picture, tmp_path / "out", *more)
        assert done.exit_code == 2 and fault in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not (tmp_path / "out").exists()


def test_what_is_told_is_printed_and_written_down(tiny_model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", SIZE, (90, 80, 70)).save(source / f"{number}.png")
    boxes = rows(tmp_path / "b.json", 3, [40, 20, 150, 245], first=1)
    done = predicted(tiny_model, tiny_body_file, source, tmp_path / "out", "--boxes", str(boxes))
    assert done.exit_code == 0 and "3 frames, 1 person, 2 bodies" in done.stdout, done.output
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert [line.removeprefix("hmrcompress: ") for line in done.stderr.splitlines()] == notes and len(notes) == 2


def test_boxes_of_one_run_are_those_of_the_next(
    tiny_model: Path, tiny_body_file: Path, tmp_path: Path, cases: Callable[[str], Path]
) -> None:
    picture = cases("pictures") / "reference.png"
    assert predicted(tiny_model, tiny_body_file, picture, tmp_path / "one").exit_code == 0
    boxes = ["--boxes", str(tmp_path / "one" / "params.npz")]
    done = predicted(tiny_model, tiny_body_file, picture, tmp_path / "two", *boxes)
    assert done.exit_code == 0 and not done.stderr, done.output
    with np.load(tmp_path / "one" / "params.npz") as one, np.load(tmp_path / "two" / "params.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in one.files if name != "meta")
    done = predicted(tiny_model, tiny_body_file, cases("pictures") / "sizes" / "2.png", tmp_path / "three", *boxes)
    assert done.exit_code == 2 and "are of a picture of 192x256, this one has 400x300" in done.stderr, done.output


def test_figures_beyond_numbers_are_not_written(tiny_body: BodyModel) -> None:
    """Whatever they come from."""
    far = torch.tensor([[0.9, 0, 0], [-1e-9 / 200, 0, 0]], dtype=torch.float64)
    made = Rows(
        track=7,
        frame=torch.tensor([3, 4]),
        rotations=torch.eye(3).expand(2, 24, 3, 3),
        betas=torch.zeros(2, 10),
        cam=far,
        centre=torch.full((2, 2), 9.0),
        side=torch.full((2,), 200.0, dtype=torch.float64),
        size=torch.full((2, 2), 100),
        run=torch.ones(2, dtype=torch.bool),
        seconds=torch.zeros(2),
        segment=torch.zeros(2),
    )
    with pytest.raises(UserError, match="frame 4, track 7: transl is beyond what numbers hold"):
        columns_of(made, tiny_body, np.full(2, 1e30), root_centred=False)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"box": [0.2, 0.1, 0.8, 0.9]}, "less than 2 pixels. Are these shares"),
        ({"box": [0, 0, 2e7, 2e7]}, "which no picture has pixels for"),
        ({"centre": [5, 5], "side": 1e300}, "which no picture has pixels for"),
        ({"box": [2000, 2000, 2200, 2300]}, r"a box is beside its picture \(0.png: .* on 192x256"),
        ({"box": [-1e4, -1e4, 1e4, 1e4]}, r"a box is far larger than its picture \(0.png: .*192x256"),
    ],
)
def test_data_sets_refuse_the_same_boxes(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    """`images:` takes boxes of the user's, too: before a crop is cut."""
    Image.new("RGB", SIZE).save(tmp_path / "0.png")
    (tmp_path / "boxes.json").write_text(json.dumps([{"frame": 0, **row}]))
    with pytest.raises(UserError, match=f"boxes.json.*{fault}"):
        open_format(f"images:{tmp_path}")


def test_pictures_without_boxes_are_told(tmp_path: Path) -> None:
    pages = [Image.new("RGB", SIZE, (n, n, n)) for n in (1, 2)]
    for number in range(3):
        pages[0].save(tmp_path / f"{number}.tif", save_all=True, append_images=pages[1:])
    listed = [{"frame": number, "box": [40, 20, 150, 245]} for number in (0, 2)]
    (tmp_path / "boxes.json").write_text(json.dumps(listed))
    with hearing() as told:
        crops = open_format(f"images:{tmp_path}")
        assert told == [f"{tmp_path / 'boxes.json'}: no box on 1 of 3 pictures: 1.tif"]
        np.asarray(crops.arrays["images"])
    assert told[1:] == [f"{tmp_path / '0.tif'}: only picture 1 of 2 in it was read (perhaps others, too)"]


@pytest.mark.parametrize("box", [Box(0, (np.nan, 9.0), 50.0), Box(0, (9.0, 9.0), np.inf), Box(0, (9.0, 9.0), 0.0)])
def test_boxes_of_any_source_are_finite(box: Box) -> None:
    class Odd:
        name = "plug-in"

        def boxes(self, frame: Frame) -> list[Box]:
            return [Box(1, (9.0, 9.0), 9.0), box]

    with pytest.raises(UserError, match=r"plug-in: frame 3: Box\(track=0, .*expected finite"):
        CheckedBoxes(Odd(), same_size=False).boxes(frame(3))


def test_full_frames_are_never_doubtful() -> None:
    with hearing() as told:
        boxes = CheckedBoxes(FullFrame(), same_size=False)
        for number, size in enumerate(((4000, 30), (30, 4000), (1, 1), SIZE)):
            assert len(boxes.boxes(frame(number, size))) == 1
        boxes.finish(whole=True)
    assert told == []
