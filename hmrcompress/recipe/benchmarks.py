"""What `recipes/benchmarks.yaml` may say, and measuring it: one JSON a run, runs that are there already are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hmrcompress.errors import UserError
from hmrcompress.io.jsons import read_json
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.texts import MOST, MOST_SEED
from hmrcompress.io.yamls import parse_yaml
from hmrcompress.plan import TokenSettings
from hmrcompress.recipe.reading import recipe_text

if TYPE_CHECKING:
    import torch

    from hmrcompress.body.model import BodyModel
    from hmrcompress.models.network import HMR2
    from hmrcompress.timing.contenders import Rival

COMMAND = "bench suite"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Part):
    """One dtype at one batch size; all variants take turns in it."""

    name: str = Field(pattern="^[a-z0-9_]+$", description="Name of its JSON file")
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(gt=0, le=MOST)
    rounds: int = Field(default=5, gt=0, le=MOST)
    warmup: int = Field(default=1, ge=0, le=MOST)
    threads: int | None = Field(
        default=None, gt=0, le=MOST, description="Threads of the CPU; torch's choice if not given"
    )
    int8: bool = Field(default=False, description="Also with 8-bit linear layers")
    float32: bool = Field(default=False, description="Also beside the original in float32")
    memory: bool = Field(default=False, description="Also the peak memory of each variant")
    runtimes: tuple[
        Literal["onnxruntime", "onnxruntime int8", "openvino", "openvino bfloat16", "openvino int8"], ...
    ] = Field(default=(), description="Also the compressed network as these run it, in float32 where nothing is said")
    bare: bool = Field(default=False, description="Also matrix products alone, which rows are compared with")

    @property
    def rivals(self) -> list[tuple[str, str]]:
        """Runtime and precision of each of `runtimes`."""
        return [
            (name, precision or "float32") for name, _, precision in (each.partition(" ") for each in self.runtimes)
        ]


class Suite(_Part):
    """A model, what is merged in it, and the runs."""

    model: str = "random:hmr2"
    layers: int = Field(gt=0, le=MOST)
    tokens: TokenSettings
    decoder: str | None = Field(default=None, description="Preset of a temporal decoder of random weights")
    strides: tuple[int, ...] = (1, 2, 4)
    body: str = "starter"
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    runs: tuple[Run, ...] = Field(min_length=1)

    @field_validator("tokens", mode="before")
    @classmethod
    def _as_in_a_plan(cls, value: Any) -> Any:
        """Token settings are strict about types, in which YAML has no tuples: they are read as JSON."""
        return TokenSettings.model_validate_json(json.dumps(value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _names_of_their_own(self) -> Suite:
        names = [run.name for run in self.runs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"there are two runs {twice[0]!r}")
        return self

    def only(self, names: Sequence[str]) -> Suite:
        """The same with these runs alone. Raises UserError naming those there are."""
        known = [run.name for run in self.runs]
        if odd := [name for name in names if name not in known]:
            raise UserError(f"got {odd[0]!r}, expected one of {', '.join(known)}", "--only")
        return self.model_copy(update={"runs": tuple(run for run in self.runs if run.name in names)})


def read_suite(source: str | Path) -> Suite:
    """A suite from a YAML file, or by name from those shipped. UserError naming file, field and fault."""
    path, text = Path(source), recipe_text(source, "benchmarks")
    values = parse_yaml(text, path)
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(first["msg"].removeprefix("Value error, "), f"{path}: {field}" if field else path) from error


def run_suite(
    suite: Suite,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    overwrite: bool | OutputRule = False,
    on_run: Callable[[str, dict[str, Any] | None, bool], None] = lambda name, record, known: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Path]:
    """Measures the runs that `out` does not hold yet, each into NAME.json; gives the files of all that are there.

    A run for a device that is not here is left out: `on_run` is told of each (name, its record or None, whether it was
    known). Raises UserError, also for a record in `out` of other settings (`overwrite` measures it anew), for a run of
    `only` without its device, and as `io.outputs`.
    """
    import torch

    from hmrcompress.api import opening, opening_decoder
    from hmrcompress.exporting.rival import check_rival
    from hmrcompress.runtime import pick_device, pick_dtype, record
    from hmrcompress.timing.pipeline_bench import PipelineSettings
    from hmrcompress.timing.suite import RunSettings, run_suite_row

    out, checkpoint, written, rule = Path(out), None, [], OutputRule.of(overwrite)
    for run in suite.runs:
        rule.check_file(out / f"{run.name}.json", COMMAND)
    for run in (suite.only(only) if only else suite).runs:  # what is missing is said before an hour of measuring
        for runtime, precision in () if (out / f"{run.name}.json").is_file() else run.rivals:
            check_rival(runtime, precision)
    common = suite.model_dump(mode="json", exclude={"runs"})
    for run in (suite.only(only) if only else suite).runs:
        path, settings = out / f"{run.name}.json", {"suite": common, "run": run.model_dump(mode="json")}
        if path.is_file():
            kept = _kept(path)
            if kept.get("settings") == settings:
                on_run(run.name, kept, True)
                written.append(path)
                continue
            if not rule.overwrite:
                raise UserError("was measured with other settings", path, "--overwrite measures it anew")
        if run.device == "cuda" and not torch.cuda.is_available() and not only:
            on_run(run.name, None, False)
            continue
        device = pick_device(run.device)
        checkpoint = checkpoint or opening.load(suite.model, seed=suite.seed)
        clips = PipelineSettings(suite.strides)
        pipeline = None
        if suite.decoder is not None:
            body = opening.body_for(checkpoint, suite.body)
            pipeline = opening_decoder.pipeline_of(
                checkpoint, body, device, decoder=suite.decoder, clips=clips, seed=suite.seed
            )
        found = run_suite_row(
            checkpoint.network,
            RunSettings(
                dtype=pick_dtype(run.dtype),
                strides=suite.strides,
                **run.model_dump(
                    include={"batch_size", "rounds", "warmup", "threads", "int8", "float32", "memory", "bare"}
                ),
            ),
            layers=suite.layers,
            tokens=suite.tokens,
            pipeline=pipeline,
            rivals=partial(_rivals, run, opening.body_for(checkpoint, suite.body), device),
            device=device,
            progress=progress,
        )
        made = record(COMMAND, {"settings": settings} | found, seed=suite.seed, device=device)
        rule.write_json(path, made, COMMAND)
        on_run(run.name, made, False)
        written.append(path)
    return written


@contextmanager
def _rivals(run: Run, body: BodyModel, device: torch.device, network: HMR2) -> Iterator[dict[str, Rival]]:
    """The network in each runtime that the run asks for, open in the block."""
    import torch

    from hmrcompress.api.bench import CROPS_COMPARED
    from hmrcompress.exporting.rival import made_rival
    from hmrcompress.timing.made_up import made_up_batch

    with ExitStack() as opened:
        found: dict[str, Rival] = {}
        for each, (runtime, precision) in zip(run.runtimes, run.rivals, strict=True):
            found[each] = opened.enter_context(
                made_rival(
                    runtime,
                    network,
                    made_up_batch(network.config, CROPS_COMPARED),
                    body,
                    precision=precision,
                    device=device,
                    threads=torch.get_num_threads(),
                )
            )
        yield found


def _kept(path: Path) -> dict[str, Any]:
    """The record that stands there; {} where something else does, which is to be replaced."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
