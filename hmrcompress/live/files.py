"""Checkpoint files of other code, compressed as they lie: no code of theirs runs, and no family has to be known.

A stack of blocks is told by the names of its tensors. Its layers become what a plan says; every other tensor, be it a
temporal module, a decoder or a body, stays under its name and in its wrapper, so that the network's own code loads the
new file as it loaded the old one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmrcompress.errors import UserError, some
from hmrcompress.io.checkpoints import PICKLED, StateFile, open_state_file
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.pickles import read_torch_pickle
from hmrcompress.io.safetensors_file import require_finite, write_safetensors
from hmrcompress.io.torch_file import save_torch
from hmrcompress.live.blocks import ATTENTIONS, BARE_SCALES, NORMS, OUTPUTS, SCALES
from hmrcompress.live.plans import LivePlan, plan_for
from hmrcompress.live.structure import FAMILY, hash_of
from hmrcompress.live.weights import MLP_OUTPUTS, SELECTING, folded
from hmrcompress.merging.layers import FITTED, merge_layers
from hmrcompress.plan import ALL, ATTENTION, Plan

KIND, CARD = "original checkpoint", "card"
DENSE_OUTPUT = "output.dense"
"""The last layer of an MLP that is written as `intermediate` and `output`."""
SAFETENSORS = ".safetensors"
NUMBER = re.compile(r"[0-9]{1,4}")
SCALARS = (str, int, float, bool, type(None))


class Parts(NamedTuple):
    """Names of a block's parts, told by its tensors: where attention is and what it ends in, the MLP's last layer
    (None where neither is known), and the two layer scales, if it has any."""

    attention: str
    output: str | None
    last: str | None
    scales: tuple[str, str] | None


@dataclass(frozen=True)
class Stack:
    """A stack of blocks in a state dict: what stands before the numbers, and the tensors of each block by their names
    within it."""

    name: str
    layers: tuple[dict[str, Tensor], ...]

    @property
    def sha256(self) -> str:
        """As `live.Network.sha256` of a model that holds these blocks."""
        return hash_of(
            {f"{number}.{name}": each for number, layer in enumerate(self.layers) for name, each in layer.items()}
        )

    def __str__(self) -> str:
        return f"{self.name} ({len(self.layers)} layers)"


@dataclass(frozen=True)
class MergedFile:
    """The files that were written. stack: where the blocks are; layers: in the new file, `padded` of them identities;
    left_out: what else was in the old one and is not in the new."""

    weights: Path
    card: Path
    stack: str
    before: int
    layers: int
    padded: int
    left_out: tuple[str, ...]


def merge_file(
    checkpoint: Path | str,
    plan: LivePlan,
    out: Path | str,
    *,
    stack: str | None = None,
    weights: str | None = None,
    pad_identity: bool = True,
    force: bool = False,
    overwrite: bool | OutputRule = False,
) -> MergedFile:
    """Writes the checkpoint file of any network with the layers of its stack merged or removed as a plan says, and a
    card: OUT with the suffix .md.

    checkpoint: what `torch.save` wrote, or safetensors; `out` is of the same kind. plan: of a search in the live
    network, whose blocks have to be those of the file, or written by hand. stack: what stands before the numbers of the
    blocks, where several stacks fit; weights: as of `load_checkpoint`. pad_identity: a merged layer stands where the
    first of its group was, and what went is an exact identity, so that no line of the network's code changes; else
    layers are renumbered and its code has to make fewer. Tokens are not in a file; the card says how they are merged.

    UserError where there is no stack or several, the plan does not fit or was made for other blocks (`force`: only
    where the number of layers differs), it needs data (`lstsq`, `patch`), and as `io.outputs`.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    outputs = OutputRule.of(overwrite, checkpoint, plan if isinstance(plan, str | Path) else None)
    _check_suffix(checkpoint, out)
    form = "safetensors" if out.suffix == SAFETENSORS else "zip"
    card = out.with_suffix(".md")
    outputs.check_file(out, KIND, form)
    outputs.check_file(card, CARD)
    file = open_state_file(checkpoint, weights=weights)
    wanted = plan_for(plan, None)
    found = _chosen(stacks_in(file.tensors), wanted, stack, checkpoint)
    _check_plan(wanted, found, checkpoint, plan if isinstance(plan, str | Path) else "plan", force)
    layers = merged_blocks(found, wanted, pad_identity=pad_identity)
    state = _with_layers(file.tensors, found.name, layers)
    require_finite({name: tensor for name, tensor in state.items() if name.startswith(f"{found.name}.")}, checkpoint)
    left_out = _write(file, state, out, form, outputs)
    kept = len(wanted.kept_groups)
    made = MergedFile(
        weights=out,
        card=card,
        stack=found.name,
        before=len(found.layers),
        layers=len(layers),
        padded=len(layers) - kept,
        left_out=left_out,
    )
    outputs.write_text(card, _card_text(made, wanted, checkpoint), CARD)
    wanted.tell_run("the network's own code")
    return made


