"""Videos as telephones, browsers, taggers and broken downloads leave them, against what their makers put into them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny_decoder
import torch
from cases.isobmff import ONE, box, boxes, display_matrices, full, set_display_matrix, shown, with_cover
from cases.scenes import grey, jpeg, person
from cases.videos import SIZE, UNEVEN, cut, encode, noisy
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp
from test_overlay_glb import read_glb
from typer.testing import CliRunner

from hmrcompress.body.model import BodyModel
from hmrcompress.data.masks import NoMasks
from hmrcompress.decoder.clips import decode_clip
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import Notice, UserError
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.pipeline import video_frames
from hmrcompress.pipeline.boxes import Box, FullFrame
from hmrcompress.pipeline.frames import Frame, Source, open_source
from hmrcompress.pipeline.predict import PredictSettings, Reader, predict
from hmrcompress.pipeline.stamps import StampLog, risen
from hmrcompress.pipeline.tracks import Prediction, Seen, TrackStream
from hmrcompress.pipeline.video_file import MOST_PIXELS
from hmrcompress.pipeline.work import Strides
from hmrcompress.records import FrameBatch, HMROutput
from hmrcompress_cli.main import app

Folder = Callable[[str], Path]
LOSSLESS = {"codec": "png", "pixels": "rgb24"}
"""In QuickTime files: what is read is what was drawn, bit for bit."""
PLAIN = PredictSettings(batch_size=8, overlay=False, glb=False)
SECONDS = np.array(UNEVEN) / 600


def read(path: Path, **options: Any) -> tuple[Source, list[Frame]]:
    source = open_source(path, **options)
    return source, list(source.frames())


def times(frames: list[Frame]) -> list[float]:
    return [float(frame.seconds) for frame in frames if frame.seconds is not None]


@pytest.fixture(scope="module")
def videos(cases: Folder) -> Path:
    return cases("videos")


def seen(batch: FrameBatch) -> HMROutput:
    """What a network might say that looks at the means of 12 parts of a crop: rotations of up to half a turn, which
    tell left from right and up from down."""
    parts = torch.nn.functional.adaptive_avg_pool2d(batch.images, (4, 3)).flatten(1)
    numbers = torch.cat([parts, parts.flip(1)], 1)
    turned = axis_angle_to_matrix(numbers.reshape(-1, 24, 3))
    features = numbers[:, : tiny_decoder.CONFIG.feature_dim]
    return HMROutput(turned[:, :1], turned[:, 1:], numbers[:, :10], 1 + 0.1 * numbers[:, :3].abs(), features)


@pytest.fixture(scope="module")
def reader(tiny_body: BodyModel) -> Reader:
    return Reader(seen, tiny_body, NoMasks(), torch.device("cpu"))


@pytest.fixture
def run(reader: Reader, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Predicts a whole picture a frame; the arrays of params.npz, its `meta`, the `summary`, and what was told."""

    def of(path: Path, settings: PredictSettings = PLAIN, reader: Reader = reader, **options: Any) -> dict[str, Any]:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            predict(open_source(path, **options), FullFrame(), reader, out, settings)
        with np.load(out / "params.npz") as file:
            made: dict[str, Any] = dict(file)
        made["meta"] = json.loads(str(made["meta"]))
        made["summary"] = json.loads((out / "summary.json").read_text())
        made["told"] = " | ".join(str(each.message) for each in told if issubclass(each.category, Notice))
        return made

    return of


# Which way up, which shape of pixels, which stream


