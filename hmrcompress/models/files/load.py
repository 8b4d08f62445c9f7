"""From a file, a compressed-model folder or a seed to a network, with everything known about where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError, tell
from hmrcompress.io.checkpoints import StateFile, open_state_file
from hmrcompress.io.hashes import sha256_file, sha256_json
from hmrcompress.io.jsons import parse_json
from hmrcompress.io.wrappers import WeightSet
from hmrcompress.models.families.family import Family, check_keys, split_ignored
from hmrcompress.models.families.registry import MARKS, family, network_class, read_config, recognise
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.files.folder import CONFIG, Folder, read_model_folder
from hmrcompress.models.files.parts import find_part, missing_part, read_part, stand_in
from hmrcompress.models.network import (
    HMR2,
    NetworkConfig,
    build,
    config_from_state,
    network_sha256,
    random_sha256,
)
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.models.told import GRID, Sizes, configuration_of, grid_without, section, told_grid, told_sizes
from hmrcompress.plan import CheckpointRef, Plan, TokenSettings

METADATA_KEY = "hmrcompress"


@dataclass(frozen=True)
class Checkpoint:
    """A network and its origin.

    network: in evaluation mode, float32, weights memory-mapped where the file allows it; it does not merge tokens
    (`merging.apply.with_token_merging(network, checkpoint.tokens)` does). path: the file or folder, None for random
    weights. stored_dtype: dtype in the file. ignored: keys of the file that inference does not need; unknown: keys
    that nobody knows (only where asked for). plan: the plan that made a compressed model. name: what to call it in
    figures. body: name of the body it predicts, if known. source: provenance that the file itself records. probe: makes
    person masks inside the network, decoder: poses of whole clips, where the model holds one (`decoder.files`);
    motion_vae: the decoder, or what there is of it when only its VAE was trained. origins: where each number of heads,
    which no state dict tells, comes from, and the file of a family's `Part`, each by what it is; None where that was
    not found (only where nothing has to be strict). taken: what was around the weights in the file, others: names of
    the sets of weights in it that were not taken; chosen: the name of those that were asked for, None for those that
    are taken by themselves. other_grid: the grid that was given, where it is not the one that
    would have been found. exported: what runs a network that was exported (`exporting.opened`); `network` has then
    its sizes, and no weights.
    """

    network: HMR2
    family: str
    name: str
    path: Path | None = None
    stored_dtype: str = "float32"
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    plan: Plan | None = None
    body: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    known_sha256: str | None = None
    probe: SaliencyProbe | None = None
    decoder: DecoderPart | None = None
    motion_vae: DecoderPart | None = None
    origins: dict[str, str | None] = field(default_factory=dict)
    taken: WeightSet = field(default_factory=WeightSet)
    others: tuple[WeightSet, ...] = ()
    chosen: str | None = None
    other_grid: tuple[int, int] | None = None
    exported: nn.Module | None = None

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""
        return self.network.config

    @property
    def tokens(self) -> TokenSettings | None:
        """Token merging that the model was made for."""
        return None if self.plan is None else self.plan.tokens

    @cached_property
    def sha256(self) -> str:
        """Hash of the file (of model.safetensors for a folder; of string and seed for random weights; of the file's and
        the name where weights were chosen that are not those taken by themselves, and of a grid that was given and is
        not the one found without)."""
        if self.known_sha256 is not None:
            return self.known_sha256
        assert self.path is not None
        found, grid = sha256_file(self.path), None if self.other_grid is None else list(self.other_grid)
        asked = [each for each in (self.chosen, grid) if each is not None]
        return sha256_json([found, *asked]) if asked else found

    def contents(self) -> dict[str, Any]:
        """Hashes of all that it holds, by what it is: what results of it depend on, whatever file it came from."""
        parts = {"probe": self.probe, "decoder": self.motion_vae or self.decoder}
        return {
            "network": network_sha256(self.network) if self.exported is None else self.exported.sha256,
            "plan": None if self.plan is None else sha256_json(self.plan.to_dict()),
            "provenance": sha256_json(self.source),
            **{name: None if part is None else part.sha256 for name, part in parts.items()},
        }

    @property
    def reference(self) -> CheckpointRef:
        """What a plan made for this checkpoint says of it."""
        return CheckpointRef(family=self.family, sha256=self.sha256, layers=self.config.depth)

    def state(self) -> dict[str, Tensor]:
        """Key -> tensor, the network's own."""
        return dict(self.network.state_dict())


