"""`plan.yaml`: which layers of which checkpoint become one or are removed, how tokens are merged, and what it runs as.
The contract between deciding and doing: made before any arithmetic, readable, editable by hand.

Schema 2 added `removed`, `patch`, `tokens.read`, `run` and plans without `checkpoint`; plans of schema 1 are read. A
removed layer, or one of which a half is removed, stands alone in its group: `groups` go on holding every layer once,
in order, and a merge rule only ever sees whole layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hmrcompress.errors import UserError, shown, tell
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.texts import read_bytes
from hmrcompress.io.yamls import parse_yaml

KIND = "plan"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MergeRule = Literal["eq4", "keep_last", "keep_first", "mean", "lstsq"]
Part = Literal["all", "attention", "mlp"]
ALL, ATTENTION, MLP = "all", "attention", "mlp"
FITTED_RULE = "lstsq"
SCHEMA = 2
SINCE_SCHEMA_2 = ("removed", "patch", "run")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class CheckpointRef(_Frozen):
    """The checkpoint that a plan was made for."""

    family: str = Field(description="Name of the architecture, such as hmr2")
    sha256: Sha256 = Field(description="Hash of the checkpoint file")
    layers: int = Field(ge=1, description="Number of backbone layers before merging")


class DropBackground(_Frozen):
    """Which background stays beside the person when the rest is dropped straight after the patch embedding."""

    ring: int = Field(default=1, ge=0, description="Width of the ring of tokens around the person")
    coarse: int = Field(default=4, ge=0, description="Spacing of a grid of tokens over the whole crop; 0 for none")


class TokenSettings(_Frozen):
    """Mask-guided token merging in the first layers (Mask-ToMe), or dropping of background instead."""

    keep: int = Field(default=90, ge=1, description="Tokens that remain after the last merging layer")
    per_layer: int = Field(default=40, ge=1, description="Tokens merged away per layer, at most")
    size_weighted: bool = Field(default=False, description="Average by the number of patches in each token")
    attention_bias: bool | Literal["self", "cross"] = Field(
        default=False, description="Add log of the token sizes to attention logits: of the backbone, the head, or both"
    )
    metric: Literal["keys", "features"] = Field(
        default="keys", description="What the similarity of tokens is measured on"
    )
    schedule: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        strict=False,  # recipes and Python have lists here; from JSON they would be tuples in any case
        description="Tokens merged away in layer 0, 1, …; takes the place of per_layer",
    )
    protect: int = Field(default=0, ge=0, description="Tokens of greatest norm in a frame that are never merged")
    drop_background: DropBackground | None = Field(
        default=None, description="Drop background before the first layer and merge nothing"
    )
    read: Literal["native", "restored"] = Field(
        default="native",
        description="What the head reads: each token once, or every patch's token, so one of k patches counts k times",
    )

    @model_validator(mode="after")
    def _one_way_of_reducing(self) -> Self:
        if self.drop_background is not None and (self.schedule is not None or self.protect):
            raise ValueError("drop_background merges nothing, so schedule and protect cannot go with it")
        return self

    @classmethod
    def paper(cls, keep: int = 90, per_layer: int = 40) -> TokenSettings:
        """The literal setting of the FastHMR paper, whatever the defaults: plain means, no bias, no protection."""
        return cls(
            keep=keep,
            per_layer=per_layer,
            size_weighted=False,
            attention_bias=False,
            metric="keys",
            schedule=None,
            protect=0,
            drop_background=None,
            read="native",
        )

    def changed(self, **fields: Any) -> TokenSettings:
        """These settings with fields replaced by plain values. Raises UserError naming the field and the fault."""
        try:
            return type(self).model_validate_json(json.dumps(self.model_dump(mode="json") | fields))
        except ValidationError as error:
            raise UserError(_first_fault(error), "tokens") from error

    @property
    def biases_backbone(self) -> bool:
        """Whether log-sizes are added to the logits of self-attention."""
        return self.attention_bias in (True, "self")

    @property
    def biases_head(self) -> bool:
        """Whether log-sizes are added to the logits of the head's cross-attention. A head that reads tokens restored to
        patches computes just that: k equal tokens have k times the weight of one."""
        return self.attention_bias in (True, "cross") or self.read == "restored"

    @property
    def needs_sizes(self) -> bool:
        """Whether anything depends on how many patches a token stands for."""
        return self.biases_backbone or self.biases_head


class DataRef(_Frozen):
    """The data that a search measured on."""

    name: str
    split: str
    sha256: str = Field(description="Hash of the data set's definition")
    source: str | None = Field(default=None, description="What --data was, so that it can be opened again")
    frames: str | None = Field(default=None, description="Hashes of the frames used; without them, all of them were")


class SearchRecord(_Frozen):
    """How the groups were found; errors in millimetres MPJPE."""

    method: str
    tau_mm: float = Field(description="Increase of the error that was allowed")
    frames: int = Field(ge=1)
    base_mpjpe_mm: float
    final_mpjpe_mm: float
    evaluations: int = Field(ge=0, description="Evaluations beside that of the untouched model")
    seed: int
    data: DataRef
    target: Literal["truth", "teacher"] = Field(
        default="truth",
        description="What errors are measured from: the data's poses, or the untouched model's vertices",
    )
    layers: int | None = Field(default=None, description="Layers that were asked for; tau is then what they cost")
    frames_per_clip: int | None = Field(default=None, description="Frames taken evenly from each clip")
    masks: str | None = Field(default=None, description="Person masks, where the search used any")


class Removed(_Frozen):
    """A layer that is left out, or its attention or MLP alone."""

    layer: int = Field(ge=0, description="Number of the layer in the checkpoint")
    part: Part = Field(default="all", description="all, or the half that goes: attention or mlp")


class FittedOn(DataRef):
    """The data that a patch was fitted on, and which of their frames."""

    frames_per_clip: int = Field(ge=1, description="Frames taken evenly from each clip")
    clips: tuple[int, ...] | None = Field(default=None, description="Of these clips alone; None: of all")
    masks: str | None = Field(default=None, description="Person masks that weigh the tokens, where any do")


class PatchSettings(_Frozen):
    """The linear patch in place of what is removed, folded into the matrix below each cut (`merging.patch`)."""

    strength: float = Field(gt=0, le=1, description="What the fitted patch is multiplied by")
    fitted_on: FittedOn


class RunSettings(_Frozen):
    """What the model is to run as; whoever runs it may say otherwise."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    int8: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Layers of the checkpoint that run with 8-bit weights and activations"
    )
    stride: int = Field(default=1, ge=1, description="The network runs on every so manieth frame of a video")
    runtime: Literal["torch", "fast", "compiled", "onnxruntime", "openvino", "tensorrt", "coreml"] = "fast"
    buckets: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="Numbers of tokens to choose from for each person; None: tokens.keep for all"
    )

    @property
    def changed(self) -> list[str]:
        """The fields that ask for something else than what runs by itself, on the plain path in float32."""
        plain = RunSettings(runtime="torch")
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(plain, name)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("int8", "buckets"):
            values = getattr(self, name) or ()
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name}: expected rising numbers, each once")
        return self


