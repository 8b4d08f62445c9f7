"""`hmrcompress inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    DebugOption,
    JsonOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    refuse_unused,
    write_record,
)

FOV = "macs_with_field_of_view"
OF_FAMILIES = ("num_heads", "head_heads", "tokenizer", "weights", "grid", "seed")
"""What a file of other code does without."""


@takes_checkpoints("model", grid=True)
def inspect(
    model: Annotated[str, typer.Argument(help="starter, random:FAMILY, a checkpoint or a compressed folder.")],
    json: JsonOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a model is: family, layers, sizes, tokens, parameters, MACs, what its weights were wrapped in, what it
    needs beside its file, and keys that are not understood. Files that belong to a family and are no model by
    themselves are told too, and of other networks' files the stacks of blocks that merge --format original takes."""
    from hmrcompress.api.merge import is_of_other_code
    from hmrcompress.api.opening import ModelFile, load
    from hmrcompress.live.files import describe_file
    from hmrcompress.merging.describe import describe, describe_helper

    printer, asked = Printer(quiet), ModelFile.of(model)
    if Path(asked.name).is_file() and (helper := describe_helper(Path(asked.name), asked.weights)) is not None:
        write_record(json, "inspect", helper, seed=seed)
        printer.say(f"{helper['model']}\n  {helper['helper']}")
        if "macs" in helper:
            printer.say(f"  {'MACs of one picture':<29} {helper['macs'] / 1e9:.2f} G")
        printer.say(f"  {'parameters':<29} {helper['params'] / 1e6:.2f} M")
        for what, value, _ in (*wrapped(helper["weights"]), ("sha256", helper["sha256"], "")):
            printer.say(f"  {what:<29} {value}")
        return
    if is_of_other_code(asked) and (other := describe_file(asked.name)) is not None:
        refuse_unused("has no effect on a file of other code", "Leave it out", OF_FAMILIES)
        write_record(json, "inspect", other, seed=seed)
        printer.say(f"{other['model']}\n  of no family that is read; its own code runs it (adapter:FILE.py)")
        for stack in other["stacks"]:
            size = f"{stack['layers']} layers, {stack['params'] / 1e6:.2f} M parameters"
            around = f" in {'.'.join(stack['keys'])}" if stack["keys"] else ""
            printer.say(f"  {'stack':<29} {stack['name']}{around}: {size}, sha256 {stack['sha256']}")
        printer.say(f"  {'parameters':<29} {other['params'] / 1e6:.2f} M")
        printer.say(f"  {'sha256':<29} {other['sha256']}")
        return
    # Not strict: keys that nobody knows, and a part that is missing, are to be told, not refused.
    found = describe(load(model, seed=seed, strict=False))
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
    height, width = (size["patch"] * side for side in size["grid"])
    merged = [f"{group[0]}-{group[-1]}" for group in found["groups"] if len(group) > 1]
    return [
        ("family", f"{found['family']} ({found['title']})", ""),
        pair("layers", "layers", str),
        ("merged layers", ", ".join(merged) or "none", ""),
        ("backbone", f"dim {size['dim']}, {size['num_heads']} heads, MLP {size['mlp_dim']}", ""),
        ("crops", f"{height} x {width} pixels, patches of {size['patch']}", ""),
        (
            "head",
            f"dim {size['head_width']}, {size['head_depth']} layers, {size['head_heads']} heads x {size['head_dim']}",
            "",
        ),
        ("rotations", f"{size['num_joints']}, stacked as {found['sixd_layout']}", ""),
        *wrapped(found["weights"]),
        *needs(found),
        ("tokens", str(tokens[0]), " ".join(f"-> {count}" for count in tokens[1:])),
        pair("parameters", "params", lambda count: f"{count / 1e6:.2f} M"),
        pair("MACs, as the paper counts", "macs", giga),
        *([pair("MACs with field-of-view net", FOV, giga)] if FOV in found else []),
        pair("MACs with attention's products", "macs_with_attention", giga),
        ("dtype in the file", found["dtype"], ""),
        ("keys not needed", keys(found["ignored_keys"]), ""),
        ("keys not known", keys(found["unknown_keys"]), ""),
        ("sha256", found["sha256"], ""),
    ]


def wrapped(weights: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the weights were wrapped in, and which of several were taken, as lines of the table."""
    taken, others = weights["taken"], weights["others"]
    parts = [f"the key {key}" for key in taken["keys"]]
    parts += [f"the prefix {taken['prefix']}"] if taken["prefix"] else []
    parts += [f"{name}. in the middle of {count} names" for name, count in sorted(taken["within"].items())]
    lines = [("peeled off", ", ".join(parts) or "nothing", "")]
    if others or taken["average"]:
        lines.append(("weights taken", taken["called"], ""))
    if others:
        lines.append(("weights not taken", ", ".join(each["called"] for each in others), ""))
    return lines


def needs(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Where the numbers of heads come from, and what a model needs beside its weights, as lines of the table."""
    lines = [
        (what, origin or f"not found; needed beside the file, or as --{what} FILE", "")
        for what, origin in found["origins"].items()
    ]
    if found["conditioned"]:
        lines.append(("told of each crop", "box and focal length (`conditions` of the data)", ""))
        lines.append(("focal lengths", "from the data, or from the field-of-view network, a file of its own", ""))
    return lines
