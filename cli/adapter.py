"""`hmrcompress adapter new`, and what commands do with `adapter:FILE.py` in the place of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from hmrcompress.errors import UserError
from hmrcompress_cli.common import (
    DebugOption,
    Printer,
    QuietOption,
    SafeCommand,
    outputs_here,
    refuse_unused,
    write_record,
)
from hmrcompress_cli.help import example

app = typer.Typer(help="Networks of other code, by a Python file of yours: adapter:FILE.py.", no_args_is_help=True)
PREFIX = "adapter:"

PlanOption = Annotated[
    Path | None,
    typer.Option("--plan", help="With adapter:FILE.py: a plan, or a folder that merge wrote.", show_default=False),
]


@app.command(cls=SafeCommand, epilog=example("adapter new"))
def new(
    name: Annotated[str, typer.Argument(help="What the network is to be called; the file is NAME.py.")],
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a template: fill it in, and give adapter:NAME.py wherever a checkpoint is asked for (search, merge,
    compress, finetune --stage heal, bench). The file is your own code and runs as such, with all that you may do.
    """
    from hmrcompress.api.adapter import write_template

    Printer(quiet).say(f"{write_template(name)}")


def is_adapter(model: object) -> bool:
    """Whether an adapter stands in the place of a model."""
    return str(model).startswith(PREFIX)


def for_adapters(model: object, names: Iterable[str], settings: Any = None, keys: Iterable[str] = ()) -> bool:
    """Whether a model is an adapter's. UserError where an option is given, or a key of the settings set, that does not
    go with that: it would have no effect."""
    if not is_adapter(model):
        return False
    if not isinstance(model, str):
        raise UserError("takes no options of checkpoints", str(model), "Leave out --num-heads and its kin")
    refuse_unused("has no effect on an adapter, whose file says it", "Leave it out", names, settings, keys)
    return True


def plan_given(plan: Path | None) -> Path:
    """The plan or folder of `--plan`. UserError where it is missing."""
    if plan is None:
        raise UserError("adapters need a plan", "--plan", "Give a plan, or a folder that merge wrote")
    return plan


def merge(model: str, plan: Path, out: Path, *, force: bool, json: Path | None, quiet: bool) -> None:
    """Saves plan and changed weights."""
    from hmrcompress.api.adapter import merge_adapter

    made = merge_adapter(model, plan, out, overwrite=outputs_here(), force=force)
    layers = {"before": made.layers, "after": len(made.kept_groups)}
    write_record(json, "merge", {"layers": layers, "adapter": True})
    printer = Printer(quiet)
    printer.say(
        f"{layers['before']} -> {layers['after']} layers; hc.live.restore(model, {str(out)!r}) brings them back"
    )
    printer.say(f"{out}")


def compress(
    model: str, out: Path, asked: dict[str, float | None], *, preset: str, seed: int, json: Path | None, quiet: bool
) -> dict[str, Any]:
    """Searches for the fastest within a budget, and saves."""
    from hmrcompress.api.front import check_asked
    from hmrcompress.api.front_live import compress_adapter
    from hmrcompress.runtime import progress_bar

    check_asked(asked)
    with progress_bar(quiet=quiet) as progress:
        found = compress_adapter(
            model, out, asked=asked, preset=preset, seed=seed, overwrite=outputs_here(), progress=progress
        )
    write_record(json, "compress", {"frontier": found}, seed=seed)
    return found


def heal(model: str, plan: Path, out: Path, options: dict[str, Any], *, json: Path | None, quiet: bool) -> None:
    """Heals and saves."""
    from hmrcompress.api.adapter import heal_adapter
    from hmrcompress.runtime import progress_bar

    with progress_bar(quiet=quiet) as progress:
        healed = heal_adapter(model, plan, out, overwrite=outputs_here(), progress=progress, **options)
    figures = healed.to_json()
    write_record(json, "finetune", {"heal": figures}, seed=options.get("seed"))
    before, after, printer = healed.before, healed.after, Printer(quiet)
    printer.say(
        f"{before['to_teacher_mm']:.2f} -> {after['to_teacher_mm']:.2f} mm from the untouched model after "
        f"{healed.steps} steps; layers {', '.join(map(str, healed.layers))} adapted"
    )
    printer.say(f"{out}")


def bench(model: str, plan: Path, *, rounds: int, max_seconds: float, json: Path | None, quiet: bool) -> None:
    """Times by turns."""
    from hmrcompress.api.adapter import bench_adapter
    from hmrcompress.runtime import progress_bar

    with progress_bar(quiet=quiet) as progress:
        figures = bench_adapter(model, plan, rounds=rounds, max_seconds=max_seconds, progress=progress).to_json()
    write_record(json, "bench", {"live": figures})
    rows: list[tuple[str | None, ...]] = []
    for name, found in figures["contenders"].items():
        macs = f"{found['macs'] / 1e9:.2f}"
        rows.append((name, f"{found['fps']:.2f}", f"{found['speedup']:.2f}", macs, f"{found['macs_ratio']:.2f}"))
    columns = ("", "frames/s", "times as fast", "GMACs of the blocks", "times fewer")
    Printer(quiet).table(f"{figures['frames']} samples a call, by turns", columns, rows)
