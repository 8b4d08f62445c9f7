"""What a recipe may say, and the settings of commands. Frozen, and closed to unknown keys; `reading` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from hmrcompress.io.texts import MOST, MOST_SEED
from hmrcompress.plan import MergeRule, TokenSettings

if TYPE_CHECKING:
    from hmrcompress.api.opening import ModelFile

StageName = Literal[
    "mean_pose",
    "baseline",
    "merged",
    "tokens_alone",
    "merged_tokens",
    "interpolated",
    "filtered_one_euro",
    "filtered_savgol",
    "decoded",
]
GateName = Literal[
    "mpjpe_mm",
    "pa_mpjpe_mm",
    "pve_mm",
    "accel_mm_per_frame2",
    "mpjpe_increase_mm",
    "pa_mpjpe_increase_mm",
    "pve_increase_mm",
    "mpjpe_change_mm",
    "pa_mpjpe_change_mm",
    "pve_change_mm",
    "accel_change_mm_per_frame2",
    "mpjpe_below_mean_pose_mm",
    "mpjpe_ratio",
    "accel_ratio",
    "layers_removed",
    "macs_ratio",
    "speedup",
    "onnx_max_abs_diff",
    "onnx_joints_mm",
]


Count = Annotated[int, Field(gt=0, le=MOST)]


class Section(BaseModel):
    """Strict: "4" is not 4. Fields that hold several values say strict=False: YAML has lists where we want tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Which frames are searched on and which are scored; they should not overlap."""

    search: str = Field(default="starter:calib", description="Data set that the search measures errors on")
    eval: str = Field(default="starter:val", description="Data set that the figures come from")
    clips: int | None = Field(
        default=None, gt=0, le=MOST, description="Only the first clips of starter splits (fewer to render)"
    )


class Search(Section):
    """The choice of layers to merge."""

    method: Literal["eclm"] = Field(default="eclm", description="Search method")
    tau_mm: float = Field(
        default=0.1, gt=0, description="Increase in MPJPE over the untouched network that all merges may cost"
    )
    frames_per_clip: int = Field(default=80, gt=0, le=MOST, description="Frames taken uniformly from each clip")
    limit: int | None = Field(default=None, gt=0, le=MOST, description="At most this many frames in all")
    merge_rule: MergeRule = Field(default="eq4", description="How the weights of a group of layers become one layer")
    with_tokens: bool = Field(default=False, description="Merge tokens already while searching")
    layers: int | None = Field(default=None, gt=0, le=MOST, description="Number of layers to reach, instead of tau_mm")
    target: Literal["truth", "teacher"] = Field(
        default="truth", description="What errors are measured from: the data's poses, or the untouched one's vertices"
    )
    protocol: str | None = Field(default=None, description="Named protocol of the errors; that of the data")
    as_printed: bool = Field(default=False, description="Lose the last open window, as the published algorithm does")
    cache: bool = Field(default=True, description="Keep what enters each layer; the plan is the same without")
    cache_gb: float | None = Field(
        default=None, ge=0, description="Memory for the cache; the rest goes to the disk, beside the journal"
    )
    cache_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16 is half as large; decisions near the bound may change"
    )
    reject_early: bool = Field(
        default=True, description="Stop measuring a candidate once it cannot pass; the plan is the same without"
    )
    tokens: TokenSettings | None = Field(
        default=TokenSettings(), description="Token merging copied into the plan; null for none"
    )


class Merge(Section):
    """Applying a plan."""

    plan: str | None = Field(default=None, description="A plan file to apply instead of the one that was searched")
    decoder: str | None = Field(
        default=None, description="Another compressed version of the model, whose temporal decoder is taken over"
    )


class Finetune(Section):
    """Training on the frozen merged network: motion VAE and temporal decoder, after healing the layers if wanted."""

    stages: tuple[Literal["heal", "vae", "decoder", "all"], ...] = Field(
        default=("all",), min_length=1, strict=False, description="In this order; all is vae and decoder"
    )
    data: str = Field(default="starter:train", description="Clips whose features are trained on")
    val: str | None = Field(default=None, description="Clips to validate on; starter:dev, or a part of data")
    motions: str = Field(default="starter", description="Motions of the VAE: starter or amass:DIR")
    preset: Literal["starter", "paper"] = Field(default="starter", description="Sizes of VAE and decoder")
    decoder: Literal["both", "velocity", "noise", "regress"] = Field(
        default="both", description="What the decoder learns; regress is the same network without diffusion"
    )
    clips: int | None = Field(default=None, gt=0, le=MOST, description="Only the first clips of the data")
    steps: int | None = Field(
        default=None, gt=0, le=MOST, description="Optimiser steps of each stage; those of the preset"
    )
    images: int = Field(default=200_000, gt=0, le=MOST, description="Crops that healing sees")
    max_minutes: float | None = Field(default=None, gt=0, description="End each stage after so long")
    clip_frames: int | None = Field(
        default=None, gt=0, le=MOST, description="Frames of a clip of starter:train; a window and a fifth"
    )
    readout: bool | None = Field(
        default=None, description="The decoder starts from the network's own read-out; as the preset"
    )
    rate: float | None = Field(
        default=None, gt=0, description="Highest learning rate; 0.0003 for healing, VAE 0.001, decoder 0.0001"
    )
    workers: int = Field(default=1, gt=0, le=MOST, description="Processes that render starter:train")
    rank: int = Field(default=16, gt=0, le=MOST, description="Rank of the adapters that heal")
    reach: int = Field(default=1, ge=0, le=MOST, description="Layers healed on both sides of a cut")
    full: bool = Field(
        default=False, description="Heal by training all weights of the backbone, the matrices by Muon; no adapters"
    )
    with_head: bool = Field(default=False, description="Heal the head too")


class Finetuning(Finetune):
    """What the command takes beside a recipe's stage."""

    probe_layer: int | None = Field(
        default=None, ge=0, le=MOST, description="Whose tokens the probe reads; the first of five that know the person"
    )