@pytest.mark.parametrize("name", display_matrices(*SIZE))
@pytest.mark.parametrize("wide", [1, 2])
def test_pictures_are_turned_and_mirrored_as_players_show_them(tmp_path: Path, name: str, wide: int) -> None:
    """Lossless, all eight ways; with pixels twice as wide too, which are made longer before the picture is turned."""
    stored = person(192 // wide, 256)
    aspect = None if wide == 1 else Fraction(wide)
    plain = encode(tmp_path / "a.mov", 2, **LOSSLESS, size=(192 // wide, 256), aspect=aspect, picture=lambda _: stored)
    matrix = display_matrices(*SIZE)[name]
    (tmp_path / "b.mov").write_bytes(set_display_matrix(plain.read_bytes(), matrix))
    _, (first, _) = read(tmp_path / "b.mov")
    if wide == 1:
        assert np.array_equal(first.image, shown(stored, matrix))
    else:
        wanted = shown(np.repeat(stored, 2, axis=1), matrix)
        assert first.image.shape == wanted.shape
        assert np.abs(first.image.astype(int) - wanted).mean() < 4


def test_a_matrix_in_between_is_told_and_its_nearest_quarter_taken(tmp_path: Path) -> None:
    plain = encode(tmp_path / "a.mov", 1, **LOSSLESS).read_bytes()
    c, s = round(ONE * np.cos(np.pi / 6)), round(ONE * np.sin(np.pi / 6))
    slanted = (c, s, 0, -s, c, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mov").write_bytes(set_display_matrix(plain, slanted))
    source, (frame,) = read(tmp_path / "b.mov")
    assert np.array_equal(frame.image, person()) and "no multiple of 90 degrees" in source.notes()[0]
    (tmp_path / "c.mov").write_bytes(set_display_matrix(plain, (0,) * 9))
    source, (frame,) = read(tmp_path / "c.mov")
    assert np.array_equal(frame.image, person())


@pytest.mark.parametrize(
    ("aspect", "size", "expected"),
    [
        (Fraction(2), (96, 256), (192, 256)),
        (Fraction(1, 2), (192, 128), (192, 256)),
        (Fraction(16, 15), (180, 256), (192, 256)),
        (Fraction(1000, 999), (192, 256), (192, 256)),  # players round: too little to resample for
    ],
)
def test_pixels_are_made_square(tmp_path: Path, aspect: Fraction, size: tuple[int, int], expected: Any) -> None:
    """Made longer, never shorter; the person comes out as in the picture with square pixels."""
    whole, step = person(), (256 // size[1], 192 // size[0])
    small = whole[:: step[0], :: step[1]][: size[1], : size[0]]
    encode(tmp_path / "a.mov", 1, **LOSSLESS, size=size, aspect=aspect, picture=lambda _: np.ascontiguousarray(small))
    _, (frame,) = read(tmp_path / "a.mov")
    assert frame.size == expected
    if 2 in step:
        assert np.abs(grey(frame.image) - grey(whole)).mean() < 4
    if aspect == Fraction(1000, 999):
        assert np.array_equal(frame.image, small)


def test_absurd_pixels_are_told_and_taken_as_square(tmp_path: Path) -> None:
    encode(tmp_path / "a.mov", 1, **LOSSLESS, aspect=Fraction(20))
    source, (frame,) = read(tmp_path / "a.mov")
    assert frame.size == SIZE and "20 as wide as high" in source.notes()[0]


def test_turned_mirrored_and_wide_videos_give_the_bodies_of_upright_ones(
    tmp_path: Path, videos: Path, run: Callable[..., dict[str, Any]]
) -> None:
    """From end to end: the file says how `upright` is to be laid down, and what is seen is the same."""
    few = PredictSettings(limit=2, overlay=False, glb=False)
    plain = run(videos / "plain.mp4", few)
    for name in ("hflip", "transpose", "rot90"):
        made = run(videos / f"matrix_{name}.mp4", few)
        size = SIZE if name == "hflip" else SIZE[::-1]
        assert (made["image_size"] == size).all()
        matrix = display_matrices(*SIZE)[name]
        wanted = encode(tmp_path / "w.mov", 1, **LOSSLESS, size=size, picture=lambda _, m=matrix: shown(person(), m))
        assert np.abs(made["body_pose"][0] - run(wanted, few)["body_pose"][0]).max() < 0.05
        assert np.abs(made["body_pose"][0] - plain["body_pose"][0]).max() > 0.1
    made = run(videos / "wide_pixels.mp4", few)
    assert (made["image_size"] == SIZE).all()
    assert np.abs(made["body_pose"] - plain["body_pose"][:1]).max() < 0.05


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_no_video(tmp_path: Path, videos: Path, first: bool) -> None:
    green = np.zeros((100, 100, 3), np.uint8)
    (tmp_path / "a.mp4").write_bytes(with_cover((videos / "plain.mp4").read_bytes(), jpeg(green), first=first))
    source, frames = read(tmp_path / "a.mp4")
    assert len(frames) == 20 and frames[0].size == SIZE and source.fps == 30 and not source.notes()


def two_streams(path: Path, *sizes: tuple[int, int], default: int | None = None) -> Path:
    """A Matroska file with a stream of four frames of each size."""
    with av.open(str(path), "w") as file:
        streams = []
        for number, size in enumerate(sizes):
            stream = file.add_stream("ffv1", rate=30)
            stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else 0
            streams.append((stream, person(*size)))
        for stream, picture in streams:
            for packet in [p for _ in range(4) for p in stream.encode(av.VideoFrame.from_ndarray(picture))]:
                file.mux(packet)
        for stream, _ in streams:
            file.mux(stream.encode(None))
    return path


def test_of_several_videos_the_default_one_is_read_then_the_largest(tmp_path: Path) -> None:
    source, frames = read(two_streams(tmp_path / "a.mkv", (64, 48), (192, 256), (96, 128)))
    assert frames[0].size == (192, 256) and "3 videos, of which stream 1" in source.notes()[0]
    _, frames = read(two_streams(tmp_path / "b.mkv", (64, 48), (192, 256), default=0))
    assert frames[0].size == (64, 48)


# When


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_are_those_of_the_stream(videos: Path, run: Callable[..., dict[str, Any]], suffix: str) -> None:
    """To the unit of the file's clock: a millisecond in Matroska."""
    made = run(videos / f"uneven.{suffix}")
    assert made["time"].dtype == np.float64
    assert np.abs(made["time"] - SECONDS).max() <= (5.1e-4 if suffix == "mkv" else 1e-9)
    about = made["meta"]["time"]
    assert about == made["summary"]["time"] and about["base"] == "stamps"
    assert (about["first"], about["last"]) == (made["time"][0], made["time"][-1])
    assert about["shortest_step"] == pytest.approx(1 / 30, abs=1e-3)
    assert about["longest_step"] == pytest.approx(1 / 5, abs=1e-3)
    assert made["meta"]["fps"] == about["fps"] == pytest.approx(19 / SECONDS[-1], rel=1e-3)  # whatever the header says


def test_a_stated_rate_overrides_stamps_and_makes_times_of_pictures(
    tmp_path: Path, videos: Path, run: Callable[..., dict[str, Any]]
) -> None:
    made = run(videos / "uneven.mp4", fps=10.0)
    assert np.allclose(made["time"], np.arange(20) / 10) and made["meta"]["time"]["base"] == "fps"
    from PIL import Image

    (tmp_path / "p").mkdir()
    for number in range(3):
        Image.fromarray(person(shift=number)).save(tmp_path / "p" / f"{number}.png")
    made = run(tmp_path / "p", fps=4.0)
    assert made["time"].tolist() == [0, 0.25, 0.5] and made["meta"]["time"]["base"] == "fps"
    made = run(tmp_path / "p")
    assert "time" not in made and made["meta"]["time"] == {"base": "none"}


def spread(rotations: np.ndarray, at: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(K,J,3,3) at seconds (K,) -> (T,J,3,3) at `wanted` (T,), each joint by scipy's slerp."""
    return np.stack(
        [Slerp(at, Rotation.from_matrix(joint))(wanted).as_matrix() for joint in rotations.swapaxes(0, 1)], 1
    )


def test_frames_in_between_are_interpolated_by_their_times(videos: Path, run: Callable[..., dict[str, Any]]) -> None:
    every = run(videos / "uneven.mp4")
    made = run(videos / "uneven.mp4", PredictSettings(batch_size=8, stride=3, overlay=False, glb=False))
    ran = np.flatnonzero(made["run"])
    assert ran.tolist() == list(range(0, 20, 3))
    inside = slice(0, ran[-1] + 1)
    exact = every["body_pose"][ran].astype(np.float64)
    wanted = spread(exact, SECONDS[ran], SECONDS[inside])
    assert np.abs(made["body_pose"][inside] - wanted).max() < 1e-4
    evenly = spread(exact, ran.astype(float), np.arange(20.0)[inside])
    assert np.abs(wanted - evenly).max() > 1e-2  # or the test would not tell times from numbers
    for name in ("betas", "cam"):
        linear = np.stack([np.interp(SECONDS, SECONDS[ran], column) for column in every[name][ran].T], 1)
        assert np.abs(made[name] - linear).max() < 1e-5


@pytest.fixture(scope="module")
def decoding(reader: Reader) -> Reader:
    decoder = TemporalDecoder(tiny_decoder.CONFIG, seed=1).eval().requires_grad_(False)
    from dataclasses import replace

    return replace(reader, decoder=decoder, codec=PoseCodec(reader.body))


def features_of(decoding: Reader, path: Path) -> torch.Tensor:
    """What the network hands to the decoder on every frame of a video, (T,D)."""
    found: list[torch.Tensor] = []

    def kept(batch: Any) -> Any:
        made = decoding.outputs(batch)
        found.append(made.features)
        return made

    from dataclasses import replace

    out = path.parent / f"features-{path.stem}"
    predict(open_source(path), FullFrame(), replace(decoding, outputs=kept), out, PLAIN)
    return torch.cat(found)


def test_the_decoder_runs_on_even_steps(
    tmp_path: Path, videos: Path, decoding: Reader, run: Callable[..., dict[str, Any]]
) -> None:
    """Frames of uneven.mp4 lie on steps 0 to 10 and then on every sixth of a clip of 65 at 30 a second: decoded so, and
    as if each followed the last, the poses differ."""
    made = run(videos / "uneven.mp4", reader=decoding)
    steps = np.rint(SECONDS * 30).astype(int)
    path = tmp_path / "uneven.mp4"
    shutil.copy(videos / "uneven.mp4", path)
    features = features_of(decoding, path)
    decoder, codec = decoding.decoder, decoding.codec
    assert decoder is not None and codec is not None
    spread_out, known = torch.zeros(65, features.shape[1]), torch.zeros(65, dtype=torch.bool)
    spread_out[steps], known[steps] = features, True
    betas = torch.from_numpy(made["betas"])
    wanted = codec.decode(decode_clip(decoder, spread_out, known)[steps], betas)
    assert np.abs(made["body_pose"] - wanted.body_pose.numpy()).max() < 1e-3
    packed = codec.decode(decode_clip(decoder, features), betas)
    assert np.abs(made["body_pose"] - packed.body_pose.numpy()).max() > 1e-2
    about = made["summary"]["time"]
    assert about["resampled"] and about["decoder_fps"] == 30 and "30 steps a second" in made["told"]


@pytest.mark.parametrize(("rate", "steps"), [(Fraction(25), 25), (Fraction(30000, 1001), 29.97), (Fraction(60), 30)])
def test_the_decoder_takes_rates_like_its_own_as_they_are(
    tmp_path: Path, decoding: Reader, run: Callable[..., dict[str, Any]], rate: Fraction, steps: float
) -> None:
    """Speeds of 0.75 to 1.33 it was trained on; 60 frames a second are put on 30 steps."""
    encode(tmp_path / "a.mp4", 16, rate=rate)
    made = run(tmp_path / "a.mp4", reader=decoding)
    about = made["summary"]["time"]
    assert about["decoder_fps"] == pytest.approx(steps, abs=0.01) and about["resampled"] == (rate == 60)
    features = features_of(decoding, tmp_path / "a.mp4")
    decoder, codec = decoding.decoder, decoding.codec
    assert decoder is not None and codec is not None
    if rate == 60:  # every second frame lies on a step, the others halfway
        on = decode_clip(decoder, torch.cat([features[::2], features[-1:]]))
        poses = torch.stack([on[:-1], (on[:-1] + on[1:]) / 2], 1).reshape(16, -1)
    else:
        poses = decode_clip(decoder, features)
    wanted = codec.decode(poses, torch.from_numpy(made["betas"])).body_pose.numpy()
    assert np.abs(made["body_pose"] - wanted).max() < 1e-3


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "size_changes.ts"])
def test_overlays_play_in_step_with_their_videos(
    videos: Path, tmp_path: Path, run: Callable[..., dict[str, Any]], name: str
) -> None:
    """Every frame at its time after the file's clock began, the same to the unit of that clock."""
    made = run(videos / name, PredictSettings(batch_size=8, glb=False))
    _, frames = read(tmp_path / "out" / "overlay.mp4")
    start = made["time"][0]
    assert len(frames) == 20 and np.abs(np.array(times(frames)) - (made["time"] - start)).max() < 2e-6
    assert {frame.size for frame in frames} == {SIZE}


def test_an_overlay_begins_when_its_video_does(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """The sound begins 0.5 s before the pictures, so a player shows nothing until then."""
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        pictures, sound = file.add_stream("libx264", rate=30), file.add_stream("pcm_s16le", rate=8000)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.options = *SIZE, "yuv420p", {"bf": "0"}
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        file.mux(sound.encode(silence))
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(person(), format="rgb24")
            frame.pts, frame.time_base = 15 + number, Fraction(1, 30)
            file.mux(pictures.encode(frame))
        for stream in (pictures, sound):
            file.mux(stream.encode(None))
    made = run(tmp_path / "a.mkv", PredictSettings(batch_size=8, glb=False))
    _, frames = read(tmp_path / "out" / "overlay.mp4")
    assert made["time"][0] == pytest.approx(0.5) and times(frames)[0] == pytest.approx(0.5, abs=1e-3)


def test_animations_have_keyframes_at_the_times(
    videos: Path, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    run(videos / "uneven.mp4", PredictSettings(batch_size=8, overlay=False))
    document, arrays = read_glb(tmp_path / "out" / "track.glb")
    keys = arrays[document["animations"][0]["samplers"][0]["input"]]
    assert np.allclose(keys, SECONDS, atol=1e-6)


@pytest.mark.parametrize(
    ("stamps", "expected", "told"),
    [
        ([0.0, 0.1, 0.2, 0.3], [0.0, 0.1, 0.2, 0.3], ""),
        ([-0.2, -0.1, 0.0, 0.1], [-0.2, -0.1, 0.0, 0.1], ""),
        ([5.0, 5.1, 9.0, 9.1], [5.0, 5.1, 9.0, 9.1], ""),  # a pause
        ([None, None, None], [0.0, 0.1, 0.2], "3 frames had no time stamp"),
        ([0.0, None, 0.2], [0.0, 0.1, 0.2], "1 frame had no time stamp"),
        ([0.0, 0.1, 0.1, 0.2], [0.0, 0.1, 0.101, 0.2], "1 frame with the time stamp of the frame before"),
        ([0.0, 0.1, 7.0, 0.3], [0.0, 0.1, 0.2, 0.3], "1 frame with a time stamp out of order"),
        ([0.0, 0.1, 0.05, 0.3], [0.0, 0.1, 0.2, 0.3], "1 frame with a time stamp out of order"),
        ([1.0, 1.1, 0.0, 0.1, 0.2], [1.0, 1.1, 1.2, 1.3, 1.4], "clock jumps, 1 time"),
        ([0.0, 0.1, 2e5, 2e5 + 0.1], [0.0, 0.1, 0.2, 0.3], "clock jumps, 1 time"),
        ([1e14, 1e14 + 0.125, 1e14 + 0.25], [0.0, 0.125, 0.25], "clock jumps, 1 time"),
        ([0.0] * 6, [0.0, 0.001, 0.002, 0.102, 0.202, 0.302], "3 frames had no time stamp"),
        ([0.3, 0.2], [0.3, 0.4], "1 frame with a time stamp out of order"),
    ],
)
def test_stamps_become_times_that_rise(stamps: list[float | None], expected: list[float], told: str) -> None:
    log = StampLog()
    made = list(risen([(stamp, number) for number, stamp in enumerate(stamps)], 0.1, log))
    assert [each.item for each in made] == list(range(len(stamps)))
    found = [each.seconds for each in made]
    assert found == pytest.approx(expected, abs=1e-6) and all(b > a for a, b in pairwise(found))
    assert told in " ".join(log.notes()) and bool(told) == bool(list(log.notes()))
    jumps = [each.item for each in made if each.jumped]
    assert jumps == ([2] if "jumps" in told and stamps[0] is not None and stamps[0] < 1e13 else [])


@given(st.lists(st.one_of(st.none(), st.floats(-1e16, 1e16), st.integers(-50, 50).map(lambda n: n / 10)), max_size=40))
def test_times_rise_whatever_the_stamps(stamps: list[float | None]) -> None:
    found = [each.seconds for each in risen([(stamp, None) for stamp in stamps], 1 / 30, StampLog())]
    assert len(found) == len(stamps) and np.isfinite(found).all() and all(b > a for a, b in pairwise(found))


def rewritten(path: Path, differences: list[int]) -> Path:
    """An MP4 whose frames lie so many ticks apart, by its table `stts` (ISO 14496-12 section 8.6.1), without an edit
    list."""
    entries = b"".join(struct.pack(">Ii", 1, each) for each in differences)
    table = full(b"stts", 0, 0, struct.pack(">I", len(differences)), entries)

    def rebuilt(data: bytes) -> bytes:
        out = b""
        for kind, whole in boxes(data):
            if kind == b"edts":
                continue
            if kind == b"stts":
                whole = table
            elif kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                whole = box(kind, rebuilt(whole[8:]))
            out += whole
        return out

    path.write_bytes(rebuilt(path.read_bytes()))
    return path


def test_repeated_stamps_of_variable_rates_are_told(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """As screen recorders write them; from end to end, with an overlay and an animation."""
    encode(tmp_path / "a.mp4", 6, options={"bf": "0"})
    rewritten(tmp_path / "a.mp4", [512, 0, 512, 5120, 512, 512])
    made = run(tmp_path / "a.mp4", PredictSettings(batch_size=8, stride=2))
    assert made["time"] == pytest.approx([0, 1 / 30, 1 / 30 + 0.001, 2 / 30, 12 / 30, 13 / 30], abs=1e-6)
    assert "1 frame with the time stamp of the frame before" in made["told"]
    assert made["told"].split(": ", 1)[1] in " ".join(made["summary"]["notes"])
    _, frames = read(tmp_path / "out" / "overlay.mp4")
    assert np.abs(np.array(times(frames)) - made["time"]).max() < 1e-4


def test_files_without_stamps_say_so(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    made = run(encode(tmp_path / "a.264", 5, form="h264"))
    assert np.allclose(made["time"], np.arange(5) / 30) and made["meta"]["time"]["base"] == "fps"
    assert "has no time stamps" in made["told"] and "30 a second" in made["told"]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_avi_has_times_although_it_stores_those_of_decoding(tmp_path: Path, codec: str) -> None:
    source, frames = read(encode(tmp_path / "a.avi", 12, codec=codec, options={"bf": "2"}))
    assert np.allclose(np.diff(times(frames)), 1 / 30) and not source.notes()


# How many, and how large


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_files_that_end_early_are_told_with_both_counts(
    videos: Path, run: Callable[..., dict[str, Any]], suffix: str
) -> None:
    made = run(videos / f"truncated.{suffix}")
    count = made["summary"]["frames"]
    assert count in (24, 25) and len(made["frame"]) == count
    if suffix == "ts":  # no header says how many; the last frame is torn
        assert "damaged in part" in made["told"]
    else:
        about = "about " if suffix == "mkv" else ""
        assert f"ends before its header says: {count} of {about}40 frames" in made["told"]


@pytest.mark.parametrize("name", ["a.avi", "a.flv", "a.wmv", "a.mov", "a.gif"])
def test_other_kinds_that_end_early(tmp_path: Path, name: str) -> None:
    """The whole file is not told of; three fifths of it are, with both counts where its head tells the other."""
    how: dict[str, dict[str, Any]] = {
        "a.avi": {"codec": "mpeg4"}, "a.flv": {"codec": "flv1"}, "a.wmv": {"codec": "wmv2"},
        "a.mov": {"container": {"movflags": "faststart"}}, "a.gif": {"codec": "gif", "pixels": "rgb8"},
    }  # fmt: skip
    encode(
        tmp_path / name,
        30,
        size=(64, 48),
        picture=lambda n: noisy(n)[:48, :64],
        options={"g": "1", "qmin": "5", "qmax": "5"},
        **how[name],
    )
    source, frames = read(tmp_path / name)
    assert len(frames) == 30 and not source.notes()
    source, frames = read(cut(tmp_path / name, tmp_path / f"cut-{name}", 0.6))
    assert 12 <= len(frames) < 30
    told = f"ends before its header says: {len(frames)} of {'' if name in ('a.avi', 'a.mov') else 'about '}30 frames"
    assert ("its end is missing" if name in ("a.gif", "a.wmv") else told) in source.notes()[0]
    assert len(list(source.frames(5))) == 5 and not source.notes()  # nobody looked


def test_a_movie_without_its_index_says_so(tmp_path: Path) -> None:
    """As most cameras write them, with the index at the end."""
    whole = encode(tmp_path / "a.mp4", 10, picture=noisy)
    with pytest.raises(UserError, match=r"cut\.mp4: its end is missing, and with it the index"):
        read(cut(whole, tmp_path / "cut.mp4", 0.9))


def test_movies_in_fragments_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    """As browsers record: no header counts frames."""
    how = {"options": {"bf": "0", "g": "5"}, "container": {"movflags": "frag_keyframe+empty_moov"}}
    whole = encode(tmp_path / "a.mp4", 20, picture=noisy, **how)
    source, frames = read(whole)
    assert len(frames) == 20 and not source.notes()
    source, frames = read(cut(whole, tmp_path / "cut.mp4", 0.6))
    assert 10 <= len(frames) < 15 and f"its end is missing; {len(frames)} frames could be read" in source.notes()[0]


@pytest.mark.parametrize(("hours", "told"), [(5, False), (20, True)])
def test_hours_without_a_frame(tmp_path: Path, run: Callable[..., dict[str, Any]], hours: int, told: bool) -> None:
    """A recorder that paused; and a clock that is not believed. Overlay and animation have the times."""
    encode(tmp_path / "a.mp4", 6, options={"bf": "0"})
    rewritten(tmp_path / "a.mp4", [512, 512, 15360 * 3600 * hours, 512, 512, 512])
    made = run(tmp_path / "a.mp4", PredictSettings(batch_size=8, stride=4))
    pause = 1 / 30 if told else 3600.0 * hours
    wanted = np.array([0, 1, 2, 2, 3, 4]) / 30 + np.array([0, 0, 0, 1, 1, 1]) * pause
    assert np.abs(made["time"] - wanted).max() < 1e-6 and ("clock jumps" in made["told"]) == told
    assert made["run"].tolist() == [True, False, False] * 2  # nothing is made up across the pause
    _, frames = read(tmp_path / "out" / "overlay.mp4")
    assert np.abs(np.array(times(frames)) - wanted).max() < 1e-6


def test_trimmed_videos_do_not_end_early(tmp_path: Path) -> None:
    """An edit list (ISO 14496-12 section 8.6.6) shows the frames from 5 to 15 of 20, as telephones trim."""
    plain = encode(tmp_path / "a.mp4", 20, options={"bf": "0"})

    def trimmed(data: bytes) -> bytes:
        out = b""
        for kind, whole in boxes(data):
            if kind == b"edts":
                edit = struct.pack(">IIiI", 1, 333, 5 * 512, ONE)
                whole = box(b"edts", full(b"elst", 0, 0, edit))
            elif kind in (b"moov", b"trak"):
                whole = box(kind, trimmed(whole[8:]))
            out += whole
        return out

    plain.write_bytes(trimmed(plain.read_bytes()))
    source, frames = read(plain)
    assert len(frames) == 10 and times(frames)[0] == pytest.approx(0) and not source.notes()


def test_damage_in_the_middle_is_counted_and_the_rest_read(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """The second of four pictures of a QuickTime file is overwritten: no frame of it, and times stay as they were."""
    path = encode(tmp_path / "a.mov", 4, **LOSSLESS, picture=lambda n: person(shift=n))
    data = bytearray(path.read_bytes())
    second = data.find(b"PNG", data.find(b"PNG") + 1)
    data[second : second + 40] = bytes(40)
    path.write_bytes(data)
    made = run(path)
    assert len(made["frame"]) == 3 and np.allclose(made["time"], np.array([0, 2, 3]) / 30)
    assert "1 piece could not be decoded" in made["told"]


class Unshowable:
    """A decoded frame that no picture can be made of."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self.frame, name)

    def to_ndarray(self, **_: Any) -> np.ndarray:
        raise ValueError("Conversion of this format is not supported")


def test_a_frame_that_cannot_be_shown_is_counted_and_the_rest_read(
    tmp_path: Path, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mov", 4, **LOSSLESS, picture=lambda n: person(shift=n))
    frames = video_frames._frames

    def second_unshowable(*given: Any) -> Iterator[Any]:
        return (Unshowable(each) if number == 1 else each for number, each in enumerate(frames(*given)))

    monkeypatch.setattr(video_frames, "_frames", second_unshowable)
    made = run(path)
    assert len(made["frame"]) == 3 and np.allclose(made["time"], np.array([0, 2, 3]) / 30)
    assert "1 piece could not be decoded" in made["told"]


@pytest.mark.parametrize("settings", [PredictSettings(batch_size=8), PredictSettings(batch_size=3, stride=4)])
def test_a_change_of_size_begins_a_new_segment(
    videos: Path, tmp_path: Path, run: Callable[..., dict[str, Any]], settings: PredictSettings
) -> None:
    """All 20 frames; bodies on either side are those of the halves by themselves; one overlay of one size."""
    made = run(videos / "size_changes.ts", settings)
    assert made["frame"].tolist() == list(range(20)) and made["segment"].tolist() == [0] * 10 + [1] * 10
    assert made["track"].tolist() == made["segment"].tolist() and made["meta"]["segments"] == 2
    assert made["image_size"][[0, -1]].tolist() == [[192, 256], [256, 192]]
    assert "its frames change their size, 1 time" in made["told"]
    assert np.allclose(np.diff(made["time"]), 1 / 30, atol=1e-6)
    _, frames = read(tmp_path / "out" / "overlay.mp4")
    assert len(frames) == 20 and {frame.size for frame in frames} == {SIZE}
    edge = frames[-1].image[:40].astype(int)
    assert edge.mean() < 8 and frames[-1].image[60:190].mean() > 40  # black above, the wide picture in the middle
    for number, name in enumerate(("one", "two")):
        alone = run(videos / "whole" / f"{name}.ts", settings)
        assert np.abs(alone["body_pose"] - made["body_pose"][made["segment"] == number]).max() < 1e-5


def test_a_sequence_of_pictures_of_two_sizes_has_two_segments(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    from PIL import Image

    (tmp_path / "p").mkdir()
    for number in range(4):
        size = SIZE if number < 2 else SIZE[::-1]
        Image.fromarray(person(*size)).save(tmp_path / "p" / f"{number}.png")
    made = run(tmp_path / "p", fps=10.0)
    assert made["segment"].tolist() == [0, 0, 1, 1] == made["track"].tolist()
    assert run(tmp_path / "p")["segment"].tolist() == [0] * 4


def test_tracks_of_a_file_do_not_cross_segments_nor_long_pauses() -> None:
    """The same number on either side, and a stride of 4: the network runs where each stretch begins."""
    strides = Strides(4)
    ran = [strides.run(n, 7, n / 10, int(n >= 6)) for n in range(12)]
    assert [n for n, each in enumerate(ran) if each] == [0, 4, 6, 10]
    strides = Strides(4)
    seconds = [0, 0.1, 0.2, 2.3, 2.4, 4.4]  # a pause of 2.1 s, and one of just 2
    ran = [strides.run(n, 7, at) for n, at in enumerate(seconds)]
    assert [n for n, each in enumerate(ran) if each] == [0, 3]
    stream = TrackStream(7, times=[0, 0.1, 0.2, 2.3, 2.4])
    given = [
        Seen(n, Box(7, (0.0, 0.0), 10.0), (64, 48), ran, at, 0)
        for n, (at, ran) in enumerate(zip([0, 0.1, 0.2, 2.3, 2.4], [1, 0, 0, 1, 0], strict=True))
    ]
    eyes = torch.eye(3).expand(24, 3, 3)
    made = [Prediction(torch.zeros(4), eyes, torch.full((10,), float(n)), torch.ones(3)) for n in range(5)]
    rows = stream.push(given, [each if seen.run else None for each, seen in zip(made, given, strict=True)])
    rows += stream.flush()
    assert torch.cat([each.betas for each in rows])[:, 0].tolist() == [0, 0, 0, 3, 3]  # held, not drawn towards 3


# Which files at all


def copied(folder: Path, name: str, source: Path) -> Path:
    shutil.copy(source, folder / name)
    return folder / name


@pytest.mark.parametrize(
    "name", ["clip:1.mp4", "-dash.mp4", "größe 走.mp4", "frame%d.mp4", "a*?[b].mp4", "http:x", "pipe:0"]
)
def test_any_name_is_a_path(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    copied(tmp_path, name, videos / "plain.mp4")
    monkeypatch.chdir(tmp_path)
    _, frames = read(Path(name))
    assert len(frames) == 20


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_that_are_no_text(tmp_path: Path, videos: Path) -> None:
    assert len(read(copied(tmp_path, os.fsdecode(b"b\xff.mp4"), videos / "plain.mp4"))[1]) == 20


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nbeside.ts\n#EXT-X-ENDLIST\n"
LISTS = {
    "a.m3u8": HLS,
    "hls.mp4": HLS,
    "bom.mkv": "\ufeff" + HLS,
    "concat.mp4": "ffconcat version 1.0\nfile 'beside.ts'\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "a.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
             "<BaseURL>beside.ts</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "a.pls": "[playlist]\nFile1=beside.ts\n",
    "a.asx": '<ASX version="3.0"><Entry><Ref href="beside.ts"/></Entry></ASX>',
    "text.txt": "beside.ts\n",
    "a.png.txt": "file:beside.ts",
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_other_files_are_refused(tmp_path: Path, videos: Path, name: str) -> None:
    copied(tmp_path, "beside.ts", videos / "playlists" / "beside.ts")
    (tmp_path / name).write_text(LISTS[name])
    with pytest.raises(UserError, match="names other files|not a picture or video"):
        read(tmp_path / name)


def test_the_lists_of_the_cases_are_refused_in_one_sentence(videos: Path) -> None:
    for name in ("video.m3u8", "concat.mp4"):
        with pytest.raises(UserError, match="a list that names other files or addresses, which are never opened"):
            read(videos / "playlists" / name)


def test_no_protocol_is_there_even_for_a_format_that_would_use_it(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hmrcompress.pipeline.video_file as video_file

    copied(tmp_path, "beside.ts", videos / "playlists" / "beside.ts")
    monkeypatch.setattr(video_file, "FORMATS", (*video_file.FORMATS, "hls", "concat"))
    monkeypatch.chdir(tmp_path)
    for name in ("a.m3u8", "concat.mp4"):
        (tmp_path / name).write_text(LISTS[name])
        with pytest.raises(UserError):
            read(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path: Path, videos: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        if path.name == "pipe":
            os.mkfifo(path)
        with pytest.raises(UserError, match="neither a file nor a folder"):
            open_source(path)


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_files_without_a_video_say_what_they_hold(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UserError, match="holds no video, only sound"):
        read(sound(tmp_path / "a.mkv"))
    empty = encode(tmp_path / "e.mp4", 1)
    data = empty.read_bytes()
    at = data.find(b"mdat") + 4
    length = struct.unpack(">I", data[at - 8 : at - 4])[0] - 8
    empty.write_bytes(data[:at] + bytes(length) + data[at + length :])
    with pytest.raises(UserError, match=r"e\.mp4: holds no frame that can be decoded"):
        read(empty)
    plain = (videos / "plain.mp4").read_bytes()
    cover = with_cover(plain, jpeg(person(64, 64)), first=True).replace(b"trak", b"free")
    (tmp_path / "song.m4a").write_bytes(cover)
    with pytest.raises(UserError, match="only a cover picture"):
        read(tmp_path / "song.m4a")
    (tmp_path / "nothing.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="not a picture or video that can be read"):
        read(tmp_path / "nothing.mp4")


def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UserError, match=r"huge\.y4m: its frames have 30000x30000 pixels, more than 36,000,000"):
        read(videos / "huge.y4m")

    def black(width: int, height: int) -> dict[str, Any]:
        return {"size": (width, height), "picture": lambda _: np.zeros((height, width, 3), np.uint8)}

    data = encode(tmp_path / "a.mkv", 1, codec="ffv1", pixels="gray", **black(2000, 256)).read_bytes()
    width, height = b"\xb0\x82\x07\xd0", b"\xba\x82\x01\x00"  # PixelWidth and PixelHeight (RFC 9559)
    assert data.count(width) == data.count(height) == 1
    large = data.replace(width, b"\xb0\x82\x4e\x20").replace(height, b"\xba\x82\x27\x10")
    (tmp_path / "b.mkv").write_bytes(large)
    with pytest.raises(UserError, match=r"b\.mkv: .*more than 36,000,000 pixels"):
        read(tmp_path / "b.mkv")
    encode(tmp_path / "wide.mov", 1, codec="png", pixels="gray", aspect=Fraction(8), **black(2000, 2500))
    with pytest.raises(UserError, match=f"16000x2500 pixels, more than {MOST_PIXELS:,}"):
        read(tmp_path / "wide.mov")


def test_tiny_frames_have_an_overlay_too(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    encode(tmp_path / "a.mov", 2, **LOSSLESS, size=(1, 33), picture=lambda _: np.zeros((33, 1, 3), np.uint8))
    made = run(tmp_path / "a.mov", PredictSettings(batch_size=8, glb=False))
    assert (made["image_size"] == [1, 33]).all()
    assert read(tmp_path / "out" / "overlay.mp4")[1][0].size == (2, 32)


@pytest.mark.parametrize("pixels", ["yuva420p", "yuv420p10le", "gray", "yuv444p"])
def test_other_kinds_of_pixels(tmp_path: Path, pixels: str) -> None:
    encode(tmp_path / "a.mkv", 2, codec="ffv1", pixels=pixels)
    _, frames = read(tmp_path / "a.mkv")
    assert len(frames) == 2 and np.abs(grey(frames[0].image) - grey(person())).mean() < 4


def test_the_commands_tell_and_go_on(
    tmp_path: Path, videos: Path, tiny_model: Path, tiny_body_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos)
    common = ["--body", str(tiny_body_file), "--device", "cpu"]
    for command, more in (("predict", ["-o", str(tmp_path / "out"), "--no-overlay", "--no-glb"]), ("profile", [])):
        more = [*more, "--json", str(tmp_path / f"{command}.json")]
        done = CliRunner().invoke(app, [command, str(tiny_model), "truncated.mp4", *common, *more])
        assert done.exit_code == 0 and done.stderr.count("24 of 40 frames could be read") == 1, done.output
        figures = json.loads((tmp_path / f"{command}.json").read_text())[command]
        assert figures["time"]["base"] == "stamps" and "24 of 40" in figures["notes"][0]
        done = CliRunner().invoke(app, [command, str(tiny_model), "playlists/concat.mp4", *common, *more])
        assert done.exit_code == 2 and "Give the video itself" in done.stderr and done.stderr.count("\n") == 1
    done = CliRunner().invoke(
        app,
        ["predict", str(tiny_model), "clip:1.mp4", *common, "-o", str(tmp_path / "out"), "--no-overlay", "--no-glb"],
    )
    assert done.exit_code == 0 and "20 frames, 1 person, 20 bodies" in done.output
