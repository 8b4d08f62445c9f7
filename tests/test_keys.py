"""Keys themselves: hashes of contents, and of the code that makes a result."""

import ast
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from kept import with_heads

from hmrcompress.body.model import BodyModel
from hmrcompress.data.annotations import Annotations
from hmrcompress.data.crops import CropSet
from hmrcompress.data.picture_sets import FilePictures
from hmrcompress.io import code, keys
from hmrcompress.io.keys import Key
from hmrcompress.live.searching import search_key
from hmrcompress.models.network import network_sha256
from hmrcompress.starter.data import dataset
from hmrcompress.starter.motion import procedural

ROOT = Path(__file__).parents[1] / "hmrcompress"


def test_everything_of_a_body_a_network_and_a_set_of_crops_is_in_its_hash(tiny_body: BodyModel) -> None:
    arrays = tiny.body_arrays()
    whole = body_of(arrays)
    assert whole.sha256 == body_of(arrays).sha256
    turned = {"f": arrays["f"][:, [0, 2, 1]], "leaf_vertices": arrays["leaf_vertices"][::-1].copy()}
    turned |= {name: _moved(arrays[name]) for name in ("v_template", "shapedirs", "J_regressor", "weights")}
    tree = arrays["kintree_table"].copy()
    tree[0, 23] = 0
    for name, other in {**turned, "kintree_table": tree}.items():
        assert body_of({**arrays, name: other}).sha256 != whole.sha256, name
    network = tiny.network()
    hashes = {network_sha256(network), network_sha256(with_heads(network, 4))}
    for tensor in network.state_dict().values():
        tensor += 1
        hashes.add(network_sha256(network))
    assert len(hashes) == 2 + len(network.state_dict())
    columns = tiny.crop_arrays(1, 3) | {
        "transl": np.zeros((3, 3), np.float32), "focal": np.ones(3, np.float32), "gender": np.zeros(3, np.int8),
        "conditions": np.zeros((3, 3), np.float32), "occluded": np.zeros(3, np.float32),
        "kind": np.zeros(3, np.int16), "keypoints": np.zeros((3, 19, 3), np.float32),
    }  # fmt: skip
    meta = tiny.crop_meta()
    found = [CropSet(columns, meta).contents_sha256(), CropSet(columns, {**meta, "fps": 25.0}).contents_sha256()]
    found += [CropSet(columns, {**meta, "protocol": "other"}).contents_sha256()]
    found += [
        CropSet(columns, meta).contents_sha256(np.arange(2)),
        CropSet(columns, meta).contents_sha256(np.arange(3)[::-1]),
    ]
    for name, values in columns.items():
        changed = values.copy()
        changed.reshape(3, -1)[1, 0] = 7 if name in ("clip", "frame") else changed.reshape(3, -1)[1, 0] == 0
        found.append(CropSet({**columns, name: changed}, meta).contents_sha256())
    assert len(set(found)) == len(found)
    assert CropSet(columns, {**meta, "name": "renamed"}).contents_sha256() == found[0]


def _moved(array: np.ndarray) -> np.ndarray:
    """The same rows, each elsewhere."""
    return np.roll(array, 5, axis=0)


def body_of(arrays: Mapping[str, np.ndarray]) -> BodyModel:
    parents = tuple(int(parent) if joint else -1 for joint, parent in enumerate(arrays["kintree_table"][0]))
    names = {
        "v_template": "v_template",
        "shapedirs": "shapedirs",
        "weights": "weights",
        "J_regressor": "joint_regressor",
    }
    return BodyModel(
        name="b", faces=arrays["f"], parents=parents, leaf_vertices=tuple(arrays["leaf_vertices"].tolist()),
        **{name: arrays[key] for key, name in names.items()},
    )  # fmt: skip


