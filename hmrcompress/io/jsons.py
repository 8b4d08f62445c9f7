"""JSON from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError


def parse_json(text: str | bytes, where: object, what: str = "this") -> Any:
    """The value in a text. UserError, naming `what`, where it is not JSON, not UTF-8, or nested without end."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{what} is not JSON ({reason})", where) from error


def read_json(path: Path | str, what: str = "this") -> Any:
    """The value in a file. UserError as `parse_json`, and where the file is missing."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path)
    return parse_json(path.read_bytes(), path, what)