class Run(Section):
    """How a compressed network is run."""

    fast: bool = Field(default=False, description="On the fast path")
    compile: bool = Field(default=False, description="Through torch.compile (takes minutes; needs a C++ compiler)")
    graphs: bool | None = Field(default=None, description="As CUDA graphs; with fast on CUDA")
    buckets: Literal["auto"] | Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        default=None, description="Adaptive tokens: the numbers that a person may get; auto is 64, 90, 128 and 192"
    )

    @field_validator("buckets", mode="before")
    @classmethod
    def _from_a_list(cls, value: Any) -> Any:
        """YAML has lists where we want tuples; in pydantic 2.9 strict=False does not reach into a union."""
        return tuple(value) if isinstance(value, list) else value


class Eval(Run):
    """Figures of the mean pose, the network as it came, with merged layers, with merged tokens too, and decoded."""

    protocol: str | None = Field(default=None, description="Named protocol: joints, root and units; that of the data")
    limit: int | None = Field(
        default=None, gt=0, le=MOST, description="At most this many frames, in runs from as many clips"
    )
    stride: int = Field(default=1, gt=0, le=MOST, description="Clips are decoded from every k-th frame")
    steps: int = Field(default=1, gt=0, le=MOST, description="Denoising steps of the decoder")
    filters: tuple[Literal["one-euro", "savgol"], ...] = Field(
        default=(), strict=False, description="Filters on the network's own poses, to compare with"
    )
    frames_per_clip: int | None = Field(
        default=None, gt=0, le=MOST, description="Frames taken evenly from each clip; all if not given"
    )
    lookahead: int | None = Field(
        default=None, ge=0, le=MOST, description="Decode live, so many frames late; whole clips if not given"
    )
    median_shape: bool = Field(default=False, description="One shape a clip, the median")


class Bench(Section):
    """Frames per second before and after, interleaved, on the machine at hand."""

    batch_size: int = Field(default=16, gt=0, le=MOST, description="Crops in a call")
    rounds: int = Field(default=9, gt=0, le=MOST, description="Counted rounds; medians are reported")
    strides: tuple[int, ...] = Field(
        default=(1, 2, 4), min_length=1, strict=False, description="With a decoder: networks run on every k-th frame"
    )
    measured_frames: int | None = Field(
        default=None,
        gt=0,
        le=MOST,
        description="Time networks on so many frames of a clip and scale up; all if not given",
    )


class Benching(Bench, Run):
    """What the command takes beside a recipe's stage."""

    tokens: TokenSettings | None = Field(default=None, description="Token merging; the model's own if not given")
    only: tuple[str, ...] = Field(default=(), strict=False, description="Only these runs of a suite")
    max_seconds: float = Field(default=300.0, ge=0, description="Begin no further round after this long a batch size")
    decoder: Literal["starter", "paper"] | None = Field(
        default=None, description="Time a temporal decoder of random weights; the model's own if not given"
    )
    steps: int = Field(default=1, gt=0, le=MOST, description="Denoising steps of the decoder")
    runtime: Literal["torch", "onnxruntime", "openvino"] = Field(
        default="torch", description="Time the compressed network there, too, beside torch"
    )


