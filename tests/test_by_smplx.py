"""`--body smplx:FOLDER`: each kind of file as smplx's own class poses it, which one is opened, and bad folders."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smplx
import tiny
import torch
from smplx.utils import Struct
from smplx.vertex_ids import vertex_ids
from test_checkpoints import Evil
from test_hands import model
from test_search_and_eval_commands import hmr, refused

from hmrcompress.api import opening
from hmrcompress.body.by_smplx import CLASSES, open_smplx
from hmrcompress.body.files import load_body
from hmrcompress.errors import MissingExtra, UserError
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.records import BodyParams

METRES = 1e-5
"""Ours folds the joint regressor into the shapes in float64, theirs computes in float32."""


def arrays_of(joints: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A body of so many joints on 120 vertices, with what smplx's classes want beside it."""
    rng = np.random.default_rng([seed, joints])
    parents = np.array([2**32 - 1, *(int(rng.integers(joint)) for joint in range(1, joints))])
    shapes = 400 if joints == 55 else 16
    return {
        "v_template": 0.3 * rng.normal(size=(120, 3)),
        "f": rng.integers(120, size=(60, 3)).astype(np.uint32),
        "shapedirs": 0.02 * rng.normal(size=(120, 3, shapes)),
        "posedirs": 0.01 * rng.normal(size=(120, 3, 9 * (joints - 1))),
        "J_regressor": rng.dirichlet(np.full(120, 0.1), joints),
        "weights": rng.dirichlet(np.full(joints, 0.1), 120),
        "kintree_table": np.stack([parents, np.arange(joints)]),
        **{f"hands_mean{side}": rng.normal(size=45) for side in ("", "l", "r")},
        **{f"hands_components{side}": rng.normal(size=(45, 45)) for side in ("", "l", "r")},
        "lmk_faces_idx": np.zeros(51, np.int64),
        "lmk_bary_coords": np.full((51, 3), 1 / 3),
    }


def file_of(joints: int, folder: Path, name: str = "NEUTRAL", seed: int = 0, end: str = ".npz") -> Path:
    path = folder / f"{CLASSES[joints]}_{'RIGHT' if joints == 16 else name}{end}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if end == ".npz":
        np.savez(path, **arrays_of(joints, seed))  # type: ignore[arg-type]
    else:
        path.write_bytes(pickle.dumps(arrays_of(joints, seed), protocol=2))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In smplx's layout, one kind in each folder of its own."""
    made = tmp_path_factory.mktemp("bodies")
    for joints, kind in CLASSES.items():
        file_of(joints, made / kind.lower())
    return made


