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
TokenizerOption = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="TokenHMR's tokenizer, where it does not lie beside.", show_default=False),
]
USUAL = "the usual ones (16 at dim 1280, 8 x 64 at head width 1024)"


def inspect(
    model: Annotated[str, typer.Argument(help="starter, random:FAMILY, a checkpoint or a compressed folder.")],
    num_heads: HeadsOption = None,
    head_heads: HeadHeadsOption = None,
    tokenizer: TokenizerOption = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a model is: family, layers, sizes, tokens, parameters, MACs, what it needs beside its file, and keys
    that are not understood. Files that belong to a family and are no model by themselves are told too."""
    from hmrcompress.api import load
    from hmrcompress.merging.describe import describe, describe_helper
    from hmrcompress.models.load import load_checkpoint

    printer, options = Printer(quiet), {"num_heads": num_heads, "head_heads": head_heads}
    if Path(model).is_file():
        if (helper := describe_helper(Path(model))) is not None:
            write_record(json, "inspect", helper, seed=seed)
            printer.say(f"{helper['model']}\n  {helper['helper']}")
            printer.say(f"  {'parameters':<29} {helper['params'] / 1e6:.2f} M")
            if "macs" in helper:
                printer.say(f"  {'MACs of one picture':<29} {helper['macs'] / 1e9:.2f} G")
            printer.say(f"  {'sha256':<29} {helper['sha256']}")
            return
        # Not strict: keys that nobody knows, and a part that is missing, are to be told, not refused.
        checkpoint = load_checkpoint(model, **options, part=tokenizer, strict=False)
    else:
        checkpoint = load(model, **options, tokenizer=tokenizer, seed=seed)
    found = describe(checkpoint)
    write_record(json, "inspect", found, seed=seed)
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
        ("family", f"{found['family']} ({found['title']})", ""),
        pair("layers", "layers", str),
        ("merged layers", ", ".join(merged) or "none", ""),
        ("backbone", f"dim {size['dim']}, {size['num_heads']} heads, MLP {size['mlp_dim']}", ""),
        (
            "head",
            f"dim {size['head_width']}, {size['head_depth']} layers, {size['head_heads']} heads x {size['head_dim']}",
            "",
        ),
        ("rotations", f"{size['num_joints']}, stacked as {found['sixd_layout']}", ""),
        *needs(found),
        ("tokens", str(tokens[0]), " ".join(f"-> {count}" for count in tokens[1:])),
        pair("parameters", "params", lambda count: f"{count / 1e6:.2f} M"),
        pair("MACs, as the paper counts", "macs", giga),
        pair("MACs with attention's products", "macs_with_attention", giga),
        ("dtype in the file", found["dtype"], ""),
        ("keys not needed", keys(found["ignored_keys"]), ""),
        ("keys not known", keys(found["unknown_keys"]), ""),
        ("sha256", found["sha256"], ""),
    ]


def needs(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What a model needs beside its weights, as lines of the table."""
    lines = []
    for what, origin in found["origins"].items():
        if what == "numbers of heads":
            lines.append((f"{what} from", origin or f"{USUAL}; no model_config.yaml is needed", ""))
        else:
            lines.append((what, origin or f"not found; needed beside the file, or as --{what} FILE", ""))
    if found["conditioned"]:
        lines.append(("told of each crop", "box and focal length (`conditions` of the data)", ""))
        lines.append(("focal lengths", "from the data, or from the field-of-view network, a file of its own", ""))
    return lines