def describe_file(checkpoint: Path | str, weights: str | None = None) -> dict[str, Any] | None:
    """{model, stacks: [{name, layers, params, sha256}], params, sha256, weights} of a file of any network; None where
    no stack is told by its names. The hash of a stack is what plans of live networks refer to. Raises UserError for a
    file that cannot be read."""
    path = Path(checkpoint)
    file = open_state_file(path, weights=weights)
    found = [
        {
            "name": each.name,
            "layers": len(each.layers),
            "params": sum(tensor.numel() for layer in each.layers for tensor in layer.values()),
            "sha256": each.sha256,
        }
        for each in stacks_in(file.tensors)
    ]
    if not found:
        return None
    return {
        "model": path.name,
        "stacks": found,
        "params": sum(tensor.numel() for tensor in file.tensors.values() if tensor.is_floating_point()),
        "sha256": sha256_file(path),
        "weights": {"taken": file.taken.to_dict(), "others": [each.to_dict() for each in file.others]},
    }


def stacks_in(state: Mapping[str, Tensor]) -> list[Stack]:
    """The stacks of two and more transformer blocks in a state dict, the one with the most numbers in it first: names
    `…N.…` with N from 0 on, all layers with attention and the norms of `live.blocks`."""
    places: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if place and NUMBER.fullmatch(part):
                blocks = places.setdefault(".".join(parts[:place]), {})
                blocks.setdefault(int(part), {})[".".join(parts[place + 1 :])] = tensor
    found = [
        Stack(name, tuple(blocks[number] for number in range(len(blocks))))
        for name, blocks in places.items()
        if len(blocks) > 1 and set(blocks) == set(range(len(blocks))) and all(map(_is_block, blocks.values()))
    ]
    return sorted(found, key=lambda each: -sum(tensor.numel() for layer in each.layers for tensor in layer.values()))


def parts_of(layer: Iterable[str]) -> Parts:
    """The parts of a block by the names of its tensors."""
    names = set(layer)
    attention = next((name for name in ATTENTIONS if _any_in(names, name)), ATTENTIONS[0])
    output = next((name for name in OUTPUTS if f"{attention}.{name}.weight" in names), None)
    ends = (*(f"mlp.{name}" for name in MLP_OUTPUTS), DENSE_OUTPUT)
    last = next((name for name in ends if f"{name}.weight" in names), None)
    pairs = (*SCALES, BARE_SCALES)
    scales = next((pair for pair in pairs if all(name in names or _any_in(names, name) for name in pair)), None)
    return Parts(attention, output, last, scales)


def merged_blocks(stack: Stack, plan: Plan, *, pad_identity: bool = True) -> list[dict[str, Tensor]]:
    """The blocks that a plan makes of a stack, by the names within each. Merging as in `live.weights`: rules that add
    tensors up have layer scale folded in first. A half that is removed has zeros for its output, which is exact.

    pad_identity: as many blocks as there were (`merge_file`). UserError for blocks that are not built alike, and where
    an output that has to be zero is not known by its name.
    """
    gone = plan.removed_parts
    made: dict[int, dict[str, Tensor]] = {}
    for group in plan.kept_groups:
        layer = _merged(stack, group, plan.merge_rule)
        part = gone.get(group[0])
        made[group[0]] = layer if part is None else _silenced(layer, (part,), f"{stack.name}.{group[0]}")
    if not pad_identity:
        return [made[group[0]] for group in plan.kept_groups]
    return [
        made[number] if number in made else _silenced(layer, ("attention", "mlp"), f"{stack.name}.{number}")
        for number, layer in enumerate(stack.layers)
    ]


