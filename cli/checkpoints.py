"""What a checkpoint's file does not tell can be told to every command that takes one: `takes_checkpoints`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.help import CHECKPOINT


def _option(*names: str, help: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, rich_help_panel=CHECKPOINT, **limits)


MOST_ROWS = 1 << 16
OPTIONS = {
    "num_heads": Annotated[int | None, _option("--num-heads", min=1, help="Heads of the backbone.")],
    "head_heads": Annotated[int | None, _option("--head-heads", min=1, help="Heads of the SMPL head.")],
    "tokenizer": Annotated[
        Path | None, _option("--tokenizer", help="TokenHMR's tokenizer, where it does not lie beside.")
    ],
    "weights": Annotated[
        str | None, _option("--weights", help="Which weights, where a file holds several, such as state_dict_ema.")
    ],
}
GRID = {
    "grid": Annotated[
        str | None, _option("--grid", help="Rows and columns of tokens, such as 32x24, where the file does not tell.")
    ]
}
"""For the commands that look at a file and write it down anew: whatever they write tells it."""


def _grid(text: str) -> tuple[int, int]:
    """`32x24` -> (32, 24). UserError."""
    rows, _, columns = text.partition("x")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= MOST_ROWS for part in (rows, columns)):
        raise UserError(f"got {text!r}, expected rows and columns of tokens, such as 32x24", "--grid")
    return int(rows), int(columns)


def takes_checkpoints(*arguments: str, grid: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `OPTIONS`, and with `grid` that of `GRID`. Where any is given, the named arguments
    that hold the name of a model reach the command as an `opening.ModelFile`; else everything reaches it as it was."""

    options = OPTIONS | GRID if grid else OPTIONS

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            told = {name: given.pop(name, None) for name in options}
            if any(value is not None for value in told.values()):
                from hmrcompress.api.opening import ModelFile

                if told.get("grid") is not None:
                    told["grid"] = _grid(told["grid"])
                given |= {name: ModelFile(given[name], **told) for name in arguments if given.get(name) is not None}
            command(**given)

        parameters = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*signature.parameters.values(), *more)
        ]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate
