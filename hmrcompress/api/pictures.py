"""The pictures that the documentation and the card of a starter network show."""

from __future__ import annotations

from pathlib import Path

from hmrcompress.api.evaluate import layer_similarity
from hmrcompress.api.opening import compressed_network, load
from hmrcompress.body.files import starter_body
from hmrcompress.io.outputs import OutputRule
from hmrcompress.models.files.folder import KIND as MODEL
from hmrcompress.report.contact import SHEETS, from_best_to_worst, mesh_sheet, starter_sheets
from hmrcompress.report.plots import draw_similarity
from hmrcompress.report.sheets import KIND
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.starter.data.dataset import open_split


def write_starter_sheets(
    folder: Path, model: str = "starter", progress: Progress = no_progress, *, overwrite: bool | OutputRule = False
) -> list[Path]:
    """`report.contact.starter_sheets` of `starter:val` and `model` (a model string of `load`), into a folder; where the
    model is compressed, the starter network's mesh stands beside its own. Returns what was written. UserError as
    `io.outputs`."""
    outputs = OutputRule.of(overwrite, model)
    for name in SHEETS:
        outputs.check_file(folder / name, KIND)
    body, checkpoint = starter_body(), load(model)
    crops = open_split("val", body, size=checkpoint.config.crop, progress=progress)
    networks = [compressed_network(checkpoint)]
    if checkpoint.plan is not None:
        networks.insert(0, compressed_network(load("starter")))
    return starter_sheets(folder, networks, crops, body, overwrite=outputs)


def write_card_pictures(folder: Path, progress: Progress = no_progress) -> list[Path]:
    """What the card of a starter network in `folder` shows: cka.png and meshes.jpg, added to it."""
    body, checkpoint = starter_body(), load(folder)
    crops = open_split("val", body, size=checkpoint.config.crop, progress=progress)
    matrix = layer_similarity(checkpoint, crops, progress=progress)
    chosen = from_best_to_worst(checkpoint.network, crops, body)
    with OutputRule().additions(folder, MODEL) as more:
        draw_similarity(matrix, more / "cka.png", title="starter network on starter:val")
        mesh_sheet([checkpoint.network], crops, chosen, body, more / "meshes.jpg")
    return [folder / "cka.png", folder / "meshes.jpg"]
