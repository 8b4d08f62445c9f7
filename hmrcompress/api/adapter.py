"""Networks of other code from the command line: `adapter:FILE.py` names a Python file of the user's.

The file has `model()`, `batches(split)`, `run(model, batch)` and `distance(outputs, teacher, batch)`, and may have
`masks(batch)`, `count(batch)` and `STACK`, a dictionary of what `hc.live.network` is to be told. It is the user's code
and runs as such, with all that the user may do.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from hmrcompress.errors import HMRCompressError, UserError, first_line
from hmrcompress.io.atomic import whole_file
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.outputs import OutputRule
from hmrcompress.live.distances import Distance
from hmrcompress.live.healing import HealedLive
from hmrcompress.live.healing import heal as heal_live
from hmrcompress.live.patching import apply
from hmrcompress.live.plans import plan_for
from hmrcompress.live.saving import KIND, MAIN, restore
from hmrcompress.live.saving import save as save_live
from hmrcompress.live.searching import search as search_live
from hmrcompress.live.structure import Network
from hmrcompress.live.structure import network as found_network
from hmrcompress.live.trees import length_of
from hmrcompress.plan import Plan
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.searching.search import SearchResult, SearchSettings
from hmrcompress.timing.live_bench import LiveTiming
from hmrcompress.timing.live_bench import bench as bench_live

PREFIX = "adapter:"
NEEDED = ("model", "batches", "run", "distance")
SPLITS = ("search", "train", "test")
"""What `batches` is asked for: frames to search on, to heal on, and to measure on."""


@dataclass(frozen=True)
class Adapter:
    """What a user's file gives. `network` is the stack that was found in the model."""

    path: Path
    module: ModuleType
    network: Network

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self.network.model

    @property
    def name(self) -> str:
        """What its searches call the data."""
        return self.path.stem

    def batches(self, split: str) -> Sequence[Any]:
        """All batches of a split. UserError where there are none."""
        found = list(self.told("batches")(split))
        if not found:
            raise UserError(f'batches("{split}") gives none', self.path)
        return found

    @property
    def given(self) -> dict[str, Any]:
        """run, masks and count, as the functions of `hc.live` take them."""
        count = getattr(self.module, "count", None) or length_of
        masks = getattr(self.module, "masks", None)
        return {"run": self.told("run"), "masks": masks and self.told("masks"), "count": count}

    @property
    def distance(self) -> Distance:
        """The user's distance; one of ours as it is."""
        own = self.module.distance
        return own if hasattr(own, "kept") else self.told("distance")

    def told(self, name: str) -> Callable[..., Any]:
        """A function of the file whose errors are told in a sentence."""
        return _told(self.path, getattr(self.module, name), name)


def is_adapter(name: object) -> bool:
    """Whether a model is named by an adapter."""
    return str(name).startswith(PREFIX)


def open_adapter(name: str) -> Adapter:
    """Runs the file of `adapter:FILE.py`, makes its model and finds the stack of blocks in it, by a call of the first
    batch to search on where `STACK` does not say all. UserError where the file lacks something or fails."""
    path = Path(str(name).removeprefix(PREFIX))
    if not path.is_file():
        raise UserError("no such adapter", path, "`hmrcompress adapter new NAME` writes a template")
    module = _module(path)
    missing = [each for each in NEEDED if not callable(getattr(module, each, None))]
    if missing:
        raise UserError(f"has no {missing[0]}; adapters need {', '.join(NEEDED)}", path)
    stack = dict(getattr(module, "STACK", {}))
    if odd := sorted(set(stack) - {"blocks", "grid", "prefix", "suffix"}):
        raise UserError(f"STACK: there is no {odd[0]}, expected blocks, grid, prefix, suffix", path)
    model = _told(path, module.model, "model")()
    if not isinstance(model, nn.Module):
        raise UserError(f"model() gave a {type(model).__name__}, expected a torch.nn.Module", path)
    for part in model.modules():
        part.training = False
    batch = next(iter(_told(path, module.batches, "batches")(SPLITS[0])), None)
    if batch is None:
        raise UserError(f'batches("{SPLITS[0]}") gives none', path)
    run = _told(path, module.run, "run")
    return Adapter(path, module, found_network(model, **stack, example=lambda: run(model, batch)))


def search_adapter(
    name: str,
    *,
    journal: Path,
    settings: SearchSettings,
    overwrite: OutputRule,
    progress: Progress = no_progress,
) -> SearchResult:
    """`hc.live.search` on the adapter's batches to search on."""
    adapter = open_adapter(name)
    overwrite.reads(adapter.path)
    return search_live(
        adapter.network,
        adapter.batches("search"),
        adapter.distance,
        settings=replace(settings, target="teacher"),
        journal=journal,
        name=adapter.name,
        identity=sha256_file(adapter.path),
        overwrite=overwrite.overwrite,
        progress=progress,
        **adapter.given,
    )


