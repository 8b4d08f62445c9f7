"""CameraHMR's field-of-view network: a whole picture to the angles that it shows, and so to the focal length.

HRNet (Sun et al., CVPR 2019) with the key names of the original file, the branches brought to one size by strided
convolutions, a mean over places, and two linear layers. The focal length is that of the camera, not of the person: it
is asked for once a shot, not once a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hmrcompress.errors import ShapeError, UserError
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.models.families.family import check_keys
from hmrcompress.models.layers import Conv2d, Linear
from hmrcompress.models.network import count_numbers
from hmrcompress.records import IMAGENET_MEAN, IMAGENET_STD

SIDE = 256
"""Pixels of the square picture that the network sees."""
BORDER = 255
EXPANSION = 4
FIELD_OF_VIEW = ("backbone.downsample_stage_1.0.weight", "fc3.weight")
"""Keys by which the network's file is told."""


@dataclass(frozen=True)
class FovConfig:
    """Every size of the network; the defaults are the published one (HRNet-W48).

    Branch b of a stage has width * 2^b channels; `modules` counts those of the stages with 2, 3 and 4 branches.
    """

    width: int = 48
    stem: int = 64
    first_blocks: int = 4
    blocks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    heatmaps: int = 24
    hidden: int = 1024

    def channels(self, branches: int) -> list[int]:
        """Channels of the branches."""
        return [self.width * 2**branch for branch in range(branches)]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), *more)


