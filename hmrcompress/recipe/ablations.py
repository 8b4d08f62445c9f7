"""What `recipes/ablations.yaml` may say: named searches, and tables of settings that are compared with one baseline.

Frozen, and closed to unknown keys; reading one needs neither torch nor the files it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hmrcompress.errors import UserError
from hmrcompress.io.texts import MOST, MOST_SEED
from hmrcompress.io.yamls import parse_yaml
from hmrcompress.plan import MergeRule, TokenSettings
from hmrcompress.recipe.reading import recipe_text
from hmrcompress.recipe.schema import Bench, Data, Start

Column = Literal["groups", "evaluations", "calib_increase_mm", "forced", "draws", "accel"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decode(_Part):
    """Clips instead of frames: the temporal decoder of the row's model, or in its place a filter on the network's own
    poses, or nothing but interpolation between every k-th frame."""

    by: Literal["decoder", "one-euro", "savgol", "interpolation"] = "decoder"
    stride: int = Field(default=1, gt=0, le=MOST, description="The network runs on every k-th frame")
    steps: int = Field(default=1, gt=0, le=MOST, description="Denoising steps of the decoder")
    lookahead: int | None = Field(default=None, ge=0, le=MOST, description="Decode live, so many frames late")
    median_shape: bool = Field(default=False, description="One shape a clip, the median")

    @model_validator(mode="after")
    def _holds(self) -> Decode:
        if self.by in ("one-euro", "savgol") and (self.stride > 1 or self.lookahead is not None):
            raise ValueError("filters are measured on all frames: leave stride and lookahead out")
        return self


class Asked(_Part):
    """Bounds that are written down before anything is measured: of a frame's mean distance to the untouched network's
    joints, and of the upper end of the increase's interval (non-inferiority), in mm."""

    increase_upper_mm: float | None = None
    distance_mm: float | None = None


class Setting(_Part):
    """A row. Layers are those of `search` (by its name), `groups`, or a `control`; of none: nothing is merged.

    `model` takes the place of the recipe's model: another checkpoint, or a compressed folder whose layers and tokens
    are taken as they are.
    """

    name: str
    search: str | None = Field(default=None, description="Name of the search whose groups are merged")
    groups: tuple[tuple[int, ...], ...] | None = Field(default=None, description="Groups written out")
    control: Literal["random", "even"] | None = Field(
        default=None,
        description="Groups that nobody searched for, `layers` of them: the mean of five random ones, or even",
    )
    layers: int | None = Field(default=None, gt=0, le=MOST, description="How many layers a control leaves")
    merge_rule: MergeRule | None = Field(default=None, description="Another rule than that of the search")
    model: str | None = Field(default=None, description="Another model: a folder that was healed, or holds a probe")
    tokens: TokenSettings | None = Field(default=None, description="Token merging; the model's own if not given")
    masks: str = Field(default="data", description="Person masks: data, files:DIR, self or none")
    decode: Decode | None = Field(default=None, description="Look at whole clips; frame by frame if not given")
    asked: Asked | None = Field(default=None, description="What is asked of the row before it is measured")
    reference: str | None = Field(default=None, description="Row whose increase this one's is given as a share of")

    @field_validator("tokens", mode="before")
    @classmethod
    def _as_in_a_plan(cls, value: Any) -> Any:
        """Token settings are strict about types, in which YAML has no tuples: they are read as JSON."""
        if not isinstance(value, dict):
            return value
        import json

        return TokenSettings.model_validate_json(json.dumps(value))

    @model_validator(mode="after")
    def _one_source_of_layers(self) -> Setting:
        given = [name for name in ("search", "groups", "control") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{self.name}: give {given[0]} or {given[1]}, not both")
        if (self.control is None) != (self.layers is None):
            raise ValueError(f"{self.name}: control and layers belong together")
        return self


class TableSpec(_Part):
    """A table. `reference` stands for that of all rows that name none; `whole_clips` scores all frames, whatever the
    recipe's `frames_per_clip`, so that there are accelerations."""

    name: str = Field(pattern="^[a-z0-9_]+$", description="Name of its JSON file")
    title: str
    note: str = ""
    reference: str | None = None
    columns: tuple[Column, ...] = Field(default=(), description="Columns beside those that every table has")
    whole_clips: bool = False
    settings: tuple[Setting, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_have_names_of_their_own(self) -> TableSpec:
        names = [setting.name for setting in self.settings]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{self.name}: {twice[0]!r} stands in two rows")
        for reference in (self.reference, *(setting.reference for setting in self.settings)):
            if reference is not None and reference not in names:
                raise ValueError(f"{self.name}: the reference {reference!r} is no row of the table")
        return self


class Ablations(Start):
    """Searches are options of `hmrcompress search` by name (`tau_mm`, `layers`, `method`, `merge_rule`, …)."""

    model_config = ConfigDict(strict=False)  # rows of tables hold lists where settings are tuples

    body: str = "starter"
    data: Data = Data()
    masks: str = Field(default="data", description="Person masks of the searches, and of fitting the rule lstsq")
    protocol: str = "starter24"
    frames_per_clip: int | None = Field(
        default=None, gt=0, le=MOST, description="Frames scored of each clip; all if not given"
    )
    search_frames_per_clip: int = Field(default=80, gt=0, le=MOST)
    batch_size: int = Field(default=32, gt=0, le=MOST)
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    bench: Bench = Bench()
    presets: dict[str, dict[str, Any]] = Field(default={}, description="Token settings for YAML's anchors to point at")
    searches: dict[str, dict[str, Any]] = {}
    tables: tuple[TableSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Ablations:
        names = [table.name for table in self.tables]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"there are two tables {twice[0]!r}")
        for table in self.tables:
            for setting in table.settings:
                if setting.search is not None and setting.search not in self.searches:
                    raise ValueError(f"{table.name}: {setting.name}: there is no search {setting.search!r}")
        return self

    def only(self, names: Sequence[str]) -> Ablations:
        """The same with these tables alone. Raises UserError naming those there are."""
        known = [table.name for table in self.tables]
        if odd := [name for name in names if name not in known]:
            raise UserError(f"got {odd[0]!r}, expected one of {', '.join(known)}", "--only")
        return self.model_copy(update={"tables": tuple(table for table in self.tables if table.name in names)})

    def rows(self) -> Iterator[tuple[TableSpec, Setting]]:
        """All rows of all tables, in order."""
        return ((table, setting) for table in self.tables for setting in table.settings)


def read_ablations(source: str | Path) -> Ablations:
    """Ablations from a YAML file, or by name from those shipped. UserError naming file, field and fault."""
    path, text = Path(source), recipe_text(source, "ablations")
    values = parse_yaml(text, path)
    try:
        return Ablations.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(first["msg"].removeprefix("Value error, "), f"{path}: {field}" if field else path) from error
