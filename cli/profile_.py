"""`hmrcompress profile`."""

from __future__ import annotations

from typing import Any

from hmrcompress_cli.checkpoints import takes_checkpoints
from hmrcompress_cli.common import (
    BatchSizeOption,
    BodyOption,
    DebugOption,
    DeviceOption,
    FastDtypeOption,
    FastOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    Printer,
    QuietOption,
    SeedOption,
    write_record,
)
from hmrcompress_cli.predict import (
    BoxesOption,
    FocalOption,
    FpsOption,
    InputArgument,
    ModelArgument,
    NoGlbOption,
    NoOverlayOption,
    PersonMasksOption,
    StrideOption,
    asked_of,
)
from hmrcompress_cli.settings import takes_settings

COLUMNS = ("stage", "ms a frame", "share", "", "first frame, ms")
WIDTH = 30
UNUSED = {
    "overlapped": "It times one stage after the other",
    **dict.fromkeys(("workers", "worker_cpus"), "It times one process"),
}


@takes_checkpoints("model")
@takes_settings("predict", flags={"fast": "fast"}, without=UNUSED)
def profile(
    model: ModelArgument,
    source: InputArgument,
    boxes: BoxesOption = "full",
    masks: PersonMasksOption = "auto",
    stride: StrideOption = None,
    fps: FpsOption = None,
    focal: FocalOption = None,
    no_overlay: NoOverlayOption = False,
    no_glb: NoGlbOption = False,
    json: JsonOption = None,
    device: DeviceOption = "auto",
    dtype: FastDtypeOption = None,
    fast: FastOption = None,
    batch_size: BatchSizeOption = 32,
    body: BodyOption = "starter",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    settings: Any = None,
) -> None:
    """Where the time of `predict` goes: its stages one after the other, the first frame apart. Writes no files."""
    from hmrcompress.api import predict as predicting
    from hmrcompress.runtime import pick_device, progress_bar

    asked = asked_of(locals())
    with progress_bar(quiet=quiet) as progress:
        result = predicting.profile(model, source, **asked, progress=progress)
    figures = {"profile": result.to_json()}
    write_record(json, "profile", figures, device=pick_device(device), seed=seed)
    printer = Printer(quiet)
    shares = [share for _, _, share, _ in result.rows()]
    starts = [sum(shares[:place]) for place in range(len(shares))]
    rows = [
        (name, f"{ms:.2f}", f"{share:.1%}", _bar(start, share), f"{first:.1f}")
        for (name, ms, share, first), start in zip(result.rows(), starts, strict=True)
    ]
    found = figures["profile"]
    in_dtype = "" if dtype is None else f"{dtype} on "
    title = f"{found['frames']} frames, {found['bodies']} bodies, batch {batch_size}, {in_dtype}{pick_device(device)}"
    printer.table(f"{title}, one stage after the other", COLUMNS, rows)
    printer.say(
        f"{found['ms_per_frame']:.2f} ms a frame, {result.accounted:.1%} of it in stages; "
        f"the first frame by itself took {found['first_frame_ms']:.0f} ms"
    )


def _bar(start: float, share: float) -> str:
    """A stage's part of the whole, as a bar that begins where the one before it ended."""
    before, until = round(WIDTH * start), round(WIDTH * (start + share))
    return (" " * before + "█" * max(until - before, 0)).ljust(WIDTH)
