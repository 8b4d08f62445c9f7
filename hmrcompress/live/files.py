"""Checkpoint files of other code, compressed as they lie: no code of theirs runs, and no family has to be known.

A stack of blocks is told by the names of its tensors. Its layers become what a plan says; every other tensor, be it a
temporal module, a decoder or a body, stays under its name and in its wrapper, so that the network's own code loads the
new file as it loaded the old one.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmrcompress.errors import UserError, some
from hmrcompress.io.checkpoints import PICKLED, check_plain
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.pickles import read_torch_pickle
from hmrcompress.io.safetensors_file import read_safetensors, require_finite, write_safetensors
from hmrcompress.io.torch_file import save_torch
from hmrcompress.io.wrappers import TRANSPARENT, leaves
from hmrcompress.live.blocks import ATTENTIONS, BARE_SCALES, NORMS, OUTPUTS, SCALES
from hmrcompress.live.plans import LivePlan, plan_for
from hmrcompress.live.structure import FAMILY, hash_of
from hmrcompress.live.weights import SELECTING, folded
from hmrcompress.merging.layers import FITTED, merge_layers
from hmrcompress.plan import ALL, ATTENTION, MLP, Plan

KIND, CARD = "original checkpoint", "card"
DENSE = ("intermediate", "output")
"""An MLP that is written as two modules of the block."""
SAFETENSORS = ".safetensors"
NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")
SCALARS = (str, int, float, bool, type(None))
OPTIMISER = {"state", "param_groups"}


class Parts(NamedTuple):
    """Names of a block's parts, told by its tensors: its two norms, where attention is and what it ends in (None where
    that goes by an unknown name), and the two layer scales, if it has any."""

    norms: tuple[str, str]
    attention: str
    output: str | None
    scales: tuple[str, str] | None


@dataclass(frozen=True)
class Stack:
    """A stack of blocks in a dictionary of tensors. name: what stands before the numbers, without what wrappers put
    into names; keys: of the dictionaries around it; places: all that stands before the numbers, of every place where
    these same tensors are; layers: the tensors of each block by their names within it, and `raw` what the file calls
    these, where wrappers have put something in."""

    name: str
    keys: tuple[str, ...]
    places: tuple[str, ...]
    layers: tuple[dict[str, Tensor], ...]
    raw: tuple[dict[str, str], ...] = field(repr=False, default=())

    @cached_property
    def sha256(self) -> str:
        """As `live.Network.sha256` of a model that holds these blocks."""
        layers = enumerate(self.layers)
        return hash_of({f"{number}.{name}": tensor for number, layer in layers for name, tensor in layer.items()})

    @property
    def params(self) -> int:
        """How many numbers are in it."""
        return sum(tensor.numel() for layer in self.layers for tensor in layer.values())

    def __str__(self) -> str:
        around = f" in {'.'.join(self.keys)}" if self.keys else ""
        return f"{self.name} ({len(self.layers)} layers{around})"


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
    blocks, weights: the dictionary they are in, where several fit. pad_identity: a merged layer stands where the first
    of its group was, and what went is an identity, so that no line of the network's code changes; else layers are
    renumbered and its code has to make fewer. Tokens are not in a file; the card says how they are merged.

    Blocks are taken to be residual, `x + f(x)` for each of their parts, so that one with nothing but zeros is an
    identity. Whatever else the file holds stays: tensors, numbers, texts, and dictionaries and lists of these.
    Optimisers, other weights of the same blocks (averages) and objects of classes do not; `left_out` names them.

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
    content, metadata = _read(checkpoint)
    wanted, where = plan_for(plan, None), plan if isinstance(plan, str | Path) else "plan"
    _check_rule(wanted, where)
    stacks = stacks_in(content)
    found = _chosen(stacks, wanted, stack, weights, checkpoint)
    _check_plan(wanted, found, checkpoint, where, force)
    layers = merged_blocks(found, wanted, pad_identity=pad_identity)
    for number, layer in enumerate(layers):
        require_finite({f"{found.name}.{number}.{name}": each for name, each in layer.items()}, checkpoint)
    made, left_out = _Rewriting(found, stacks, layers).whole(content)
    with outputs.file(out, KIND, form) as temporary:
        if form == "zip":
            save_torch(made, temporary)
        else:
            kept = {name: text for name, text in metadata.items() if name != "seal"}
            write_safetensors(temporary, made, kept, seal=KIND)
    kept_layers = len(wanted.kept_groups)
    result = MergedFile(
        weights=out,
        card=card,
        stack=found.name,
        before=len(found.layers),
        layers=len(layers),
        padded=len(layers) - kept_layers,
        left_out=left_out,
    )
    outputs.write_text(card, _card_text(result, wanted, checkpoint), CARD)
    wanted.tell_run("the network's own code")
    return result


def describe_file(checkpoint: Path | str) -> dict[str, Any] | None:
    """{model, stacks: [{name, keys, layers, params, sha256}], params, sha256} of a file of any network; None where no
    stack is told by its names. The hash of a stack is what plans of live networks refer to. Raises UserError for a
    file that cannot be read."""
    path = Path(checkpoint)
    content, _ = _read(path)
    found = stacks_in(content)
    if not found:
        return None
    return {
        "model": path.name,
        "stacks": [
            {
                "name": each.name,
                "keys": list(each.keys),
                "layers": len(each.layers),
                "params": each.params,
                "sha256": each.sha256,
            }
            for each in found
        ],
        "params": sum(leaf.tensor.numel() for leaf in leaves(content) if leaf.tensor.is_floating_point()),
        "sha256": sha256_file(path),
    }


def holds_stack(checkpoint: Path | str) -> bool:
    """Whether a file holds a stack of blocks that is told by its names. Raises UserError for one that cannot be
    read."""
    return bool(stacks_in(_read(Path(checkpoint))[0]))


def stacks_in(content: Any) -> list[Stack]:
    """The stacks of two and more transformer blocks in dictionaries of tensors, or dictionaries of these, the one with
    the most numbers first: names `…N.…` with N from 0 on, all layers with attention and the norms of `live.blocks`.
    The same tensors under two names are one stack."""
    found: list[Stack] = []
    holders: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for leaf in leaves(content):
        holders.setdefault(leaf.keys, {})[leaf.name] = leaf.tensor
    for keys, tensors in holders.items():
        for each in _stacks_of(tensors, keys):
            same = next((number for number, other in enumerate(found) if _alike(each, other)), None)
            if same is None:
                found.append(each)
            elif found[same].keys == keys:
                joined = Stack(found[same].name, keys, (*found[same].places, *each.places), each.layers, each.raw)
                found[same] = joined
    return sorted(found, key=lambda each: -each.params)


def parts_of(layer: Iterable[str]) -> Parts:
    """The parts of a block by the names of its tensors."""
    names = set(layer)
    norms = next((pair for pair in NORMS if all(_any_in(names, norm) for norm in pair)), NORMS[0])
    attention = next((name for name in ATTENTIONS if _any_in(names, name)), ATTENTIONS[0])
    output = next((name for name in OUTPUTS if f"{attention}.{name}.weight" in names), None)
    pairs = (*SCALES, BARE_SCALES)
    scales = next((pair for pair in pairs if all(name in names or _any_in(names, name) for name in pair)), None)
    return Parts(norms, attention, output, scales)


def merged_blocks(stack: Stack, plan: Plan, *, pad_identity: bool = True) -> list[dict[str, Tensor]]:
    """The blocks that a plan makes of a stack, by the names within each. Merging as in `live.weights`: rules that add
    tensors up have layer scale folded in first. What is removed has zeros for all its weights.

    pad_identity: as many blocks as there were (`merge_file`). UserError for blocks that are not built alike, and where
    a half is to be removed of a block that has more than two.
    """
    gone = plan.removed_parts
    made: dict[int, dict[str, Tensor]] = {}
    for group in plan.kept_groups:
        layer = _merged(stack, group, plan.merge_rule)
        part = gone.get(group[0])
        made[group[0]] = layer if part is None else _without_half(layer, part, f"{stack.name}.{group[0]}")
    if not pad_identity:
        return [made[group[0]] for group in plan.kept_groups]
    return [
        made[number] if number in made else {name: torch.zeros_like(each) for name, each in layer.items()}
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
    parts = parts_of(states[0])
    folds = [folded(state, parts, f"{stack.name}.{number}") for number, state in zip(group, states, strict=True)]
    together = {f"{place}.{name}": tensor for place, state in enumerate(folds) for name, tensor in state.items()}
    merged = merge_layers(together, [range(len(group))], rule, prefix="")
    return {name.removeprefix("0."): tensor.to(dtypes[name.removeprefix("0.")]) for name, tensor in merged.items()}


def _without_half(layer: Mapping[str, Tensor], part: str, where: str) -> dict[str, Tensor]:
    """The block with zeros for all that is in one of its halves, which then adds nothing."""
    parts = parts_of(layer)
    scales = parts.scales or ("", "")
    halves = {
        ATTENTION: (parts.norms[0], parts.attention, scales[0]),
        MLP: (parts.norms[1], "mlp", *DENSE, scales[1]),
    }
    owners = {name: [half for half, names in halves.items() if _is_in(name, names)] for name in layer}
    if odd := next((name for name, found in owners.items() if len(found) != 1), None):
        raise UserError(f"{odd} belongs to neither half, so that no half can be removed", where, "Remove whole layers")
    return {name: torch.zeros_like(each) if part in owners[name] else each for name, each in layer.items()}


def _is_in(name: str, parts: Iterable[str]) -> bool:
    return any(part and (name == part or name.startswith(f"{part}.")) for part in parts)


def _any_in(names: Iterable[str], part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in names)


def _solid(name: str) -> str:
    """A name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def _stacks_of(tensors: Mapping[str, Tensor], keys: tuple[str, ...]) -> list[Stack]:
    places: dict[str, dict[int, dict[str, str]]] = {}
    for name in tensors:
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if place and NUMBER.fullmatch(part):
                inner = ".".join(parts[place + 1 :])
                blocks = places.setdefault(".".join(parts[:place]), {})
                blocks.setdefault(int(part), {})[_solid(inner)] = inner
    found = []
    for start, numbered in places.items():
        if len(numbered) < 2 or set(numbered) != set(range(len(numbered))):
            continue
        raw = tuple(numbered[number] for number in range(len(numbered)))
        layers = tuple(
            {name: tensors[f"{start}.{number}.{inner}"] for name, inner in names.items()}
            for number, names in enumerate(raw)
        )
        if all(map(_is_block, layers)):
            found.append(Stack(_solid(start), keys, (start,), layers, raw))
    return found


