"""How a file of ours says that it is one: a seal in its content, which names the kind of file and, for most, the hash
of everything else in it. So our files are known when they are to be replaced, and also whether they were edited since.

Where the seal lies depends on the format: a text chunk of a PNG, the comment of a zip archive (npz, torch), a field of
a JSON object or of an ONNX model's metadata, a comment in text, an empty box of a video. Nothing that reads these
formats minds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hmrcompress.errors import UserError
from hmrcompress.io.figures import json_text
from hmrcompress.io.hashes import CHUNK, sha256_json
from hmrcompress.io.jsons import parse_json

FIELD = "seal"
"""Of JSON objects, and of the metadata of safetensors files and ONNX models."""
TEXT = re.compile(rb"written by hmrcompress \(([a-z][a-z ]*)\)(?:, sha256 ([0-9a-f]{64}))?")
UNKNOWN = "0" * 64
TAIL = 512
LARGEST_TEXT = 1 << 28
"""Bytes of a JSON, YAML or log that is read to find out what it is."""
LONGEST_HEADER = 1 << 27
IEND = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
PLAN_SEAL = re.compile(rb"(?:\A|\n)(sha256: ([0-9a-f]{64})\n)\Z")
PLAN_FIELDS = (re.compile(rb"^checkpoint:", re.MULTILINE), re.compile(rb"^groups:", re.MULTILINE))
JOURNAL_START = b'{"schema": 1, "settings_sha256": "'


@dataclass(frozen=True)
class Seal:
    """What a file says it is, and whether it is as it was written (True where its seal carries no hash)."""

    kind: str
    intact: bool


def seal_text(kind: str, digest: str | None) -> str:
    """`written by hmrcompress (KIND), sha256 …`."""
    return f"written by hmrcompress ({kind})" + (f", sha256 {digest}" if digest else "")


def form_of(path: Path | str) -> str:
    """The form of seal that a file of this name has: its suffix, or the one that stands for it."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    return suffix if suffix in TAILS or suffix in ("json", "jsonl", "safetensors", "plan") else ALIKE.get(suffix, "raw")


def seal(path: Path, kind: str, form: str = "", *, hashed: bool = True) -> None:
    """Adds the seal to a file that was just written. Without `hashed` it says the kind alone, for files that are large
    and written often. Raises ValueError where the file is not of that form."""
    form = form or form_of(path)
    if form == "json":
        value = json.loads(path.read_text(encoding="utf-8"))
        path.write_bytes(json_text(sealed_json(value, kind)).encode())
    elif form == "plan":
        with open(path, "ab") as file:
            file.write(f"sha256: {_digest(path)}\n".encode())
    elif form == "safetensors":
        _fill_in(path, kind)
    elif form != "jsonl":
        tail = TAILS[form]
        with open(path, "r+b") as file:
            start = file.seek(0, os.SEEK_END) - len(tail.cut)
            file.seek(max(start, 0))
            if start < 0 or file.read() != tail.cut:
                raise ValueError(f"{path} is no whole file of the form {form}")
            digest = _digest(path, start) if hashed else None
            file.seek(start)
            file.write(tail.make(seal_text(kind, digest).encode()))


def read_seal(path: Path, form: str = "", *, verify: bool = True) -> Seal | None:
    """The seal of a file; None where it has none. Without `verify` hashes are not compared."""
    form = form or form_of(path)
    try:
        if form == "json":
            value = _object(path)
            return None if value is None else json_seal(value)
        if form == "plan":
            return _plan_seal(path)
        if form == "jsonl":
            return _lines_seal(path)
        if form == "safetensors":
            return _header_seal(path, verify)
        return _tail_seal(path, TAILS[form], verify)
    except OSError:
        return None


