"""The version of the code that makes something: a hash of the sources that take part, as nobody remembers to raise a
number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = "hmrcompress"
ROOT = Path(__file__).resolve().parents[1]
NOTHING_BUT_WORDS = ("errors",)
"""Modules that no result depends on."""
IMPORTS = re.compile(
    rf"^[ \t]*(?:from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n(]+)|import[ \t]+({PACKAGE}[\w.]*))",
    re.MULTILINE,
)
TEXTS = re.compile(rf"""["']({PACKAGE}(?:\.\w+)+\.?)""")
"""Modules that are named in a text, to be imported when they are needed."""


@cache
def code_sha256(*names: str) -> str:
    """Hash of the sources of these modules and packages (named below `hmrcompress`: `searching`, `render.raster`), of
    all that they import of ours, wherever in them, and of what that imports. UserError is nothing it depends on.

    Without sources (a zipped or compiled installation) it is that of the version's number. Raises ValueError for a
    name that there is not.
    """
    if not Path(__file__).is_file():
        return hashlib.sha256(_version().encode()).hexdigest()
    digest = hashlib.sha256()
    for path in sources(names):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def sources(names: Iterable[str]) -> list[Path]:
    """The files that `code_sha256` reads, in order."""
    wanted = [file for name in names for file in _whole(f"{PACKAGE}.{name}")]
    found: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in found or path.relative_to(ROOT).with_suffix("").as_posix() in NOTHING_BUT_WORDS:
            continue
        found.add(path)
        wanted += _taken(path.read_text(encoding="utf-8"), ROOT)
    return sorted(found)


@cache
def _taken(text: str, root: Path) -> tuple[Path, ...]:
    """The files of ours, below `root`, that a source imports, or names to import them later."""
    return tuple(dict.fromkeys(_taken_anew(text)))


def _taken_anew(text: str) -> Iterator[Path]:
    for module, names, plain in IMPORTS.findall(text):
        yield from _files(module or plain)
        for name in re.findall(r"\w+", re.sub(r"\bas\s+\w+|#[^\n]*", "", names)):
            yield from _files(f"{module}.{name}")
    for name in TEXTS.findall(text):
        place = ROOT.joinpath(*name.rstrip(".").split(".")[1:])
        yield from _whole(name.rstrip(".")) if place.is_dir() else _files(name)


def _files(name: str) -> list[Path]:
    """The file of a module, the `__init__.py` of a package; nothing where it is another name or the package itself."""
    parts = name.split(".")[1:]
    if not parts:
        return []
    place = ROOT.joinpath(*parts)
    return [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]


def _whole(name: str) -> list[Path]:
    """The file of a module, or all files of a package. ValueError where there is neither."""
    place = ROOT.joinpath(*name.split(".")[1:])
    found = sorted(place.rglob("*.py")) if place.is_dir() else _files(name)
    if not found:
        raise ValueError(f"there is no module {name}")
    return found


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"
