"""The pipeline from end to end on a video of tiny crops, against the network run on the crops themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder
import torch
from PIL import Image
from typer.testing import CliRunner

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.mask_files import FileMasks
from hmrcompress.data.masks import DataMasks, NoMasks
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import Notice, UserError
from hmrcompress.evaluation.decoded import decode
from hmrcompress.evaluation.timelines import observe
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.metrics.pose import network_outputs
from hmrcompress.models.network import HMR2
from hmrcompress.pipeline.boxes import FullFrame, read_boxes
from hmrcompress.pipeline.frames import Source, open_source
from hmrcompress.pipeline.predict import PredictSettings, Reader, predict
from hmrcompress.pipeline.profile import OTHER, profile
from hmrcompress.pipeline.starter_video import write_crop_video
from hmrcompress.plan import TokenSettings
from hmrcompress.records import HMROutput
from hmrcompress_cli.main import app

PLAIN = PredictSettings(batch_size=5, overlay=False, glb=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, tiny_crops: CropSet) -> Path:
    """Two people, six frames, lossless; boxes and masks beside it."""
    path = tmp_path_factory.mktemp("video") / "v.mkv"
    write_crop_video(path, tiny_crops, (0, 1), lossless=True)
    return path


@pytest.fixture(scope="module")
def reader(tiny_network: HMR2, tiny_body: BodyModel) -> Reader:
    return Reader(network_outputs(tiny_network), tiny_body, NoMasks(), torch.device("cpu"))


def run(video: Path, reader: Reader, out: Path, settings: PredictSettings = PLAIN) -> dict[str, np.ndarray]:
    predict(open_source(video), read_boxes(video.with_suffix(".boxes.npz")), reader, out, settings)
    with np.load(out / "params.npz") as file:
        return dict(file)


def direct(network: torch.nn.Module, crops: CropSet) -> HMROutput:
    """The network on the crops, frame by frame, the two people of each by turns."""
    rows = np.array([crops.frames_of(clip) for clip in (0, 1)]).T.reshape(-1)
    batch = next(crops.batches(rows, len(rows), DataMasks()))
    with torch.no_grad():
        return network(batch.images, batch.person_mask)


@pytest.mark.parametrize("overlapped", [True, False])
def test_bodies_are_those_of_the_crops(
    tmp_path: Path, video: Path, reader: Reader, tiny_network: HMR2, tiny_crops: CropSet, overlapped: bool
) -> None:
    made = run(video, reader, tmp_path / "out", replace(PLAIN, overlapped=overlapped))
    expected = direct(with_token_merging(tiny_network, None), tiny_crops)
    assert made["frame"].tolist() == np.repeat(np.arange(6), 2).tolist() and made["track"].tolist() == [0, 1] * 6
    for name in ("global_orient", "body_pose", "betas", "cam"):
        assert np.allclose(made[name], getattr(expected, name), atol=1e-4), name
    turned = torch.from_numpy(made["body_pose_axis_angle"]).double()
    from scipy.spatial.transform import Rotation

    again = Rotation.from_rotvec(turned.reshape(-1, 3)).as_matrix().reshape(made["body_pose"].shape)
    assert np.allclose(again, made["body_pose"], atol=1e-4)
    joints = reader.body(expected.params).joints.numpy()
    assert np.allclose(made["joints"], joints + made["transl"][:, None], atol=1e-3)
    assert made["run"].all() and (made["image_size"] == [576, 360]).all()
    assert json.loads(str(made["meta"]))["fps"] == 30.0


def test_masks_from_files_guide_token_merging(
    tmp_path: Path, video: Path, reader: Reader, tiny_network: HMR2, tiny_crops: CropSet
) -> None:
    merging = with_token_merging(tiny_network, TokenSettings(keep=90))
    masked = replace(reader, outputs=network_outputs(merging), masks=FileMasks(video.with_suffix(".masks")))
    made = run(video, masked, tmp_path / "out")
    assert np.allclose(made["body_pose"], direct(merging, tiny_crops).body_pose, atol=1e-4)
    blind = run(video, replace(masked, masks=NoMasks()), tmp_path / "blind")
    assert not np.allclose(made["body_pose"], blind["body_pose"], atol=1e-4)


def test_clips_are_decoded_as_in_eval(
    tmp_path: Path, video: Path, reader: Reader, tiny_network: HMR2, tiny_crops: CropSet
) -> None:
    """Every second frame through the network, the others by the decoder; the roots stand where its camera says."""
    decoder = TemporalDecoder(tiny_decoder.CONFIG, seed=1).eval().requires_grad_(False)
    codec = PoseCodec(reader.body)
    made = run(video, replace(reader, decoder=decoder, codec=codec, root_centred=True), tmp_path / "out",
               replace(PLAIN, stride=2))  # fmt: skip
    timelines = observe(network_outputs(tiny_network), tiny_crops, tiny_crops.stretches())
    for track, timeline in enumerate(timelines):
        rows = made["track"] == track
        expected = decode(timeline.every(2), decoder, codec)
        assert np.allclose(made["body_pose"][rows], expected.body_pose, atol=1e-3)
        assert made["run"][rows].tolist() == [True, False] * 3
    shift = made["joints"][:, 0] - made["transl"]
    rest = reader.body.rest_joints(torch.from_numpy(made["betas"]))[:, 0].numpy()
    assert np.allclose(shift, rest, atol=1e-5)
    depth = 2 * made["focal"] / (made["side"] * made["cam"][:, 0])
    assert np.allclose(made["joints"][:, 0, 2], depth, rtol=1e-5)


def test_a_video_gives_all_files_and_figures_that_add_up(tmp_path: Path, video: Path, reader: Reader) -> None:
    settings = PredictSettings(batch_size=4, limit=4)
    boxes = read_boxes(video.with_suffix(".boxes.npz"))
    out = tmp_path / "deep" / "out"
    for _ in range(2):  # what the command wrote before may be replaced
        summary = predict(open_source(video), boxes, reader, out, settings)
    assert {path.name for path in out.iterdir()} == {"params.npz", "overlay.mp4", "track.glb", "summary.json"}
    drawn = [frame.image for frame in open_source(out / "overlay.mp4").frames()]
    assert len(drawn) == 4 and drawn[0].shape == (360, 576, 3)
    assert (summary.frames, summary.tracks, summary.bodies, summary.network_crops) == (4, 2, 8, 8)
    assert 0 < summary.network_busy <= 1 and summary.reading_seconds < summary.seconds
    written = json.loads((out / "summary.json").read_text())
    assert written["bodies"] == 8 and written["body"] == "tiny"


def test_unrelated_pictures_are_read_one_by_one(tmp_path: Path, reader: Reader, tiny_crops: CropSet) -> None:
    """No track runs through them, nothing is filled in, and the overlay is a picture each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(tiny_crops.arrays["images"][number][:: 1 + number]).save(folder / f"p{number}.png")
    (tmp_path / "b.json").write_text(json.dumps([{"frame": i, "box": [0, 0, 90, 80]} for i in (0, 2)]))
    boxes = read_boxes(tmp_path / "b.json")
    with pytest.warns(Notice, match="b.json: no box on 1 of 3 frames: 1"):
        summary = predict(open_source(folder), boxes, reader, tmp_path / "out", PredictSettings())
    with np.load(tmp_path / "out" / "params.npz") as made:
        assert made["frame"].tolist() == [0, 2] and made["image_size"].tolist() == [[192, 256], [192, 86]]
    assert summary.frames == 3 and "track.glb" not in summary.files
    assert len(list((tmp_path / "out" / "overlay").iterdir())) == 3
    with pytest.raises(UserError, match="--stride"):
        predict(open_source(folder), boxes, reader, tmp_path / "no", PredictSettings(stride=2))


