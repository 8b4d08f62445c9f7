"""HMR2.0 at any size: its configuration, the network, seeded random weights, and the sizes read off a state dict.

Its kin (`families/`) are subclasses of `HMR2` and `NetworkConfig` that differ in the head; what is said here of
networks holds for them too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from hmrcompress.data.conditions import check_condition
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_arrays, sha256_json
from hmrcompress.models.heads import SMPLHead
from hmrcompress.models.vit import ViT
from hmrcompress.records import CropSize, HMROutput

TOKEN_INPUTS = ("zero", "mean_shape")
HALVES = ("without_attention", "without_mlp")
MEAN_POSES = ("init_body_pose", "init_hand_pose")
"""What families call their mean poses, six numbers a joint."""
Made = TypeVar("Made", bound=nn.Module)
POSITIONS, PATCHES = "backbone.pos_embed", "backbone.patch_embed.proj.weight"
GIVE_GRID = "Give grid, rows and columns of tokens: hmrcompress convert FILE --grid 32x24 -o OUT writes it down"
USUAL_SHAPES = ((4, 3), (1, 1))
"""Height to width of crops that are known by their number of tokens alone; no number fits two of them."""
LARGEST, MOST_LAYERS = 1 << 16, 1024
"""Bounds of what a file may claim: far above any network, and quick to find wrong."""


@dataclass(frozen=True)
class NetworkConfig:
    """Every size of an HMR2.0 network; the defaults are the published one. `head_*` belong to the SMPL head.

    `family` is the name that its kind of network has in `families/`, `network_class` the class of those networks.
    `without_attention` and `without_mlp` are layers of which that half was removed.
    """

    family: ClassVar[str] = "hmr2"
    network_class: ClassVar[type[HMR2]]
    dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_dim: int = 5120
    patch: int = 16
    grid: tuple[int, int] = (16, 12)
    head_width: int = 1024
    head_depth: int = 6
    head_heads: int = 8
    head_dim: int = 64
    head_mlp_dim: int = 1024
    token_input: str = "zero"
    iterations: int = 1
    num_joints: int = 24
    num_betas: int = 10
    without_attention: tuple[int, ...] = ()
    without_mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        for name in HALVES:
            layers = tuple(getattr(self, name))
            object.__setattr__(self, name, layers)
            if list(layers) != sorted(set(layers)) or (layers and not 0 <= layers[0] <= layers[-1] < self.depth):
                raise UserError(f"got {layers}, expected rising numbers of 0 … {self.depth - 1}", name)
        if both := set(self.without_attention) & set(self.without_mlp):
            raise UserError(f"layer {min(both)} has neither attention nor MLP, so it is no layer", "without_mlp")
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise UserError(f"got {self.num_heads} heads, expected a divisor of {self.dim}", "num_heads")
        if self.token_input not in TOKEN_INPUTS:
            raise UserError(f"got {self.token_input!r}, expected one of {', '.join(TOKEN_INPUTS)}", "token_input")

    @property
    def crop(self) -> CropSize:
        """What the network sees. UserError for patches that crops cannot be cut into."""
        rows, columns = self.grid
        return CropSize(rows * self.patch, columns * self.patch, self.patch)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; halves that are missing are named only where some are."""
        halves = {name: list(getattr(self, name)) for name in HALVES}
        values = {"family": self.family} | asdict(self) | {"grid": list(self.grid)} | halves
        return {name: value for name, value in values.items() if name not in HALVES or value}

    def whole(self, depth: int) -> Self:
        """The sizes of the same network with `depth` layers, all of them with both halves."""
        return replace(self, depth=depth, without_attention=(), without_mlp=())


Shape = Callable[[str], tuple[int, ...]]
"""Gives the shape of a tensor of a state dict by its key. Raises UserError where there is no such key."""


