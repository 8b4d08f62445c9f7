"""Zip archives from elsewhere (npz, checkpoints), looked over before anything in them is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hmrcompress.errors import UserError

SPARE_BYTES = 1 << 28
HIGHEST_RATIO = 100
"""An archive may unfold to 256 MiB, or to a hundred times its size if that is more."""
KNOWN_WAYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others (lzma) take memory by a number in the file before they give a byte."""


def check_zip(path: Path | str, *, stored: bool = False) -> list[zipfile.ZipInfo]:
    """The entries of an archive. Nothing is ever unpacked to the disk by their names.

    UserError where it is no zip, where the entries would unfold to far more than the file holds or, with `stored`,
    where one of them is compressed.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise UserError("no such file", path) from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:  # see `seals`
        raise UserError("the file is truncated or not a zip archive", path) from error
    if odd := [entry for entry in entries if entry.compress_type not in KNOWN_WAYS]:
        raise UserError(f"its entry {odd[0].filename[:60]!r} is packed in a way that numpy and torch never use", path)
    size = path.stat().st_size
    unfolded = sum(entry.file_size for entry in entries)
    if stored and (unfolded > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)):
        raise UserError("its entries are compressed or overlap, which torch.save never writes", path)
    if unfolded > max(SPARE_BYTES, HIGHEST_RATIO * size):
        fault = f"unfolds from {size / 1e6:.1f} MB to {unfolded / 1e6:.0f} MB, which was not read"
        raise UserError(fault, path, "Save it again without compression if it is what you want")
    return entries
