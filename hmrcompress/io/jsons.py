"""JSON from elsewhere: the one reader of it, whoever wrote the file.

What JSON leaves open is refused: names that occur twice in an object, NaN and infinity, numbers that no other program
could hold, text that is not UTF-8, and nesting that nobody writes. So whoever gets a value can walk it without care.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io.texts import DEEPEST, check_text, decoded, integer, read_bytes

STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
DOUBTFUL_ESCAPES = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""Halves of pairs and NUL: only texts with one of these have to be looked through again."""


def parse_json(text: str | bytes, where: object, what: str = "this") -> Any:
    """The value in a text: dict, list, str, int, float, bool or None.

    UserError, naming `what` and `where`, for what is not JSON, not UTF-8 (a byte order mark is allowed), nested deeper
    than `DEEPEST`, has a name twice in one object, a number that is not finite or beyond 64 bits, or a text that is
    none (half a surrogate pair, NUL).
    """
    try:
        content = decoded(text)
        if _depth_exceeds(content, DEEPEST):
            raise ValueError(f"nested deeper than {DEEPEST}")
        value = json.loads(
            content, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=integer
        )
        if DOUBTFUL_ESCAPES.search(content):
            for each in _texts(value):
                check_text(each)
        return value
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise UserError(f"{what} is not JSON ({reason})", where) from error


def read_json(path: Path | str, what: str = "this") -> Any:
    """The value in a file. UserError as `parse_json`, and where the file is missing."""
    return parse_json(read_bytes(path), path, what)


def _depth_exceeds(text: str, most: int) -> bool:
    """Whether brackets lie more than `most` deep. Takes the innermost pairs out, level by level, so that the depth is
    known before anything goes down it."""
    brackets = STRINGS.sub("", text).encode("utf-8", "surrogatepass").translate(None, NO_BRACKETS)
    for _ in range(most):
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if fewer == brackets:
            return brackets.count(b"[") + brackets.count(b"{") > most
        brackets = fewer
    return bool(brackets)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice[:60]!r} occurs twice in one object")
    return made


def _constant(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
