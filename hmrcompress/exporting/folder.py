"""The folder of an exported network: export.json (what it is, what goes in and comes out, how close it is to torch),
the files of its runtime, golden tensors, the plan and the temporal decoder of the model that it came from, README.md.

`export.json` is the manifest, sealed, with size and hash of all the other files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hmrcompress.body.model import BodyModel
from hmrcompress.errors import UserError, shown
from hmrcompress.exporting.card import export_card
from hmrcompress.exporting.onnx import contract_of, golden_of, require_float32
from hmrcompress.exporting.parity import BATCH_SIZES, GraphNetwork, Parity, measure
from hmrcompress.exporting.runtimes.registry import RUNTIMES, require_precision
from hmrcompress.exporting.runtimes.runtime import Source
from hmrcompress.io.figures import json_text
from hmrcompress.io.jsons import read_json
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import real
from hmrcompress.io.safetensors_file import read_safetensors, write_safetensors
from hmrcompress.io.seals import json_seal
from hmrcompress.models.families.registry import read_config
from hmrcompress.models.files.config import FileRef
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.files.folder import check_file
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, NetworkConfig
from hmrcompress.plan import Plan
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import environment

MAIN, GOLDEN, CARD, PLAN, DECODER = "export.json", "golden.npz", "README.md", "plan.yaml", "decoder.safetensors"
OWN = (GOLDEN, CARD, PLAN, DECODER)
KIND = FolderKind("exported network", MAIN, (*OWN, *(each for one in RUNTIMES.values() for each in one.writes)))
ANEW = "Export it anew: `hmrcompress export`"


class ExportConfig(BaseModel):
    """`export.json`. main: the file that the runtime opens. mean: the mean parameters that the network's read-outs are
    added to. prepared: why it was not run where it was made. about: what else is known, for people."""

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
    parity_data: Mapping[str, Any] | None = None,
    overwrite: bool | OutputRule = False,
) -> ExportedFolder:
    """Writes the folder of a network for a runtime (`runtimes.registry`), in one of its precisions.

    network: that of `checkpoint` with the token merging that is wanted. batch: real crops, on which what the runtime
    gives is compared with torch at every one of `batch_sizes` before anything gets its name; where it cannot run on
    this machine nothing is compared, and `config.prepared` says why. Raises UserError, also as `io.outputs`,
    MissingExtra, and HMRCompressError where the two differ or the runtime does not take the network.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    chosen = require_precision(runtime, precision)
    chosen.check(precision)
    require_float32(network)
    outputs.check_folder(path, KIND)
    network.eval()
    with outputs.folder(path, KIND) as staged:
        made = chosen.compile(Source(network, batch, tuple(batch_sizes)), staged, precision)
        parity: Parity | None = None
        about = dict(made.details)
        if made.prepared is None:
            running = chosen.run(staged / made.main, precision, threads=torch.get_num_threads())
            try:
                parity = measure(network, GraphNetwork(running, running.inputs), batch, body, batch_sizes)
            finally:
                running.close()
            about |= dict(running.about)
            parity.require(path, precision)
        np.savez(staged / GOLDEN, **golden_of(network, batch))  # type: ignore[arg-type]
        if checkpoint.plan is not None:
            checkpoint.plan.write(staged / PLAN)
        if checkpoint.decoder is not None:
            write_safetensors(staged / DECODER, checkpoint.decoder.tensors)
        contract = contract_of(network, parity, body, through=f"{runtime}, CPU")
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
            lines=made.lines,
            about=about,
            environment=environment(),
        )
        (staged / MAIN).write_text(json_text(config.model_dump(mode="json", by_alias=True, exclude={"seal", "files"})))
        (staged / CARD).write_text(export_card(real(path).name, config.model_dump()), encoding="utf-8")
    return read_export_folder(path, verify=False)


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
            check_file(path / name, reference, verify)
    network = read_config(config.network, path / MAIN)
    decoder = None
    if config.decoder is not None:
        decoder = DecoderPart(config.decoder, read_safetensors(path / DECODER)[0])
    plan = Plan.read(path / PLAN) if PLAN in config.files else None
    return ExportedFolder(path, config, network, plan, decoder)


def _read_config(path: Path) -> ExportConfig:
    if not path.is_file():
        raise UserError(f"not an exported network: there is no readable {MAIN} in it", path.parent)
    values = read_json(path)
    try:
        config = ExportConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        what = (
            f"{field}: {fault['msg']}" if field else f"got {shown(values)}, expected the fields of an exported network"
        )
        raise UserError(what, path) from error
    sealed = json_seal(values)
    if sealed is None or not (sealed.intact and sealed.kind == KIND.name):
        raise UserError("was edited since it was written, and the network is not what it says", path, ANEW)
    require_precision(config.runtime, config.precision)
    patterns = (*OWN, *RUNTIMES[config.runtime].writes)
    allowed = FolderKind(KIND.name, None, patterns)
    for name in (*config.files, config.main):
        if ".." in Path(name).parts or Path(name).is_absolute() or "\\" in name or not allowed.may_write(name):
            raise UserError(f"files: got {shown(name)}, which is none of an exported network", path)
    if config.main not in config.files and not (path.parent / config.main).is_dir():
        raise UserError(f"files: {config.main} is not listed", path)
    if (config.decoder is None) != (DECODER not in config.files):
        raise UserError(f"decoder: its settings and {DECODER} belong together, one is not listed", path)
    return config