class Plan(_Frozen):
    """A complete plan. `groups` holds every original layer once, in order; a group of several becomes one layer, one
    that is `removed` stands alone in its group. `checkpoint` may be missing in a plan written by hand."""

    schema_: Literal[2] = Field(default=2, alias="schema")
    checkpoint: CheckpointRef | None = None
    groups: tuple[tuple[int, ...], ...]
    merge_rule: MergeRule = "eq4"
    removed: tuple[Removed, ...] = ()
    patch: PatchSettings | None = None
    tokens: TokenSettings | None = None
    run: RunSettings | None = None
    search: SearchRecord | None = None

    @model_validator(mode="after")
    def _groups_cover_the_layers(self) -> Self:
        flat = [layer for group in self.groups for layer in group]
        layers = len(flat) if self.checkpoint is None else self.checkpoint.layers
        for number, group in enumerate(self.groups):
            if not group:
                raise ValueError(f"groups: group {number} is empty")
        for place, layer in enumerate(flat):
            if layer != place:
                fault = "appears twice" if layer in flat[:place] else f"stands where layer {place} belongs"
                raise ValueError(f"groups: layer {layer} {fault}; every layer must appear once, in order")
        if len(flat) != layers:
            raise ValueError(f"groups: got {len(flat)} layers, expected the {layers} of the checkpoint")
        if not layers:
            raise ValueError("groups: there are no layers")
        return self

    @model_validator(mode="after")
    def _removed_layers_stand_alone(self) -> Self:
        seen: set[int] = set()
        alone = {group[0] for group in self.groups if len(group) == 1}
        for each in self.removed:
            if each.layer >= self.layers:
                raise ValueError(f"removed: got layer {each.layer}, the checkpoint has 0 … {self.layers - 1}")
            if each.layer in seen:
                raise ValueError(f"removed: layer {each.layer} appears twice; part: all removes both halves")
            if each.layer not in alone:
                raise ValueError(
                    f"removed: layer {each.layer} is in a group of several; it has to stand alone in its own"
                )
            seen.add(each.layer)
        if not self.kept_groups:
            raise ValueError("removed: no layer would be left")
        return self

    @model_validator(mode="after")
    def _patch_has_a_cut(self) -> Self:
        if self.patch is not None and not self.removed:
            raise ValueError("patch: nothing is removed, so there is nothing to patch")
        if self.removed and self.merge_rule == FITTED_RULE:
            raise ValueError(f"removed: the rule {FITTED_RULE} fits groups alone; give patch for removed layers")
        return self

    @model_validator(mode="after")
    def _int8_layers_are_there(self) -> Self:
        wanted = set(self.run.int8) if self.run else set()
        for group in self.kept_groups:
            if 0 < len(wanted & set(group)) < len(group):
                raise ValueError(f"run.int8: names some layers of the group {list(group)}, which becomes one; name all")
            wanted -= set(group)
        if wanted:
            raise ValueError(f"run.int8: layer {min(wanted)} is not in the compressed network")
        return self

    @property
    def layers(self) -> int:
        """Number of layers of the checkpoint."""
        return sum(map(len, self.groups))

    @property
    def removed_parts(self) -> dict[int, Part]:
        """What is removed, by layer."""
        return {each.layer: each.part for each in self.removed}

    @property
    def kept_groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups that become layers, in order: all but those of a layer that is removed as a whole."""
        gone = {each.layer for each in self.removed if each.part == ALL}
        return tuple(group for group in self.groups if group[0] not in gone)

    @property
    def compresses_layers(self) -> bool:
        """Whether layers are merged or removed, in full or in part."""
        return bool(self.removed) or len(self.groups) < self.layers

    @property
    def first_change(self) -> int | None:
        """The lowest layer of the checkpoint that does not stay as it is; None where all do. A patch changes the layer
        below a cut."""
        changed = [group[0] for group in self.groups if len(group) > 1]
        changed += [max(each.layer - (self.patch is not None), 0) for each in self.removed]
        return min(changed, default=None)

    @classmethod
    def read(cls, path: Path | str) -> Plan:
        """Reads a plan. Raises UserError naming the file, the field and the fault."""
        return cls.from_dict(read_fields(path), path)

    @classmethod
    def from_yaml(cls, text: str | bytes, where: object = "plan") -> Plan:
        """Parses the text of a plan. Raises UserError naming the field and the fault."""
        return cls.from_dict(_fields(text, where), where)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object = "plan") -> Plan:
        """Checks plain values, of schema 1 or 2. Raises UserError naming the field and the fault."""
        if values.get("schema") == 1:
            tokens = values.get("tokens")
            later = [name for name in SINCE_SCHEMA_2 if name in values]
            later += ["tokens.read"] if isinstance(tokens, dict) and "read" in tokens else []
            if later:
                raise UserError(f"{later[0]}: plans of schema 1 have no such field", where, "Write schema: 2")
            values = {**values, "schema": SCHEMA}
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise UserError(_first_fault(error), where) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"holds what no plan has ({error})", where) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields, for YAML and JSON."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """The text of the plan, one group a line; equal plans give equal texts."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=100)

    def write(self, path: Path | str, *, overwrite: bool | OutputRule = False) -> None:
        """Writes the plan, in full or not at all, with the hash of its text in its last line. A plan that was edited
        since it was written is kept beside; anything else at `path` is only replaced with `overwrite`, otherwise
        UserError (see `io.outputs`)."""
        OutputRule.of(overwrite).write_text(path, self.to_yaml(), KIND, "plan")

    def check(self, family: str, sha256: str, layers: int, force: bool = False, where: object = "plan") -> None:
        """UserError unless the plan was made for this checkpoint; `force` lets another hash or family pass. Of a plan
        that names none it is told that only the number of layers could be compared."""
        made_for = self.checkpoint
        if self.layers != layers:
            field = "groups" if made_for is None else "checkpoint.layers"
            raise UserError(f"{field}: the plan is for {self.layers} layers, the model has {layers}", where)
        if force:
            return
        if made_for is None:
            tell("does not name its checkpoint, so only the number of layers was compared", where)
            return
        if made_for.family != family:
            raise UserError(f"checkpoint.family: the plan is for {made_for.family}, the model is {family}", where)
        if made_for.sha256 != sha256:
            raise UserError(
                f"checkpoint.sha256: the plan was made for {made_for.sha256[:12]}…, this checkpoint is {sha256[:12]}…",
                where,
                "--force uses it all the same",
            )

    def tell_run(self, left_to: str) -> None:
        """Says which fields of `run` are left to whoever runs what was made; models of ours follow all of them
        (`api.running`)."""
        if self.run is not None and self.run.changed:
            tell(f"run: {', '.join(self.run.changed)} is left to {left_to}", "plan")


def read_fields(path: Path | str) -> dict[str, Any]:
    """The fields in the file of a plan as they stand there, for `Plan.from_dict`. UserError where there are none."""
    if not Path(path).exists():
        raise UserError("no such plan", path, "`hmrcompress search` makes one")
    return _fields(read_bytes(Path(path)), path)


def _fields(text: str | bytes, where: object) -> dict[str, Any]:
    values = parse_yaml(text, where)
    if not isinstance(values, dict):
        raise UserError(f"holds a {type(values).__name__}, expected the fields of a plan", where)
    values.pop("sha256", None)  # the seal of the file: an edited plan is as good as any
    return values


def trivial_groups(layers: int) -> tuple[tuple[int, ...], ...]:
    """Every layer by itself: nothing merged."""
    return tuple((layer,) for layer in range(layers))


def _first_fault(error: ValidationError) -> str:
    """`field.field: what is wrong` of the first fault, and how many more there are."""
    faults = error.errors(include_url=False)
    first = faults[0]
    field = ".".join(map(str, first["loc"]))
    fault = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        fault = "there is no such field"
    elif first["type"] not in ("missing", "value_error"):
        fault = f"got {shown(first['input'])}: {fault}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{field}: {fault}{more}" if field else f"{fault}{more}"