def load_checkpoint(
    path: Path | str,
    *,
    num_heads: int | None = None,
    head_heads: int | None = None,
    iterations: int | None = None,
    part: Path | str | None = None,
    weights: str | None = None,
    grid: tuple[int, int] | None = None,
    verify: bool = True,
    strict: bool = True,
    widen: bool = True,
) -> Checkpoint:
    """Opens a checkpoint file or a compressed-model folder on the CPU, memory-mapped, whatever the weights are wrapped
    in (`io.wrappers`).

    The numbers of heads and of head iterations are not in a state dict. They come from what hmrcompress wrote
    (config.json, the header of a converted file), else from the arguments, else from the configuration pickled in the
    file or a model_config.yaml beside it or one folder above, else 16 at dim 1280, 8 x 64 at head width 1024, and 1.
    Neither is grid, the rows and columns of tokens: it comes from the same places (IMAGE_SIZE and BBOX_SHAPE of a
    configuration), else it is the one 4:3 or square grid that the positions fit. Half precision is widened to float32,
    or without `widen` stays as it is, a view of the file. part: the file of a family's `Part` (TokenHMR's tokenizer);
    by default it is looked for where the configuration says, beside the checkpoint and one folder above. weights: the
    name of a set of weights, where a file holds several. Raises UserError where a file is missing, damaged, of no known
    family, has keys missing or left over (without `strict` those left over are listed in `unknown` instead, and what a
    missing `Part` holds has no values), or says another number of heads or another grid than the arguments do, and
    where nothing tells the grid.
    """
    path, given = Path(path), Sizes(num_heads, head_heads, iterations, grid)
    if path.is_dir():
        return _from_folder(read_model_folder(path, verify=verify), given, widen)
    file = open_state_file(path, *MARKS, weights=weights)
    kind = recognise(file.tensors, path)
    if file.others and weights is None:
        others = ", ".join(each.called for each in file.others)
        tell(f"took the weights {file.taken.called}, not {others}; --weights takes others", path)
    state, ignored = split_ignored(kind, file.tensors)
    written = _written(file)
    origins: dict[str, str | None] = {}
    other_grid: tuple[int, int] | None = None
    configuration, told_by = configuration_of(file)
    state, known = _with_part(kind, state, file, configuration, part, origins, strict)
    if written is not None:
        config = read_config(written["network"], path)
        origins |= given.agreeing(config, "the file's header", path)
    else:
        head = section(configuration, "MODEL", network_class(kind.name).head_name.upper())
        sizes, found = told_sizes(given, head, told_by, state, network_class(kind.name))
        origins |= found
        model = section(configuration, "MODEL")
        tokens, origins[GRID] = told_grid(given, model, told_by, state, path)
        if grid is not None and tokens != grid_without(replace(given, grid=None), model, told_by, state, path):
            other_grid = tokens
        config = config_from_state(
            state,
            num_heads=sizes.num_heads,
            head_heads=sizes.head_heads,
            iterations=sizes.iterations or 1,
            grid=tokens,
            where=path,
            kind=network_class(kind.name),
            known=known,
        )
    unknown: tuple[str, ...] = ()
    if not strict:
        expected = build(config, "meta").state_dict()
        unknown = tuple(name for name in state if name not in expected)
    network, dtype = _network(config, {name: state[name] for name in state if name not in unknown}, path, widen)
    return Checkpoint(
        network=network,
        family=kind.name,
        name=path.name,
        path=path,
        stored_dtype=dtype,
        ignored=(*ignored, *file.taken.beside),
        unknown=unknown,
        source={} if written is None else written.get("source", {}),
        origins=origins,
        taken=file.taken.told(),
        others=tuple(each.told() for each in file.others),
        chosen=file.taken.name if file.by_choice else None,
        other_grid=other_grid,
    )


def random_checkpoint(
    name: str = "hmr2",
    seed: int = 0,
    *,
    num_heads: int | None = None,
    head_heads: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Checkpoint:
    """The family's full-size network with seeded random weights; its hash is that of the string and the seed.
    UserError where the numbers of heads or the grid given are not the family's."""
    kind = family(name)
    config = network_class(kind.name).config_class()
    origins = Sizes(num_heads, head_heads, grid=grid).agreeing(config, "the published architecture", f"random:{name}")
    return Checkpoint(
        network=build(config, "cpu", seed=seed).eval(),
        family=kind.name,
        name=f"random:{name}",
        known_sha256=random_sha256(kind.name, seed),
        origins=origins,
    )


def _from_folder(folder: Folder, given: Sizes, widen: bool) -> Checkpoint:
    family(folder.config.family)
    origins = given.agreeing(folder.network, CONFIG, folder.path)
    network, dtype = _network(folder.network, folder.state, folder.path, widen)
    return Checkpoint(
        network=network,
        family=folder.config.family,
        name=folder.path.name or str(folder.path),
        path=folder.path,
        stored_dtype=dtype,
        plan=folder.plan,
        body=folder.config.body.name,
        source=folder.config.provenance,
        known_sha256=folder.sha256,
        probe=folder.probe,
        decoder=folder.decoder if folder.decoder and folder.decoder.complete else None,
        motion_vae=folder.decoder,
        origins=origins,
    )


def _network(config: NetworkConfig, state: dict[str, Tensor], where: Path, widen: bool) -> tuple[HMR2, str]:
    """The network over these tensors, and their dtypes; with `widen` those that are not float32 become it, no other is
    copied."""
    network = build(config, "meta")
    check_keys(state, network.state_dict(), where)
    if odd := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise UserError(f"{odd[0]} is {state[odd[0]].dtype}, expected floating-point weights", where)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    if widen:
        state = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval(), " ".join(dtypes)


def _written(file: StateFile) -> dict[str, Any] | None:
    """What `convert` put into the header of a safetensors file."""
    if METADATA_KEY not in file.metadata:
        return None
    try:
        written = parse_json(file.metadata[METADATA_KEY], file.path)
        return written if isinstance(written["network"], dict) else None
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"the header's field {METADATA_KEY} is not what hmrcompress writes", file.path) from error


def _with_part(
    kind: Family,
    state: dict[str, Tensor],
    file: StateFile,
    configuration: dict[str, Any],
    given: Path | str | None,
    origins: dict[str, str | None],
    strict: bool,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state with what the family keeps in a file of its own, where it lacks it, and the sizes told there."""
    part = kind.part
    if part is None or any(name.startswith(part.prefix) for name in state):
        return state, {}
    found = find_part(part, file.path, configuration, given)
    origins[part.title] = None if found is None else str(found)
    if found is None:
        if strict:
            raise missing_part(part, kind, file.path)
        return state | stand_in(part, network_class(kind.name)), {}
    tensors, hyper_parameters = read_part(part, found)
    return state | tensors, network_class(kind.name).part_sizes(hyper_parameters, found)
