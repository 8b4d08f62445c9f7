"""Other people's data sets: what is read is what was written, in every format, from search to eval."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import their_data
import tiny
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import hmrcompress as hc
from hmrcompress.data import picture_sets
from hmrcompress.data.crops import CropSet
from hmrcompress.data.formats import open_format, parse, recognise
from hmrcompress.data.provenance import picture_key
from hmrcompress.data.warp import crop
from hmrcompress.errors import UserError
from hmrcompress.metrics.points import PROTOCOLS
from hmrcompress.searching.search import SearchSettings

WRITERS = {
    "4dhumans": their_data.write_4dhumans,
    "camerahmr": their_data.write_camerahmr,
    "emdb": their_data.write_emdb,
    "3dpw": their_data.write_3dpw,
    "wds": their_data.write_wds,
    "images": their_data.write_images,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each data set is named on the command line."""
    found = {}
    for name, write in WRITERS.items():
        options = ""
        folder = tmp_path_factory.mktemp(name)
        path = write(folder)
        if name == "camerahmr":
            options = f",images={folder / 'pictures'}"
        found[name] = f"{name}:{path}{options}"
    return found


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return their_data.write_bodies(tmp_path_factory.mktemp("bodies"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hmrcompress.models.files.folder import write_model_folder

    path = tmp_path_factory.mktemp("model") / "tiny"
    write_model_folder(path, tiny.network().state_dict(), tiny.CONFIG, body="tiny")
    return path


PROTOCOL_OF = {
    "4dhumans": ("3dpw14-4dhumans", 19),
    "camerahmr": ("3dpw14-camerahmr", 17),
    "emdb": ("emdb24-kinematic", None),
    "3dpw": ("3dpw14-wham", 17),
    "wds": ("starter24", None),
    "images": ("starter24", None),
}


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "images"])
def test_every_format_through_search_merge_and_eval(
    made: dict[str, str], bodies: Path, model: Path, tmp_path: Path, name: str
) -> None:
    protocol, rows = PROTOCOL_OF[name]
    options: dict[str, Any] = {"body": str(bodies), "masks": "none", "device": "cpu"}
    options["regressor"] = bodies / f"regressor{rows}.npy" if rows else None
    settings = SearchSettings(tau_mm=1e6, frames_per_clip=2, batch_size=4)
    found = hc.search(model, made[name], journal=tmp_path / "journal.jsonl", settings=settings, **options)
    assert found.protocol == protocol
    hc.merge(model, found.plan, tmp_path / "merged")
    result = hc.evaluate(tmp_path / "merged", made[name], against=model, **options)
    scores = result.stages["merged"]
    assert scores.protocol == protocol and np.isfinite(scores.mpjpe_mm) and scores.mpjpe_mm > 1
    assert (scores.pve_mm is None) == (name == "4dhumans")
    crops = open_format(made[name])
    assert scores.n_frames == len(crops) and scores.n_clips == len(crops.clip_ids)
    # Two frames of each clip were searched on; exactly these, and whoever else is in their pictures, are told.
    assert crops.pictures is not None
    searched = {crops.pictures[row] for row in crops.sample(2)}
    assert result.leaked == sum(picture in searched for picture in crops.pictures) < len(crops)


def test_pictures_without_truth_are_searched_by_the_teacher(
    made: dict[str, str], bodies: Path, model: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"body": str(bodies / "SMPL_NEUTRAL.npz"), "masks": "none", "device": "cpu"}
    settings = SearchSettings(tau_mm=1e6, batch_size=4, target="teacher")
    found = hc.search(model, made["images"], journal=tmp_path / "journal.jsonl", settings=settings, **options)
    assert len(found.plan.groups) == 1
    with pytest.raises(UserError, match="without ground truth"):
        hc.evaluate(model, made["images"], **options)
    with pytest.raises(UserError, match="--set search.target=teacher"):
        hc.search(model, made["images"], journal=tmp_path / "other.jsonl", **options)


