"""Keeping a compressed live model: its plan and the weights that differ from the original, and nothing else.

A folder holds `live.json` (where the stack is, hashes), `plan.yaml` and `weights.safetensors`. `restore` brings a fresh
model of theirs there; it has to hold the very blocks that the folder was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hmrcompress.errors import UserError
from hmrcompress.io.figures import json_text
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.jsons import read_json
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import read_safetensors, require_finite, write_safetensors
from hmrcompress.live.patching import Module, apply, changed_layers, own_layer, patched_in, unapply
from hmrcompress.live.plans import LivePlan, plan_for
from hmrcompress.live.structure import Network, compressed_in, hash_of
from hmrcompress.live.structure import network as found_network
from hmrcompress.plan import Plan

SCHEMA = 1
MAIN, PLAN, WEIGHTS = "live.json", "plan.yaml", "weights.safetensors"
KIND = FolderKind("live model", MAIN, (PLAN, WEIGHTS, "frontier.json", "report.html"))


def save(
    model: nn.Module,
    plan: LivePlan | None,
    path: Path | str,
    *,
    network: Network | None = None,
    force: bool = False,
    overwrite: bool | OutputRule = False,
) -> Path:
    """Writes the plan and the changed weights of a live model to a folder, in full or not at all.

    plan: what to apply to a model that is not compressed yet (it is left as it was); None for one that is, healed or
    not. overwrite: see `io.outputs`; force: see `apply`. UserError where the plan does not fit, or something else is at
    `path`.
    """
    path, outputs = Path(path), OutputRule.of(overwrite)
    outputs.check_folder(path, KIND)
    if compressed_in(model) is None:
        if plan is None:
            raise UserError("the model is not compressed", type(model).__name__, "Give the plan")
        found = network or found_network(model)
        apply(model, plan, network=found, force=force)
        try:
            return _written(model, path, outputs)
        finally:
            unapply(model)
    if plan is not None and plan_for(plan, None) != patched_in(model)[1].plan:
        raise UserError("the model is compressed by another plan", type(model).__name__, "Give None, or unapply first")
    return _written(model, path, outputs)


def restore(model: Module, path: Path | str, *, force: bool = False) -> Module:
    """Compresses a fresh model of theirs as `save` was told: the plan, and the weights that were kept. Gives the same
    `model` back; `unapply` undoes it.

    UserError where the folder was changed, or the model's blocks are not those that it was made from (`force`: only
    where shapes differ).
    """
    path = Path(path)
    about = _about(path)
    plan, (state, _) = Plan.read(path / PLAN), read_safetensors(path / WEIGHTS)
    found = found_network(
        model, about["stack"], tuple(about["grid"]), int(about["prefix"]), suffix=int(about["suffix"])
    )
    if not force and found.sha256 != about["blocks_sha256"]:
        raise UserError(
            f"was made from other blocks ({about['blocks_sha256'][:12]}…; these are {found.sha256[:12]}…)",
            path,
            "Load the weights that it was made from, or give force",
        )
    apply(model, plan, network=found, force=force)
    try:
        _load(model, state, path)
    except Exception:  # whatever it was: the caller's model is to be as it came, and the fault goes on
        unapply(model)
        raise
    return model


def _written(model: nn.Module, path: Path, outputs: OutputRule) -> Path:
    blocks, patch = patched_in(model)
    state: dict[str, Tensor] = {}
    for number, block in changed_layers(model).items():
        state |= {f"{number}.{name}": tensor for name, tensor in block.state_dict().items()}
    before = {
        f"{number}.{name}": tensor
        for number, block in enumerate(patch.originals)
        for name, tensor in block.state_dict().items()
    }
    about = {
        "schema": SCHEMA,
        "model": type(model).__name__,
        "stack": patch.name,
        "grid": list(patch.grid),
        "prefix": patch.prefix,
        "suffix": patch.suffix,
        "blocks_sha256": hash_of(before),
        "layers": {"before": len(blocks), "after": len(patch.plan.kept_groups)},
    }
    require_finite(state, path)
    with outputs.folder(path, KIND) as made:
        (made / PLAN).write_bytes(patch.plan.to_yaml().encode())
        write_safetensors(made / WEIGHTS, state)
        (made / MAIN).write_bytes(json_text(about).encode())
    return path


def _about(path: Path) -> dict[str, Any]:
    """What `live.json` says. UserError where the folder is none of ours or a file in it was changed."""
    if not (path / MAIN).is_file():
        raise UserError(f"holds no {MAIN}", path, "hc.live.save(model, plan, folder) makes one")
    about = read_json(path / MAIN)
    if not isinstance(about, dict) or not {"schema", "stack", "grid", "files", "blocks_sha256"} <= set(about):
        raise UserError("does not describe a live model", path / MAIN)
    if about["schema"] != SCHEMA:
        raise UserError(f"is of schema {about['schema']}, expected {SCHEMA}", path / MAIN)
    for name in (PLAN, WEIGHTS):
        entry = about["files"].get(name)
        if not (path / name).is_file() or not entry or sha256_file(path / name) != entry.get("sha256"):
            raise UserError("is missing or was changed since it was written", path / name, "Save it again")
    return about


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    _, patch = patched_in(model)
    for layer, group in enumerate(patch.plan.kept_groups):
        start = f"{group[0]}."
        mine = {name[len(start) :]: tensor for name, tensor in state.items() if name.startswith(start)}
        if not mine:
            continue
        try:
            own_layer(model, layer).load_state_dict(mine)
        except RuntimeError as error:
            raise UserError(f"layer {group[0]} does not fit ({str(error).splitlines()[-1].strip()})", path) from error