class HMR2(nn.Module):
    """ViT backbone and SMPL head. images (B,3,H,W) of the size `config.crop`, ImageNet-normalised -> HMROutput.

    A family of its kin is a subclass: `config_class` and `head_class` say what it is made of, `head_name` what its keys
    call the head, `conditioned` whether it has to be told each crop's box and focal length (`data.conditions`).
    """

    config_class: ClassVar[type[NetworkConfig]] = NetworkConfig
    head_class: ClassVar[type[SMPLHead]] = SMPLHead
    head_name: ClassVar[str] = "smpl_head"
    conditioned: ClassVar[bool] = False
    smpl_head: SMPLHead

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "config_class" in vars(cls):
            cls.config_class.network_class = cls

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ViT(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            patch=config.patch,
            grid=config.grid,
            without_attention=config.without_attention,
            without_mlp=config.without_mlp,
        )
        self.add_module(self.head_name, self.head_class(**self.head_arguments(config)))

    @classmethod
    def head_arguments(cls, config: NetworkConfig) -> dict[str, Any]:
        """What `head_class` is made with."""
        return {
            "context_dim": config.dim,
            "width": config.head_width,
            "depth": config.head_depth,
            "heads": config.head_heads,
            "dim_head": config.head_dim,
            "mlp_dim": config.head_mlp_dim,
            "num_joints": config.num_joints,
            "num_betas": config.num_betas,
            "token_input": config.token_input,
            "iterations": config.iterations,
        }

    @classmethod
    def head_sizes(cls, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Any]:
        """The fields of `config_class` that depend on the family, read off a state dict. Raises UserError."""
        inputs = shape(f"{cls.head_name}.transformer.to_token_embedding.weight")[1]
        return {
            "token_input": "zero" if inputs == 1 else "mean_shape",
            "num_joints": shape(f"{cls.head_name}.decpose.weight")[0] // 6,
        }

    @classmethod
    def part_sizes(cls, hyper_parameters: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Fields of `config_class` that a file of the family's `Part` tells beside its weights. Raises UserError."""
        return {}

    @property
    def head(self) -> SMPLHead:
        """The head, whatever its keys call it."""
        return cast(SMPLHead, getattr(self, self.head_name))

    @property
    def full_precision(self) -> tuple[str, ...]:
        """How the keys begin of what stays in float32 in a float16 network: the read-outs, and the mean parameters
        that they are added to."""
        return (f"{self.head_name}.dec", f"{self.head_name}.init_")

    def read(self, tokens: Tensor, bias: Tensor | None = None, condition: Tensor | None = None) -> HMROutput:
        """The head on the backbone's tokens: see `SMPLHead.forward`. Raises UserError where `condition` is needed, but
        not given; where it is not needed it is left aside."""
        if not self.conditioned:
            return self.head(tokens, bias)
        return self.head(tokens, bias, check_condition(condition, tokens.shape[0]))

    def forward(self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None) -> HMROutput:
        """images (B,3,H,W), person_mask (B,*grid) bool or None, condition as of `read` -> HMROutput. Raises
        ShapeError, UserError."""
        return self.read(*self.backbone.encode(images, person_mask), condition)


NetworkConfig.network_class = HMR2


def build(config: NetworkConfig, device: torch.device | str | None = None, *, seed: int = 0) -> HMR2:
    """A network with `random_state(config, seed)` in training mode; on the meta device one without any weights."""
    bare = _bare(config)
    if device is not None and torch.device(device).type == "meta":
        return _filled(bare, bare.state_dict())
    network = _filled(bare, random_state(config, seed))
    return network if device is None else network.to(device)


def from_state(config: NetworkConfig, state: Mapping[str, Tensor]) -> HMR2:
    """A network in evaluation mode whose weights *are* the tensors of `state` (no copy). Keys must match exactly."""
    bare = _bare(config)
    if {name: tensor.shape for name, tensor in bare.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }:
        return _filled(bare, state).eval()
    network = build(config, "meta")
    network.load_state_dict(dict(state), strict=True, assign=True)  # says what does not match
    return network.eval()


@lru_cache(maxsize=4)
def _bare(config: NetworkConfig) -> HMR2:
    """A network without weights that only copies are made of: making each of its modules takes several times as long
    as copying it, and a search makes hundreds of networks of one size."""
    with torch.device("meta"):
        return config.network_class(config)


def _filled(module: Made, state: Mapping[str, Tensor], prefix: str = "") -> Made:
    """Another module with modules of its own and the tensors of `state` for parameters and buffers."""
    other = object.__new__(type(module))
    holders = {name: held.copy() if isinstance(held, (dict, set)) else held for name, held in vars(module).items()}
    vars(other).update(holders)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            tensor = state[f"{prefix}{name}"]
            held = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, parameter.requires_grad)
            held.requires_grad_(parameter.requires_grad)
            other._parameters[name] = held
    for name in module._buffers:
        other._buffers[name] = state.get(f"{prefix}{name}", module._buffers[name])
    for name, child in module._modules.items():
        other._modules[name] = None if child is None else _filled(child, state, f"{prefix}{name}.")
    return other


def share(network: HMR2) -> HMR2:
    """Another network over the same weights: own modules, mode and token reducer, no copy of any tensor."""
    other = from_state(network.config, network.state_dict())
    other.backbone.reducer = network.backbone.reducer
    return other.train(network.training)


