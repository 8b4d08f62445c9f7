"""What the fuzz test reads: a table of valid files and the readers that open them. A new reader is one line.

A target is `Target(name, make, read)`: `make(folder)` writes a valid file or folder and gives its path; `read(path)`
opens it, as a user would, and touches what is in it. Files are damaged by their suffix (`fuzz_mutations`).
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import scipy.sparse
import their_data
import tiny
import torch
from cases import hostile
from cases.isobmff import grid_picture
from cases.scenes import person
from cases.videos import encode
from foreign_pickles import foreign, python_2, sequence_3dpw, sequence_emdb
from PIL import Image
from test_amass import content as amass_arrays
from test_masks import write_archive, write_masks

from hmrcompress.body.files import load_body
from hmrcompress.body.pickled import convert_body
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.data.formats import open_format
from hmrcompress.data.masks import mask_source
from hmrcompress.data.pictures import decode_file
from hmrcompress.io.open_formats import convert_values
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.motion.amass import load_amass_segments
from hmrcompress.pipeline.boxes import read_boxes
from hmrcompress.pipeline.checked_boxes import CheckedBoxes
from hmrcompress.pipeline.detect import Detector
from hmrcompress.pipeline.frames import Frame, open_source
from hmrcompress.plan import CheckpointRef, Plan, TokenSettings
from hmrcompress.recipe.ablations import read_ablations
from hmrcompress.recipe.reading import read_recipe
from hmrcompress.report.results import read_tables
from hmrcompress.searching.error import Measured
from hmrcompress.searching.journal import Journal

SETTINGS = {"a": 1}


@dataclass(frozen=True)
class Target:
    """A kind of file: how to make a valid one, and how it is read."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    only: str = "*"
    """Which of the files are damaged, by their names."""
    helped: bool = False
    """Whether it runs in a helper process, which every case begins anew: seconds each."""


def crops() -> CropSet:
    return CropSet(tiny.crop_arrays(1, 3), tiny.crop_meta())


def checkpoint_content() -> dict[str, Any]:
    return {"state_dict": tiny.network().state_dict(), "epoch": 1, "hyper_parameters": {"cfg": {"lr": np.float64(0.1)}}}


def make_lightning(folder: Path) -> Path:
    with foreign("yacs.config.CfgNode") as (cfg,):
        content = checkpoint_content() | {"hyper_parameters": {"cfg": cfg({"MODEL": cfg({"x": 1})})}}
        torch.save(content, folder / "a.ckpt")
    return folder / "a.ckpt"


