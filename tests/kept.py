"""What tests of keys share: two of everything that kept results depend on, and the table's rows (`Step`)."""

import hashlib
import inspect
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_decoder
import torch
from pydantic import BaseModel

import hmrcompress as hc
from hmrcompress.api import opening
from hmrcompress.data.crops import write_crops
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.metrics.points import Protocol
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import CheckpointRef, Plan, TokenSettings

REGRESSED = Protocol("regressed", tuple(range(14)), (0,), source="h36m")
TOKENS = TokenSettings(keep=150, per_layer=40)
ON_THE_CPU = "there is no other device here; that its kind is in the key is looked up in `test_devices_are_in_the_keys`"
PLACE, TELLS, SAVES = "where it is kept", "tells of the work and changes none", "saves work and changes no figure"


READ_WITH = ("num_heads", "head_heads", "tokenizer", "weights", "grid")
OF_THE_NETWORK = "says which network is read, which is in the key: see `test_how_a_file_is_read_is_in_the_keys`"


@dataclass(frozen=True)
class Contents:
    """Not another argument: another file behind the same name, while the key is made."""

    path: Path
    by: Path

    @contextmanager
    def there(self) -> Iterator[None]:
        """The other file lies there while the block runs."""
        beside = self.path.with_name(f"kept-{self.path.name}")
        self.path.rename(beside)
        try:
            (shutil.copytree if self.by.is_dir() else shutil.copy)(self.by, self.path)
            yield
        finally:
            shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
            beside.rename(self.path)


@dataclass(frozen=True)
class Step:
    """`owner`: what has the parameters or fields. `key` of the arguments `base`; `changes`: other values by parameter
    or field, each of which gives another key; `same`: reasons for the others."""

    owner: Any
    key: Callable[..., Any]
    base: Mapping[str, Any]
    changes: Mapping[str, list[Any]]
    same: Mapping[str, str] = field(default_factory=dict)


