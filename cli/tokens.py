"""Options of token merging, shared by the commands that take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hmrcompress.errors import UserError

if TYPE_CHECKING:
    from hmrcompress.plan import TokenSettings

KeepTokensOption = Annotated[
    int | None, typer.Option("--keep-tokens", min=1, help="Tokens left by token merging (90).", show_default=False)
]
MergePerLayerOption = Annotated[
    int | None,
    typer.Option(
        "--merge-per-layer",
        min=1,
        help="Tokens merged away in each of the first layers (40).",
        show_default=False,
    ),
]


def changed_tokens(base: TokenSettings | None, keep: int | None, per_layer: int | None = None) -> TokenSettings | None:
    """`base` with what the flags say changed, or None as it is. Raises UserError naming the field and the fault, and
    for settings that contradict each other."""
    if per_layer is not None and base is not None and base.schedule is not None:
        raise UserError("--merge-per-layer and tokens.schedule say the same thing differently", "", "Give one of them")
    asked = {"keep": keep, "per_layer": per_layer}
    given = {name: value for name, value in asked.items() if value is not None}
    return base if base is None or not given else base.changed(**given)
