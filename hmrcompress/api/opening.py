"""The one place where strings become objects.

A model is `starter`, `starter-fast`, `random:FAMILY`, a checkpoint file or a compressed folder; data are
`starter[:split]`, `FORMAT:PATH[,option=value…]` or a path; a body is `starter`, a file, or a folder of three
(`open_measure`); masks are as docs/masks.md lists them. Whoever has the objects already may hand them in instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from hmrcompress.body.by_smplx import PREFIX, is_smplx, open_smplx
from hmrcompress.body.files import (
    BETAS,
    body_in_folder,
    kind_of_body,
    load_body,
    require_joints,
    require_topology,
    starter_body,
)
from hmrcompress.body.hand import HAND_PARENTS, stick_hand
from hmrcompress.body.joints import SMPL_JOINTS
from hmrcompress.body.model import BodyModel
from hmrcompress.body.pickled import refuse_other_pickles
from hmrcompress.body.whole import WHOLE_JOINTS, whole_body
from hmrcompress.data.crops import CropSet
from hmrcompress.data.formats import open_format
from hmrcompress.data.masks import MaskSource, mask_source
from hmrcompress.errors import UserError
from hmrcompress.exporting.folder import is_export_folder
from hmrcompress.exporting.opened import open_exported
from hmrcompress.merging.adaptive import AdaptiveTokens
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.buckets import BUCKETS
from hmrcompress.metrics.measure import GENDERS, Measure, read_regressor
from hmrcompress.metrics.other_bodies import UNSCORED
from hmrcompress.metrics.points import PROTOCOLS, ROWS, Protocol
from hmrcompress.models.families.registry import network_class
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint, load_checkpoint, random_checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.records import CROP, CropSize
from hmrcompress.runtime import Progress, no_progress

STARTER_MODEL = Path(__file__).parents[1] / "assets" / "starter"
STARTER_FAST = STARTER_MODEL.with_name("starter_fast")
"""What makes the starter network the fast one: a plan and a temporal decoder (`starter.network.fast`)."""
STAND_INS = {len(HAND_PARENTS): stick_hand, len(WHOLE_JOINTS): whole_body}
"""What stands for a model's body, by its number of joints, where no file is given."""
OF_EXPORTED = "holds an exported network, which has no weights to work on"
FOR_EXPORTED = "predict, profile, eval and bench run it; for the rest give the model that it was exported from"


@dataclass(frozen=True)
class ModelFile:
    """A model by its name, and what its file does not tell or holds several of; see `load`."""

    name: str
    num_heads: int | None = None
    head_heads: int | None = None
    tokenizer: Path | None = None
    weights: str | None = None
    grid: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, model: str | ModelFile) -> ModelFile:
        """The same, of a bare name too."""
        return cls(model) if isinstance(model, str) else model


Model = str | Path | ModelFile | Checkpoint
Body = str | Path | BodyModel
Data = str | Path | CropSet
Masks = str | MaskSource
Module = TypeVar("Module", bound=nn.Module)


def load(
    model: Model,
    *,
    num_heads: int | None = None,
    head_heads: int | None = None,
    tokenizer: Path | str | None = None,
    weights: str | None = None,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    verify: bool = True,
    strict: bool = True,
    fast: bool = False,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    exported: bool = False,
) -> Checkpoint:
    """Opens a model: `starter`, `starter-fast` (compressed, with a temporal decoder), `random:FAMILY` (with `seed`), a
    checkpoint file or a compressed folder, on the CPU.

    `.network` has the layers of the model and does not merge tokens; `compressed_network` gives it as the plan wants
    it. The numbers of heads and grid, the rows and columns of tokens, are asked for only where a file does not tell,
    `tokenizer` (TokenHMR's) only where it does not lie beside the checkpoint, `weights` only where a file holds several
    sets of them and others are wanted than those taken by themselves. Without `strict`, keys that nobody knows are told
    instead of refused.

    With `fast`, `.network` is ready to run: it merges tokens as the plan says and computes in `dtype` on the fast path
    (`models.fast.network.make_fast`, also for `int8`), straight from the weights as they are stored. It can then not be
    merged, searched or saved. With `exported`, a folder of an exported network is a model, too (`exporting.opened`).
    Raises UserError.
    """
    if isinstance(model, ModelFile):
        num_heads, head_heads = num_heads or model.num_heads, head_heads or model.head_heads
        tokenizer, weights, grid = tokenizer or model.tokenizer, weights or model.weights, grid or model.grid
        model = model.name
    text, mine = str(model), not isinstance(model, Checkpoint)
    if isinstance(model, Checkpoint):
        opened = model
    elif text.startswith("random:"):
        opened = random_checkpoint(
            text.removeprefix("random:"), seed, num_heads=num_heads, head_heads=head_heads, grid=grid
        )
    else:
        path = STARTER_MODEL if text == "starter" else Path(model)
        if text == "starter-fast":
            from hmrcompress.starter.network.fast import fast_folder

            path = fast_folder(STARTER_MODEL, STARTER_FAST)
        if is_export_folder(path):
            if not exported:
                raise UserError(OF_EXPORTED, path, FOR_EXPORTED)
            return open_exported(path, verify=verify)
        opened = load_checkpoint(
            path,
            num_heads=num_heads,
            head_heads=head_heads,
            part=tokenizer,
            weights=weights,
            grid=grid,
            verify=verify,
            strict=strict,
            widen=not fast,
        )
    if not fast:
        return opened
    opened = replace(opened, network=compressed_network(opened))
    return replace(opened, network=make_fast(opened.network, dtype, int8=int8, consume=mine))