def random_state(config: NetworkConfig, seed: int = 0, readout_gain: float = 0.1) -> dict[str, Tensor]:
    """Seeded random weights, float32 on the CPU: identity rotations and camera scale 0.9 as mean parameters.

    Matrices are normal with deviation 0.02 (patches 1/sqrt(fan_in), read-outs `readout_gain` times theirs), biases
    zero, norms one. Each tensor has a generator of its own, so it does not depend on the others.
    """
    state = {}
    network = _bare(config)
    norms = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.LayerNorm)}
    for name, like in network.state_dict().items():
        tensor = torch.zeros(like.shape)
        if name.rpartition(".")[2] in MEAN_POSES:
            tensor.view(-1, 6)[:, [0, 4]] = 1.0
        elif name.endswith("init_cam"):
            tensor[:, 0] = 0.9
        elif name in norms:
            tensor.fill_(1.0)
        elif name.endswith(("weight", "codebook")) or "pos_embed" in name:
            std = 0.02
            if "patch_embed" in name:
                std = like[0].numel() ** -0.5
            elif ".dec" in name:
                std = readout_gain * like.shape[1] ** -0.5
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            tensor.normal_(0.0, std, generator=generator)
        state[name] = tensor
    return state


def network_sha256(network: HMR2) -> str:
    """Hash of all that a network computes with: its sizes (the numbers of heads are in no state dict), weights and
    buffers. The file that it was read from may be another for the same network, and the same for another."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return sha256_json([network.config.to_dict(), sha256_arrays(tensors)])


def random_sha256(family: str, seed: int) -> str:
    """The hash that stands for random weights: of the string `random:FAMILY` and the seed."""
    return hashlib.sha256(f"random:{family} {seed}".encode()).hexdigest()


def config_from_state(
    state: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    head_heads: int | None = None,
    iterations: int = 1,
    grid: tuple[int, int] | None = None,
    where: object = "checkpoint",
    kind: type[HMR2] = HMR2,
    known: Mapping[str, Any] | None = None,
) -> NetworkConfig:
    """Sizes read off a state dict of a `kind` of network (values need only a shape); `known` are fields more.

    The number of heads is not in it: 16 at dim 1280, 8 of 64 at head width 1024 and inner width 512, else the
    arguments. Without a grid it is the one of as many tokens that is 4:3 or square. Raises UserError naming the missing
    key or argument.
    """

    def shape(key: str) -> tuple[int, ...]:
        if key not in state:
            raise UserError(f"no key {key}", where, f"Is this a checkpoint of the family {kind.config_class.family}?")
        return tuple(state[key].shape)

    dim, _, patch, _ = shape(PATCHES)
    head = f"{kind.head_name}.transformer"
    layer = f"{head}.transformer.layers"
    width = shape(f"{head}.to_token_embedding.weight")[0]
    inner = shape(f"{layer}.0.1.fn.to_q.weight")[0]
    if num_heads is None and dim == 1280:
        num_heads = 16
    if head_heads is None and (width, inner) == (1024, 512):
        head_heads = 8
    for value, name, size in ((num_heads, "num_heads", dim), (head_heads, "head_heads", inner)):
        if value is None:
            fault = f"a state dict does not tell the number of heads that its {size} channels are split into"
            raise UserError(fault, where, f"Give {name}")
        if value < 1 or size % value:
            raise UserError(f"{name}: got {value}, expected a divisor of {size}", where)
    assert num_heads is not None and head_heads is not None
    tokens = shape(POSITIONS)[1] - 1
    grid = usual_grid(tokens, where) if grid is None else grid
    if tokens != grid[0] * grid[1]:
        raise UserError(f"positions for {tokens} tokens do not fit a grid of {grid[0]}x{grid[1]}", where, GIVE_GRID)
    return kind.config_class(
        dim=dim,
        depth=count_numbers(state, "backbone.blocks."),
        num_heads=num_heads,
        mlp_dim=shape("backbone.blocks.0.mlp.fc1.weight")[0],
        patch=patch,
        grid=grid,
        head_width=width,
        head_depth=count_numbers(state, f"{layer}."),
        head_heads=head_heads,
        head_dim=inner // head_heads,
        head_mlp_dim=shape(f"{layer}.0.2.fn.net.0.weight")[0],
        iterations=iterations,
        num_betas=shape(f"{kind.head_name}.decshape.weight")[0],
        **kind.head_sizes(state, shape),
        **(known or {}),
    )


def usual_grid(tokens: int, where: object) -> tuple[int, int]:
    """The rows and columns of so many tokens that are 4:3 or square. UserError where there are none."""
    for height, width in USUAL_SHAPES:
        times = math.isqrt(max(tokens, 0) // (height * width))
        if times and times * times * height * width == tokens:
            return height * times, width * times
    raise UserError(f"its positions are for {tokens} tokens, which are neither 4:3 nor square", where, GIVE_GRID)


def count_numbers(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the keys."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})
