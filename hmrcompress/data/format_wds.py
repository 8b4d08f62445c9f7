"""Webdataset archives of 4D-Humans: a .tar, or a folder of them, read in place without the package webdataset.

A picture `KEY.jpg` (or .png) goes with `KEY.data.pyd`, a pickled list of people: center, scale (box / 200), body_pose
(72), betas (10), has_body_pose, has_betas, keypoints_3d (44,4). Nothing is unpacked to the disk, so names that lead
elsewhere do no harm; links are passed over, and pickles are read without executing anything. Where somebody has poses,
people without are left out, and counted. These are training data: the training of 4D-Humans does not blur.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.data.annotations import Annotations, numbered
from hmrcompress.data.crops import CropSet
from hmrcompress.data.foreign import Columns, values_of
from hmrcompress.data.formats import Options
from hmrcompress.data.picture_sets import Member, TarPictures, read_member
from hmrcompress.data.pictures import SUFFIXES
from hmrcompress.data.warp import square_side
from hmrcompress.errors import UserError

PEOPLE_SUFFIX = ".data.pyd"
UNIT = 200.0
"""Pixels that boxes are counted in."""
LARGEST_PEOPLE = 1 << 26
"""Bytes that the people of one picture may take."""
POSE, BETAS, KEYPOINTS = 72, 10, (44, 4)
EXTRA = 25
"""The first of the extra keypoints among the 44."""


def read(path: Path, options: Options) -> CropSet:
    """The people of an archive or of all archives of a folder. Raises UserError."""
    files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    pictures: list[Member] = []
    rows: list[dict[str, Any]] = []
    for file in files:
        for picture, people in _pairs(file):
            pictures.append(picture)
            rows += [_person(one, len(pictures) - 1, people) for one in _list(people)]
    if not rows:
        raise UserError(f"there is no picture with a {PEOPLE_SUFFIX} in it", path)
    known = [row for row in rows if row["poses"] is not None]
    kept = known or rows
    names = [pictures[row["picture"]].name for row in kept]
    sequence, frame = numbered(names, [row["number"] for row in kept])
    keypoints = None if any(row["keypoints"] is None for row in kept) else np.stack([row["keypoints"] for row in kept])
    size = np.stack([row["size"] for row in kept])
    return Annotations(
        name=path.stem,
        split="",
        fps=30.0,
        protocol="starter24",
        pictures=TarPictures(pictures),
        picture=np.array([row["picture"] for row in kept]),
        center=np.stack([row["center"] for row in kept]),
        side=square_side(size[:, 0], size[:, 1]),
        extent=size,
        sequence=sequence,
        frame=frame,
        poses=np.stack([row["poses"] for row in kept]) if known else None,
        betas=np.stack([row["betas"] for row in kept]) if known else None,
        keypoints=keypoints,
        antialias=bool(options.antialias),
        left_out={"without poses": len(rows) - len(kept)} if len(rows) > len(kept) else None,
    ).crops(path)


def _pairs(file: Path) -> list[tuple[Member, Member]]:
    """Pictures and the people that go with them, in the archive's order."""
    pictures, people = dict[str, Member](), dict[str, Member]()
    try:
        with tarfile.open(file, "r:") as archive:
            for entry in archive:
                if not entry.isreg() or entry.issparse():
                    continue
                member = Member(file, entry.name.replace("\\", "/"), entry.offset_data, entry.size)
                stem, _, suffix = entry.name.rpartition(".")
                if f".{suffix.lower()}" in SUFFIXES:
                    pictures[stem] = member
                elif entry.name.endswith(PEOPLE_SUFFIX):
                    people[entry.name.removesuffix(PEOPLE_SUFFIX)] = member
    except FileNotFoundError:
        raise UserError("no such file", file) from None
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"truncated or not an uncompressed tar archive ({error})", file) from error
    size = file.stat().st_size
    for member in (*pictures.values(), *people.values()):
        if member.offset + member.size > size:
            raise UserError(f"truncated: {member.name} goes on beyond its end", file)
    return [(pictures[key], people[key]) for key in pictures if key in people]


def _list(member: Member) -> list[Mapping[str, Any]]:
    where = f"{member.archive}: {member.name}"
    if member.size > LARGEST_PEOPLE:
        raise UserError(f"has {member.size} bytes, far more than people take", where)
    found = values_of(read_member(member), where)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError("expected a list of people", where)
    return [one | {"number": number} for number, one in enumerate(found)]


def _person(values: Mapping[str, Any], picture: int, member: Member) -> dict[str, Any]:
    """What is known of somebody; poses None where the file says that they are not known."""
    names = ("center", "scale", "body_pose", "betas", "has_body_pose", "has_betas", "keypoints_3d")
    where = f"{member.archive}: {member.name}, person {values['number']}"
    row = Columns({name: [values[name]] for name in names if values.get(name) is not None}, where, 1)
    size = UNIT * row.numbers("scale", 2 if row.width("scale") > 1 else 1)[0]
    posed = all(name in row and row.flags(name)[0] for name in ("has_body_pose", "has_betas"))
    points = row.numbers("keypoints_3d", *KEYPOINTS)[0, EXTRA:] if "keypoints_3d" in row else None
    return {
        "number": values["number"],
        "picture": picture,
        "center": row.numbers("center", 2)[0],
        "size": np.array([size[0], size[-1]]),
        "poses": row.numbers("body_pose", POSE)[0].reshape(24, 3) if posed else None,
        "betas": row.numbers("betas", BETAS)[0] if posed else None,
        "keypoints": None if points is None or not (points[:, 3] > 0).all() else points[:, :3],
    }
