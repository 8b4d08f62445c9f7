"""Any known checkpoint to safetensors that loads without pickles, and a JSON file that says what was in it; or to a
model folder in half precision, for shipping."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.open_formats import KIND
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import require_finite, write_safetensors
from hmrcompress.models.families.registry import MARKS
from hmrcompress.models.files.folder import Folder, as_half, checkpoint_record, write_model_folder
from hmrcompress.models.files.load import METADATA_KEY, Checkpoint


@dataclass(frozen=True)
class Converted:
    """The files that were written, and what the JSON says."""

    weights: Path
    record_path: Path
    record: dict[str, Any]


def convert_checkpoint(checkpoint: Checkpoint, out: Path | str, *, overwrite: bool | OutputRule = False) -> Converted:
    """Writes OUT.safetensors (the network's weights, float32; sizes and origin in its header) and OUT.json.

    `out` may end in .safetensors or have no suffix. Keys that inference does not need are left out and listed in the
    JSON, which also holds the configuration that was pickled beside the weights. Raises UserError for another suffix,
    and as `io.outputs`.
    """
    out, outputs = Path(out), OutputRule.of(overwrite, checkpoint)
    if out.suffix not in ("", ".safetensors"):
        raise UserError(f"got a name ending in {out.suffix!r}, expected .safetensors", out)
    weights = out.with_suffix(".safetensors")
    record_path = weights.with_suffix(".json")
    outputs.check_file(weights, KIND)
    outputs.check_file(record_path, KIND, "json")
    described = {
        "family": checkpoint.family,
        "network": checkpoint.config.to_dict(),
        "source": {"name": checkpoint.name, "sha256": checkpoint.sha256, "dtype": checkpoint.stored_dtype},
    }
    state = checkpoint.state()
    require_finite(state, checkpoint.name)
    with outputs.file(weights, KIND) as temporary:
        metadata = {METADATA_KEY: json.dumps(described, sort_keys=True)}
        write_safetensors(temporary, state, metadata, seal=KIND)
    record = {"schema": 1, **described, "sha256": sha256_file(weights), "left_out": sorted(checkpoint.ignored)}
    if checkpoint.path is not None and checkpoint.path.is_file():
        file = open_state_file(checkpoint.path, *MARKS, weights=checkpoint.chosen)
        record["hyper_parameters"] = file.hyper_parameters
    outputs.write_json(record_path, record, KIND)
    return Converted(weights, record_path, record)


def write_half(checkpoint: Checkpoint, out: Path | str, *, overwrite: bool | OutputRule = False) -> Folder:
    """Writes a model folder with float16 weights: network, probe, and what there is of a temporal decoder, whose
    statistics stay as they are (`DecoderPart.half`). Plan, provenance and card go with them.

    Weights that are stored in float16 already stay the same. Raises UserError as `io.outputs`.
    """
    decoder = checkpoint.motion_vae
    return write_model_folder(
        out,
        as_half(checkpoint.state()),
        checkpoint.config,
        plan=checkpoint.plan,
        provenance=checkpoint.source
        or checkpoint_record(checkpoint.reference, name=checkpoint.name, command="convert"),
        body=checkpoint.body,
        probe=checkpoint.probe,
        decoder=None if decoder is None else decoder.half(),
        overwrite=OutputRule.of(overwrite, checkpoint),
    )
