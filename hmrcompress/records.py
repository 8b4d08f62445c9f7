"""The records that travel between rooms; every shape, unit and frame is stated here and nowhere else.

Lengths are metres, rotations matrices acting on column vectors. The camera frame has x right, y down, z forward
(as HMR2.0 and its kin predict: the root orientation of an upright person contains the half turn about x).
B is the batch, J the number of joints of the body (24 for SMPL), T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from hmrcompress.errors import UserError

PATCH_PADDING = 2
"""Pixels that the patch embedding adds on each side of a crop."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CropSize:
    """What a network sees: height and width of its crops in pixels, and the side of the patches that become its tokens.

    The defaults are those of HMR2.0 and its kin. UserError unless the sides are whole patches of more than 4 pixels
    (the embedding's padding is 2 on either side).
    """

    height: int = 256
    width: int = 192
    patch: int = 16

    def __post_init__(self) -> None:
        if self.patch <= 2 * PATCH_PADDING:
            raise UserError(f"got patches of {self.patch} pixels, expected more than {2 * PATCH_PADDING}", "patch")
        if min(self.grid) < 1 or self.height % self.patch or self.width % self.patch:
            raise UserError(f"crops of {self} pixels are no whole patches of {self.patch}", "crop")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def side(self) -> int:
        """Pixels of the square that a crop is the middle of: the longer of its two sides."""
        return max(self.height, self.width)

    @property
    def packed(self) -> tuple[int, int]:
        """Shape of a mask of the crop as `np.packbits(mask, axis=-1)` gives it."""
        return self.height, -(-self.width // 8)

    def same_shape(self, other: CropSize) -> bool:
        """Whether crops of the other size have the same aspect."""
        return self.height * other.width == self.width * other.height

    def __str__(self) -> str:
        """As in `512x384`: height, width."""
        return f"{self.height}x{self.width}"


CROP = CropSize()
"""That of HMR2.0 and its kin."""


class _Tensors:
    """Shared by records of tensors: moving them together."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """A copy with `Tensor.to(*args, **kwargs)` applied to floating-point tensors, device moves to all."""
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = value.to(*args, **kwargs) if value.is_floating_point() else value.to(_device_of(args, kwargs))
            elif isinstance(value, _Tensors):
                value = value.to(*args, **kwargs)
            moved[field.name] = value
        return type(self)(**moved)


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    for value in (*args, kwargs.get("device")):
        if isinstance(value, (str, torch.device)):
            return torch.device(value)
    return None


@dataclass(frozen=True)
class BodyParams(_Tensors):
    """Pose and shape of a body: global_orient (B,1,3,3), body_pose (B,J-1,3,3), betas (B,S); S is 10, for SMPL-X 16."""

    global_orient: Tensor
    body_pose: Tensor
    betas: Tensor

    @property
    def rotations(self) -> Tensor:
        """(B,J,3,3): the root's rotation and those of the other joints, each relative to its parent."""
        return torch.cat([self.global_orient, self.body_pose], dim=1)


@dataclass(frozen=True)
class HMROutput(_Tensors):
    """What a network predicts for a batch of crops.

    global_orient (B,1,3,3), body_pose (B,J-1,3,3) rotations in the camera frame; betas (B,S);
    cam (B,3) = (s, tx, ty) of the weak-perspective camera of the crop; features (B,D) the head's token before the
    linear read-outs. keypoints (B,K,2), None in most families: what CameraHMR reads out beside, in its own terms.
    """

    global_orient: Tensor
    body_pose: Tensor
    betas: Tensor
    cam: Tensor
    features: Tensor
    keypoints: Tensor | None = None

    @property
    def params(self) -> BodyParams:
        """The pose and shape part."""
        return BodyParams(self.global_orient, self.body_pose, self.betas)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> HMROutput:
        """The same with `change` applied to every tensor that is there."""
        parts: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            part = getattr(self, name)
            parts[name] = None if part is None else change(part)
        return HMROutput(**parts)

    @staticmethod
    def joined(outputs: Sequence[HMROutput]) -> HMROutput:
        """One batch of several, at least one, all of the same family."""
        parts: dict[str, Any] = {}
        for name in (field.name for field in fields(HMROutput)):
            found = [getattr(each, name) for each in outputs]
            parts[name] = None if found[0] is None else torch.cat(found)
        return HMROutput(**parts)


@dataclass(frozen=True)
class BodyOutput(_Tensors):
    """A posed body, root joint where the shaped template has it: vertices (B,V,3), joints (B,J,3). No translation."""

    vertices: Tensor
    joints: Tensor


@dataclass(frozen=True)
class FrameBatch(_Tensors):
    """A batch of crops with ground truth.

    images (B,3,H,W) float32, ImageNet-normalised RGB; person_mask (B,*grid) bool on the token grid, or None: of the
    size that the network takes (`CropSize`), 256 x 192 and 16 x 12 for HMR2.0 and its kin; params in the camera frame;
    clip (B,) and frame (B,) int64 say where each crop comes from: frames of one clip
    follow each other in time at the data set's fps. Where the data have them: condition (B,3) float32, box and focal
    length as `data.conditions.bbox_info` puts them; gender (B,) int64, 0 neutral, 1 male, 2 female, of the body that
    params belong to; keypoints (B,19,3) metres, the ground truth of 4D-Humans' extra keypoints.
    """

    images: Tensor
    person_mask: Tensor | None
    params: BodyParams
    clip: Tensor
    frame: Tensor
    condition: Tensor | None = None
    gender: Tensor | None = None
    keypoints: Tensor | None = None

    def without_images(self) -> FrameBatch:
        """The same batch with no pixels in it: what ground truth is made of is small."""
        return replace(self, images=self.images[:0].clone())

    def inputs(self, device: torch.device | str | None = None) -> tuple[Tensor | None, ...]:
        """What a network is called with, on `device`: images, person_mask, and the condition where there is one."""
        given = (self.images, self.person_mask, *(() if self.condition is None else (self.condition,)))
        return tuple(None if part is None else part.to(device) for part in given)
