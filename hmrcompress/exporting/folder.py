"""The folder of an exported network: export.json (what it is, what goes in and comes out, how close it is to torch),
the files of its runtime, golden tensors, the plan and the temporal decoder of the model that it came from, README.md.

`export.json` is the manifest, sealed, with size and hash of all the other files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError, shown
from hmrcompress.exporting.card import export_card
from hmrcompress.exporting.int8 import choose, planned
from hmrcompress.exporting.onnx import contract_of, golden_of, require_float32
from hmrcompress.exporting.overflow import require_room
from hmrcompress.exporting.parity import BATCH_SIZES, GraphNetwork, Parity, measure
from hmrcompress.exporting.runtimes.registry import RUNTIMES, require_precision
from hmrcompress.exporting.runtimes.runtime import Compiled, Running, Runtime, Source
from hmrcompress.exporting.session import has_exact_int8
from hmrcompress.io.figures import json_text
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.npz import write_npz
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import real
from hmrcompress.io.safetensors_file import read_safetensors, write_safetensors
from hmrcompress.models.families.registry import read_config
from hmrcompress.models.files.config import FileRef, read_sealed_as
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.files.folder import check_file
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, NetworkConfig
from hmrcompress.plan import Plan
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import Progress, environment, no_progress

MAIN, GOLDEN, CARD, PLAN, DECODER = "export.json", "golden.npz", "README.md", "plan.yaml", "decoder.safetensors"
OWN = (GOLDEN, CARD, PLAN, DECODER)
KIND = FolderKind("exported network", MAIN, (*OWN, *(each for one in RUNTIMES.values() for each in one.writes)))
BUDGET_MM = 0.3
"""What 8 bits may move joints by: the median over crops of the largest distance of a joint."""
ANEW = "Export it anew: `hmrcompress export`"


class ExportConfig(BaseModel):
    """`export.json`. main: the file that the runtime opens. mean: the mean parameters that the network's read-outs are
    added to. prepared: why it was not run where it was made. exact_int8: its 8-bit numbers use their whole range, which
    takes a processor whose products of them do not overflow. about: what else is known, for people."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    kind: Literal["hmrcompress exported network"] = "hmrcompress exported network"
    schema_: Literal[1] = Field(default=1, alias="schema")
    runtime: str
    precision: str
    main: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    network: dict[str, Any]
    body: dict[str, Any]
    predicts: str | None = None
    mean: dict[str, Any]
    decoder: dict[str, Any] | None = None
    model: str
    sha256: str
    provenance: dict[str, Any]
    parity: dict[str, Any] | None = None
    parity_data: dict[str, Any]
    prepared: str | None = None
    exact_int8: bool = False
    lines: tuple[str, ...] = ()
    about: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    files: dict[str, FileRef] = {}
    seal: str | None = None


@dataclass(frozen=True)
class ExportedFolder:
    """A folder that was written or read. plan, decoder: of the model that it came from."""

    path: Path
    config: ExportConfig
    network: NetworkConfig
    plan: Plan | None = None
    decoder: DecoderPart | None = None

    @property
    def main(self) -> Path:
        """The file that the runtime opens."""
        return self.path / self.config.main

    @property
    def size_bytes(self) -> int:
        """Of the runtime's files."""
        return sum(each.bytes for name, each in self.config.files.items() if name not in OWN)

    @property
    def mean(self) -> BodyParams:
        """The mean parameters, a batch of one."""
        return BodyParams(*(torch.tensor(self.config.mean[name]) for name in ("global_orient", "body_pose", "betas")))


