"""A folder of pictures with a file of boxes: no ground truth, so for searches without labels, prediction and speed.

The file of boxes is JSON, by default `boxes.json` in the folder: ours, {"boxes": [{"image": "a.jpg", "track": 0, "box":
[left, top, right, bottom]}, …]}, where `frame` (the number of the picture, from 0, as `predict` counts them: by name,
numbers in their order) may stand for `image`, and `centre` [x, y] and `side` of a square, used as they are, for `box`;
or COCO's, {images, annotations, categories}, of which the category person counts. Boxes around people are enlarged by
`box_scale` (1.2). Pictures are turned as Exif says, as `predict` turns them, and blurred before large boxes are made
small, as the demonstration of 4D-Humans does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.data.annotations import (
    BOX_SCALE,
    Annotations,
    Squares,
    numbered,
    safe_names,
    shared_pictures,
    squares,
)
from hmrcompress.data.box_limits import OTHER_PICTURE, beside, check_squares, off_centre, too_large
from hmrcompress.data.crops import CropSet
from hmrcompress.data.formats import Options
from hmrcompress.data.picture_folders import list_pictures
from hmrcompress.data.picture_sets import FilePictures, picture_size
from hmrcompress.errors import UserError, some, tell
from hmrcompress.io.jsons import read_json

BOXES_FILE = "boxes.json"
PERSON = "person"
PERSON_ID = 1
"""COCO's number of the category person, where a file names no categories."""


def read(path: Path, options: Options) -> CropSet:
    """The people that the boxes say are in the pictures of a folder. Raises UserError."""
    file = options.boxes or path / BOXES_FILE
    if not path.is_dir():
        raise UserError("expected a folder of pictures", path)
    if not file.is_file():
        raise UserError("there is no such file of boxes", file, "Name one: images:DIR,boxes=FILE.json")
    content = read_json(file, "a file of boxes")
    scale = options.box_scale or BOX_SCALE
    if isinstance(content, dict) and "annotations" in content:
        names, tracks, boxes = _of_coco(content, file, scale)
    else:
        names, tracks, boxes = _of_ours(content, path, file, scale)
    center, side, extent = boxes
    names = safe_names(names, file)
    if missing := next((name for name in names if not (path / name).is_file()), None):
        raise UserError(f"the picture {missing} is not in {path}", file)
    check_squares(center, side / max(scale, 1.0), file)
    sequence, frame = numbered(names, tracks)
    unique, which = shared_pictures(names)
    pictures = FilePictures(path, unique, turned=True)
    _check_places(pictures, which, center, side, file)
    _tell_unused(path, set(unique), file)
    return Annotations(
        name=path.absolute().name,
        split="",
        fps=options.fps or 30.0,
        protocol="starter24",
        pictures=pictures,
        picture=which,
        center=center,
        side=side,
        extent=extent,
        sequence=sequence,
        frame=frame,
        antialias=options.antialias is not False,
    ).crops(file)


def _tell_unused(folder: Path, used: set[str], file: Path) -> None:
    """Pictures of the folder itself that have no box, where others of it have."""
    try:
        names = [each.name for each in list_pictures(folder).files]
    except UserError:  # all pictures lie in folders of the folder, or are called in other ways
        return
    unused = [name for name in names if name not in used]
    if 0 < len(unused) < len(names):
        tell(f"no box on {len(unused)} of {len(names)} pictures: {some(unused)}", file)


def _check_places(pictures: FilePictures, which: np.ndarray, center: np.ndarray, side: np.ndarray, file: Path) -> None:
    """Holds boxes against the sizes of their pictures, before anything is cut out. UserError for one beside its picture
    or absurdly larger; tells of those whose middle is outside."""
    sizes = np.array([picture_size(pictures, number) for number in range(len(pictures.names))], np.float64)[which]

    def first(wrong: np.ndarray) -> str:
        row = int(wrong.argmax())
        (x, y), (width, height) = center[row], sizes[row]
        square = f"a square around {x:.0f}, {y:.0f} with a side of {side[row]:.0f} on {width:.0f}x{height:.0f}"
        return f"{pictures.names[which[row]]}: {square}; {int(wrong.sum())} of {len(side)} boxes are so"

    for wrong, what in ((too_large(side, sizes), "far larger than"), (beside(center, side, sizes), "beside")):
        if wrong.any():
            raise UserError(f"a box is {what} its picture ({first(wrong)})", file, OTHER_PICTURE)
    if (astray := off_centre(center, sizes)).any():
        tell(f"a box has its middle outside of its picture ({first(astray)}). {OTHER_PICTURE}", file)