def merge_adapter(name: str, plan: Path | str, out: Path | str, *, overwrite: OutputRule, force: bool = False) -> Plan:
    """Writes the plan and the changed weights of the adapter's model to a folder; see `live.saving`."""
    overwrite.check_folder(out, KIND)
    adapter = open_adapter(name)
    overwrite.reads(adapter.path, plan)
    made = plan_for(plan, adapter.network, force=force)
    save_live(adapter.model, made, out, network=adapter.network, overwrite=overwrite, force=force)
    return made


def heal_adapter(
    name: str,
    compressed: Path | str,
    out: Path | str,
    *,
    overwrite: OutputRule,
    folder: Path | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> HealedLive:
    """Heals the adapter's model, compressed as a plan or a folder of `merge_adapter` says, on its batches to train on,
    and writes a folder of the healed one. options: those of `live.healing.heal`."""
    overwrite.check_folder(out, KIND)
    adapter = open_adapter(name)
    overwrite.reads(adapter.path, compressed)
    _compress(adapter, compressed)
    healed = heal_live(
        adapter.model,
        adapter.batches("train"),
        held_out=adapter.batches("test"),
        distance=adapter.distance,
        folder=folder,
        progress=progress,
        **adapter.given,
        **options,
    )
    if healed.finished:
        save_live(adapter.model, None, out, overwrite=overwrite)
    return healed


def bench_adapter(
    name: str, compressed: Path | str, *, rounds: int, max_seconds: float | None, progress: Progress = no_progress
) -> LiveTiming:
    """`hc.live.bench` on the first of the adapter's batches to measure on."""
    adapter = open_adapter(name)
    plan = Path(compressed) / "plan.yaml" if Path(compressed).is_dir() else compressed
    batch = adapter.batches("test")[0]
    return bench_live(
        adapter.network, plan, batch, rounds=rounds, max_seconds=max_seconds, progress=progress, **adapter.given
    )


def write_template(name: str) -> Path:
    """Writes the template of an adapter to `NAME.py`. UserError where there is something already."""
    path = Path(name if name.endswith(".py") else f"{name}.py")
    if path.exists():
        raise UserError("is there already", path, "Choose another name")
    with whole_file(path) as temporary:
        temporary.write_text(TEMPLATE.replace("NAME", path.stem), encoding="utf-8")
    return path


def _compress(adapter: Adapter, compressed: Path | str) -> None:
    if (Path(compressed) / MAIN).is_file():
        restore(adapter.model, compressed)
    else:
        apply(adapter.model, compressed, network=adapter.network)


def _told(path: Path, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with errors other than ours as one sentence that names it and its file."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except HMRCompressError:
            raise
        except Exception as error:
            raise UserError(f"{name}() fails ({type(error).__name__}: {first_line(error)})", path) from error

    return call


def _module(path: Path) -> ModuleType:
    """The file as a module; what lies beside it can be imported by it."""
    spec = importlib.util.spec_from_file_location(f"hmrcompress_adapter_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # classes of a file can be copied only if it can be found by its name
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"fails when it is run ({type(error).__name__}: {first_line(error)})", path) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


TEMPLATE = '''"""How hmrcompress runs NAME: hmrcompress search|merge|finetune --stage heal|bench adapter:NAME.py

This is your code and runs as such. Everything is called with the model in evaluation mode.
"""

import torch

# What cannot be read off the model: blocks="backbone.encoder.blocks", grid=(32, 32) rows and columns of patches,
# prefix=5 tokens in front of the patches, suffix=0 behind them. Empty: found by a call of the first batch.
STACK = {}


def model() -> torch.nn.Module:
    """Your model with its weights, on the device it is to run on."""
    raise NotImplementedError("load your model here")


def batches(split: str):
    """Batches as your code makes them: split is search (a few hundred crops of different people), train (to heal on),
    or test (to measure on; none of the others)."""
    raise NotImplementedError("read your crops here")


def run(model, batch):
    """One call of your model, as your own code calls it. No `torch.no_grad` here: healing needs gradients."""
    return model(batch)


def distance(outputs, teacher, batch):
    """Millimetres by which outputs are off, one number for each sample, none negative. teacher: outputs of your model
    untouched, on the CPU in the beginning and moved to your device."""
    points, wanted = outputs["pred_vertices"], teacher["pred_vertices"]
    return 1000 * torch.linalg.vector_norm(points - wanted, dim=-1).mean(-1)


# def masks(batch):
#     """Where the person is: (B, rows, columns) bool on the grid of patches; or a list, one for each pass of the
#     backbone; or a function of the pictures that the patch embedding is given. None: nobody is known to be there."""
#     return None


# def count(batch):
#     """The number of samples in a batch, where it is not the first length of its pictures."""
#     return len(batch["img"])
'''