def export_folder(
    network: HMR2,
    path: Path | str,
    batch: FrameBatch,
    body: BodyModel,
    checkpoint: Checkpoint,
    *,
    runtime: str,
    precision: str = "float32",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budget_mm: float = BUDGET_MM,
    calibration: FrameBatch | None = None,
    parity_data: Mapping[str, Any] | None = None,
    overwrite: bool | OutputRule = False,
    progress: Progress = no_progress,
) -> ExportedFolder:
    """Writes the folder of a network for a runtime (`runtimes.registry`), in one of its precisions.

    network: that of `checkpoint` with the token merging that is wanted. batch: real crops, on which what the
    runtime gives is compared with torch at every one of `batch_sizes` before anything gets its name; where it
    cannot run on this machine nothing is compared, and `config.prepared` says why. In int8 the linear layers get 8
    bits that stay within `budget_mm` (`int8.choose`, on the crops of `calibration`, by default those of `batch`).
    Raises UserError, also as `io.outputs`, MissingExtra, and HMRCompressError where the two differ or the runtime
    does not take the network.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    chosen = require_precision(runtime, precision)
    chosen.check(precision)
    require_float32(network)
    outputs.check_folder(path, KIND)
    network.eval()
    room = require_room(network, batch) if precision == "float16" else None
    if precision == "int8":
        calibration = batch if calibration is None else calibration
        choice = choose(network, calibration, body, budget_mm, weight_bits=chosen.weight_bits(), progress=progress)
    else:
        calibration, choice = None, None
    with outputs.folder(path, KIND) as staged, TemporaryDirectory(prefix="hmrcompress-export-") as between:
        source = Source(network, batch, tuple(batch_sizes), choice, calibration)
        if choice is not None:
            source = source.with_graph(Path(between))
        made, parity, about, through = _made(chosen, source, staged, precision, body, batch_sizes)
        while choice is not None and _over(parity, budget_mm) and len(choice.layers) > 1:
            choice = choice.fewer()
            for file in staged.iterdir():  # weights beside a graph would be added to those that are there
                file.unlink()
            source = replace(source, int8=choice)
            progress("fewer layers in 8 bits", len(choice.kept), len(choice.kept) + len(choice.layers))
            made, parity, about, through = _made(chosen, source, staged, precision, body, batch_sizes)
        if parity is not None:
            parity.require(path, precision, budget_mm=budget_mm if precision == "int8" else None)
        plan = checkpoint.plan
        if room is not None:
            about |= {"float16": room}
        if choice is not None:
            plan = planned(plan, checkpoint.reference, choice, runtime)
            about |= {"int8": choice.to_json()}
        write_npz(staged / GOLDEN, golden_of(network, batch))
        if plan is not None:
            plan.write(staged / PLAN)
        if checkpoint.decoder is not None:
            write_safetensors(staged / DECODER, checkpoint.decoder.tensors)
        contract = contract_of(network, parity, body, through=through)
        mean = network.head.mean_params()
        config = ExportConfig(
            runtime=runtime,
            precision=precision,
            main=made.main,
            inputs=contract["inputs"],
            outputs=contract["outputs"],
            network=network.config.to_dict(),
            body=contract["body"],
            predicts=checkpoint.body,
            mean={name: getattr(mean, name).tolist() for name in ("global_orient", "body_pose", "betas")},
            decoder=None if checkpoint.decoder is None else dict(checkpoint.decoder.config),
            model=checkpoint.name,
            sha256=checkpoint.sha256,
            provenance=dict(checkpoint.source),
            parity=contract["parity"] if parity is not None else None,
            parity_data=dict(parity_data or {}),
            prepared=made.prepared,
            exact_int8=precision == "int8" and has_exact_int8(),
            lines=made.lines,
            about=about,
            environment=environment(),
        )
        (staged / MAIN).write_text(json_text(config.model_dump(mode="json", by_alias=True, exclude={"seal", "files"})))
        (staged / CARD).write_text(export_card(real(path).name, config.model_dump()), encoding="utf-8")
    return read_export_folder(path, verify=False)


def _made(
    chosen: Runtime, source: Source, folder: Path, precision: str, body: BodyModel, sizes: Sequence[int]
) -> tuple[Compiled, Parity | None, dict[str, Any], str]:
    """Makes a runtime's files; how far they are from torch (None where nothing here runs them), what is known of them,
    and what ran them."""
    made = chosen.compile(source, folder, precision)
    through, threads, about = f"{chosen.name}, CPU", torch.get_num_threads(), dict(made.details)
    running: Running | None = None
    if made.prepared is None:
        running = chosen.run(folder / made.main, precision, threads=threads)
    elif made.stand_in is not None:
        running, through = made.stand_in(threads), f"onnxruntime, CPU: the files, not {chosen.name}"
    if running is None:
        return made, None, about, through
    try:
        graph = GraphNetwork(running, running.inputs, source.network.config.grid)
        parity = measure(source.network, graph, source.batch, body, sizes)
    finally:
        running.close()
    return made, parity, about | dict(running.about), through


def _over(parity: Parity | None, budget_mm: float) -> bool:
    """Whether joints moved by more than the budget; what is not finite is left to `Parity.require`."""
    return parity is not None and parity.median is not None and parity.median.joints_mm > budget_mm


def is_export_folder(path: Path | str) -> bool:
    """Whether this is a folder that says of itself that it holds an exported network."""
    return (Path(path) / MAIN).is_file()


def read_export_folder(path: Path | str, verify: bool = True) -> ExportedFolder:
    """Reads a folder; `verify` compares hashes (sizes are always compared). Raises UserError in one sentence: no such
    folder, a file missing, truncated or changed, an `export.json` that was edited, a runtime that nobody knows."""
    path = Path(path)
    config = _read_config(path / MAIN)
    for name, reference in config.files.items():
        if name != CARD:  # people write into it what they know of their model
            check_file(path / name, reference, verify, MAIN)
    network = read_config(config.network, path / MAIN)
    decoder = None
    if config.decoder is not None:
        decoder = DecoderPart(config.decoder, read_safetensors(path / DECODER)[0])
    plan = Plan.read(path / PLAN) if PLAN in config.files else None
    return ExportedFolder(path, config, network, plan, decoder)


def _read_config(path: Path) -> ExportConfig:
    config, sealed = read_sealed_as(ExportConfig, path, "an exported network")
    if sealed is None or not (sealed.intact and sealed.kind == KIND.name):
        raise UserError("was edited since it was written, and the network is not what it says", path, ANEW)
    require_precision(config.runtime, config.precision)
    patterns = (*OWN, *RUNTIMES[config.runtime].writes)
    allowed = FolderKind(KIND.name, None, patterns)
    parts = tuple(name for name in config.files if name.startswith(f"{config.main}/"))  # where it is a folder itself
    for name in (*config.files, *(() if parts else (config.main,))):
        if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name or not allowed.may_write(name):
            raise UserError(f"files: got {shown(name)}, which is none of an exported network", path)
    if config.main not in config.files and not parts:
        raise UserError(f"files: {config.main} is not listed", path)
    if (config.decoder is None) != (DECODER not in config.files):
        raise UserError(f"decoder: its settings and {DECODER} belong together, one is not listed", path)
    return config
