"""The compressed-model folder: config.json, model.safetensors, plan.yaml (if layers or tokens were merged),
decoder.safetensors (if a temporal decoder was trained for it), probe.safetensors (if the network finds the person by
itself), README.md.

`config.json` holds everything needed to build the network, and size and hash of every other file, so that a truncated
or changed file is noticed on loading; it is sealed itself (`io.seals`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.figures import json_text
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import real
from hmrcompress.io.safetensors_file import read_safetensors, require_finite, write_safetensors
from hmrcompress.models.families.registry import network_class, read_config
from hmrcompress.models.files.card import model_card
from hmrcompress.models.files.config import BodyConfig, CropConfig, FileRef, FolderConfig, read_sealed_as
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.network import NetworkConfig
from hmrcompress.models.probe import SaliencyProbe, read_probe, write_probe
from hmrcompress.plan import CheckpointRef, Plan, trivial_groups

CONFIG, WEIGHTS, PLAN, CARD = "config.json", "model.safetensors", "plan.yaml", "README.md"
PROBE, DECODER = "probe.safetensors", "decoder.safetensors"
FORMAT = "hmrcompress-model"
ANEW = "Make the model anew: `hmrcompress merge` with another plan, or `finetune`"
KIND = FolderKind("model", CONFIG, (WEIGHTS, PLAN, CARD, PROBE, DECODER, "frontier.json", "report.html"))


@dataclass(frozen=True)
class Folder:
    """A folder that was read and checked; `state` are views of the mapped file, as are the decoder's tensors. `probe`
    makes person masks, `decoder` poses of whole clips."""

    path: Path
    config: FolderConfig
    network: NetworkConfig
    state: dict[str, Tensor]
    plan: Plan | None
    probe: SaliencyProbe | None = None
    decoder: DecoderPart | None = None

    @property
    def sha256(self) -> str:
        """Hash of the weights, which stands for the model."""
        return self.config.files[WEIGHTS].sha256


def write_model_folder(
    path: Path | str,
    state: Mapping[str, Tensor],
    network: NetworkConfig,
    *,
    plan: Plan | None = None,
    provenance: Mapping[str, Any] | None = None,
    body: str | None = None,
    card: str | None = None,
    probe: SaliencyProbe | None = None,
    decoder: DecoderPart | None = None,
    overwrite: bool | OutputRule = False,
) -> Folder:
    """Writes the folder beside its place and renames it; gives what `read_model_folder` would.

    state: key -> tensor of the network that `network` describes, in the dtype to store. plan: the plan that made it;
    without one nothing was merged. provenance: where the weights come from, as plain values. body: name of the body.
    card: text of README.md; without one it is made from the rest. probe, decoder: fitted on these weights; the tensors
    of the latter in the dtype to store. overwrite: see `io.outputs`; without it an existing folder is replaced only if
    it is empty or a model of ours with nothing else in it. Otherwise UserError.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    require_finite(state, path)
    with outputs.folder(path, KIND) as temporary:
        write_safetensors(temporary / WEIGHTS, state)
        if plan is not None:
            plan.write(temporary / PLAN)
        if probe is not None:
            write_probe(temporary / PROBE, probe)
        if decoder is not None:
            write_safetensors(temporary / DECODER, decoder.tensors)
        config = FolderConfig(
            family=network.family,
            network=network.to_dict(),
            dtype=" ".join(dtypes),
            groups=trivial_groups(network.depth) if plan is None else plan.kept_groups,
            removed=() if plan is None else plan.removed,
            merge_rule=None if plan is None else plan.merge_rule,
            tokens=None if plan is None else plan.tokens,
            run=None if plan is None else plan.run,
            decoder=None if decoder is None else dict(decoder.config),
            crop=CropConfig.of(network.crop),
            body=BodyConfig(
                joints=network.num_joints,
                betas=network.num_betas,
                sixd_layout=network_class(network.family).head_class.layout,
                name=body,
            ),
            provenance=dict(provenance or {}),
            files={},
        )
        (temporary / CONFIG).write_text(json_text(config.model_dump(mode="json", by_alias=True, exclude={"seal"})))
        parameters = sum(tensor.numel() for tensor in state.values())
        (temporary / CARD).write_text(card or model_card(real(path).name, config, parameters), encoding="utf-8")
    return read_model_folder(path, verify=False)


