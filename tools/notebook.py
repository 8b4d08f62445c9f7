"""Runs a notebook from top to bottom and stores what its cells show: `python tools/notebook.py docs/quickstart.ipynb`.

Cells run in one namespace, in an empty folder that is thrown away. A cell shows what it prints, then the value of its
last line, if that is an expression: a picture as PNG, anything else as text. Cells hold no times and no counters, so
that running a notebook again on the same machine changes nothing.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook (as its JSON) with the outputs of a fresh run. Raises what a cell raises."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell = cell | {"outputs": _outputs("".join(cell["source"]), namespace), "execution_count": None}
            cells.append(cell)
    return notebook | {"cells": cells}


def _outputs(source: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())})
    if value is not None:
        data: dict[str, Any] = {"text/plain": lines(repr(value))}
        if hasattr(value, "_repr_png_"):
            picture = io.BytesIO()
            value.save(picture, "PNG", optimize=True)
            data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["a picture"]}
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": None})
    return outputs


def lines(text: str) -> list[str]:
    """A text as notebooks store it."""
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(json.dumps(executed(json.loads(path.read_text())), indent=1, ensure_ascii=False) + "\n")