Boxes = tuple[list[str], list[int], Squares]


def _unknown(count: int) -> Squares:
    """Squares to be filled in."""
    return Squares(np.empty((count, 2)), np.empty(count), np.full((count, 2), np.nan))


def _of_ours(content: Any, folder: Path, file: Path, scale: float) -> Boxes:
    rows = content.get("boxes") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list `boxes` of objects, or COCO's annotations", file)
    sorted_names = [each.name for each in list_pictures(folder).files]
    names, tracks, found = [], [], _unknown(len(rows))
    for number, row in enumerate(rows):
        where = f"{file}: boxes[{number}]"
        names.append(_picture_of(row, sorted_names, where))
        tracks.append(_whole(row.get("track", 0), f"{where}: track"))
        if "box" in row:
            _fill(found, number, squares(_numbers(row["box"], 4, f"{where}: box"), scale, f"{where}: box"))
        elif {"centre", "side"} <= set(row):
            found.center[number] = _numbers(row["centre"], 2, f"{where}: centre")
            found.side[number] = _numbers([row["side"]], 1, f"{where}: side")[0]
        else:
            raise UserError("has neither box nor centre and side", where)
    return names, tracks, found


def _fill(found: Squares, number: int, one: Squares) -> None:
    for values, value in zip(found, one, strict=True):
        values[number] = value


def _picture_of(row: Mapping[str, Any], sorted_names: Sequence[str], where: str) -> str:
    if "image" in row:
        return str(row["image"])
    number = _whole(row.get("frame"), f"{where}: frame")
    if number >= len(sorted_names):
        raise UserError(f"names picture {number} of {len(sorted_names)}", where)
    return sorted_names[number]


def _of_coco(content: Mapping[str, Any], file: Path, scale: float) -> Boxes:
    images, people = content.get("images"), content["annotations"]
    if not isinstance(images, list) or not isinstance(people, list):
        raise UserError("expected lists `images` and `annotations`", file)
    wanted = _person_category(content)
    try:
        names_by_id = {row["id"]: str(row["file_name"]) for row in images}
        people = [row for row in people if row.get("category_id", wanted) == wanted and not row.get("iscrowd")]
        names = [names_by_id[row["image_id"]] for row in people]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"an image or annotation lacks its id, file_name or image_id ({error})", file) from error
    found = _unknown(len(people))
    seen: dict[str, int] = {}
    tracks = []
    for number, (row, name) in enumerate(zip(people, names, strict=True)):
        where = f"{file}: bbox of annotation {row.get('id', number)}"
        left, top, width, height = _numbers(row.get("bbox"), 4, where)
        _fill(found, number, squares(np.array([left, top, left + width, top + height]), scale, where))
        seen[name] = seen.get(name, -1) + 1
        tracks.append(_whole(row.get("track_id", seen[name]), where))
    return names, tracks, found


def _person_category(content: Mapping[str, Any]) -> Any:
    categories = content.get("categories")
    if not isinstance(categories, list):
        return PERSON_ID
    return next((each.get("id") for each in categories if isinstance(each, dict) and each.get("name") == PERSON), 1)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"got {value!r}, expected a whole number from 0", where)
    return value


def _numbers(value: Any, count: int, where: str) -> np.ndarray:
    try:
        found = np.asarray(value, np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"expected {count} numbers", where) from error
    if found.shape != (count,) or not np.isfinite(found).all():
        raise UserError(f"got {value!r}, expected {count} numbers", where)
    return found