def names_of(owner: Any) -> set[str]:
    """Fields of a dataclass or a model, parameters of anything else that is called."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return set(owner.model_fields)
    if is_dataclass(owner):
        return {each.name for each in fields(owner)}
    return set(inspect.signature(owner).parameters) - {"self"}


class World:
    """Two of everything that steps depend on: the second is made otherwise, under the same name where there is one."""

    def __init__(self, home: Path) -> None:
        self.home = home
        network = tiny.network()
        self.probe = SaliencyProbe(torch.ones(1, tiny.CONFIG.dim), 0.5)
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        weights["backbone.blocks.3.mlp.fc2.bias"] += 1
        plan = Plan(checkpoint=CheckpointRef(family="hmr2", sha256="0" * 64, layers=4), groups=((0,), (1,), (2, 3)))
        self.model = self._model("model", network.state_dict(), probe=self.probe)
        self.model2 = self._model("model2", weights, probe=self.probe)
        self.probe2 = self._model("probe2", network.state_dict(), probe=replace(self.probe, bias=0.25))
        self.few_heads = replace(hc.load(self.model), network=with_heads(network, 4))
        self.body = tiny.write_body(home / "body.npz")
        arrays = tiny.body_arrays()
        self.body2 = self._npz("body2.npz", arrays | {"shapedirs": 1.5 * arrays["shapedirs"]})
        self.crops = self._crops("crops.npz")
        self.pixel = self._crops("pixel.npz", images=lambda images: np.where(images == images[0, 0, 0], 3, images))
        self.pose = self._crops("pose.npz", poses=lambda poses: poses + np.float32(0.25))
        self.other_masks = self._crops("other_masks.npz", masks=lambda masks: masks ^ 255)
        self.masks, self.masks2 = self._masks("masks.npz", 40), self._masks("masks2.npz", 90)
        self.regressor, self.regressor2 = self._regressor("regressor.npy", 0), self._regressor("regressor2.npy", 1)
        fitted = plan.model_copy(update={"tokens": TOKENS})
        checkpoint = hc.load(self.model)
        fitted = fitted.model_copy(update={"checkpoint": checkpoint.reference})
        self.plan, self.plan2 = home / "plan.yaml", home / "plan2.yaml"
        fitted.write(self.plan)
        fitted.model_copy(update={"groups": ((0, 1), (2,), (3,))}).write(self.plan2)
        decoder = TemporalDecoder(tiny_decoder.CONFIG, seed=1)
        self.decoded, self.decoded2 = (self._decoded(name, fitted, decoder, by) for name, by in (("a", 0), ("b", 1)))
        self.motions, self.motions2 = (self._motions(name, by) for name, by in (("motions", 0.0), ("motions2", 0.1)))

    def _model(self, name: str, state: Mapping[str, Any], **more: Any) -> Path:
        return write_model_folder(self.home / name, state, tiny.CONFIG, body="tiny", **more).path

    def _decoded(self, name: str, plan: Plan, decoder: TemporalDecoder, by: int) -> Path:
        from hmrcompress.decoder.files import decoder_tensors
        from hmrcompress.models.files.decoder_part import DecoderPart

        state = {name: tensor + by * (name == "pose_mean") for name, tensor in decoder_tensors(decoder).items()}
        part = DecoderPart(decoder.config.to_dict(), state)
        network = hc.load(hc.merge(self.model, plan, self.home / f"merged-{name}").path)
        return write_model_folder(
            self.home / f"decoded-{name}", network.state(), network.config, plan=plan, body="tiny", decoder=part
        ).path

    def _npz(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        np.savez(self.home / name, **arrays)  # type: ignore[arg-type]
        return self.home / name

    def _crops(self, name: str, **changes: Callable[[np.ndarray], np.ndarray]) -> Path:
        arrays = tiny.crop_arrays(clips=2, frames=5)
        arrays |= {column: change(arrays[column]) for column, change in changes.items()}
        # The same definition: what tells them apart is what is in them.
        write_crops(self.home / name, arrays, tiny.crop_meta() | {"sha256": "d" * 64, "protocol": "regressed"})
        return self.home / name

    def _masks(self, name: str, left: int) -> Path:
        clip, frame = np.repeat(np.arange(2), 5), np.tile(np.arange(5), 2)
        masks = np.zeros((10, 256, 192), bool)
        masks[:, 20:200, left : left + 60] = True
        return self._npz(name, {"clip": clip, "frame": frame, "masks": np.packbits(masks, axis=-1)})

    def _regressor(self, name: str, seed: int) -> Path:
        rows = np.random.default_rng(seed).random((17, 96))
        np.save(self.home / name, rows / rows.sum(1, keepdims=True))
        return self.home / name

    def _motions(self, name: str, by: float) -> Path:
        folder = self.home / name
        folder.mkdir()
        poses = np.full((200, 156), by)
        np.savez(folder / "one.npz", poses=poses, trans=np.zeros((200, 3)), mocap_framerate=30.0)
        return folder


def with_heads(network: Any, heads: int) -> Any:
    """The same weights, split into another number of heads."""
    from hmrcompress.models.network import from_state

    return from_state(replace(network.config, num_heads=heads), network.state_dict())


def load_once() -> Callable[..., Any]:
    """`opening.load_checkpoint` with its networks kept by the contents of the files: making a network is what takes
    time, and the tables open the same ones hundreds of times."""
    known, load = dict[Any, Any](), opening.load_checkpoint

    def once(path: Any, *given: Any, **options: Any) -> Any:
        place = Path(path)
        files = sorted(each for each in (place.rglob("*") if place.is_dir() else [place]) if each.is_file())
        contents = tuple((each.name, hashlib.sha256(each.read_bytes()).digest()) for each in files)
        key = (str(path), contents, repr((given, sorted(options.items()))))
        if key not in known:
            known[key] = load(path, *given, **options)
        return known[key]

    return once


def check(steps: Iterable[Step]) -> None:
    """Every other value gives another key, and no parameter is left out of the table."""
    lost, uncovered = [], []
    for step in steps:
        what = getattr(step.owner, "__qualname__", str(step.owner))
        covered = set(step.changes) | set(step.same)
        uncovered += [f"{what}: {name}" for name in sorted(names_of(step.owner) ^ covered)]
        before = step.key(**step.base)
        for name, values in step.changes.items():
            for number, value in enumerate(values):
                if isinstance(value, Contents):
                    with value.there():
                        after = step.key(**step.base)
                else:
                    after = step.key(**{**step.base, name: value})
                if after == before:
                    lost.append(f"{what}: {name}, value {number}")
    assert uncovered == [], "parameters that the table does not know, or that are gone"
    assert lost == [], "other inputs, the same key"


def changed(value: Any) -> Any:
    """A number, or a tuple of numbers, that is not this one."""
    return tuple(map(changed, value)) if isinstance(value, tuple) else value * 2 + (value == 0)


def replace_tokens(**changes: Any) -> TokenSettings:
    return TOKENS.changed(**changes)