def _is_block(layer: Mapping[str, Tensor]) -> bool:
    return any(_any_in(layer, name) for name in ATTENTIONS) and any(
        all(_any_in(layer, norm) for norm in pair) for pair in NORMS
    )


def _alike(one: Stack, other: Stack) -> bool:
    """Whether two stacks are the same numbers in the same place of the file."""
    return len(one.layers) == len(other.layers) and all(
        mine.keys() == theirs.keys()
        and all(
            tensor.data_ptr() == theirs[name].data_ptr()
            and tensor.shape == theirs[name].shape
            and tensor.stride() == theirs[name].stride()
            for name, tensor in mine.items()
        )
        for mine, theirs in zip(one.layers, other.layers, strict=True)
    )


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """What is in a file, tensors mapped, and the texts of a safetensors header. Raises UserError as
    `io.checkpoints.open_state_file`."""
    if path.is_dir():
        raise UserError("is a folder, expected a checkpoint file", path)
    if not path.is_file():
        raise UserError("no such file", path)
    if path.suffix == SAFETENSORS:
        return read_safetensors(path)
    if path.suffix not in PICKLED:
        kinds = ", ".join((*PICKLED, SAFETENSORS))
        raise UserError(f"got a file ending in {path.suffix!r}, expected one of {kinds}", path)
    content = read_torch_pickle(path)
    if not isinstance(content, Mapping | list | tuple):
        raise UserError(f"holds a {type(content).__name__}, expected weights", path)
    for leaf in leaves(content):
        check_plain(".".join((*leaf.keys, leaf.name)), leaf.tensor, path)
    return content, {}