def of_an_earlier_version(path: Path, kind: str, form: str = "") -> bool:
    """Whether a file without a seal is of this kind, as versions before seals wrote it."""
    form = form or form_of(path)
    try:
        if form == "json":
            value = _object(path)
            return value is not None and FIELD not in value and "schema" in value and value.get("command") == kind
        if form == "safetensors":
            return "hmrcompress" in (_metadata(path) or {})
        if kind == "crops":
            return _holds_crops(path)
        return kind == "training state" and _is_torch_archive(path)
    except OSError:
        return False


def sealed_json(value: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The object with its seal as the last field."""
    plain = json.loads(json_text({name: item for name, item in value.items() if name != FIELD}))
    return plain | {FIELD: seal_text(kind, sha256_json(plain))}


def json_seal(value: Mapping[str, Any]) -> Seal | None:
    """The seal of an object as it was read."""
    text = value.get(FIELD)
    found = TEXT.fullmatch(text.encode()) if isinstance(text, str) else None
    if found is None or found[2] is None:
        return None
    try:
        digest = sha256_json({name: item for name, item in value.items() if name != FIELD})
    except (ValueError, RecursionError):  # NaN, which JSON has no word for
        digest = ""
    return Seal(found[1].decode(), digest == found[2].decode())


def read_sealed(path: Path, kind: str) -> dict[str, Any] | None:
    """An object of this kind that was kept in a file, without its seal; None where there is none, or it was edited."""
    value = _object(path) if path.is_file() else None
    return without_seal(value) if value is not None and json_seal(value) == Seal(kind, True) else None


def without_seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it was before it was sealed."""
    return {name: item for name, item in value.items() if name != FIELD}


@dataclass(frozen=True)
class _Tail:
    """A form whose seal is the end of the file: `make(text)` takes the place of `cut`, the end of every such file."""

    make: Callable[[bytes], bytes]
    cut: bytes = b""
    text: bool = False
    """Whether people write into it, also behind the seal."""


def _chunk(text: bytes) -> bytes:
    body = b"tEXthmrcompress\0" + text
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + IEND


def _metadata_entry(text: bytes) -> bytes:
    """Field 14 of an ONNX model, metadata_props, of key 1 and value 2: what is appended to a protobuf is part of it."""
    entry = b"\x0a" + bytes([len(FIELD)]) + FIELD.encode() + b"\x12" + _varint(len(text)) + text
    return b"\x72" + _varint(len(entry)) + entry


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


TAILS: dict[str, _Tail] = {
    "png": _Tail(_chunk, IEND),
    "jpg": _Tail(lambda text: b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + b"\xff\xd9", b"\xff\xd9"),
    "zip": _Tail(lambda text: struct.pack("<H", len(text)) + text, b"\0\0"),
    "onnx": _Tail(_metadata_entry),
    "mp4": _Tail(lambda text: struct.pack(">I", len(text) + 8) + b"free" + text),
    "mkv": _Tail(lambda text: b"\xec" + struct.pack(">H", 0x4000 | len(text)) + text),
    "md": _Tail(lambda text: b"\n<!-- " + text + b" -->\n", text=True),
    "yaml": _Tail(lambda text: b"# " + text + b"\n", text=True),
    "raw": _Tail(lambda text: b"\n" + text + b"\n"),
}
ALIKE = {
    "jpeg": "jpg", "npz": "zip", "ckpt": "zip", "pt": "zip", "mov": "mp4", "m4v": "mp4", "webm": "mkv",
    "html": "md", "xml": "md", "yml": "yaml", "py": "yaml", "toml": "yaml",
}  # fmt: skip


def _tail_seal(path: Path, form: _Tail, verify: bool) -> Seal | None:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read()
    if form.text and (whole := _small(path)) is not None:
        tail = whole  # more may have been written behind the seal
    found = list(TEXT.finditer(tail))[-1:]
    end = form.make(found[0][0]) if found else b""
    if not found or (not tail.endswith(end) and not (form.text and end in tail)):
        return None
    kind, digest = found[0].groups()
    if not tail.endswith(end):
        return Seal(kind.decode(), False)
    intact = digest is None or not verify or _digest(path, size - len(end)) == digest.decode()
    return Seal(kind.decode(), intact)


def _plan_seal(path: Path) -> Seal | None:
    text = _small(path)
    if text is None or not all(field.search(text) for field in PLAN_FIELDS):
        return None
    found = PLAN_SEAL.search(text)
    return Seal("plan", found is not None and hashlib.sha256(text[: found.start(1)]).hexdigest() == found[2].decode())


def _lines_seal(path: Path) -> Seal | None:
    """What is appended to has no hash: a journal is known by its first line, a log by what every line says."""
    text = _small(path)
    if text is None:
        return None
    if text[: len(JOURNAL_START)] == JOURNAL_START[: len(text)]:  # or what there is of it in a process that was killed
        return Seal("journal", True)
    lines = text.split(b"\n")[:-1]  # a last line that was torn does not count
    try:
        records = [parse_json(line, path) for line in lines]
    except UserError:
        return None
    told = all(isinstance(each, dict) and "minutes" in each and {"step", "seen"} & each.keys() for each in records)
    return Seal("log", True) if records and told else None


def _object(path: Path) -> dict[str, Any] | None:
    text = _small(path)
    try:
        value = None if text is None else parse_json(text, path)
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def _small(path: Path) -> bytes | None:
    return path.read_bytes() if path.stat().st_size <= LARGEST_TEXT else None


def _header(file: BinaryIO, size: int) -> bytes | None:
    """The JSON text at the beginning of a safetensors file."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    return file.read(length) if 2 <= length <= min(size - 8, LONGEST_HEADER) else None


def _metadata(path: Path) -> dict[str, Any] | None:
    with open(path, "rb") as file:
        text = _header(file, path.stat().st_size)
    try:
        value = None if text is None else parse_json(text, path)
    except UserError:
        return None
    found = value.get("__metadata__") if isinstance(value, dict) else None
    return found if isinstance(found, dict) else None


def _header_seal(path: Path, verify: bool) -> Seal | None:
    text = (_metadata(path) or {}).get(FIELD)
    found = TEXT.fullmatch(text.encode()) if isinstance(text, str) else None
    if found is None or found[2] is None:
        return None
    intact = not verify or _digest(path, blank=found[2]) == found[2].decode()
    return Seal(found[1].decode(), intact)


def _fill_in(path: Path, kind: str) -> None:
    """The hash of a safetensors file, whose header holds a seal with zeros in its place, into the header."""
    with open(path, "r+b") as file:
        text = _header(file, path.stat().st_size)
        at = -1 if text is None else text.find(seal_text(kind, UNKNOWN).encode())
        if at < 0:
            raise ValueError(f"{path} has no room for a seal in its header")
        digest = _digest(path)
        file.seek(8 + at + len(seal_text(kind, UNKNOWN)) - len(UNKNOWN))
        file.write(digest.encode())


def _digest(path: Path, end: int | None = None, blank: bytes = b"") -> str:
    """SHA-256 of a file up to `end`; `blank`, which is in its header once, counts as zeros."""
    digest = hashlib.sha256()
    left = path.stat().st_size if end is None else end
    with open(path, "rb") as file:
        if blank and (text := _header(file, left)) is not None:
            file.seek(0)
            head = file.read(8 + len(text)).replace(blank, UNKNOWN.encode(), 1)
            digest.update(head)
            left -= len(head)
        while left > 0 and (part := file.read(min(CHUNK, left))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def _holds_crops(path: Path) -> bool:
    """Whether this is an npz of crops."""
    from hmrcompress.io.npz import read_npz

    try:
        text = read_npz(path, ("meta",)).get("meta")
        meta = None if text is None else parse_json(str(text), path)
    except UserError:
        return False
    return isinstance(meta, dict) and {"schema", "name", "fps"} <= set(meta)


def _is_torch_archive(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the last: a kind of zip that Python does not read
        return False