def _merged(stack: Stack, group: Sequence[int], rule: str) -> dict[str, Tensor]:
    states = [stack.layers[number] for number in group]
    if len(group) == 1:
        return states[0]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if odd := [number for number, found in zip(group, shapes, strict=True) if found != shapes[0]]:
        raise UserError(f"layers {group[0]} and {odd[0]} are not built alike, so they cannot be merged", "groups")
    if rule in SELECTING:
        return states[SELECTING[rule]]
    dtypes = {name: tensor.dtype for name, tensor in states[0].items()}
    states = [folded(state, parts_of(state)) for state in states]
    together = {f"{place}.{name}": tensor for place, state in enumerate(states) for name, tensor in state.items()}
    merged = merge_layers(together, [range(len(group))], rule, prefix="")
    return {name.removeprefix("0."): tensor.to(dtypes[name.removeprefix("0.")]) for name, tensor in merged.items()}


def _silenced(layer: Mapping[str, Tensor], halves: Sequence[str], where: str) -> dict[str, Tensor]:
    """The block with zeros for the output of these halves, so that they add nothing."""
    parts = parts_of(layer)
    outputs = {
        ATTENTION: None if parts.output is None else f"{parts.attention}.{parts.output}",
        "mlp": parts.last,
    }
    quiet = dict(layer)
    for half in halves:
        output = outputs[half]
        if output is None:
            raise UserError(
                f"the last layer of its {half} goes by no known name, so that it cannot be made an identity",
                where,
                "Give --no-pad-identity, and remove whole layers",
            )
        for name in (f"{output}.weight", f"{output}.bias"):
            if name in layer:
                quiet[name] = torch.zeros_like(layer[name])
    return quiet


def _any_in(names: Iterable[str], part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in names)


def _is_block(layer: Mapping[str, Tensor]) -> bool:
    return any(_any_in(layer, name) for name in ATTENTIONS) and any(
        all(_any_in(layer, norm) for norm in pair) for pair in NORMS
    )


def _check_suffix(checkpoint: Path, out: Path) -> None:
    kinds = (SAFETENSORS,) if checkpoint.suffix == SAFETENSORS else PICKLED
    if out.suffix not in kinds:
        raise UserError(f"got a name ending in {out.suffix!r}, expected {' or '.join(kinds)}, as the checkpoint", out)


def _chosen(stacks: Sequence[Stack], plan: Plan, name: str | None, where: Path) -> Stack:
    """The stack of that name, else the one whose blocks the plan was made for, else the only one of its length."""
    if not stacks:
        raise UserError("holds no stack of transformer blocks that is told by its names", where)
    listed = some([str(each) for each in stacks])
    if name is not None:
        found = next((each for each in stacks if each.name == name), None)
        if found is None:
            raise UserError(f"there is no stack {name}, but {listed}", where)
        return found
    fitting = [each for each in stacks if len(each.layers) == plan.layers]
    if not fitting:
        raise UserError(f"the plan is for {plan.layers} layers, and in it are {listed}", where)
    if len(fitting) > 1 and plan.checkpoint is not None:
        fitting = [each for each in fitting if each.sha256 == plan.checkpoint.sha256] or fitting
    if len(fitting) > 1:
        listed = some([str(each) for each in fitting])
        raise UserError(f"several stacks fit the plan: {listed}", where, "Name one: hc.live.merge_file(…, stack=NAME)")
    return fitting[0]


def _check_plan(plan: Plan, stack: Stack, checkpoint: Path, where: object, force: bool) -> None:
    """UserError where a plan needs data or was made for other weights. Hashes in plans of live networks are of blocks,
    in others of files."""
    if plan.merge_rule == FITTED or plan.patch is not None:
        what = f"merge_rule: {FITTED}" if plan.patch is None else "patch"
        raise UserError(
            f"{what} is fitted on what the network computes, and no code of it runs here",
            where,
            "Take another rule, or save the live model: hmrcompress merge adapter:FILE.py",
        )
    reference = plan.checkpoint
    if reference is None or not reference.family.startswith(FAMILY):
        sha256, layers = sha256_file(checkpoint), len(stack.layers)
        plan.check("" if reference is None else reference.family, sha256, layers, force, where)
    else:
        plan.check(reference.family, stack.sha256, len(stack.layers), force, where)