def read_model_folder(path: Path | str, verify: bool = True) -> Folder:
    """Reads a folder, weights memory-mapped. `verify` compares hashes (sizes are always compared).

    Raises UserError in one sentence: not a model folder, a file missing, truncated, changed, a `config.json` that was
    edited, or one that says something else than the files do.
    """
    path = Path(path)
    config = _read_config(path / CONFIG)
    for name in (WEIGHTS, PLAN, PROBE, DECODER):  # not the card: people write into it what they know of their model
        if name in config.files:
            check_file(path / name, config.files[name], verify)
    state, _ = read_safetensors(path / WEIGHTS)
    network = read_config(config.network, path / CONFIG)
    plan = Plan.read(path / PLAN) if PLAN in config.files else None
    _check_agreement(config, network, plan, path / CONFIG)
    return Folder(
        path=path,
        config=config,
        network=network,
        state=state,
        plan=plan,
        probe=read_probe(path / PROBE, network.dim) if PROBE in config.files else None,
        decoder=None if config.decoder is None else DecoderPart(config.decoder, read_safetensors(path / DECODER)[0]),
    )


def _read_config(path: Path) -> FolderConfig:
    """`config.json` as it was written. UserError where it is no such file, or was edited."""
    config, sealed = read_sealed_as(FolderConfig, path, "a compressed model")
    if sealed is None and config.schema_ > 1:
        raise UserError("seal: it is missing, so that nothing tells whether the file was edited", path, ANEW)
    if sealed is not None and not (sealed.intact and sealed.kind == KIND.name):
        raise UserError("was edited since it was written, and the network is not what it says", path, ANEW)
    if odd := [name for name in config.files if Path(name).name != name or "\\" in name or name in ("", ".", "..")]:
        raise UserError(f"files: got {odd[0]!r}, expected the name of a file in the folder, without a path", path)
    if WEIGHTS not in config.files:
        raise UserError(f"files: {WEIGHTS} is not listed", path)
    if (config.decoder is None) != (DECODER not in config.files):
        raise UserError(f"decoder: its settings and {DECODER} belong together, one is not listed", path)
    return config


def _check_agreement(config: FolderConfig, network: NetworkConfig, plan: Plan | None, where: Path) -> None:
    """UserError where `config.json` says something else than the plan, or than what is done whatever it says."""
    body = BodyConfig(
        joints=network.num_joints,
        betas=network.num_betas,
        sixd_layout=network_class(network.family).head_class.layout,
        name=config.body.name,
    )
    groups = trivial_groups(network.depth) if plan is None else plan.kept_groups
    removed = () if plan is None else plan.removed
    rule, tokens = (None, None) if plan is None else (plan.merge_rule, plan.tokens)
    expected = {"family": network.family, "crop": CropConfig.of(network.crop), "body": body}
    expected |= {"groups": groups, "merge_rule": rule, "tokens": tokens, "removed": removed}
    if config.run is not None:  # what was written before it was recorded says nothing
        expected["run"] = None if plan is None else plan.run
    for name, value in expected.items():
        if getattr(config, name) != value:
            said = (
                f"{PLAN} says"
                if name in ("groups", "merge_rule", "tokens", "removed", "run") and plan is not None
                else "expected"
            )
            wanted = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            raise UserError(f"{name}: is not what {said} ({str(wanted)[:120]})", where, ANEW)
    if len(config.groups) != network.depth:
        raise UserError(f"groups: {len(config.groups)} layers, the network has {network.depth}", where, ANEW)


def as_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with float32 tensors in float16, for shipping."""
    return {name: t.to(torch.float16) if t.dtype == torch.float32 else t for name, t in state.items()}


def checkpoint_record(reference: CheckpointRef, **more: Any) -> dict[str, Any]:
    """Provenance that names the checkpoint which weights were made from."""
    return {"checkpoint": reference.model_dump(mode="json"), **more}


def check_file(file: Path, reference: FileRef, verify: bool, manifest: str = CONFIG) -> None:
    """UserError where a file is not as the manifest of its folder, a file of that name, says."""
    if not file.is_file():
        raise UserError("the file is missing", file)
    if (size := file.stat().st_size) != reference.bytes:
        fault = "truncated" if size < reference.bytes else "changed"
        raise UserError(f"the file was {fault}: it has {size} bytes, {manifest} says {reference.bytes}", file)
    if verify and sha256_file(file) != reference.sha256:
        raise UserError(f"the file was changed: its hash is not the one in {manifest}", file)
