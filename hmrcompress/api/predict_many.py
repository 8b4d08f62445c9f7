"""`hmrcompress.predict_many`: bodies in many pictures and videos, each input's in a folder of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from hmrcompress.api.on_ray import Cluster
from hmrcompress.api.predict_job import OpenJob, PredictJob
from hmrcompress.errors import UserError
from hmrcompress.exporting.folder import is_export_folder
from hmrcompress.io.locks import alone_in
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import paths_in
from hmrcompress.pipeline.inputs import find_inputs
from hmrcompress.pipeline.many import Here, ManySummary, Order, Workers, predict_units
from hmrcompress.pipeline.units import Manifest
from hmrcompress.runtime import Progress, no_progress


def predict_many(
    job: PredictJob,
    inputs: Sequence[str | Path],
    out: Path | str,
    *,
    on: Cluster | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> ManySummary:
    """Bodies of the people in many inputs (see `pipeline.inputs`), each in a folder of its own in `out`, where
    `manifest.json` says which are done, failed (and why), or not begun. Started again, with whatever inputs, it does
    what is left and what changed; results of the same model, settings, code and contents are left as they are.

    on: the cluster that does the work; this process where it is not given. What goes wrong with single inputs is in
    the summary; UserError where it concerns them all.
    """
    out, rule = Path(out), OutputRule.of(overwrite)
    job.check()
    paths = find_inputs(inputs).paths
    if out.exists() and not out.is_dir():
        raise UserError("is a file, expected the name of a folder", out)
    beside = [job.beside(path) for path in paths]
    common = tuple(paths_in([job.model, job.body, job.boxes, job.masks]))
    with on or nullcontext():
        if on is not None:
            exported = job.device == "auto" and is_export_folder(Path(str(job.model)))
            job = replace(job, device="cpu" if exported else on.device(job.device))
        opened = OpenJob(job, elsewhere=on is not None)
        with alone_in(out, wait=False):
            manifest = Manifest.open(out, paths, OutputRule(overwrite=rule.overwrite, inputs=common))
            inside = _inside(paths, out)
            orders = [
                Order(number, path, out / unit.folder, files, tuple(inside.get(unit.folder, ())))
                for number, (path, unit, files) in enumerate(zip(paths, manifest.mine, beside, strict=True))
            ]
            workers: AbstractContextManager[Workers] = nullcontext(Here(opened.do, opened.key, rule.overwrite, common))
            if on is not None:
                workers = on.workers(job, opened.settings, overwrite=rule.overwrite, inputs=common)
            with workers as who:
                return predict_units(manifest, orders, opened.settings, who, clock=time.perf_counter, progress=progress)


def _inside(paths: Sequence[Path], out: Path) -> dict[str, list[Path]]:
    """Inputs that lie in folders of the output, by the names of these: nothing may be written over them."""
    home, found = Path(os.path.realpath(out)), dict[str, list[Path]]()
    for path in paths:
        place = Path(os.path.realpath(path))
        if home in place.parents:
            found.setdefault(place.relative_to(home).parts[0], []).append(path)
    return found