def compressed_network(checkpoint: Checkpoint, masks: MaskSource | None = None) -> HMR2:
    """The network of a model with token merging where its plan asks for it; the weights are shared.

    Where no person mask is given it uses the model's saliency probe, if there is one; with `masks` only if those are
    `self`. Raises UserError where they are and the model holds no probe.
    """
    probe = checkpoint.probe if masks is None else probe_for(checkpoint, masks)
    return with_token_merging(checkpoint.network, checkpoint.tokens, probe).eval()


def adaptive_network(
    checkpoint: Checkpoint,
    network: HMR2,
    masks: MaskSource,
    buckets: Sequence[int] = BUCKETS,
    *,
    path: RunPath | None = None,
    dtype: torch.dtype = torch.float32,
) -> AdaptiveTokens:
    """`network`, of this model and where it is wanted, with as many of its tokens as each crop's person needs: merged
    or dropped as the model's plan says, merged by default. path: how each bucket's network is run, on the fast path in
    `dtype`. UserError for `masks` that say nothing before it runs."""
    if masks.name in ("self", "none"):
        raise UserError(f"got --masks {masks.name}, but adaptive tokens need masks before the network runs", "buckets")
    prepare = (path or RunPath()).prepare_alike(dtype)
    return AdaptiveTokens(network, checkpoint.tokens or TokenSettings(), buckets, prepare=prepare).eval()


def probe_for(checkpoint: Checkpoint, masks: MaskSource) -> SaliencyProbe | None:
    """The saliency probe of a model for the masks `self`, None for others. UserError where the model holds none."""
    if masks.name != "self":
        return None
    if checkpoint.probe is None:
        raise UserError(
            "holds no saliency probe for --masks self",
            checkpoint.name,
            "Fit one: hmrcompress finetune MODEL --stage probe -o DIR",
        )
    return checkpoint.probe


def open_body(
    body: Body = "starter", *, joints: int | None = None, gender: str = "neutral", betas: int = BETAS
) -> BodyModel:
    """`starter`, a body file, a folder of SMPL_NEUTRAL, SMPL_MALE and SMPL_FEMALE, or `smplx:FOLDER`
    (`body.by_smplx`); of a folder the body of that gender, of smplx's the one of so many joints, and of a file so many
    shape directions. Raises UserError."""
    if isinstance(body, BodyModel):
        return body
    if str(body) == "starter":
        return starter_body()
    if is_smplx(body):
        return open_smplx(str(body), joints, gender, betas)
    path = body_in_folder(Path(body), gender) if Path(body).is_dir() else Path(body)
    if path.suffix == ".pkl" and path.is_file():
        refuse_other_pickles(path)
    return load_body(path, betas=betas)


