"""`config.json` of a compressed-model folder: its fields, and what they may hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hmrcompress.plan import MergeRule, Removed, RunSettings, TokenSettings
from hmrcompress.records import CROP_HEIGHT, CROP_WIDTH, IMAGENET_MEAN, IMAGENET_STD


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FileRef(_Frozen):
    """Size and hash of a file of the folder."""

    bytes: int
    sha256: str


class CropConfig(_Frozen):
    """What the network expects of its images: size in pixels, channels RGB, mean and deviation in 0..1."""

    height: int = CROP_HEIGHT
    width: int = CROP_WIDTH
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class BodyConfig(_Frozen):
    """The body whose parameters the network predicts; `name` is that of the body it was trained on, if known."""

    joints: int = 24
    betas: int = 10
    sixd_layout: Literal["columns", "rows"] = "columns"
    name: str | None = None


class FolderConfig(_Frozen):
    """`config.json`. `groups` are the original layers that each layer came from, `removed` the layers and halves of
    layers that are in none of them or stand there halved, `run` how it is to be run. Since schema 2 it is sealed, and
    `files` has the card in it."""

    format: Literal["hmrcompress-model"] = "hmrcompress-model"
    schema_: Literal[1, 2] = Field(default=2, alias="schema")
    family: str
    network: dict[str, Any]
    dtype: str
    groups: tuple[tuple[int, ...], ...]
    removed: tuple[Removed, ...] = ()
    merge_rule: MergeRule | None = None
    tokens: TokenSettings | None = None
    run: RunSettings | None = None
    decoder: dict[str, Any] | None = None
    crop: CropConfig = CropConfig()
    body: BodyConfig = BodyConfig()
    provenance: dict[str, Any]
    files: dict[str, FileRef]
    seal: str | None = None