def _check_suffix(checkpoint: Path, out: Path) -> None:
    kinds = (SAFETENSORS,) if checkpoint.suffix == SAFETENSORS else PICKLED
    if out.suffix not in kinds:
        raise UserError(f"got a name ending in {out.suffix!r}, expected {' or '.join(kinds)}, as the checkpoint", out)


def _check_rule(plan: Plan, where: object) -> None:
    if plan.merge_rule == FITTED or plan.patch is not None:
        what = f"merge_rule: {FITTED}" if plan.patch is None else "patch"
        raise UserError(
            f"{what} is fitted on what the network computes, and no code of it runs here",
            where,
            "Take another rule, or save the live model: hmrcompress merge adapter:FILE.py",
        )


def _chosen(stacks: Sequence[Stack], plan: Plan, name: str | None, weights: str | None, where: Path) -> Stack:
    """Of the stacks of that name and in that dictionary, if these are given, and of the plan's length, the one whose
    blocks the plan was made for, else the only one."""
    if not stacks:
        raise UserError("holds no stack of transformer blocks that is told by its names", where)
    listed = some([str(each) for each in stacks])
    if weights is not None:
        inside = [each for each in stacks if ".".join(each.keys) == weights or weights in each.keys]
        if not inside:
            raise UserError(f"holds no stack in {weights!r}, but {listed}", where, "Give one of these")
        stacks = inside
    if name is not None:
        named = [each for each in stacks if name in (each.name, *each.places)]
        if not named:
            raise UserError(f"there is no stack {name}, but {listed}", where)
        stacks = named
    fitting = [each for each in stacks if len(each.layers) == plan.layers]
    if not fitting:
        raise UserError(f"the plan is for {plan.layers} layers, and in it are {listed}", where)
    if len(fitting) > 1 and plan.checkpoint is not None:
        fitting = [each for each in fitting if each.sha256 == plan.checkpoint.sha256] or fitting
    if len(fitting) > 1:
        listed = some([str(each) for each in fitting])
        raise UserError(
            f"several stacks fit the plan: {listed}",
            where,
            "Name the dictionary with --weights, or the stack: hc.live.merge_file(…, stack=NAME)",
        )
    return fitting[0]