@pytest.mark.parametrize("name", WRITERS)
def test_formats_are_recognised(made: dict[str, str], name: str) -> None:
    kind, path, _ = parse(made[name])
    assert kind == name and recognise(path) == name


def expected_crop(crops: CropSet, root: Path, row: int, center: np.ndarray, side: float, **how: bool) -> None:
    assert crops.pictures is not None
    with Image.open(root / crops.pictures[row]) as image:
        whole = np.asarray(image)
    np.testing.assert_array_equal(crops.arrays["images"][row], crop(whole, center, side, **how))


def test_4dhumans(made: dict[str, str]) -> None:
    crops = open_format(made["4dhumans"])
    path = Path(made["4dhumans"].partition(":")[2])
    with np.load(path) as file:
        data = {key: file[key] for key in file.files if key != "extra_info"}
    assert crops.fps == 30 and [crops.clip_name(clip) for clip in crops.clip_ids] == [
        "imageFiles/downtown_walk_00/image:0",
        "imageFiles/office_call_00/image:0",
    ]
    assert crops.frame.tolist() == 2 * list(range(6)) and crops.clip.tolist() == 6 * [0] + 6 * [1]
    width, height = data["scale"][7]
    expected_crop(crops, path.parent, 7, data["center"][7], max(height, width * 256 / 192))
    np.testing.assert_allclose(crops.arrays["keypoints"], data["extra_keypoints_3d"][..., :3].astype(np.float32))
    (batch,) = crops.batches([7], 1)
    matrices = Rotation.from_rotvec(data["body_pose"][7].reshape(24, 3)).as_matrix()
    np.testing.assert_allclose(batch.params.rotations[0], matrices, atol=1e-5)
    np.testing.assert_array_equal(batch.params.betas[0], data["betas"][7])
    assert batch.condition is None and batch.gender is None


def test_one_number_is_the_side_of_a_4dhumans_box_of_equal_sides(tmp_path: Path) -> None:
    path = their_data.write_4dhumans(tmp_path)
    with np.load(path, allow_pickle=True) as file:
        data = {key: file[key] for key in file.files}
    np.savez(path, **(data | {"scale": data["scale"][:, :1], "has_body_pose": np.zeros(12)}))
    crops = open_format(f"4dhumans:{path}")
    expected_crop(crops, tmp_path, 3, data["center"][3], data["scale"][3, 0] * 256 / 192)
    assert not crops.has_truth and "keypoints" in crops.arrays


def test_camerahmr(made: dict[str, str]) -> None:
    crops = open_format(made["camerahmr"])
    _, path, options = parse(made["camerahmr"])
    with np.load(path, allow_pickle=True) as file:
        data = {key: file[key] for key in file.files}
    side = 200 * data["scale"][8]
    assert options.images is not None
    expected_crop(crops, options.images, 8, data["center"][8], side)
    (batch,) = crops.batches([8], 1)
    np.testing.assert_allclose(
        batch.params.rotations[0, :22], Rotation.from_rotvec(data["pose_cam"][8].reshape(22, 3)).as_matrix(), atol=1e-5
    )
    assert torch.equal(batch.params.rotations[0, 22:], torch.eye(3).expand(2, 3, 3))
    assert batch.gender is not None and batch.condition is not None
    assert batch.gender.tolist() == [1] and crops.arrays["gender"].tolist() == 6 * [1, 2]
    cx, cy = data["center"][8]
    expected = [(cx - their_data.WIDTH / 2) / 210, (cy - their_data.HEIGHT / 2) / 210, side / 210]
    np.testing.assert_allclose(batch.condition[0], expected, rtol=1e-5)


