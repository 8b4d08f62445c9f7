"""A compressed network as a checkpoint for the code base that the original came from, with a card beside it.

Those code bases write the number of layers into their source and load with `strict=False`, so a checkpoint with fewer
layers would leave their upper layers random, in silence. Padding fills these with exact identities: blocks whose two
output projections are zero add nothing to their input, whatever it is. The same stands where half of a layer was
removed, which those code bases have no word for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import require_finite, write_safetensors
from hmrcompress.io.torch_file import save_torch
from hmrcompress.models.families.registry import family
from hmrcompress.models.files.load import METADATA_KEY, Checkpoint
from hmrcompress.models.network import build
from hmrcompress.plan import TokenSettings

BLOCKS = "backbone.blocks."
SUFFIXES = (".ckpt", ".safetensors")
KIND, CARD = "original checkpoint", "card"
LIGHTNING = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.0.0"}
"""What Lightning's `load_from_checkpoint` asks for beside the weights (it raises KeyError without a version)."""


@dataclass(frozen=True)
class Original:
    """The files that were written. `layers` are those in the checkpoint, `padded` how many of them are identities."""

    weights: Path
    card: Path
    layers: int
    padded: int


def check_original(out: Path | str, outputs: OutputRule) -> tuple[Path, Path]:
    """The names of checkpoint and card. UserError unless the former ends in .ckpt or .safetensors, which decides the
    kind of file, and where one of the two must not be written."""
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise UserError(f"got a name ending in {out.suffix!r}, expected {' or '.join(SUFFIXES)}", out)
    card = out.with_suffix(".md")
    outputs.check_file(out, KIND)
    outputs.check_file(card, CARD)
    return out, card


def write_original(
    checkpoint: Checkpoint, out: Path | str, *, pad_identity: bool = True, overwrite: bool | OutputRule = False
) -> Original:
    """Writes the weights of a (compressed) model in the original layout, and a card: OUT with the suffix .md.

    A .ckpt is `{"state_dict": …}` as Lightning writes it, readable by `torch.load(weights_only=True)`. `pad_identity`
    brings the layers back to the number that the plan started from. What the family keeps in a file of its own, such as
    TokenHMR's tokenizer, stays out of it. Raises UserError for another suffix, and as `io.outputs`.
    """
    outputs = OutputRule.of(overwrite, checkpoint)
    out, card = check_original(out, outputs)
    layers = checkpoint.config.depth
    wanted = checkpoint.plan.layers if pad_identity and checkpoint.plan else layers
    part = family(checkpoint.family).part
    own = {name: tensor for name, tensor in checkpoint.state().items() if not part or not name.startswith(part.prefix)}
    require_finite(own, checkpoint.name)
    whole = checkpoint.config.whole(wanted)
    state = padded(own, build(whole, "meta").state_dict())
    if checkpoint.plan is not None:
        checkpoint.plan.tell_run("the original's own code")
    if out.suffix == ".ckpt":
        with outputs.file(out, KIND) as temporary:
            save_torch({"state_dict": state, **LIGHTNING}, temporary)
    else:
        described = {"family": checkpoint.family, "network": whole.to_dict(), "source": checkpoint.source}
        with outputs.file(out, KIND) as temporary:
            write_safetensors(temporary, state, {METADATA_KEY: json.dumps(described, sort_keys=True)}, seal=KIND)
    outputs.write_text(card, card_text(out.name, checkpoint, wanted), CARD)
    return Original(out, card, wanted, wanted - layers)


def padded(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with an identity for every half of a block that it lacks and `wanted` has (values of which only
    names and shapes count): norms of one, all else zero. Nothing is copied."""
    filled = dict(state)
    dtype = next(tensor.dtype for name, tensor in state.items() if name.startswith(BLOCKS))
    for name, like in wanted.items():
        if name.startswith(BLOCKS) and name not in state:
            one = name.split(".")[3].startswith("norm") and name.endswith("weight")
            filled[name] = torch.full(like.shape, float(one), dtype=dtype)
    return filled


def card_text(name: str, checkpoint: Checkpoint, layers: int) -> str:
    """Markdown: what is in the file, what to change in the original code for the speed, what cannot be said there."""
    own = checkpoint.config.depth
    kind = family(checkpoint.family)
    project, file, function, argument, note = kind.depth_line
    before = own if checkpoint.plan is None else checkpoint.plan.layers
    lines = [f"# {name}", "", f"Weights of a `{checkpoint.family}` network in the key layout of {project}.", ""]
    if layers > own:
        lines += [
            f"It has {layers} layers, so it loads wherever the original did and predicts what the {own} merged layers "
            f"predict: the upper {layers - own} are exact identities (the output projections of attention and MLP are "
            "zero). They still cost time.",
            "",
            f"For the speed of {own} layers write it with `--no-pad-identity` and change one line of the original.",
        ]
    elif own < before:
        where = f" ({note})" if note else ""
        lines += [
            f"It has {own} layers; the original has {before}. **Before loading it**, change in `{file}`, function "
            f"`{function}`, the argument `{argument}` to `depth={own}`{where}. Otherwise layers {own} to {before - 1} "
            "stay random without a word, since the original code loads with `strict=False`.",
        ]
    else:
        lines += [f"It has all {own} layers of the original."]
    config = checkpoint.config
    if halved := sorted({*config.without_attention, *config.without_mlp}):
        lines += [
            "",
            f"Half of layer{'s' if len(halved) > 1 else ''} {', '.join(map(str, halved))} was removed; in this file "
            "the output projection of that half is zero, which predicts exactly the same and still costs time.",
        ]
    if checkpoint.tokens is not None:
        lines += ["", *_about_tokens(checkpoint.tokens, layers)]
    if kind.part is not None:
        lines += ["", f"Its {kind.part.title} is not in it: {project} loads it from the file where it always was."]
    lines += [
        "",
        "Only the weights that inference needs are in it: no body model, no discriminator, no optimiser state.",
    ]
    return "\n".join(lines) + "\n"


def _about_tokens(tokens: TokenSettings, layers: int) -> list[str]:
    return [
        f"The plan also merges tokens (down to {tokens.keep}), which a checkpoint cannot say. After loading, call "
        f"`hmrcompress.apply(model, plan)` with a plan for {layers} layers that merges none of them (`groups` of one), "
        "and give the masks with `hmrcompress.person_mask`. Or load the original checkpoint and apply the plan as it "
        "is: `apply` merges layers and tokens of a live module (but heals nothing).",
    ]