def test_pictures_are_in_the_hash_of_crops_that_are_cut_on_demand(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)

    def contents(turned: bool = False, rows: Any = None, **changes: Any) -> str:
        given = {
            "name": "d", "split": "", "fps": 30.0, "protocol": "starter24", "picture": np.array([0, 1]),
            "center": np.full((2, 2), 30.0), "side": np.full(2, 40.0), "sequence": ["s", "s"], "frame": np.arange(2),
            "pictures": FilePictures(tmp_path, ["a.png", "b.png"], turned=turned), "focal": np.full(2, 50.0),
        }  # fmt: skip
        return Annotations(**{**given, **changes}).crops("d").contents_sha256(rows)

    found = [contents(), contents(turned=True), contents(antialias=True), contents(rows=np.array([0]))]
    found += [contents(center=np.full((2, 2), 31.0)), contents(side=np.full(2, 41.0)), contents(focal=np.full(2, 51.0))]
    # Without focal lengths, of which conditions are made, a crop's box is in the hash all the same.
    boxes = {"center": np.full((2, 2), 31.0), "side": np.full(2, 41.0), "principal": np.full((2, 2), 40.0)}
    found += [contents(focal=None), *(contents(focal=None, **{name: value}) for name, value in boxes.items())]
    assert len(set(found)) == len(found) and contents() == found[0]
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "b.png")
    assert contents() != found[0] and contents(rows=np.array([0])) == found[3]


MADE_BY = {
    "search": ("searching/error.py", "searching/eclm.py", "merging/layers.py", "merging/tokens.py", "models/vit.py",
               "models/heads.py", "data/crops.py", "data/masks.py", "metrics/points.py", "body/model.py"),
    "live search": ("live/patching.py", "live/forwards.py", "live/blocks.py", "live/probing.py", "live/passes.py",
                    "searching/eclm.py", "merging/layers.py", "merging/tokens.py"),
    "int8 kernels": ("timing/int8_kernels.py", "timing/rounds.py", "models/fast/linear.py"),
    "features": ("training/features.py", "merging/tokens.py", "models/network.py", "models/probe.py", "data/crops.py"),
    "split": ("starter/scene/world.py", "starter/scene/filming.py", "starter/scene/camera.py",
              "starter/scene/shading.py", "render/raster.py",
              "starter/motion/gaits.py", "body/model.py"),
    "shards": ("starter/data/shards.py", "starter/scene/scene.py", "motion/augment.py", "starter/motion/procedural.py"),
    "motions": ("training/motions.py", "starter/motion/procedural.py", "motion/amass.py", "motion/augment.py"),
    "training": ("training/loop.py", "training/heal.py", "training/decoder_fit.py", "training/vae_fit.py",
                 "decoder/model.py", "models/vit.py", "merging/tokens.py", "data/crops.py"),
    "stage {stage}": ("recipe/stages.py", "api/search.py", "evaluation/evaluate.py", "timing/row_bench.py",
                      "searching/search.py", "exporting/onnx.py", "training/heal.py", "starter/scene/filming.py"),
    "row": ("recipe/bed.py", "evaluation/timelines.py", "decoder/clips.py", "merging/lstsq.py", "metrics/points.py"),
    "baseline": ("recipe/bed.py", "metrics/pose.py", "models/vit.py"),
    "rates": ("recipe/bed.py", "timing/row_bench.py", "timing/rounds.py", "models/vit.py"),
    "starter network": ("starter/network/train.py", "starter/network/step.py", "starter/data/shards.py",
                        "models/vit.py"),
    "costs": ("frontier/costs.py", "timing/rounds.py", "models/vit.py", "merging/tokens.py"),
    "compress": ("frontier/joint.py", "frontier/ledger.py", "merging/layers.py", "models/vit.py"),
    "predict": ("pipeline/predict.py", "pipeline/tracking.py", "pipeline/boxes.py", "pipeline/glb.py", "models/vit.py",
                "merging/tokens.py", "decoder/model.py", "body/model.py", "data/warp.py", "api/predict.py"),
    "starter-fast": ("starter/network/fast.py", "merging/layers.py", "models/files/folder.py"),
}  # fmt: skip
"""Every kind of result that is kept, and some of the files that make it."""


