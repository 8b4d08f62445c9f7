"""Pictures as telephones, scanners, cameras, Macs and attackers make them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from cases.isobmff import grid_picture
from cases.scenes import grey, person, png_bytes

APPLE_DOUBLE = b"\0\5\x16\7" + bytes(4000)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def make(out: Path) -> None:
    """reference.png is the person; all others shall read as it, or as its grey, or be refused in one sentence."""
    out.mkdir(parents=True, exist_ok=True)
    image = person()
    Image.fromarray(image).save(out / "reference.png")
    level = grey(image)
    Image.fromarray(level.round().astype(np.uint8)).save(out / "grey8.png")
    sixteen = (level * 257).astype(np.uint16)
    Image.fromarray(sixteen).save(out / "grey16.png")
    Image.fromarray(sixteen).save(out / "grey16.tif")
    Image.fromarray(sixteen.astype(np.int32)).save(out / "grey32.tif")
    Image.fromarray((level / 255).astype(np.float32)).save(out / "float01.tif")
    Image.fromarray(np.full(level.shape, np.nan, np.float32)).save(out / "nan.tif")
    grid_picture(out / "telephone.heic", image)
    grid_picture(out / "telephone_turned.heic", np.ascontiguousarray(np.rot90(image, -1)), turns=1)
    (out / "huge.png").write_bytes(png_bytes(20000, 20000, 8, 2))
    (out / "large.png").write_bytes(png_bytes(13000, 13000, 8, 2))
    (out / "postscript.png").write_bytes(EPS)
    pages = [Image.fromarray(np.roll(image, 20 * n, 0)) for n in range(3)]
    pages[0].save(out / "pages.tif", save_all=True, append_images=pages[1:])

    for name in ("superscript", "apple_double", "heic_among_jpegs", "damaged_among_good", "sizes"):
        (out / name).mkdir(exist_ok=True)
    shutil.copy(out / "reference.png", out / "superscript" / "²1.png")
    shutil.copy(out / "reference.png", out / "superscript" / "a.png")
    shutil.copy(out / "reference.png", out / "apple_double" / "IMG_1.png")
    (out / "apple_double" / "._IMG_1.png").write_bytes(APPLE_DOUBLE)
    Image.fromarray(image).save(out / "heic_among_jpegs" / "IMG_1.jpg", quality=95)
    shutil.copy(out / "telephone.heic", out / "heic_among_jpegs" / "IMG_2.HEIC")
    shutil.copy(out / "reference.png", out / "damaged_among_good" / "1.png")
    (out / "damaged_among_good" / "2.png").write_bytes(b"")
    shutil.copy(out / "reference.png", out / "sizes" / "1.png")
    Image.fromarray(person(400, 300)).save(out / "sizes" / "2.png")