class Predict(Run):
    """Bodies in pictures and videos; no recipe's stage, settings of the commands predict and profile."""

    box_scale: float = Field(default=1.2, gt=0, description="Crops are so much larger than tight boxes")
    stride_detect: int = Field(
        default=1, gt=0, le=30, description="Detectors look at every k-th frame; people are expected in between"
    )
    steps: int = Field(default=1, gt=0, le=MOST, description="Denoising steps of the decoder")
    bvh: bool = Field(default=False, description="Write the skeletons of tracks as BVH files, too")
    antialias: bool = Field(default=True, description="Blur large boxes before they are cut; evaluations do not")
    overlapped: bool = Field(default=True, description="Stages run at the same time")
    workers: int | None = Field(default=None, gt=0, description="With --on, at most so many workers")
    worker_cpus: int = Field(default=1, gt=0, le=1024, description="With --on, cores and threads of each worker")


class Export(Section):
    """A file for other run times, compared with torch before it gets its name."""

    format: Literal["onnx"] = Field(default="onnx", description="What to write")


class Gate(Section):
    """Bounds that a figure has to keep, both inclusive."""

    min: float | None = Field(default=None, description="Smallest value that passes")
    max: float | None = Field(default=None, description="Largest value that passes")
    stage: StageName | None = Field(default=None, description="Stage it looks at; the last one measured if not given")

    @model_validator(mode="after")
    def _bounded(self) -> Gate:
        if self.min is None and self.max is None:
            raise ValueError("a gate needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: nothing passes")
        return self


class Start(Section):
    """The network that everything starts from, and what its file does not tell."""

    model: str = Field(default="starter", description="CKPT: starter, random:FAMILY or a file")
    num_heads: int | None = Field(default=None, gt=0, description="Heads of the backbone, where the file does not tell")
    head_heads: int | None = Field(default=None, gt=0, description="Heads of the head, where the file does not tell")
    tokenizer: str | None = Field(default=None, description="TokenHMR's tokenizer, where it does not lie beside")
    weights: str | None = Field(default=None, description="Which weights, where a file holds several")
    grid: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="Rows and columns of tokens, where the file does not tell: [32, 24]"
    )

    def model_file(self) -> ModelFile:
        """The model as `opening.load` takes it."""
        from hmrcompress.api.opening import ModelFile

        tokenizer = None if self.tokenizer is None else Path(self.tokenizer)
        return ModelFile(self.model, self.num_heads, self.head_heads, tokenizer, self.weights, self.grid)


class Recipe(Start):
    """The whole line: search, merge, finetune, eval, bench, export, gates. A stage that is not named is left out."""

    body: str = Field(default="starter", description="starter, a body file, a folder of SMPL's three, or smplx:FOLDER")
    regressor: str | None = Field(default=None, description="Joint regressor that the data's protocol needs")
    data: Data = Data()
    masks: str = Field(
        default="data", description="Person masks: data, files:DIR, onnx:FILE, auto, self, none or a plug-in"
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="Seed of everything drawn at random")
    batch_size: int = Field(default=32, gt=0, le=MOST, description="Crops at a time in search and eval")
    search: Search | None = None
    merge: Merge | None = None
    finetune: Finetune | None = None
    eval: Eval | None = None
    bench: Bench | None = None
    export: Export | None = None
    gates: dict[GateName, Gate] = Field(default={}, description="Bounds of figures, such as {speedup: {min: 1.8}}")

    @model_validator(mode="after")
    def _line_holds(self) -> Recipe:
        if self.merge is not None and (self.merge.plan is None) == (self.search is None):
            raise ValueError("merge applies the plan of the search stage or that of merge.plan: give exactly one")
        if self.finetune is not None and "heal" in self.finetune.stages and self.merge is None:
            raise ValueError("healing needs the stage merge: there is nothing to heal in a network as it came")
        needed = {"bench": ("speedup",), "export": ("onnx_max_abs_diff", "onnx_joints_mm")}
        for gate in self.gates:
            stage = next((stage for stage, names in needed.items() if gate in names), "eval")
            stage = "merge" if gate in ("layers_removed", "macs_ratio") else stage
            if getattr(self, stage) is None:
                raise ValueError(f"the gate {gate} needs the stage {stage}")
        return self

    def limited(self, frames: int) -> Recipe:
        """The same recipe with search and eval on at most `frames` frames."""
        parts = {name: getattr(self, name) for name in ("search", "eval")}
        return self.model_copy(
            update={name: part.model_copy(update={"limit": frames}) for name, part in parts.items() if part is not None}
        )


SECTIONS: dict[str, type[Section]] = {
    "search": Search,
    "finetune": Finetuning,
    "eval": Eval,
    "bench": Benching,
    "predict": Predict,
}
"""Settings that commands take as `--set SECTION.KEY=VALUE`, by the section's name."""
