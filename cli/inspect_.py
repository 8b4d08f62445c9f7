"""`hmrcompress inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress_cli.common import DebugOption, JsonOption, Printer, QuietOption, SeedOption, write_record

HeadsOption = Annotated[
    int | None,
    typer.Option("--num-heads", min=1, help="Heads of the backbone, where the file does not tell.", show_default=False),
]
HeadHeadsOption = Annotated[
    int | None,
    typer.Option(
        "--head-heads", min=1, help="Heads of the SMPL head, where the file does not tell.", show_default=False
    ),
]


def inspect(
    model: Annotated[str, typer.Argument(help="starter, random:FAMILY, a checkpoint or a compressed folder.")],
    num_heads: HeadsOption = None,
    head_heads: HeadHeadsOption = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a model is: family, layers, sizes, tokens, parameters, MACs, and keys that are not understood."""
    from hmrcompress.api import load
    from hmrcompress.merging.describe import describe
    from hmrcompress.models.load import load_checkpoint

    if Path(model).is_file():
        # Not strict: keys that nobody knows are to be told, not refused.
        checkpoint = load_checkpoint(model, num_heads=num_heads, head_heads=head_heads, strict=False)
    else:
        checkpoint = load(model, num_heads=num_heads, head_heads=head_heads, seed=seed)
    found = describe(checkpoint)
    write_record(json, "inspect", found, seed=seed)
    printer = Printer(quiet)
    printer.say(found["model"])
    for what, value, after in rows(found):
        printer.say(f"  {what:<29} {value} {after}".rstrip())


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `describe` found, as lines of a table: what, value, after compression where it differs."""

    def pair(what: str, key: str, text: Any) -> tuple[str, str, str]:
        before, after = found[key]["before"], found[key]["after"]
        return what, text(before), f"-> {text(after)}" if after != before else ""

    def giga(value: int) -> str:
        return f"{value / 1e9:.2f} G"

    def keys(names: list[str]) -> str:
        starts = sorted({name.split(".")[0] for name in names})
        return f"{len(names)} ({', '.join(starts[:5])})" if names else "none"

    size, tokens = found["network"], found["tokens"]["by_layer"]
    merged = [f"{group[0]}-{group[-1]}" for group in found["groups"] if len(group) > 1]
    return [
        ("family", found["family"], ""),
        pair("layers", "layers", str),
        ("merged layers", ", ".join(merged) or "none", ""),
        ("backbone", f"dim {size['dim']}, {size['num_heads']} heads, MLP {size['mlp_dim']}", ""),
        (
            "head",
            f"dim {size['head_width']}, {size['head_depth']} layers, {size['head_heads']} heads x {size['head_dim']}",
            "",
        ),
        ("tokens", str(tokens[0]), " ".join(f"-> {count}" for count in tokens[1:])),
        pair("parameters", "params", lambda count: f"{count / 1e6:.2f} M"),
        pair("MACs, as the paper counts", "macs", giga),
        pair("MACs with attention's products", "macs_with_attention", giga),
        ("dtype in the file", found["dtype"], ""),
        ("keys not needed", keys(found["ignored_keys"]), ""),
        ("keys not known", keys(found["unknown_keys"]), ""),
        ("sha256", found["sha256"], ""),
    ]