def _check_plan(plan: Plan, stack: Stack, checkpoint: Path, where: object, force: bool) -> None:
    """UserError where a plan was made for other weights. Hashes in plans of live networks are of blocks, in others of
    files."""
    reference, layers = plan.checkpoint, len(stack.layers)
    if force or reference is None:
        plan.check("", "", layers, force, where)
    elif reference.family.startswith(FAMILY):
        plan.check(reference.family, stack.sha256, layers, force, where)
    else:
        plan.check(reference.family, sha256_file(checkpoint), layers, force, where)


class _Rewriting:
    """The contents of a file with other blocks in the place of a stack."""

    def __init__(self, stack: Stack, stacks: Sequence[Stack], layers: Sequence[Mapping[str, Tensor]]) -> None:
        self.stack, self.layers = stack, layers
        others = {each.keys for each in stacks if each.keys != stack.keys and _rivals(each, stack)}
        self.stale, self.left_out = others, list[str]()
        self.new: dict[int, Any] = {}

    def whole(self, content: Any) -> tuple[Any, tuple[str, ...]]:
        """The new contents, and names of what is not in them."""
        made = self._kept(content, ())
        return made, tuple(self.left_out)

    def _kept(self, value: Any, keys: tuple[str, ...]) -> Any:
        """What becomes of a dictionary or list; it holds the weights, or lies around them or beside them."""
        if id(value) in self.new:
            return self.new[id(value)]
        made: Any
        if keys == self.stack.keys:
            made = self._with_layers(value, keys)
        elif isinstance(value, Mapping):
            made = dict(self._items(value.items(), keys))
        else:
            made = [each for _, each in self._items(enumerate(value), keys)]
            made = tuple(made) if isinstance(value, tuple) else made
        self.new[id(value)] = made
        return made

    def _items(self, items: Iterable[tuple[Any, Any]], keys: tuple[str, ...]) -> Iterable[tuple[Any, Any]]:
        for key, value in items:
            inner = (*keys, str(key))
            around = inner == self.stack.keys[: len(inner)]
            if isinstance(value, (Tensor, *SCALARS)):
                yield key, value
            elif around or (inner not in self.stale and self._is_plain(value, inner)):
                yield key, self._kept(value, inner)
            else:
                self.left_out.append(".".join(inner))

    def _is_plain(self, value: Any, keys: tuple[str, ...]) -> bool:
        """Whether a value can be written down again: numbers, texts and tensors, in dictionaries and lists."""
        if not isinstance(value, Mapping | list | tuple):
            return False
        if isinstance(value, Mapping) and (set(value) >= OPTIMISER or keys in self.stale):
            return False
        if id(value) in self.new:
            return True
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return all(
            isinstance(each, (Tensor, *SCALARS)) or self._is_plain(each, (*keys, str(key))) for key, each in items
        )

    def _with_layers(self, state: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        """The dictionary with other blocks, in the order in which they were, and all else that it may hold."""
        made: dict[str, Any] = OrderedDict() if isinstance(state, OrderedDict) else {}
        if (versions := getattr(state, "_metadata", None)) and self._is_plain(versions, keys):
            made._metadata = versions  # type: ignore[attr-defined]  # versions of modules, which torch keeps there
        numbered = re.compile(rf"({'|'.join(re.escape(place) for place in self.stack.places)})\.({NUMBER.pattern})\.")
        begun: set[str] = set()
        for name, value in self._items(state.items(), keys):
            match = numbered.match(str(name)) if isinstance(value, Tensor) else None
            if match is None:
                made[name] = value
            elif match[1] not in begun:
                begun.add(match[1])
                for number, layer in enumerate(self.layers):
                    raw = self.stack.raw[number]
                    made |= {f"{match[1]}.{number}.{raw[part]}": each for part, each in layer.items()}
        return made


def _rivals(one: Stack, other: Stack) -> bool:
    """Whether two stacks are versions of the same blocks: an average of them, or those of a teacher."""
    return [{name: each.shape for name, each in layer.items()} for layer in one.layers] == [
        {name: each.shape for name, each in layer.items()} for layer in other.layers
    ]


def _card_text(made: MergedFile, plan: Plan, checkpoint: Path) -> str:
    """Markdown: what is in the file, how its own code takes it, what cannot be said there."""
    kept = len(plan.kept_groups)
    lines = [
        f"# {made.weights.name}",
        "",
        f"The weights of {checkpoint.name} (sha256 {sha256_file(checkpoint)}), and under its licence. Of the"
        f" {made.before} blocks in `{made.stack}`, {kept} are left; every other tensor is as it was.",
        "",
    ]
    if made.padded:
        others = "other one is an identity" if made.padded == 1 else f"other {made.padded} are identities"
        lines += [
            f"It loads wherever {checkpoint.name} did and predicts what {kept} blocks predict: the {others} (all of"
            " their weights are zero, so that a residual block adds nothing). They still cost time. For the speed,"
            " write it with `--no-pad-identity` and have the network made with fewer blocks.",
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
            f"Half of layer{'s' if len(halved) > 1 else ''} {', '.join(halved)} was removed; in this file its weights"
            " are zero, which predicts the same and still costs time.",
        ]
    if plan.tokens is not None:
        lines += [
            "",
            f"The plan also merges tokens (down to {plan.tokens.keep}), which a checkpoint cannot say:"
            ' `hmrcompress.live.apply(model, {"tokens": …})` does it once the model is loaded.',
        ]
    if made.left_out:
        left_out = ", ".join(made.left_out)
        lines += ["", f"Not in it, as optimisers, other versions of these blocks or objects of classes: {left_out}."]
    return "\n".join(lines) + "\n"