def test_emdb(made: dict[str, str]) -> None:
    crops = open_format(made["emdb"])
    root = Path(made["emdb"].partition(":")[2])
    assert [crops.clip_name(clip) for clip in crops.clip_ids] == ["P0/00_walk", "P1/14_climb"]
    assert crops.frame.tolist() == [0, 2, 3, 5, *range(6)] and crops.split == "emdb1"
    with open(root / "P0/00_walk/P0_00_walk_data.pkl", "rb") as file:
        data = pickle.load(file)
    left, top, right, bottom = data["bboxes"]["bboxes"][3]
    side = 1.2 * max(bottom - top, (right - left) * 256 / 192)
    expected_crop(crops, root, 2, np.array([(left + right) / 2, (top + bottom) / 2]), side)
    (batch,) = crops.batches([2], 1)
    seen = their_data.EXTRINSIC[:3, :3] @ Rotation.from_rotvec(data["smpl"]["poses_root"][3]).as_matrix()
    np.testing.assert_allclose(batch.params.global_orient[0, 0], seen, atol=1e-5)
    body = Rotation.from_rotvec(data["smpl"]["poses_body"][3].reshape(23, 3)).as_matrix()
    np.testing.assert_allclose(batch.params.body_pose[0], body, atol=1e-5)
    np.testing.assert_allclose(batch.params.betas[0], data["smpl"]["betas"], rtol=1e-6)
    assert crops.arrays["gender"].tolist() == 4 * [1] + 6 * [2]
    assert len(open_format(f"emdb:{root},subset=all")) == 16
    assert crops.pictures is not None and crops.pictures[2] == "P0/00_walk/images/00003.jpg"


def test_3dpw(made: dict[str, str]) -> None:
    crops = open_format(made["3dpw"])
    root = Path(made["3dpw"].partition(":")[2])
    name = "downtown_walk_00"
    assert [crops.clip_name(clip) for clip in crops.clip_ids] == [f"{name}_0", f"{name}_1"]
    assert crops.frame.tolist() == [*range(6), 0, 1, 4, 5] and crops.arrays["gender"].tolist() == 6 * [1] + 4 * [2]
    data = pickle.loads((root / f"sequenceFiles/test/{name}.pkl").read_bytes())
    x, y = data["poses2d"][1][4][:2]
    side = 1.2 * max(y.max() - y.min(), (x.max() - x.min()) * 256 / 192)
    expected_crop(crops, root, 8, np.array([(x.min() + x.max()) / 2, (y.min() + y.max()) / 2]), side)
    (batch,) = crops.batches([8], 1)
    pose = data["poses"][1][4].reshape(24, 3)
    seen = their_data.EXTRINSIC[:3, :3] @ Rotation.from_rotvec(pose[0]).as_matrix()
    np.testing.assert_allclose(batch.params.global_orient[0, 0], seen, atol=1e-5)
    np.testing.assert_allclose(batch.params.body_pose[0], Rotation.from_rotvec(pose[1:]).as_matrix(), atol=1e-5)
    np.testing.assert_allclose(batch.params.betas[0], data["betas"][1], rtol=1e-6)


def test_wds_is_read_in_place(made: dict[str, str]) -> None:
    path = Path(made["wds"].partition(":")[2])
    crops = open_format(made["wds"])
    assert crops.meta["left_out"] == {"without poses": 1} and len(crops) == 4
    assert sorted(file.name for file in path.parent.rglob("*")) == ["000000.tar"]  # nothing was unpacked
    assert not (path.parent.parent / "evil.txt").exists()
    with tarfile.open(path) as archive:
        entry = archive.extractfile("walk/000001.data.pyd")
        assert entry is not None
        (person,) = pickle.loads(entry.read())
        image = archive.extractfile("walk/000001.jpg")
        assert image is not None
        whole = np.asarray(Image.open(image))
    assert crops.pictures is not None
    row = crops.pictures.index("walk/000001.jpg")
    width, height = 200 * person["scale"]
    expected = crop(whole, person["center"], max(height, width * 256 / 192))
    np.testing.assert_array_equal(crops.arrays["images"][row], expected)
    np.testing.assert_allclose(crops.arrays["poses"][row], person["body_pose"].reshape(24, 3), rtol=1e-6)
    np.testing.assert_allclose(crops.arrays["keypoints"][row], person["keypoints_3d"][25:, :3], rtol=1e-6)