def test_faults_leave_nothing_behind(tmp_path: Path, video: Path, reader: Reader) -> None:
    def broken(batch: Any) -> HMROutput:
        made = reader.outputs(batch)
        return replace(made, betas=made.betas * torch.nan)

    with pytest.raises(UserError, match="frame 0: the network predicts NaN"):
        run(video, replace(reader, outputs=broken), tmp_path / "out")
    missing = replace(reader, masks=FileMasks(tmp_path))
    with pytest.raises(UserError, match="no such mask file"):
        run(video, missing, tmp_path / "out")
    (tmp_path / "b.json").write_text(json.dumps([{"frame": 99, "box": [0, 0, 9, 9]}]))
    with pytest.raises(UserError, match="nobody was found"):
        predict(open_source(video), read_boxes(tmp_path / "b.json"), reader, tmp_path / "out", PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds thesis\.txt"):
        run(video, reader, tmp_path / "mine")


def test_long_videos_are_read_as_they_are_needed(reader: Reader, tmp_path: Path) -> None:
    """Of a source of pictures without end no more is read ahead than the queues hold."""
    read: list[int] = []
    picture = np.zeros((64, 48, 3), np.uint8)

    class Endless(Source):
        def frames(self, limit: int | None = None) -> Any:
            from hmrcompress.pipeline.frames import Frame

            for number in range(10_000):
                read.append(number)
                yield Frame(number, picture, str(number))

    def stopping(batch: Any) -> HMROutput:
        if int(batch.frame[-1]) >= 20:
            raise UserError("enough")
        return reader.outputs(batch)

    source = Endless(Path("endless"), (), 30.0, None)
    with pytest.raises(UserError, match="enough"):
        predict(source, FullFrame(), replace(reader, outputs=stopping), tmp_path / "out", PLAIN)
    assert len(read) < 60


def test_a_profile_accounts_for_its_time(video: Path, reader: Reader) -> None:
    boxes = video.with_suffix(".boxes.npz")
    settings = PredictSettings(batch_size=4)
    found = profile(open_source(video), lambda: read_boxes(boxes), reader, settings)
    rows = found.rows()
    assert [row[0] for row in rows][:3] == ["decode", "detect", "crop"] and rows[-1][0] == OTHER
    assert sum(share for _, _, share, _ in rows) == pytest.approx(1)
    assert found.first.frames == 1 and found.summary.frames == 6
    figures = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert sum(each["ms_per_frame"] for each in figures["stages"].values()) == pytest.approx(figures["ms_per_frame"])


def test_the_commands(tmp_path: Path, video: Path, tiny_model: Path, tiny_body_file: Path) -> None:
    boxes = str(video.with_suffix(".boxes.npz"))
    common = [str(tiny_model), str(video), "--boxes", boxes, "--body", str(tiny_body_file), "--device", "cpu"]
    common += ["--limit", "2", "--no-glb"]
    figures = ["--json", str(tmp_path / "figures.json")]
    figures += ["--set", "predict.bvh=true"]
    done = CliRunner().invoke(app, ["predict", *common, "-o", str(tmp_path / "out"), "--no-overlay", *figures])
    assert done.exit_code == 0 and "2 frames, 2 people, 4 bodies" in done.output, done.output
    assert json.loads((tmp_path / "figures.json").read_text())["predict"]["bodies"] == 4
    assert len(list((tmp_path / "out" / "bvh").glob("track_*.bvh"))) == 2
    done = CliRunner().invoke(app, ["profile", *common, "--json", str(tmp_path / "profile.json")])
    assert done.exit_code == 0 and "decode again" in done.output, done.output
    assert json.loads((tmp_path / "profile.json").read_text())["profile"]["frames"] == 2
    for flags, fault in (
        (["--set", "predict.buckets=auto", "--masks", "none"], "need masks before the network runs"),
        (["--set", "predict.buckets=some"], "expected auto, list of int > 0 or null"),
        (["--masks", "data"], "come without masks"),
        (["--boxes", str(tmp_path / "no.json")], "no such file of boxes"),
    ):
        done = CliRunner().invoke(app, ["predict", *common, *flags, "-o", str(tmp_path / "no")])
        assert done.exit_code == 2 and fault in done.output, done.output
    masks = f"files:{video.with_suffix('.masks')}"
    done = CliRunner().invoke(
        app, ["predict", *common, "--set", "predict.buckets=[90,150]", "--masks", masks, "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
