"""Options of token merging, shared by the commands that take them, and the settings that they amount to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hmrcompress.errors import UserError

if TYPE_CHECKING:
    from hmrcompress.plan import TokenSettings


def _option(*names: str, help: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **limits)


KeepTokensOption = Annotated[int | None, _option("--keep-tokens", min=1, help="Tokens left by token merging (90).")]
MergePerLayerOption = Annotated[
    int | None, _option("--merge-per-layer", min=1, help="Tokens merged away in each of the first layers (40).")
]
PaperOption = Annotated[bool, typer.Option("--paper", help="Token merging as published; other flags change it.")]
TokenMetricOption = Annotated[
    Literal["keys", "features"] | None, _option("--token-metric", help="What tokens are compared by (keys).")
]
SizeWeightedOption = Annotated[
    bool | None,
    _option("--size-weighted/--no-size-weighted", help="Average tokens by the number of patches in each (no)."),
]
AttentionBiasOption = Annotated[
    Literal["none", "self", "cross", "both"] | None,
    _option(
        "--attention-bias", help="Log of token sizes added to logits of the backbone, of the head, or both (none)."
    ),
]
ProtectOption = Annotated[
    int | None, _option("--protect", min=0, help="Tokens of greatest norm that are never merged (0).")
]
TokenScheduleOption = Annotated[
    str | None, _option("--token-schedule", help="Tokens merged away in layer 0, 1, … such as 12,12,12.")
]
DropBackgroundOption = Annotated[
    bool, typer.Option("--drop-background", help="Drop background before the first layer and merge nothing.")
]
BackgroundRingOption = Annotated[
    int | None, _option("--background-ring", min=0, help="Ring of background kept around the person, in tokens (1).")
]
TokensOption = Annotated[
    str,
    typer.Option(
        "--tokens",
        help="plan: as the model was made for; auto: what each person needs, of 64, 90, 128, 192 (or auto:48,96,192).",
    ),
]
BackgroundCoarseOption = Annotated[
    int | None, _option("--background-coarse", min=0, help="Spacing of the grid of background kept, 0 for none (4).")
]


def token_settings(
    base: TokenSettings | None = None,
    *,
    keep_tokens: int | None = None,
    merge_per_layer: int | None = None,
    paper: bool = False,
    token_metric: str | None = None,
    size_weighted: bool | None = None,
    attention_bias: str | None = None,
    protect: int | None = None,
    token_schedule: str | None = None,
    drop_background: bool = False,
    background_ring: int | None = None,
    background_coarse: int | None = None,
) -> TokenSettings:
    """`base` (the defaults if None, the published setting with `paper`) with what was given changed.

    Raises UserError for flags that contradict each other.
    """
    from hmrcompress.plan import TokenSettings

    if merge_per_layer is not None and token_schedule is not None:
        raise UserError("--merge-per-layer and --token-schedule say the same thing differently", "", "Give one of them")
    background = {"ring": background_ring, "coarse": background_coarse}
    background = {name: value for name, value in background.items() if value is not None}
    if background and not drop_background:
        raise UserError(f"--background-{next(iter(background))} needs --drop-background")
    settings = TokenSettings.paper() if paper else base or TokenSettings()
    given: dict[str, Any] = {"keep": keep_tokens, "per_layer": merge_per_layer, "metric": token_metric}
    given |= {"size_weighted": size_weighted, "protect": protect}
    if attention_bias is not None:
        given["attention_bias"] = {"none": False, "both": True}.get(attention_bias, attention_bias)
    if token_schedule is not None:
        given["schedule"] = _numbers(token_schedule)
    if drop_background:
        given["drop_background"] = background
    changed = {name: value for name, value in given.items() if value is not None}
    if merge_per_layer is not None:
        changed["schedule"] = None
    return settings.changed(**changed)


def token_buckets(text: str) -> tuple[int, ...] | None:
    """`plan` -> None; `auto`, `auto:48,96,192` -> numbers of tokens. Raises UserError."""
    from hmrcompress.merging.buckets import BUCKETS

    kind, _, rest = text.partition(":")
    if text == "plan":
        return None
    if kind != "auto" or not all(part.strip().isdigit() for part in (rest.split(",") if rest else ())):
        raise UserError(f"got {text!r}, expected plan, auto, or auto with numbers such as auto:48,96,192", "--tokens")
    return tuple(map(int, rest.split(","))) if rest else BUCKETS


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"got {text!r}, expected numbers such as 12,12,12", "--token-schedule") from None