class _Basic(nn.Module):
    """Two 3x3 convolutions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, channels, 3), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _convolution(channels, channels, 3), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, added to the input, which the first of a row has to widen."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.conv1, self.bn1 = _convolution(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _convolution(channels, channels, 3), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _convolution(channels, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity() if inputs == outputs else _normed(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.downsample(x) + self.bn3(self.conv3(y))).relu()


def _exchange(channels: Sequence[int], target: int, source: int) -> nn.Module:
    """What brings a branch to the size of another: up by the nearest place, or down by strided convolutions."""
    if source == target:
        return nn.Identity()
    if source > target:
        up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return _normed(channels[source], channels[target], 1, 1, up)
    steps = [_normed(channels[source], channels[source], 3, 2, nn.ReLU()) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _normed(channels[source], channels[target], 3, 2))


class _Module(nn.Module):
    """Branches of different sizes side by side, then each becomes the sum of all."""

    def __init__(self, channels: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(_Basic(size) for _ in range(blocks))) for size in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(channels, target, source) for source in range(len(channels)))
            for target in range(len(channels))
        )

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        seen = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        fused = []
        for layers in self.fuse_layers:
            assert isinstance(layers, nn.ModuleList)
            parts = [layer(x) for layer, x in zip(layers, seen, strict=True)]
            fused.append(sum(parts[1:], parts[0]).relu())
        return fused


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """To one branch more: those that there are keep their channels or are given others, the last also makes the new
    one."""
    # Not strict: `after` has one branch more, made below.
    kept = [
        nn.Identity() if old == new else _normed(old, new, 3, 1, nn.ReLU())
        for old, new in zip(before, after, strict=False)
    ]
    return nn.ModuleList([*kept, nn.Sequential(_normed(before[-1], after[-1], 3, 2, nn.ReLU()))])


class _HRNet(nn.Module):
    """Pictures (B,3,S,S) -> features (B,15*width,S/32,S/32)."""

    def __init__(self, config: FovConfig) -> None:
        super().__init__()
        stem, wide = config.stem, EXPANSION * config.stem
        self.conv1, self.bn1 = _convolution(3, stem, 3, 2), nn.BatchNorm2d(stem)
        self.conv2, self.bn2 = _convolution(stem, stem, 3, 2), nn.BatchNorm2d(stem)
        self.layer1 = nn.Sequential(
            *(_Bottleneck(stem if block == 0 else wide, stem) for block in range(config.first_blocks))
        )
        before = [wide]
        for stage, modules in enumerate(config.modules, start=2):
            after = config.channels(stage)
            self.add_module(f"transition{stage - 1}", _transition(before, after))
            self.add_module(f"stage{stage}", nn.Sequential(*(_Module(after, config.blocks) for _ in range(modules))))
            before = after
        # Heat maps of the pose network that it was made from; nothing asks for them.
        self.final_layer = Conv2d(config.width, config.heatmaps, 1)
        for branch, size in enumerate(config.channels(3)):
            steps = [layer for _ in range(3 - branch) for layer in _normed(size, size, 3, 2, nn.ReLU())]
            self.add_module(f"downsample_stage_{branch + 1}", nn.Sequential(*steps))

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(pictures)).relu())).relu()
        branches = [self.layer1(x)]
        for stage in (2, 3, 4):
            grown = self.get_submodule(f"transition{stage - 1}").children()
            branches = [make(branches[min(index, len(branches) - 1)]) for index, make in enumerate(grown)]
            branches = self.get_submodule(f"stage{stage}")(branches)
        down = [self.get_submodule(f"downsample_stage_{index + 1}")(branches[index]) for index in range(3)]
        return torch.cat([*down, branches[3]], dim=1)


class FieldOfView(nn.Module):
    """Pictures (B,3,256,256), ImageNet-normalised, letterboxed (`letterboxed`) -> (B,2) radians: the second is the
    vertical field of view."""

    def __init__(self, config: FovConfig | None = None) -> None:
        super().__init__()
        self.config = config or FovConfig()
        hidden = self.config.hidden
        self.backbone = _HRNet(self.config)
        self.fc1 = Linear(15 * self.config.width, hidden)
        self.fc2 = Linear(hidden, hidden)  # in the file, but the original never uses it
        self.fc3 = Linear(hidden, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.fc3(self.fc1(self.backbone(pictures).mean((2, 3))))


def fov_config(state: Mapping[str, Tensor], where: object = "field-of-view network") -> FovConfig:
    """Sizes read off a state dict. Raises UserError naming the missing key."""
    needed = ("backbone.final_layer.weight", "backbone.conv1.weight", "fc1.weight")
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"no key {missing[0]}", where, "Is this CameraHMR's field-of-view network?")
    heatmaps, width = state[needed[0]].shape[:2]
    stages = [count_numbers(state, f"backbone.stage{stage}.") for stage in (2, 3, 4)]
    return FovConfig(
        width=width,
        stem=state[needed[1]].shape[0],
        first_blocks=count_numbers(state, "backbone.layer1."),
        blocks=count_numbers(state, "backbone.stage2.0.branches.0."),
        modules=(stages[0], stages[1], stages[2]),
        heatmaps=heatmaps,
        hidden=state[needed[2]].shape[0],
    )


def is_fov(keys: Collection[str]) -> bool:
    """Whether these keys are those of a field-of-view network."""
    return all(key in keys for key in FIELD_OF_VIEW)


def load_fov(path: Path | str) -> FieldOfView:
    """The network of a file, float32 on the CPU, in evaluation mode. Raises UserError where the file is missing or
    damaged, or has keys missing, left over or of another shape."""
    state = open_state_file(path, [FIELD_OF_VIEW]).tensors
    config = fov_config(state, path)
    with torch.device("meta"):
        network = FieldOfView(config)
    check_keys(state, network.state_dict(), path)
    widened = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    network.load_state_dict(widened, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _averaged(values: np.ndarray, places: int) -> np.ndarray:
    """(n,...) -> (places,...): the mean over each of `places` equal parts of the first axis, split pixels by area."""
    size = len(values)
    edges = np.arange(places + 1) * (size / places)
    whole = np.minimum(edges.astype(int), size - 1)
    before = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])[whole]
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(before + part * values[whole], axis=0) / (size / places)


def letterboxed(picture: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 -> (256,256,3) uint8: the longer side to 256 by the mean over areas, white beside the shorter one.

    Raises ShapeError for something else than a picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ShapeError(f"got {picture.dtype} of shape {picture.shape}, expected uint8 of shape (H, W, 3)", "picture")
    height, width = picture.shape[:2]
    rows = SIDE if height >= width else max(1, int(SIDE * height / width))
    columns = SIDE if width >= height else max(1, int(SIDE * width / height))
    small = _averaged(picture.astype(np.float64), rows)
    small = _averaged(small.swapaxes(0, 1), columns).swapaxes(0, 1)
    out = np.full((SIDE, SIDE, 3), BORDER, np.uint8)
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    out[top : top + rows, left : left + columns] = np.rint(small).astype(np.uint8)
    return out


@torch.no_grad()
def focal_length(network: FieldOfView, picture: np.ndarray) -> float:
    """A whole picture (H,W,3) uint8 RGB -> its focal length in pixels, H / (2 tan(v / 2)), v the vertical angle seen.

    Raises ShapeError, and UserError where the network gives no angle between 0 and pi.
    """
    device = network.fc3.weight.device
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = torch.from_numpy(letterboxed(picture)).permute(2, 0, 1).float() / 255
    angle = float(network(((pixels - mean) / std)[None].to(device))[0, 1])
    if not 0 < angle < math.pi:
        raise UserError(f"the field-of-view network says {angle:g} radians", "focal length", "Give the focal length")
    return picture.shape[0] / (2 * math.tan(angle / 2))


def focal_lengths(
    network: FieldOfView, picture_of: Callable[[int], np.ndarray], shots: Sequence[int] | np.ndarray
) -> np.ndarray:
    """A focal length in pixels for each of N frames, (N,) float64: one for a shot, from the frame in its middle.

    shots (N,) numbers the shot that each frame belongs to; `picture_of(frame)` gives a frame (H,W,3) uint8 RGB and is
    called once a shot. Raises as `focal_length`.
    """
    numbers = np.asarray(shots)
    found = np.empty(len(numbers))
    for shot in np.unique(numbers):
        frames = np.flatnonzero(numbers == shot)
        found[frames] = focal_length(network, picture_of(int(frames[len(frames) // 2])))
    return found