def make_legacy(folder: Path) -> Path:
    torch.save(checkpoint_content(), folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def make_safetensors(folder: Path) -> Path:
    safetensors.torch.save_file(tiny.network().state_dict(), folder / "a.safetensors")
    return folder / "a.safetensors"


def make_converted(folder: Path) -> Path:
    return convert_checkpoint(
        load_checkpoint(make_safetensors(folder), num_heads=2, head_heads=2), folder / "b"
    ).weights


def make_body_pickle(folder: Path) -> Path:
    arrays = tiny.body_arrays()
    with foreign("chumpy.ch.Ch") as (ch,):
        content = {key: arrays[key] for key in ("v_template", "f", "weights", "kintree_table")}
        content["shapedirs"] = ch(x=arrays["shapedirs"])
        content["J_regressor"] = scipy.sparse.csc_matrix(arrays["J_regressor"])
        (folder / "a.pkl").write_bytes(python_2(content))
    return folder / "a.pkl"


def make_pickle(content: Callable[[np.random.Generator], Any], way: int | None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made = content(np.random.default_rng(0))
        (folder / "a.pkl").write_bytes(python_2(made) if way is None else pickle.dumps(made, protocol=way))
        return folder / "a.pkl"

    return make


def make_crops(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_crops(folder / name, tiny.crop_arrays(1, 3), tiny.crop_meta())
        return folder / name

    return make


def make_amass(folder: Path) -> Path:
    np.savez(folder / "a.npz", **amass_arrays(40))
    return folder / "a.npz"


def plan() -> Plan:
    reference = CheckpointRef(family="hmr2", sha256="0" * 64, layers=4)
    return Plan(checkpoint=reference, groups=((0,), (1, 2), (3,)), tokens=TokenSettings())


def make_plan(folder: Path) -> Path:
    plan().write(folder / "plan.yaml")
    return folder / "plan.yaml"


def make_model(folder: Path) -> Path:
    write_model_folder(folder / "model", tiny.network().state_dict(), tiny.CONFIG, body="tiny")
    return folder / "model"


def make_masks(form: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "masks").mkdir()
        write_masks(folder / "masks", crops()) if form == "png" else write_archive(folder / "masks", crops(), form)
        return folder / "masks"

    return make


def make_journal(folder: Path) -> Path:
    journal = Journal(folder / "a.jsonl", SETTINGS)
    journal.add(((0,), (1,)), Measured(1.5, True), [1.0, 2.0])
    journal.add(((0, 1),), Measured(2.5, False))
    return folder / "a.jsonl"


def read_checkpoint(path: Path) -> Any:
    return sum(
        float(tensor.float().sum()) for tensor in load_checkpoint(path, num_heads=2, head_heads=2).state().values()
    )


def read_model(path: Path) -> Any:
    return sum(float(tensor.sum()) for tensor in load_checkpoint(path).state().values())


def read_body_pickle(path: Path) -> Any:
    return load_body(convert_body(path, path.parent / "converted.npz").path)


def read_pickle(path: Path) -> Any:
    return json.loads(convert_values(path, path.parent / "converted.npz").record_path.read_text())


def read_crops(path: Path) -> Any:
    return list(CropSet.open(path).batches(masks=mask_source("none"), truth=False))


def read_format(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        pictures = path.parent / "pictures"
        where = f",images={pictures}" if pictures.is_dir() else ""
        return list(open_format(f"{name}:{path}{where}").batches(masks=mask_source("none"), truth=False))

    return read


def read_masks(path: Path) -> Any:
    return list(crops().batches(masks=mask_source(f"files:{path}")))


def read_plan(path: Path) -> Any:
    return Plan.read(path).to_yaml()


def read_journal(path: Path) -> Any:
    return Journal(path, SETTINGS).get(((0, 1),))


def make_picture(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Image.fromarray(person(48, 64)).save(folder / name)
        return folder / name

    return make


def make_heic(folder: Path) -> Path:
    grid_picture(folder / "a.heic", person(192, 256))
    return folder / "a.heic"


def make_pictures(folder: Path) -> Path:
    (folder / "pictures").mkdir()
    for name in ("1.png", "2.jpg", "3.tif"):
        Image.fromarray(person(48, 64)).save(folder / "pictures" / name)
    return folder / "pictures"


def make_video(name: str, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: encode(folder / name, 4, size=(48, 64), **options)


def read_source(path: Path) -> Any:
    source = open_source(path)
    found = [(frame.size, frame.seconds, int(frame.image.sum())) for frame in source.frames(20)]
    return found, source.notes(), source.time()


def make_boxes(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        rows = [{"frame": n, "track": 0, "box": [2.0 + n, 3.0, 40.0, 60.0], "image_size": [48, 64]} for n in range(3)]
        columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        np.savez(folder / name, **columns) if name.endswith("npz") else (folder / name).write_text(
            json.dumps({"boxes": rows})
        )
        return folder / name

    return make


def read_box_file(path: Path) -> Any:
    checked = CheckedBoxes(read_boxes(path), same_size=True)
    found = [checked.boxes(Frame(number, np.zeros((64, 48, 3), np.uint8), "a")) for number in range(3)]
    checked.finish(whole=True, length=3)
    return found


def copied(name: str) -> Callable[[Path], Path]:
    """One of our own recipes."""
    return lambda folder: Path(shutil.copy(Path(__file__).parents[1] / "recipes" / name, folder / name))


def make_results(folder: Path) -> Path:
    """A shipped table of one of our own ablations, as of committed code."""
    (folder / "results").mkdir()
    shipped = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*.json"))[0]
    (folder / "results" / "a.json").write_text(shipped.read_text().replace('-dirty"', '"'))
    return folder / "results"


def make_detector(folder: Path) -> Path:
    return hostile.detector(folder / "a.onnx")


def make_segmenter(folder: Path) -> Path:
    return hostile.segmenter(folder / "a.onnx")


def read_detector(path: Path) -> Any:
    return Detector(path).boxes(Frame(0, np.zeros((64, 48, 3), np.uint8), "a"))


def read_segmenter(path: Path) -> Any:
    return list(crops().batches(masks=mask_source(f"onnx:{path}")))


TARGETS = (
    Target("checkpoint .ckpt", make_lightning, read_checkpoint),
    Target("checkpoint before torch 1.6", make_legacy, read_checkpoint),
    Target("checkpoint .safetensors", make_safetensors, read_checkpoint),
    Target("converted .safetensors", make_converted, read_checkpoint),
    Target("compressed model", make_model, read_model),
    Target("body npz", lambda folder: tiny.write_body(folder / "a.npz"), load_body),
    Target("body pkl", make_body_pickle, read_body_pickle),
    Target("3DPW pkl", make_pickle(sequence_3dpw, None), read_pickle),
    Target("EMDB pkl", make_pickle(sequence_emdb, 4), read_pickle),
    Target("crops npz", make_crops("a.npz"), read_crops),
    Target("crops folder", make_crops("crops"), read_crops),
    Target("AMASS npz", make_amass, load_amass_segments),
    Target("plan", make_plan, read_plan),
    Target("journal", make_journal, read_journal),
    Target("masks png", make_masks("png"), read_masks),
    Target("masks npz", make_masks("npz packed"), read_masks),
    Target("masks of runs", make_masks("json coco"), read_masks),
    Target("4D-Humans npz", their_data.write_4dhumans, read_format("4dhumans")),
    Target("CameraHMR npz", their_data.write_camerahmr, read_format("camerahmr")),
    Target("EMDB folder", their_data.write_emdb, read_format("emdb")),
    Target("3DPW folder", their_data.write_3dpw, read_format("3dpw")),
    Target("4D-Humans tar", their_data.write_wds, read_format("wds")),
    Target("pictures with boxes", their_data.write_images, read_format("images")),
    Target("config.json", make_model, read_model, "config.json"),
    Target("picture png", make_picture("a.png"), decode_file),
    Target("picture jpg", make_picture("a.jpg"), decode_file),
    Target("picture tif", make_picture("a.tif"), decode_file),
    Target("picture webp", make_picture("a.webp"), decode_file),
    Target("picture heic", make_heic, decode_file),
    Target("folder of pictures", make_pictures, read_source),
    Target("video mp4", make_video("a.mp4"), read_source),
    Target("video mkv", make_video("a.mkv"), read_source),
    Target("boxes json", make_boxes("a.json"), read_box_file),
    Target("boxes npz", make_boxes("a.npz"), read_box_file),
    Target("recipe", copied("starter.yaml"), read_recipe),
    Target("ablations", copied("ablations.yaml"), read_ablations),
    Target("results", make_results, read_tables),
    Target("detector", make_detector, read_detector, helped=True),
    Target("segmenter", make_segmenter, read_segmenter, helped=True),
)