def theirs(joints: int, path: Path, pose: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices and joints by smplx's own class, from axis-angles (B,joints,3)."""
    flat = {"use_pca": False, "flat_hand_mean": True}
    ids = dict.fromkeys(vertex_ids["smplh"], 0)
    root = {"betas": betas, "global_orient": pose[:, 0]}
    with np.load(path) as archive:
        data = Struct(**archive)
    if joints == 24:
        posed = smplx.SMPL(str(path), data_struct=data, vertex_ids=ids, batch_size=len(pose))(
            body_pose=pose[:, 1:].flatten(1), **root
        )
    elif joints == 16:
        posed = smplx.MANO(str(path), data_struct=data, batch_size=len(pose), **flat)(
            hand_pose=pose[:, 1:].flatten(1), **root
        )
    else:
        make: Any = smplx.SMPLH if joints == 52 else smplx.SMPLX
        body = make(str(path), ext="npz", batch_size=len(pose), **flat)
        body.vertex_joint_selector.extra_joints_idxs.zero_()  # this surface has no such vertices
        face = (
            {}
            if joints == 52
            else dict(zip(("jaw_pose", "leye_pose", "reye_pose"), pose[:, 22:25].unbind(1), strict=True))
        )
        hands = pose[:, 22 + len(face) :].flatten(1).chunk(2, dim=1)
        posed = body(
            body_pose=pose[:, 1:22].flatten(1), left_hand_pose=hands[0], right_hand_pose=hands[1], **face, **root
        )
    return posed.vertices.detach(), posed.joints[:, :joints].detach()


@pytest.mark.parametrize("joints", CLASSES)
def test_each_is_posed_as_by_smplx(folder: Path, joints: int) -> None:
    path = folder / CLASSES[joints].lower() / f"{CLASSES[joints]}_{'RIGHT' if joints == 16 else 'NEUTRAL'}.npz"
    body = open_smplx(f"smplx:{folder}", joints)
    assert body.num_joints == joints and body.num_betas == 10 and body.name == path.stem
    generator = torch.Generator().manual_seed(joints)
    pose, betas = 0.6 * torch.randn(4, joints, 3, generator=generator), torch.randn(4, 10, generator=generator)
    rotations = axis_angle_to_matrix(pose)
    ours = body(BodyParams(rotations[:, :1], rotations[:, 1:], betas))
    vertices, posed = theirs(joints, path, pose, betas)
    assert vertices.std() > 0.1
    assert (ours.vertices - vertices).abs().max() < METRES and (ours.joints - posed).abs().max() < METRES
    for name in (folder / CLASSES[joints].lower(), path):  # the folder of the one kind, and its file
        assert open_smplx(f"smplx:{name}").sha256 == body.sha256


def test_a_network_gets_the_body_that_it_predicts(folder: Path, tmp_path: Path) -> None:
    assert [opening.body_for(model(joints), f"smplx:{folder}").num_joints for joints in CLASSES] == [*CLASSES]
    assert opening.open_body(f"smplx:{folder}").num_joints == 24
    wide = opening.open_body(f"smplx:{folder}", joints=55, betas=16)
    assert wide.num_betas == 16 and torch.equal(wide.shapedirs[..., :10], open_smplx(f"smplx:{folder}", 55).shapedirs)
    file_of(55, tmp_path / "smplx")
    assert opening.open_body(f"smplx:{tmp_path}").num_joints == 55
    with pytest.raises(UserError, match=r"holds no SMPL_NEUTRAL.npz or .pkl.* predicts SMPL's 24 joints, no other"):
        opening.body_for(model(24), f"smplx:{tmp_path}")
    with pytest.raises(UserError, match="is an SMPL-X body .55 joints., expected an SMPL body"):
        opening.body_for(model(24), f"smplx:{tmp_path}/smplx/SMPLX_NEUTRAL.npz")


def test_pickles_are_read_and_never_executed(tmp_path: Path) -> None:
    file_of(24, tmp_path, end=".pkl")
    plain = file_of(24, tmp_path / "npz")
    assert open_smplx(f"smplx:{tmp_path}").sha256 == open_smplx(f"smplx:{plain}").sha256
    for joints in CLASSES:
        evil, target = arrays_of(joints), tmp_path / f"executed_{joints}"
        evil["evil"] = Evil(target)  # type: ignore[assignment]
        place = tmp_path / str(joints)
        path = file_of(joints, place, end=".pkl")
        path.write_bytes(pickle.dumps(evil))
        np.savez(place / "objects.npz", **{**evil, "evil": np.array([Evil(target)], dtype=object)})
        for given in (path, (place / "objects.npz").rename(path.with_suffix(".npz"))):
            try:
                assert open_smplx(f"smplx:{given}").num_joints == joints
            except UserError as error:
                assert given.suffix == ".pkl" and str(given) in str(error)
        assert not target.exists()


def test_what_is_wrong_is_said_in_a_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = arrays_of(52)
    del broken["hands_componentsl"]
    np.savez(tmp_path / "SMPLH_NEUTRAL.npz", **broken)  # type: ignore[arg-type]
    np.savez(tmp_path / "SMPL_MALE.npz", **(arrays_of(24) | {"weights": np.ones((120, 24))}))  # type: ignore[arg-type]
    (tmp_path / "hand.npz").write_bytes(b"")
    for name, fault in (
        ("nowhere", "no such folder"),
        ("hand.npz", "is named like none of smplx's files"),
        ("SMPLH_NEUTRAL.npz", "smplx cannot open it as SMPLH .*hands_componentsl"),
        ("SMPL_MALE.npz", "weights: row 0 sums to 24, expected 1"),
    ):
        with pytest.raises(UserError, match=fault):
            open_smplx(f"smplx:{tmp_path / name}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds none of SMPL_NEUTRAL, SMPLH_NEUTRAL, SMPLX_NEUTRAL, MANO_RIGHT, as"):
        open_smplx(f"smplx:{tmp_path / 'empty'}")
    monkeypatch.setitem(sys.modules, "smplx", None)
    with pytest.raises(MissingExtra, match=r"package smplx is not installed.*hmrcompress\[smplx\]"):
        open_smplx(f"smplx:{folder}")


def test_the_commands_take_it(tiny_model: Path, tiny_crops_file: Path, tmp_path: Path) -> None:
    """The figures are those of the same file without smplx, what smplx prints stays off the output, and protocols with
    a body for each sex find them."""
    arrays = tiny.body_arrays()
    arrays["posedirs"] = np.zeros((len(arrays["v_template"]), 3, 207))
    plain = tmp_path / "plain.npz"
    np.savez(plain, **arrays)  # type: ignore[arg-type]
    for sex, factor in (("NEUTRAL", 1.0), ("MALE", 1.1), ("FEMALE", 0.9)):
        (tmp_path / "smpl").mkdir(exist_ok=True)
        np.savez(tmp_path / "smpl" / f"SMPL_{sex}.npz", **arrays | {"v_template": factor * arrays["v_template"]})
    common = ("eval", tiny_model, "--data", tiny_crops_file, "--quiet", "--json")
    found = []
    for name, body in (("plain", plain), ("theirs", f"smplx:{tmp_path}")):
        done = hmr(*common, tmp_path / f"{name}.json", "--body", body)
        assert done.exit_code == 0 and "shape coefficients" not in done.output, done.output
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["stages"]["baseline"])
    assert found[1]["mpjpe_mm"] == pytest.approx(found[0]["mpjpe_mm"], rel=1e-5)
    assert found[1]["pve_mm"] == pytest.approx(found[0]["pve_mm"], rel=1e-5)
    assert "holds no SMPL_NEUTRAL" in refused(hmr(*common, "-", "--body", f"smplx:{os.sep}"))
    sexes = [opening.open_body(f"smplx:{tmp_path}", gender=sex) for sex in ("male", "female")]
    assert sexes[0].v_template.std() / sexes[1].v_template.std() == pytest.approx(1.1 / 0.9, rel=1e-4)
    assert load_body(plain).num_joints == 24