def _with_layers(state: Mapping[str, Tensor], stack: str, layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state dict with other blocks, in the order in which they were."""
    made: dict[str, Tensor] = {}
    begun = False
    for name, tensor in state.items():
        if not name.startswith(f"{stack}."):
            made[name] = tensor
        elif not begun:
            begun = True
            for number, layer in enumerate(layers):
                made |= {f"{stack}.{number}.{part}": each for part, each in layer.items()}
    return made


def _write(file: StateFile, state: Mapping[str, Tensor], out: Path, form: str, outputs: OutputRule) -> tuple[str, ...]:
    """Writes the state where it was in the file; what is left out beside it."""
    named = {f"{file.taken.prefix}{name}": tensor for name, tensor in state.items()}
    if form == "safetensors":
        metadata = {name: text for name, text in file.metadata.items() if name != "seal"}
        with outputs.file(out, KIND, form) as temporary:
            write_safetensors(temporary, named, metadata, seal=KIND)
        return ()
    content, left_out = _replaced(read_torch_pickle(file.path), file.taken.keys, named)
    with outputs.file(out, KIND, form) as temporary:
        save_torch(content, temporary)
    return left_out


def _replaced(content: Any, keys: Sequence[str], state: Mapping[str, Tensor]) -> tuple[Any, tuple[str, ...]]:
    """What was around the weights with other weights in their place: plain values stay, everything else (optimisers,
    averages, objects of classes) is left out and named."""
    if not keys:
        return dict(state), ()
    kept: dict[Any, Any] = {}
    left_out: list[str] = []
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in items:
        if str(key) == keys[0]:
            kept[key], inner = _replaced(value, keys[1:], state)
            left_out += [f"{key}.{name}" for name in inner]
        elif isinstance(value, SCALARS):
            kept[key] = value
        else:
            left_out.append(str(key))
    return kept, tuple(left_out)


def _card_text(made: MergedFile, plan: Plan, checkpoint: Path) -> str:
    """Markdown: what is in the file, how its own code takes it, what cannot be said there."""
    lines = [
        f"# {made.weights.name}",
        "",
        f"The weights of {checkpoint.name} (sha256 {sha256_file(checkpoint)}), and under its licence. Of the"
        f" {made.before} blocks in `{made.stack}`, {len(plan.kept_groups)} are left; every other tensor is as it was.",
        "",
    ]
    if made.padded:
        lines += [
            f"It loads wherever {checkpoint.name} did and predicts what the {len(plan.kept_groups)} blocks predict: the"
            f" other {made.padded} are exact identities (the outputs of attention and MLP are zero). They still cost"
            " time. For the speed, write it with `--no-pad-identity` and have the network made with fewer blocks.",
        ]
    elif made.layers < made.before:
        lines += [
            f"**Before loading it**, change the number of blocks where the network is made from {made.before} to"
            f" {made.layers}. Code that loads with `strict=False` leaves the upper ones random otherwise, without a"
            " word.",
        ]
    if halved := [str(layer) for layer, part in plan.removed_parts.items() if part != ALL]:
        lines += [
            "",
            f"Half of layer{'s' if len(halved) > 1 else ''} {', '.join(halved)} was removed; in this file its output is"
            " zero, which predicts exactly the same and still costs time.",
        ]
    if plan.tokens is not None:
        lines += [
            "",
            f"The plan also merges tokens (down to {plan.tokens.keep}), which a checkpoint cannot say:"
            ' `hmrcompress.live.apply(model, {"tokens": …})` does it once the model is loaded.',
        ]
    if made.left_out:
        lines += [
            "",
            f"Not in it, because it was no plain value or belongs to the old blocks: {', '.join(made.left_out)}.",
        ]
    return "\n".join(lines) + "\n"