def test_images_ours_and_cocos_are_the_same(made: dict[str, str], tmp_path: Path) -> None:
    ours = open_format(made["images"])
    coco = open_format(f"images:{their_data.write_images(tmp_path, coco=True)}")
    root = Path(made["images"].partition(":")[2])
    expected_crop(ours, root, 2, np.array([51.0, 61.5]), 1.2 * max(93, 58 * 256 / 192), antialias=True)
    np.testing.assert_array_equal(ours.arrays["images"][:], coco.arrays["images"][:])
    assert not ours.has_truth and ours.frame.tolist() == list(range(6)) and len(ours.clip_ids) == 1


def test_pictures_are_decoded_when_they_are_needed_and_once_a_batch(
    made: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = picture_sets.FilePictures.open
    monkeypatch.setattr(
        picture_sets.FilePictures, "open", lambda self, number: opened.append(number) or real(self, number)
    )
    crops = open_format(made["3dpw"])
    assert opened == []
    batches = crops.batches([0, 6, 1], batch_size=2)  # frame 0 of both people, then frame 1
    next(batches)
    assert opened.count(0) == 2  # once for the crops, once (its header) for the condition
    assert 1 not in opened
    next(batches)
    assert 1 in opened


def test_options(made: dict[str, str]) -> None:
    kind, path, options = parse("4dhumans:a,b.npz,images=x,fps=25,antialias=on")
    assert (kind, str(path), str(options.images), options.fps, options.antialias) == (
        "4dhumans",
        "a,b.npz",
        "x",
        25,
        True,
    )
    for text, fault in {
        "4dhumans:a.npz,fps=0": "fps",
        "4dhumans:a.npz,antialias=maybe": "on or off",
        "4dhumans:a.npz,colour=red": "no option 'colour'",
        "wibble:a.npz": "no format wibble",
        "amass:DIR": "--motions",
        "nowhere.npz": "no such file",
        made["images"] + ",subset=all": "no option subset",
        made["emdb"] + ",subset=emdb3": "emdb1",
        made["3dpw"] + ",split=validation": "sequenceFiles/validation",
    }.items():
        with pytest.raises(UserError, match=fault):
            open_format(text)


def damaged(path: Path, **changes: Any) -> Path:
    """The npz with arrays replaced, or removed where None."""
    with np.load(path, allow_pickle=True) as file:
        data = {key: file[key] for key in file.files} | changes
    np.savez(path, **{key: value for key, value in data.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"center": None}, "no center"),
        ({"center": np.zeros((12, 1))}, "center: got shape"),
        ({"center": np.array([[1.0, 2.0]] * 11 + [None], dtype=object)}, "center: its rows differ"),
        ({"center": np.array(3.0)}, "center: expected a column"),
        ({"scale": None}, "no scale"),
        ({"scale": np.zeros((12, 0))}, "scale"),
        (
            {
                key: value[:0]
                for key, value in {
                    "imgname": np.array(["a"]),
                    "center": np.zeros((1, 2)),
                    "scale": np.zeros((1, 2)),
                    "personid": np.zeros(1),
                }.items()
            },
            "12 rows, the others 0|nobody",
        ),
        ({"center": np.full((12, 2), np.nan)}, "center of .*NaN"),
        ({"scale": np.zeros((12, 2))}, "side of "),
        ({"scale": np.array([["a", "b"]] * 12)}, "scale: got .*numbers"),
        ({"imgname": np.array(["../../etc/passwd"] * 12)}, "leads out"),
        ({"imgname": np.array(["nothing.jpg"] * 12)}, "images=DIR"),
        ({"imgname": np.arange(12)}, "expected text"),
        ({"personid": np.zeros(3, int)}, "3 rows"),
    ],
)
def test_faults_in_an_npz(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = damaged(their_data.write_4dhumans(tmp_path), **changes)
    with pytest.raises(UserError, match=fault):
        open_format(f"4dhumans:{path}")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('/tmp/hmrcompress-evil', 'w')",))


def test_hostile_pickles_are_refused_by_name(tmp_path: Path) -> None:
    for name, write, option in (("4", their_data.write_4dhumans, ""), ("e", their_data.write_emdb, "")):
        folder = tmp_path / name
        folder.mkdir()
        path = write(folder)
        if name == "4":
            damaged(path, imgname=np.array([_Evil()] * 12, dtype=object))
        else:
            (folder / "P0/00_walk/P0_00_walk_data.pkl").write_bytes(pickle.dumps(_Evil()))
        with pytest.raises(UserError, match="builtins.eval"):
            open_format(f"{path}{option}")
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        their_data._add(archive, "a.jpg", their_data.picture_bytes())
        their_data._add(archive, "a.data.pyd", pickle.dumps([_Evil()]))
    with pytest.raises(UserError, match="evil.tar: a.data.pyd.*builtins.eval"):
        open_format(f"wds:{path}")
    assert not Path("/tmp/hmrcompress-evil").exists()


def test_torn_files_and_pictures_say_so(tmp_path: Path) -> None:
    path = their_data.write_wds(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        open_format(f"wds:{path}")
    npz = their_data.write_4dhumans(tmp_path)
    picture = tmp_path / their_data.frames("imageFiles/downtown_walk_00")[2]
    picture.write_bytes(picture.read_bytes()[:500])
    crops = open_format(f"4dhumans:{npz}")
    with pytest.raises(UserError, match="image_00002.jpg: not a picture that can be read"):
        list(crops.batches([2], 1))
    picture.unlink()
    with pytest.raises(UserError, match="image_00002.jpg: there is no such picture"):
        list(crops.batches([2], 1))


def test_data_of_smpl_refuse_the_starter_body(made: dict[str, str], model: Path) -> None:
    with pytest.raises(UserError, match="made for SMPL"):
        hc.evaluate(model, made["emdb"], masks="none", device="cpu", protocol="starter24")


@pytest.mark.parametrize(
    ("name", "protocol", "body", "rows", "fault"),
    [
        ("3dpw", None, "", None, "regressor of 17 rows"),
        ("3dpw", None, "", 19, "regressor of 17 rows, got one of 19"),
        ("3dpw", None, "SMPL_NEUTRAL.npz", 17, "no SMPL_MALE, SMPL_FEMALE"),
        ("3dpw", "3dpw14-4dhumans", "", 19, "needs the keypoints of 4D-Humans"),
        ("4dhumans", "emdb24-kinematic", "", None, "do not say the gender"),
        ("4dhumans", "nonsense", "", None, "expected one of"),
    ],
)
def test_what_a_protocol_lacks_is_said(
    made: dict[str, str], bodies: Path, model: Path, name: str, protocol: str | None, body: str, rows: int, fault: str
) -> None:
    regressor = bodies / f"regressor{rows}.npy" if rows else None
    with pytest.raises(UserError, match=fault):
        hc.evaluate(
            model,
            made[name],
            protocol=protocol,
            body=str(bodies / body),
            regressor=regressor,
            masks="none",
            device="cpu",
        )


def test_every_default_protocol_is_one(made: dict[str, str]) -> None:
    for name, text in made.items():
        assert open_format(text).protocol == PROTOCOL_OF[name][0]
        assert PROTOCOL_OF[name][0] in PROTOCOLS


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("imageFiles/downtown_walk_00/image_00003.jpg", "downtown_walk_00/image_00003.png", True),
        ("P1/14_outdoor_climb/images/00000.jpg", "14_outdoor_climb/00000.jpg", True),
        ("P1/14_outdoor_climb/images/00000.jpg", "P1/15_other/images/00000.jpg", False),
        ("walk/00001.jpg", "walk/00002.jpg", False),
    ],
)
def test_pictures_are_known_across_readers(one: str, other: str, same: bool) -> None:
    assert (picture_key(one, "a") == picture_key(other, "b")) == same