def kept_steps() -> dict[str, tuple[str, ...]]:
    """Steps in the sources, and the code that each of them names."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Key.of":
                step, named = (ast.unparse(each) for each in node.args)
                text = re.sub(r"^f?['\"]|['\"]$", "", step)
                namespace = {"CODE": ("recipe",), "MAKERS": dataset.MAKERS, "split": None}
                namespace["generate"] = procedural.generate
                namespace["code"] = signature(search_key).parameters["code"].default
                found[text] = tuple(eval(named, namespace))  # noqa: S307 - our own source
    return found


def test_every_kept_step_is_known_and_made_by_the_code_that_its_key_names() -> None:
    found = kept_steps()
    assert set(found) == set(MADE_BY)
    for step, files in MADE_BY.items():
        read = {path.relative_to(ROOT).as_posix() for path in code.sources(found[step])}
        assert set(files) <= read, step
    assert "render/overlay.py" not in {path.relative_to(ROOT).as_posix() for path in code.sources(found["split"])}


def test_hashes_of_values_serve_as_keys_nowhere_else() -> None:
    """Whoever keeps something makes a `Key`: a bare hash of values would escape the table."""
    users = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if "sha256_json(" in path.read_text()}
    parts_of_keys = {
        "frontier/ledger.py",
        "api/front_live.py",  # what a key holds beside the code of the user's file
        "api/front_healing.py",  # the name of a folder whose training has a key
        "exporting/opened.py",  # what stands for a network's weights in keys
        "io/hashes.py", "io/keys.py", "io/onnx_file.py", "io/seals.py", "data/mask_files.py", "data/onnx_masks.py",
        "models/files/decoder_part.py",
        "models/files/load.py", "models/network.py", "recipe/ablate.py", "recipe/bed.py", "searching/journal.py",
        "searching/search.py", "starter/data/clip_stream.py", "training/streams.py",
    }  # fmt: skip
    assert users == parts_of_keys


def test_sources_are_those_that_are_imported() -> None:
    """Against the syntax tree: whatever a file of a closure imports is in it."""
    read = code.sources(("recipe", "starter"))
    for path in read:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.startswith("hmrcompress.") and name != "hmrcompress.errors":
                    place = ROOT.joinpath(*name.split(".")[1:])
                    wanted = [each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()]
                    assert set(wanted) <= set(read), f"{path}: {name}"
    assert (
        ROOT / "models" / "families" / "tokenhmr.py" in read and ROOT / "data" / "format_3dpw.py" in read
    )  # named in texts
    assert not [path for path in code.sources(("metrics",)) if path.parent.name in ("recipe", "starter", "evaluation")]


def test_the_hash_of_code_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "hmrcompress"
    files = {
        "room/__init__.py": "", "room/a.py": "from hmrcompress.low import (\n    b,  # a comment\n    c as d,\n)\n",
        "low/__init__.py": "", "low/b.py": "import hmrcompress.base\n", "low/c.py": "N = 'hmrcompress.late.made:x'\n",
        "low/unread.py": "", "base.py": "from hmrcompress.errors import x\n", "errors.py": "", "late/made.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(code, "ROOT", root)
    read = {path.relative_to(root).as_posix() for path in code.sources(("room.a",))}
    assert read == {"room/a.py", "low/__init__.py", "low/b.py", "low/c.py", "base.py", "late/made.py"}

    def hashed() -> str:
        code.code_sha256.cache_clear()
        return code.code_sha256("room")

    before = hashed()
    for name in files:
        (root / name).write_text(files[name] + "# changed\n")
        assert (hashed() != before) == (name in read | {"room/__init__.py"}), name
        (root / name).write_text(files[name])
    assert hashed() == before
    with pytest.raises(ValueError, match="no module hmrcompress.nowhere"):
        code.sources(("nowhere",))
    code.code_sha256.cache_clear()


def test_code_versions_and_devices_are_in_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Key.of("step", ("io",), device=torch.device("cpu"))
    assert Key.of("step", ("io",), device=torch.device("cuda:1")).changed(before.inputs) == ["device"]
    assert Key.of("other", ("io",), device=torch.device("cpu")).sha256 != before.sha256
    with pytest.raises(TypeError, match="names contents"):
        Key.of("step", ("io",), masks=[Path("m.npz")])
    monkeypatch.setattr(keys, "code_sha256", lambda *names: "another")
    assert Key.of("step", ("io",), device=torch.device("cpu")).changed(before.inputs) == ["code"]
    monkeypatch.undo()
    for package in (np, torch):
        monkeypatch.setattr(package, "__version__", "another")
        assert Key.of("step", ("io",), device=torch.device("cpu")).changed(before.inputs) == ["versions"]
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], ""),
        (["a_b"], "a b"),
        (["a", "b"], "a and b"),
        (list("abc"), "a, b and c"),
        (list("abcdefg"), "a, b, c, d and 3 more"),
    ],
)
def test_names_in_a_sentence(names: list[str], sentence: str) -> None:
    assert keys.listed(names) == sentence
