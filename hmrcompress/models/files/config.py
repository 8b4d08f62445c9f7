"""`config.json` of a compressed-model folder: its fields, and what they may hold; and how such files are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hmrcompress.errors import UserError, shown
from hmrcompress.io.jsons import read_json
from hmrcompress.io.seals import Seal, json_seal
from hmrcompress.plan import MergeRule, Removed, RunSettings, TokenSettings
from hmrcompress.records import CROP, IMAGENET_MEAN, IMAGENET_STD, CropSize

Form = TypeVar("Form", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FileRef(_Frozen):
    """Size and hash of a file of the folder."""

    bytes: int
    sha256: str


class CropConfig(_Frozen):
    """What the network expects of its images: size in pixels, channels RGB, mean and deviation in 0..1."""

    height: int = CROP.height
    width: int = CROP.width
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def of(cls, size: CropSize) -> CropConfig:
        """What a network that takes crops of that size expects."""
        return cls(height=size.height, width=size.width)


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


def read_sealed_as(form: type[Form], path: Path, what: str) -> tuple[Form, Seal | None]:
    """What a folder says of itself in a JSON file, and its seal. `what` it is, such as `a compressed model`. UserError
    naming the field where it is something else."""
    if not path.is_file():
        raise UserError(f"not {what}: there is no readable {path.name} in it", path.parent)
    values = read_json(path)
    try:
        found = form.model_validate_json(json.dumps(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        told = f"{field}: {fault['msg']}" if field else f"got {shown(values)}, expected the fields of {what}"
        raise UserError(told, path) from error
    return found, json_seal(values)
