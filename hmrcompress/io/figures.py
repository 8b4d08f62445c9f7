"""What we write as JSON, which has no word for infinity and NaN: a figure that is either is none, and becomes null."""

from __future__ import annotations

import json
import math
from typing import Any

from hmrcompress.errors import tell


def json_text(value: Any) -> str:
    """Indented JSON with a final line end; keys keep their order. Numbers that are not finite become null, and it is
    told which. What is no letter (names of files can be any bytes) becomes a question mark."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace").decode()


def json_line(value: Any) -> str:
    """The same in one line, for files of many."""
    return json.dumps(_finite(value), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    odd: list[str] = []
    made = _walked(value, "", odd)
    if not odd:
        return value
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    tell("is not a finite number, and written as null", f"{odd[0]}{more}")
    return made


def _walked(value: Any, where: str, odd: list[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        odd.append(where or "the figure")
        return None
    if isinstance(value, dict):
        return {name: _walked(each, f"{where}.{name}".lstrip("."), odd) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_walked(each, f"{where}[{place}]", odd) for place, each in enumerate(value)]
    return value