def open_measure(
    protocol: str | Protocol | None,
    crops: CropSet,
    body: Body,
    surface: BodyModel,
    *,
    regressor: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Measure:
    """What a protocol (None: that of the data) measures, on `device`. `surface` is the neutral body, opened already.

    The bodies male and female are opened where the protocol wants them and `body` is a folder, `regressor` where the
    protocol needs one. Raises UserError for an unknown protocol, and where files are missing or do not fit;
    `CropSet.check_measure` says whether the data can serve it.
    """
    chosen = open_protocol(crops.protocol if protocol is None else protocol)
    where, others = torch.device(device), {}
    if chosen.gendered and not isinstance(body, BodyModel) and Path(str(body).removeprefix(PREFIX)).is_dir():
        others = {name: open_body(body, joints=surface.num_joints, gender=name) for name in GENDERS[1:]}
        for name, other in others.items():
            require_topology(other, surface.faces_sha256, f"the {name} body in {body}")
    needed = chosen.source in ROWS and regressor is not None
    return Measure(
        on_device(surface, where),
        chosen,
        gendered={name: on_device(other, where) for name, other in others.items()},
        regressor=read_regressor(regressor, surface).to(where) if needed and regressor is not None else None,
    )


def body_for(checkpoint: Checkpoint, body: Body = "starter") -> BodyModel:
    """The body that a model's predictions are posed on: as of `open_body`; where none is given, for hands a hand of
    sticks (`body.hand`), for SMPL-X the starter body with two of them (`body.whole`). Raises UserError for a body with
    another number of joints than the model predicts."""
    joints, betas = checkpoint.config.num_joints, checkpoint.config.num_betas
    if joints in STAND_INS and not isinstance(body, BodyModel) and str(body) == "starter":
        return STAND_INS[joints]()
    found = open_body(body, joints=joints, betas=betas)
    require_joints(found.num_joints, [joints], found.name if isinstance(body, BodyModel) else body)
    return found


def protocol_for(checkpoint: Checkpoint, protocol: str | Protocol) -> Protocol:
    """The protocol of that name, as of `open_protocol`; for hands and SMPL-X always the one there is
    (`metrics.other_bodies`)."""
    found = open_protocol(protocol)
    return UNSCORED.get(checkpoint.config.num_joints, found)


def require_truth(checkpoint: Checkpoint) -> None:
    """UserError where no data set is read that could score a model: that is so for all bodies but SMPL."""
    joints = checkpoint.config.num_joints
    if joints != len(SMPL_JOINTS):
        what = "hands" if joints == len(HAND_PARENTS) else kind_of_body(joints)
        raise UserError(
            f"predicts {what}, and no data set of {'hands' if what == 'hands' else 'such bodies'} is read that could"
            " score it",
            checkpoint.name,
            "Search with --set search.target=teacher; merge, bench and export need no ground truth",
        )


def require_people(model: Model) -> None:
    """UserError for a model of hands, of which no pictures are read and drawn; told before it is opened or made where
    its name says so."""
    text = str(model)
    if isinstance(model, Checkpoint):
        joints, name = model.config.num_joints, model.name
    elif text.startswith("random:"):
        joints, name = network_class(text.removeprefix("random:")).config_class().num_joints, text
    else:
        return
    if joints == len(HAND_PARENTS):
        raise UserError(
            "predicts hands, and predict and profile are for whole bodies",
            name,
            "Hands are cut out and placed by HaMeR's own code; merge, bench and export work for them",
        )


def open_data(
    data: Data,
    *,
    body: BodyModel,
    split: str = "val",
    clips: int | None = None,
    size: CropSize | None = None,
    progress: Progress = no_progress,
) -> CropSet:
    """`starter[:split]` (`split` if it names none; rendered when first asked for), `FORMAT:PATH`, or a path whose
    format is recognised; see `data.formats`.

    `clips` renders only the first clips of a starter split; its people have the starter body where `body` is no SMPL.
    size: of the crops, as the network that looks at them has it in its configuration; crops are cut or rendered at it.
    None: as the data have it. Raises UserError, also for `clips` of other data, and for stored crops of another size.
    """
    if isinstance(data, CropSet):
        return data if size is None else data.of_size(size)
    if of_starter(data):
        rest = str(data).partition(":")[2]
        from hmrcompress.starter.data.dataset import open_split

        person = body if body.num_joints == len(SMPL_JOINTS) else starter_body()
        return open_split(rest or split, person, clips=clips, size=size or CROP, progress=progress)
    if clips is not None:
        raise UserError("only starter splits can be cut to their first clips", str(data), "Leave clips out.")
    found = open_format(str(data))
    return found if size is None else found.of_size(size)


def of_starter(data: Data) -> bool:
    """Whether data are named as a split of the starter world."""
    return not isinstance(data, CropSet) and str(data).partition(":")[0] == "starter"


def on_device(module: Module, device: torch.device) -> Module:
    """The module where it lies on `device` already, else a copy there: what a caller handed in stays where it is."""
    here = next((tensor.device for tensor in module.state_dict().values()), device)
    return module if here == device else deepcopy(module).to(device)


def open_plan(plan: Plan | Path | str) -> Plan:
    """A plan, or the file of one. Raises UserError."""
    return plan if isinstance(plan, Plan) else Plan.read(plan)


def open_masks(masks: Masks) -> MaskSource:
    """A mask source by its name, such as `data` or `onnx:FILE`. Raises UserError."""
    return mask_source(masks) if isinstance(masks, str) else masks


def open_protocol(protocol: str | Protocol) -> Protocol:
    """A protocol by its name. Raises UserError naming those there are."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"got {protocol!r}, expected one of {', '.join(PROTOCOLS)}", "--protocol")
    return PROTOCOLS[protocol]
