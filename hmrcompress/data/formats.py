"""The formats of data sets: their names, how they are recognised, and what may be said about them on the command line.

`FORMAT:PATH,option=value,…`; a new format is one file with a function `read(path, options)` and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from hmrcompress.data.crop_files import META_FILE
from hmrcompress.data.crops import CropSet
from hmrcompress.data.foreign import npz_names
from hmrcompress.data.pictures import SUFFIXES
from hmrcompress.errors import UserError


class Format(NamedTuple):
    """Where a format's reader is, which options it knows, and what it is in a few words."""

    reader: str
    options: tuple[str, ...]
    what: str


FORMATS = {
    "crops": Format("", (), "crops of ours: a folder or an .npz"),
    "4dhumans": Format("format_4dhumans", ("images", "fps", "antialias"), "an evaluation npz of 4D-Humans"),
    "camerahmr": Format("format_camerahmr", ("images", "fps", "antialias"), "an npz of CameraHMR or BEDLAM"),
    "emdb": Format("format_emdb", ("subset", "box_scale", "antialias"), "a folder of EMDB"),
    "3dpw": Format("format_3dpw", ("split", "box_scale", "antialias"), "a folder of 3DPW"),
    "wds": Format("format_wds", ("antialias",), "a webdataset tar of 4D-Humans, or a folder of them"),
    "images": Format(
        "format_images", ("boxes", "box_scale", "fps", "antialias"), "a folder of pictures with a file of boxes"
    ),
}
SWITCH = {"on": True, "off": False}


@dataclass(frozen=True)
class Options:
    """What was said about a data set. None: as is usual for the format.

    images: folder that the names of pictures start from. boxes: file of boxes. fps: frames a second. subset, split:
    which part of the data set. box_scale: by what boxes are widened. antialias: whether pictures are blurred before
    large boxes are made small.
    """

    images: Path | None = None
    boxes: Path | None = None
    fps: float | None = None
    subset: str | None = None
    split: str | None = None
    box_scale: float | None = None
    antialias: bool | None = None


def open_format(text: str) -> CropSet:
    """`FORMAT:PATH[,option=value…]`, or a path whose format is recognised. Raises UserError."""
    kind, path, options = parse(text)
    if not path.exists():
        raise UserError("no such file or folder", path, _known() if kind is None else "")
    kind = kind or recognise(path)
    given = {name for name in Options.__dataclass_fields__ if getattr(options, name) is not None}
    if odd := sorted(given - set(FORMATS[kind].options)):
        known = ", ".join(FORMATS[kind].options) or "none"
        raise UserError(f"the format {kind} has no option {odd[0]}", text, f"Its options: {known}")
    if kind == "crops":
        return CropSet.open(path)
    read: Callable[[Path, Options], CropSet] = import_module(f"hmrcompress.data.{FORMATS[kind].reader}").read
    return read(path, options)


def parse(text: str) -> tuple[str | None, Path, Options]:
    """The format (None where none is named), the path and the options. Raises UserError."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "amass":
        raise UserError("holds motions, not pictures", text, "Give it as --motions")
    named = bool(colon) and kind in FORMATS
    if colon and not named and kind.isalnum() and len(kind) > 1 and not Path(text).exists():
        raise UserError(f"there is no format {kind}", text, _known())
    path, *said = (rest if named else text).split(",")
    while said and "=" not in said[0]:  # a comma in the name of a file
        path = f"{path},{said.pop(0)}"
    values: dict[str, object] = {}
    for part in said:
        name, _, value = part.partition("=")
        values[name] = _option(name, value, text)
    if not path:
        raise UserError("there is no path in it", text)
    return kind if named else None, Path(path).expanduser(), Options(**values)  # type: ignore[arg-type]


def _option(name: str, value: str, text: str) -> object:
    if name in ("images", "boxes"):
        return Path(value).expanduser()
    if name in ("subset", "split"):
        return value
    if name == "antialias":
        if value not in SWITCH:
            raise UserError(f"antialias: got {value!r}, expected on or off", text)
        return SWITCH[value]
    if name not in ("fps", "box_scale"):
        raise UserError(f"there is no option {name!r}", text, f"Options: {', '.join(Options.__dataclass_fields__)}")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise UserError(f"{name}: got {value!r}, expected a number above 0", text)
    return number


def recognise(path: Path) -> str:
    """The format of a file or folder, by what is in it. UserError naming the formats where it is none of them."""
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        raise UserError("not a data set of a known format", path, _known())
    return found


def _of_folder(path: Path) -> str | None:
    if (path / META_FILE).is_file():
        return "crops"
    if (path / "sequenceFiles").is_dir():
        return "3dpw"
    if next(path.glob("*/*/*_data.pkl"), None) or next(path.glob("*/*_data.pkl"), None):
        return "emdb"
    if next(path.glob("*.tar"), None):
        return "wds"
    if any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return "images"
    return "crops" if any(path.glob("*.npy")) else None


def _of_file(path: Path) -> str | None:
    if path.suffix == ".tar":
        return "wds"
    if path.suffix != ".npz":
        return None
    try:
        names = set(npz_names(path))
    except UserError:
        return "crops"  # whose reader says what is wrong with it
    if {"poses", "trans"} <= names and not {"images", "imgname"} & names:
        raise UserError("holds motions, not pictures", path, "Give it as --motions")
    if "imgname" not in names:
        return "crops"
    return "camerahmr" if {"pose_cam", "cam_int"} & names else "4dhumans"


def _known() -> str:
    return "Formats: " + ", ".join(f"{name} ({each.what})" for name, each in FORMATS.items())
