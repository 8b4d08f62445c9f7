"""Whatever is kept for later is kept under all that it depends on. One table: every parameter and field of every kept
step, with other values that have to give another key, or the reason why it may not matter. A parameter that nobody put
into the table fails, and so does a value that leaves the key as it is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_decoder
import torch
from pydantic import BaseModel
from test_search import deep_network

from hmrcompress import api, decoder_tuning
from hmrcompress.body.files import load_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.annotations import Annotations
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.data.mask_files import FileMasks
from hmrcompress.data.masks import DataMasks, DegradedMasks, NoMasks, SelfMasks, mask_source, masks_sha256
from hmrcompress.data.onnx_masks import OnnxMasks
from hmrcompress.data.picture_sets import FilePictures
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import Notice
from hmrcompress.io import code, keys
from hmrcompress.io.keys import Key
from hmrcompress.io.onnx_file import sha256_onnx
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import PROTOCOLS, STARTER24, Protocol
from hmrcompress.models.folder import write_model_folder
from hmrcompress.models.network import network_sha256
from hmrcompress.models.probe import SaliencyProbe
from hmrcompress.plan import CheckpointRef, Plan, TokenSettings
from hmrcompress.recipe import runner
from hmrcompress.recipe.ablate import Ablation
from hmrcompress.recipe.ablations import Ablations, Decode, Setting
from hmrcompress.recipe.bed import Bed
from hmrcompress.recipe.runner import run_recipe
from hmrcompress.recipe.schema import Recipe, parse_recipe
from hmrcompress.recipe.stages import FINETUNED, MODEL, OUTPUTS, PLAN, Line
from hmrcompress.records import BodyParams
from hmrcompress.runtime import environment, no_progress
from hmrcompress.searching.search import SearchSettings, search
from hmrcompress.starter import dataset
from hmrcompress.starter.clip_stream import StarterClips
from hmrcompress.starter.dataset import open_split, split_key
from hmrcompress.starter.fast import fast_folder, fast_key
from hmrcompress.starter.rendering import shard_home, shard_key
from hmrcompress.starter.shards import ShardSettings, shard_path
from hmrcompress.starter.stream import ShardStream
from hmrcompress.training import loop
from hmrcompress.training.augment_time import TimeSettings
from hmrcompress.training.decoder_fit import DecoderFit, DecoderSettings
from hmrcompress.training.features import ClipFeatures, CropClips, clip_features, extract_features, feature_key
from hmrcompress.training.heal import Healing, HealSettings, Pair, Validation
from hmrcompress.training.loop import LoopSettings, train
from hmrcompress.training.motions import MotionBank, MotionSettings, motion_key
from hmrcompress.training.streams import CropStream
from hmrcompress.training.vae_fit import VAEFit, VAESettings

ROOT = Path(__file__).parents[1] / "hmrcompress"
REGRESSED = Protocol("regressed", tuple(range(14)), (0,), source="h36m")
TOKENS = TokenSettings(keep=150, per_layer=40)
ON_THE_CPU = "there is no other device here; that its kind is in the key is looked up in `test_devices_are_in_the_keys`"
PLACE, TELLS, SAVES = "where it is kept", "tells of the work and changes none", "saves work and changes no figure"


READ_WITH = ("num_heads", "head_heads", "tokenizer", "weights")
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
        self.few_heads = replace(api.load(self.model), network=with_heads(network, 4))
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
        checkpoint = api.load(self.model)
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
        from hmrcompress.models.decoder_part import DecoderPart

        state = {name: tensor + by * (name == "pose_mean") for name, tensor in decoder_tensors(decoder).items()}
        part = DecoderPart(decoder.config.to_dict(), state)
        network = api.load(api.merge(self.model, plan, self.home / f"merged-{name}").path)
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "regressed", REGRESSED)
        yield World(tmp_path_factory.mktemp("world"))


def of_search(world: World) -> Iterator[Step]:
    """The journal, from the strings that the command line hands over, and from the objects that `search` takes."""
    settings = SearchSettings(frames_per_clip=2, batch_size=4, tokens=TOKENS, with_tokens=True)
    given = {
        "model": world.model, "data": world.crops, "settings": settings, "masks": f"files:{world.masks}",
        "protocol": REGRESSED, "regressor": world.regressor, "body": world.body, "device": "cpu",
    }  # fmt: skip
    yield Step(
        api.search_key,
        lambda **given: api.search_key(**given).inputs,
        given,
        {
            "model": [world.model2, Contents(world.model, world.model2), world.few_heads],
            "data": [world.pose, Contents(world.crops, world.pixel), Contents(world.crops, world.pose)],
            "settings": [replace(settings, frames_per_clip=3)],
            "masks": [f"files:{world.masks2}", Contents(world.masks, world.masks2), "none", "data"],
            "protocol": [STARTER24, replace(REGRESSED, pelvis=(1,))],
            "regressor": [world.regressor2, Contents(world.regressor, world.regressor2)],
            "body": [world.body2, Contents(world.body, world.body2)],
        },
        {"device": ON_THE_CPU, "progress": TELLS},
    )
    fitting = {**given, "settings": replace(settings, tokens=None, with_tokens=False, merge_rule="lstsq")}
    by_itself = {**given, "masks": "self"}
    own = {**given, "masks": "data"}
    for base, changes in (
        (fitting, {"masks": [Contents(world.masks, world.masks2)], "data": [Contents(world.crops, world.pixel)]}),
        (by_itself, {"model": [world.probe2, Contents(world.model, world.probe2)]}),
        (own, {"data": [Contents(world.crops, world.other_masks)], "masks": ["data:box", "data:dilated"]}),
    ):
        rest = {name: "see above" for name in names_of(api.search_key) - set(changes)}
        yield Step(api.search_key, lambda **given: api.search_key(**given).inputs, base, changes, rest)
    with_tau = "no evaluation depends on it: it only says which are made"
    yield Step(
        SearchSettings,
        lambda **changes: api.search_key(**{**given, "settings": replace(settings, **changes)}).inputs,
        {},
        {
            "frames_per_clip": [3], "limit": [3], "merge_rule": ["mean", "lstsq"], "with_tokens": [False],
            "tokens": [TokenSettings(keep=150, per_layer=30)], "batch_size": [3], "target": ["teacher"],
            "dtype": [torch.bfloat16], "cache_dtype": [torch.bfloat16],
        },
        {
            **dict.fromkeys(("tau_mm", "method", "as_printed", "layers", "beam_width", "evaluations"), with_tau),
            "seed": "of random weights, which are in the key, and of which candidates evolution looks at",
            **dict.fromkeys(("cache", "cache_gb", "reject_early"), SAVES),
        },
    )  # fmt: skip
    network, crops, body = deep_network(4), CropSet.open(world.crops), load_body(world.body)

    def journal(**given: Any) -> Any:
        path = world.home / "journal.jsonl"
        try:
            search(**{**given, "journal": path})
            return json.loads(path.read_text().splitlines()[0])["settings"]
        finally:
            path.unlink(missing_ok=True)

    by_probe = replace(settings, limit=2)
    yield Step(
        search,
        journal,
        {
            "network": network, "checkpoint": CheckpointRef(family="hmr2", sha256="a" * 64, layers=4), "crops": crops,
            "body": body, "settings": by_probe, "masks": SelfMasks(), "mask_probe": world.probe,
        },
        {
            "network": [with_heads(network, 4)],
            "crops": [CropSet.open(world.pixel)],
            "body": [load_body(world.body2)],
            "protocol": [replace(STARTER24, pelvis=(1,))],
            "masks": [DataMasks(), NoMasks()],
            "mask_probe": [None, replace(world.probe, threshold=0.25)],
            "measure": [Measure(body, REGRESSED, regressor=torch.full((17, 96), 1 / 96))],
            "settings": [replace(by_probe, limit=3)],
        },
        {
            "checkpoint": "names the network, which is in the key itself", "journal": PLACE, "progress": TELLS,
            "source": "what the data were opened from, for the plan; what is in them is in the key",
        },
    )  # fmt: skip


def of_features(world: World) -> Iterator[Step]:
    """Features, and where their clips come from."""

    def kept(**given: Any) -> Any:
        home = world.home / "features-home"
        found = decoder_tuning.extract_features(**{"home": home, **given})
        return [found.folder.name, [found.made_of(clip) for clip in found.clip_ids]]

    yield Step(
        decoder_tuning.extract_features,
        kept,
        {
            "model": world.decoded, "data": world.crops, "masks": f"files:{world.masks}", "body": world.body,
            "batch_size": 5, "device": "cpu", "clips": 1,
        },
        {
            "model": [world.model2, Contents(world.decoded, world.model2)],
            "data": [world.pose, Contents(world.crops, world.pixel)],
            "masks": [f"files:{world.masks2}", Contents(world.masks, world.masks2), "none"],
            "batch_size": [4],
        },
        {
            "clips": "each clip has a file of its own", "home": PLACE, "progress": TELLS, "device": ON_THE_CPU,
            "body": "of starter splits, whose crops are in the key", "workers": "who makes it",
            "clip_frames": "of clips that are rendered on the way: see `StarterClips`",
        },
    )  # fmt: skip
    network, crops = tiny.network(), CropSet.open(world.crops)
    yield Step(
        feature_key,
        lambda **given: feature_key(**given).inputs,
        {"network": network, "source": CropClips(crops, NoMasks()), "batch_size": 4, "dtype": torch.float32},
        {
            "network": [tiny.network(1), with_heads(network, 4)], "batch_size": [5], "dtype": [torch.bfloat16],
            "source": [CropClips(crops, DataMasks()), StarterClips("train", NoMasks())],
        },
    )  # fmt: skip
    yield Step(
        extract_features,
        lambda **given: extract_features(**{"home": world.home / "more-features", "clips": [], **given}).folder.name,
        {"network": network, "source": CropClips(crops, NoMasks())},
        {
            "network": [tiny.network(1)], "source": [CropClips(crops, DataMasks())], "batch_size": [5],
            "dtype": [torch.bfloat16],
        },
        {
            "home": PLACE, "name": "what the network is called", "clips": "each clip has a file of its own",
            "process": "who makes it", "progress": TELLS,
        },
    )  # fmt: skip

    def clips(cls: type) -> Callable[..., Any]:
        def key(**given: Any) -> Any:
            source = cls(**given)
            return [source.identity, source.fps, [source.clip_sha256(clip) for clip in source.clip_ids[:2]]]

        return key

    yield Step(
        CropClips,
        clips(CropClips),
        {"crops": crops, "masks": FileMasks(world.masks)},
        {
            "crops": [CropSet.open(path) for path in (world.pixel, world.pose, world.other_masks)],
            "masks": [FileMasks(world.masks2)],
        },
    )
    yield Step(
        StarterClips,
        clips(StarterClips),
        {"split": "train", "masks": NoMasks()},
        {"split": ["calib"], "masks": [DataMasks()], "frames": [17]},
        {"workers": "who renders"},
    )


def of_rendering(world: World) -> Iterator[Step]:
    """Splits, shards of crops and of motions, the compressed starter network."""
    body, body2 = load_body(world.body), load_body(world.body2)
    held = world.home / "mocap"
    if not held.exists():
        shutil.copytree(world.motions, held)
        (held / "one.npz").rename(held / "02_06.npz")
        shutil.copytree(world.motions2, held.with_name("mocap2"))
        (held.with_name("mocap2") / "one.npz").rename(held.with_name("mocap2") / "02_06.npz")
    changes = {"name": ["val"], "body": [body2], "clips": [2]}
    yield Step(
        split_key,
        lambda **given: split_key(**given).inputs,
        {"name": "calib", "body": body},
        changes,
        {"motions": "of the split `test-mocap`: see there"},
    )
    yield Step(
        split_key,
        lambda **given: split_key(**given).inputs,
        {"name": "test-mocap", "body": body, "motions": held},
        {"body": [body2], "motions": [held.with_name("mocap2"), Contents(held, held.with_name("mocap2"))]},
        {"name": "see above", "clips": "it has no number of clips"},
    )

    def opened(**given: Any) -> Any:
        """Where the split is looked for: nothing is rendered."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "_render_split", lambda *arguments: None)
            patch.setattr(dataset, "make_clip", lambda *arguments: None)
            patch.setattr(dataset.CropSet, "open", lambda folder: folder.name)
            return open_split(**{"home": world.home / "splits", **given})

    rest = {"home": PLACE, "motions": "see above", "progress": TELLS}
    yield Step(open_split, opened, {"name": "calib", "body": body}, changes, rest)
    yield Step(
        shard_key,
        lambda **given: shard_key(**given).inputs,
        {"seed": 0, "motions": world.motions},
        {"seed": [1], "motions": [None, world.motions2, Contents(world.motions, world.motions2)]},
    )
    yield Step(
        shard_home,
        lambda **given: shard_home(**{"folder": world.home / "shards", **given}).name,
        {"seed": 0, "motions": world.motions},
        {"seed": [1], "motions": [None, Contents(world.motions, world.motions2)]},
        {"folder": PLACE},
    )
    yield Step(
        ShardSettings,
        lambda **given: shard_path(world.home, 0, ShardSettings(**given)).name,
        {},
        {"size": [(64, 48)], "crops": [5], "difficulty": [0.5], "mocap": [0.25]},
    )
    files = [world.motions / "one.npz"]
    base = {"settings": MotionSettings(frames=20), "files": files, "seed": 0}
    changes = {
        "settings": [MotionSettings(frames=21)], "seed": [1],
        "files": [[], [world.motions2 / "one.npz"], Contents(files[0], world.motions2 / "one.npz")],
    }  # fmt: skip
    yield Step(motion_key, lambda **given: motion_key(**given).inputs, base, changes)
    yield Step(
        MotionSettings,
        lambda **given: motion_key(MotionSettings(**given), files, 0).inputs,
        {"frames": 20},
        {"frames": [21], "fps": [25.0], "captured": [0.5]},
        {"shards": "how many there are; each is told by its number"},
    )

    def bank(**given: Any) -> Any:
        with MotionBank(**{"folder": world.home / "bank", **given, "workers": 0}) as made:
            return [made.identity, made.folder.name]

    yield Step(MotionBank, bank, base, changes, {"folder": PLACE, "workers": "who makes it"})
    parts, parts2, starter = world.home / "parts", world.home / "parts2", world.home / "starter"
    for place, by in ((parts, "a"), (parts2, "b")):
        place.mkdir(exist_ok=True)
        for name in ("plan.yaml", "decoder.safetensors", "decoder.json"):
            (place / name).write_text(by)
    if not starter.exists():
        shutil.copytree(world.model, starter)
    changes = {
        "starter": [world.model2, Contents(starter, world.model2), Contents(starter / "config.json", world.plan)],
        "parts": [parts2, *(Contents(parts / name, parts2 / name) for name in sorted(p.name for p in parts.iterdir()))],
    }  # fmt: skip
    yield Step(fast_key, lambda **given: fast_key(**given).inputs, {"starter": starter, "parts": parts}, changes)

    def fast(**given: Any) -> Any:
        """The folder that is looked for: what is not there is not made."""
        home = world.home / "fast"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "is_dir", lambda path: True)
            return fast_folder(**{"home": home, **given}).name

    yield Step(fast_folder, fast, {"starter": starter, "parts": parts}, changes, {"home": PLACE})


def of_training(world: World) -> Iterator[Step]:
    """States of unfinished trainings: the loop, its tasks, and the streams that they draw from."""

    def state(task: Any, settings: LoopSettings | None = None) -> Any:
        """What a state of this task would be saved under."""
        return dict(loop._Loop(task, settings or LoopSettings(1), world.home / "loop", no_progress, None)._key().inputs)

    crops, more = CropSet.open(world.crops), CropSet.open(world.pixel)
    body, body2 = load_body(world.body), load_body(world.body2)
    rows = crops.stretches()
    yield Step(
        CropStream,
        lambda **given: CropStream(**given).identity,
        {"crops": crops, "indices": rows, "masks": FileMasks(world.masks), "batch_size": 2},
        {
            "crops": [more], "indices": [rows[:4], rows[::-1]], "masks": [FileMasks(world.masks2), DataMasks()],
            "batch_size": [3], "seed": [1],
        },
    )  # fmt: skip

    def rendered(**given: Any) -> Any:
        with ShardStream(**{"folder": world.home / "stream", **given, "workers": 0}) as stream:
            return [stream.identity, stream.source.folder.name]

    yield Step(
        ShardStream,
        rendered,
        {"masks": DataMasks(), "batch_size": 2, "images": 100},
        {"masks": [NoMasks()], "batch_size": [3], "seed": [1], "images": [200]},
        {"folder": PLACE, "done": "how far the run is", "workers": "who renders"},
    )
    student, teacher = tiny.network(), tiny.network(1)
    stream = CropStream(crops, rows, DataMasks(), batch_size=2)
    few = rows[:2]
    measure = Validation(crops, few, DataMasks(), teacher, body)
    yield Step(
        Validation,
        lambda **given: Validation(**given).identity,
        {"crops": crops, "indices": few, "masks": FileMasks(world.masks), "teacher": teacher, "body": body},
        {
            "crops": [more], "indices": [rows[1:3]], "masks": [FileMasks(world.masks2)], "teacher": [student],
            "protocol": [replace(STARTER24, pelvis=(1,))], "batch_size": [1],
        },
        {"body": "that of the task, which is in its own key"},
    )  # fmt: skip
    pair = Pair(student, teacher, ((0,), (1,), (2,), (3,)), TOKENS)
    healing = {"pair": pair, "stream": stream, "validation": measure, "body": body, "settings": HealSettings()}
    yield Step(
        Healing,
        lambda **given: state(Healing(**given)),
        healing,
        {
            "pair": [replace(pair, student=tiny.network(2))],
            "stream": [CropStream(more, rows, DataMasks(), batch_size=2)],
            "validation": [Validation(crops, rows[1:3], DataMasks(), teacher, body)],
            "body": [body2],
            "settings": [HealSettings(rank=4)],
        },
    )
    yield Step(
        Pair,
        lambda **given: state(Healing(**{**healing, "pair": replace(pair, **given)})),
        {},
        {
            "student": [tiny.network(2)], "teacher": [tiny.network(2)], "groups": [((0, 1), (2,), (3,), (4,))],
            "tokens": [None, replace_tokens(keep=160)], "probe": [world.probe], "kept_probe": [world.probe],
        },
    )  # fmt: skip
    yield Step(
        HealSettings,
        lambda **given: state(Healing(**{**healing, "settings": HealSettings(**given)})),
        {},
        {"rank": [4], "reach": [0], "full": [True], "with_head": [True], "dtype": [torch.bfloat16], "seed": [1]},
    )
    codec, codec2 = PoseCodec(body), PoseCodec(body2)
    motion = BodyParams(torch.eye(3).repeat(4, 1, 1, 1), torch.eye(3).repeat(4, 23, 1, 1), torch.zeros(4, 10))
    moved = replace(motion, betas=motion.betas + 1)
    with MotionBank(world.home / "b", MotionSettings(frames=18), workers=0) as bank:
        with MotionBank(world.home / "b", MotionSettings(frames=18), seed=1, workers=0) as bank2:
            pass

    def fitted_vae(**given: Any) -> Any:
        decoder = TemporalDecoder(given.pop("config", tiny_decoder.CONFIG), seed=given.pop("start", 0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(VAEFit, "_begin", lambda self: None)
            return state(VAEFit(decoder, **given))

    vae = {"codec": codec, "bank": bank, "held": [motion], "settings": VAESettings()}
    other_sizes = {"config": replace(tiny_decoder.CONFIG, dropout=0.2), "start": 0}
    yield Step(
        VAEFit,
        lambda decoder, **given: fitted_vae(**decoder, **given),
        {"decoder": {"start": 0}, **vae},
        {
            "decoder": [{"start": 1}, other_sizes], "codec": [codec2], "bank": [bank2], "held": [[moved], []],
            "settings": [VAESettings(kl=1.0)],
        },
    )  # fmt: skip
    yield Step(
        VAESettings,
        lambda **given: fitted_vae(**{**vae, "settings": VAESettings(**given)}),
        {},
        {
            "batch_size": [8], "velocity": [0.5], "twists": [0.5], "kl": [1.0], "short": [0.5], "shortest": [4],
            "steps_a_shard": [1], "seed": [1],
        },
    )  # fmt: skip
    clips = [clip_features(student, clip) for clip in CropClips(crops, NoMasks()).clips([0, 1])]
    clips2 = [replace(clip, features=clip.features + np.float16(1)) for clip in clips]
    fitting = {"codec": codec, "clips": clips[:1], "held": clips[1:], "settings": DecoderSettings()}

    def fitted(**given: Any) -> Any:
        sizes = replace(given.pop("config", tiny_decoder.CONFIG), feature_dim=tiny.CONFIG.head_width)
        decoder = TemporalDecoder(sizes, seed=given.pop("start", 0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DecoderFit, "_set_statistics", lambda self: None)
            return state(DecoderFit(decoder, **given))

    yield Step(
        DecoderFit,
        lambda decoder, **given: fitted(**decoder, **given),
        {"decoder": {"start": 0}, **fitting},
        {
            "decoder": [{"start": 1}, other_sizes], "codec": [codec2], "clips": [clips2[:1], clips],
            "held": [clips2[1:], []], "settings": [DecoderSettings(last_step=1.0)],
        },
    )  # fmt: skip
    yield Step(
        DecoderSettings,
        lambda **given: fitted(**{**fitting, "settings": DecoderSettings(**given)}),
        {},
        {
            "batch_size": [8], "reconstruction": [1.0], "last_step": [0.25], "weight_decay": [0.1], "seed": [1],
            "time": [TimeSettings(reverse=0.25)],
        },
    )  # fmt: skip
    yield Step(
        TimeSettings,
        lambda **given: fitted(**{**fitting, "settings": DecoderSettings(time=TimeSettings(**given))}),
        {},
        {name: [changed(value)] for name, value in vars(TimeSettings()).items()},
    )
    arrays = {name: getattr(clips[0], name) for name in names_of(ClipFeatures) - {"clip"}}
    yield Step(
        ClipFeatures,
        lambda **given: replace(clips[0], **given).sha256,
        {},
        {"clip": [7], **{name: [values + values.dtype.type(1)] for name, values in arrays.items()}},
    )

    class Task:
        name = "task"
        groups = [loop.ParameterGroup({"weight": torch.nn.Parameter(torch.zeros(1))})]

        def __init__(self, identity: Any) -> None:
            self.identity = {"data": identity}

    yield Step(
        train,
        lambda task, settings: state(task, settings),
        {"task": Task(0), "settings": LoopSettings(1)},
        {"task": [Task(1)], "settings": [LoopSettings(2)]},
        {"folder": PLACE, "progress": TELLS, "report": TELLS},
    )
    yield Step(
        LoopSettings,
        lambda **given: state(Task(0), LoopSettings(**{"steps": 1, **given})),
        {},
        {
            "steps": [2], "rate": [0.1], "warmup": [0.5], "rate_end": [0.5], "keep": ["loss"], "clip_norm": [2.0],
            "ema": [0.5], "betas": [(0.5, 0.9)], "validations": [3],
        },
        {"max_minutes": "with steps it says when to pause", "save_seconds": "how much is lost by a kill"},
    )  # fmt: skip
    yield Step(
        LoopSettings,
        lambda **given: state(Task(0), LoopSettings(**{"steps": None, **given})),
        {"max_minutes": 1.0},
        {"max_minutes": [2.0]},
        {name: "see above" for name in names_of(LoopSettings) - {"max_minutes"}},
    )


def changed(value: Any) -> Any:
    """A number, or a tuple of numbers, that is not this one."""
    return tuple(map(changed, value)) if isinstance(value, tuple) else value * 2 + (value == 0)


def replace_tokens(**changes: Any) -> TokenSettings:
    return TOKENS.changed(**changes)


def of_ablations(world: World) -> Iterator[Step]:
    """Rows, the baseline and the rates of tables."""
    row = {"name": "row", "groups": [[0], [1], [2, 3]], "tokens": {"keep": 150, "per_layer": 40}, "masks": "data"}
    base: dict[str, Any] = {
        "model": str(world.model), "body": str(world.body), "frames_per_clip": 3, "search_frames_per_clip": 2,
        "data": {"search": str(world.crops), "eval": str(world.crops)}, "batch_size": 4, "protocol": "starter24",
        "searches": {"one": {"tau_mm": 1e6}}, "tables": [{"name": "t", "title": "T", "settings": [row]}],
    }  # fmt: skip

    def made(values: Mapping[str, Any]) -> tuple[Ablation, Setting]:
        recipe = Ablations.model_validate(values)
        return Ablation(recipe, world.home / "ablation", device="cpu"), recipe.tables[0].settings[0]

    def of_row(values: Mapping[str, Any]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bed, "scored", lambda self, case: {})
            patch.setattr(Ablation, "_case", lambda *arguments: nullcontext())
            run, setting = made(values)
            return dict(run.row(setting, run.bed)[0].inputs)

    def of_recipe(**given: Any) -> Any:
        return of_row({**base, **given})

    def with_row(**given: Any) -> Any:
        setting = {name: value for name, value in {**row, **given}.items() if value is not ...}
        return of_row({**base, "tables": [{"name": "t", "title": "T", "settings": [setting]}]})

    data = {"search": str(world.crops), "eval": str(world.pixel)}
    yield Step(
        Ablations,
        of_recipe,
        {},
        {
            "model": [str(world.model2)], "body": [str(world.body2)], "data": [data], "batch_size": [5], "seed": [1],
            "protocol": ["emdb24-regressed"], "frames_per_clip": [2],
            "tables": [[{"name": "t", "title": "T", "settings": [{**row, "merge_rule": "mean"}]}]],
        },
        {
            "masks": "of searches and fits: see below", "searches": "their plans: see below",
            "presets": "YAML's anchors",
            "search_frames_per_clip": "of searches, whose plans are in the key", "bench": "of the rates: see below",
            **dict.fromkeys(READ_WITH, OF_THE_NETWORK),
        },
    )  # fmt: skip
    for name, path in (("model", world.model), ("body", world.body), ("data", world.crops)):
        others = {"model": world.model2, "body": world.body2, "data": world.pixel}
        rest = {each: "see above" for each in names_of(Ablations) - {name}}
        yield Step(Ablations, of_recipe, {}, {name: [Contents(path, others[name])]}, rest)
    yield Step(
        Setting,
        with_row,
        {},
        {
            "groups": [[[0, 1], [2], [3]]], "merge_rule": ["mean"], "model": [str(world.model2), str(world.probe2)],
            "tokens": [None, {"keep": 160}], "masks": ["none", f"files:{world.masks}"], "decode": [{"by": "savgol"}],
        },
        {"name": "its name", "reference": "what is compared", "search": "its plan: see below"},
    )  # fmt: skip
    file = {**row, "masks": f"files:{world.masks}"}
    fitted = {**row, "merge_rule": "lstsq", "tokens": None}
    searched = {name: value for name, value in row.items() if name != "groups"} | {"search": "one"}
    for setting, more in (
        (file, [Contents(world.masks, world.masks2)]),
        (fitted, [Contents(world.crops, world.other_masks), {"masks": f"files:{world.masks}"}]),
        (searched, [{"searches": {"one": {"tau_mm": -1e6}}}]),
    ):
        yield Step(
            of_row,
            lambda values: of_row(values if isinstance(values, dict) else {}),
            {"values": {**base, "tables": [{"name": "t", "title": "T", "settings": [setting]}]}},
            {
                "values": [
                    {**base, "tables": [{"name": "t", "title": "T", "settings": [setting]}], **each}
                    if isinstance(each, dict)
                    else each
                    for each in more
                ]
            },
        )
    yield Step(
        Decode,
        lambda **given: with_row(groups=..., tokens=..., model=str(world.decoded), decode=given),
        {"by": "interpolation"},
        {"by": ["savgol"], "stride": [2], "steps": [2], "lookahead": [1], "median_shape": [True]},
    )
    yield Step(
        Setting,
        lambda **given: with_row(groups=..., tokens=..., model=str(world.decoded), **given),
        {"decode": {"by": "decoder"}},
        {"decode": [Contents(world.decoded, world.decoded2), {"by": "decoder", "stride": 2}]},
        {name: "see above" for name in names_of(Setting) - {"decode"}},
    )

    def baseline(**given: Any) -> Any:
        run, _ = made({**base, **given})
        return run.bed.common

    yield Step(
        Ablations,
        baseline,
        {},
        {
            "model": [str(world.model2), Contents(world.model, world.model2)], "body": [str(world.body2)],
            "data": [data, Contents(world.crops, world.pixel)], "protocol": ["emdb24-regressed"],
            "batch_size": [5], "frames_per_clip": [2], "seed": [1],
        },
        {
            **dict.fromkeys(("masks", "searches", "presets", "search_frames_per_clip", "bench", "tables"), "of rows"),
            **dict.fromkeys(READ_WITH, OF_THE_NETWORK),
        },
    )  # fmt: skip

    def rates(rows: Mapping[str, str], **given: Any) -> Any:
        """The names of the file that the rates are looked for in."""
        out = world.home / "rates"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bed, "timed", lambda self, cases: {})
            patch.setattr(Ablation, "_case", lambda *arguments: nullcontext())
            recipe = Ablations.model_validate({**base, **given})
            Ablation(recipe, out, device="cpu").rates(recipe.tables[0], rows)
        found = sorted(path.name for path in (out / "work" / "rates").iterdir())
        shutil.rmtree(out)
        return found

    yield Step(
        Ablation.rates,
        lambda rows, table: rates(rows, **table),
        {"rows": {"row": "a"}, "table": {}},
        {"rows": [{"row": "b"}], "table": [{"bench": {"rounds": 3}}, {"bench": {"batch_size": 3}}]},
    )


STEPS = {
    "search": of_search, "features": of_features, "rendering": of_rendering, "training": of_training,
    "ablations": of_ablations,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
@pytest.mark.parametrize("kind", STEPS)
def test_every_input_is_in_the_key(kind: str, world: World) -> None:
    lost, uncovered = [], []
    for step in STEPS[kind](world):
        what = getattr(step.owner, "__qualname__", str(step.owner))
        covered = set(step.changes) | set(step.same)
        uncovered += [f"{what}: {name}" for name in sorted(names_of(step.owner) ^ covered)]
        before = step.key(**step.base)
        assert json.dumps(before, default=str) == json.dumps(step.key(**step.base), default=str), what
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


ALL = set(OUTPUTS)
SCORED = {"eval", "bench", "export"}
STAGES: dict[str, tuple[Any, set[str]]] = {
    "model": ("model2", ALL - {"finetune"}),
    "body": ("body2", ALL),
    **dict.fromkeys(READ_WITH, (None, set())),  # of the network, which is in the keys: see below
    "regressor": ("regressor2", {"search", "eval"}),
    "data.search": ("pixel", {"search"}),
    "data.eval": ("pixel", SCORED),
    "data.clips": (None, set()),  # of starter splits, whose crops are in the keys
    "masks": ("data", {"search", "finetune", *SCORED}),
    "seed": (1, ALL),
    "batch_size": (5, ALL),
    "search.method": ("beam", {"search"}),
    "search.tau_mm": (0.5, {"search"}),
    "search.frames_per_clip": (3, {"search"}),
    "search.limit": (3, {"search"}),
    "search.merge_rule": ("mean", {"search"}),
    "search.with_tokens": (False, {"search"}),
    "search.layers": (3, {"search"}),
    "search.beam_width": (2, {"search"}),
    "search.evaluations": (2, {"search"}),
    "search.target": ("teacher", {"search"}),
    "search.tokens": ({"keep": 160}, {"search"}),
    "merge.plan": (None, set()),  # instead of the search: see below
    "merge.decoder": ("decoded2", {"merge"}),
    "finetune.stages": (["vae"], {"finetune"}),
    "finetune.data": ("pixel", {"finetune"}),
    "finetune.val": ("pose", {"finetune"}),
    "finetune.motions": ("motions2", {"finetune"}),
    "finetune.preset": ("paper", {"finetune"}),
    "finetune.decoder": ("noise", {"finetune"}),
    "finetune.clips": (1, {"finetune"}),
    "finetune.steps": (3, {"finetune"}),
    "finetune.images": (5, {"finetune"}),
    "finetune.max_minutes": (1.0, {"finetune"}),
    "eval.protocol": ("starter24", {"eval"}),
    "eval.limit": (3, {"eval"}),
    "eval.stride": (2, {"eval", "bench"}),
    "eval.steps": (2, {"eval"}),
    "eval.filters": (["savgol"], {"eval"}),
    "bench.batch_size": (3, {"bench"}),
    "bench.rounds": (3, {"bench"}),
    "bench.strides": ([2], {"bench"}),
    "bench.measured_frames": (8, {"bench"}),
    "export.format": (None, set()),  # there is one
    "gates": ({"mpjpe_mm": {"max": 1.0}}, set()),  # looked at when all is measured
}
"""Fields of a recipe: another value (of `World`, where it has that), and the stages that are done again for it."""
CONTENTS: dict[str, tuple[str, set[str]]] = {
    "model": ("model2", {"search", "merge", *SCORED}),
    "body": ("body2", ALL),
    "regressor": ("regressor2", {"search", "eval"}),
    "masks": ("masks2", {"search", "finetune", *SCORED}),
    "crops": ("pixel", {"search", "finetune", *SCORED}),
    "decoded": ("decoded2", {"merge"}),
    "motions": ("motions2", {"finetune"}),
}
"""Files and folders that a recipe names, what then lies there instead, and the stages that are done again for it."""


def stage_values(world: World) -> dict[str, Any]:
    data = f"crops:{world.crops}"
    return {
        "model": str(world.model), "body": str(world.body), "data": {"search": data, "eval": data},
        "masks": f"files:{world.masks}", "batch_size": 4, "regressor": str(world.regressor),
        "search": {"frames_per_clip": 2, "tokens": {"keep": 150, "per_layer": 40}, "with_tokens": True},
        "merge": {"decoder": str(world.decoded)},
        "finetune": {"data": data, "val": data, "motions": f"amass:{world.motions}"},
        "eval": {}, "bench": {"batch_size": 2}, "export": {},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(world: World) -> Path:
    """What stages leave for those after them."""
    folder = world.home / "run"
    folder.mkdir()
    shutil.copy(world.plan, folder / PLAN)
    shutil.copytree(world.decoded, folder / MODEL)
    shutil.copytree(world.decoded, folder / FINETUNED)
    return folder


def stage_keys(values: Mapping[str, Any], folder: Path, **options: Any) -> dict[str, str]:
    """The key of every stage."""
    line = Line(parse_recipe(dict(values)), folder, **{"device": "cpu", "dtype": torch.float32, **options},
                progress=no_progress)  # fmt: skip
    return {stage: line.key(stage, environment("cpu")).sha256 for stage in OUTPUTS}


def recipe_fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, parts of the recipe opened up."""
    for name, info in model.model_fields.items():
        kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is not None and part.__module__ == Recipe.__module__ and name != "gates":
            yield from recipe_fields(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_field_of_a_recipe_is_in_the_keys_of_its_stages(
    world: World, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(recipe_fields()) == set(STAGES)
    opened, load = dict[Any, Any](), api.load  # no file changes here, so each model is opened once

    def once(model: Any, **options: Any) -> Any:
        key = (str(model), *sorted(options.items()))
        if key not in opened:
            opened[key] = load(model, **options)
        return opened[key]

    monkeypatch.setattr(api, "load", once)
    values = stage_values(world)
    before = stage_keys(values, run_folder)
    assert before == stage_keys(values, run_folder)
    found = {}
    for name, (value, _) in STAGES.items():
        if value is None:
            continue
        there = getattr(world, value, value) if isinstance(value, str) else value
        if isinstance(there, Path):
            kind = {"data": "crops:", "motions": "amass:", "val": "crops:"}.get(re.split(r"\.", f"{name}.")[-2], "")
            there = f"{'crops:' if name.startswith('data.') else kind}{there}"
        head, _, rest = name.partition(".")
        changed = {**values, head: {**values[head], rest: there} if rest else there}
        after = stage_keys(changed, run_folder)
        found[name] = {stage for stage in OUTPUTS if after[stage] != before[stage]}
    assert found == {name: stages for name, (value, stages) in STAGES.items() if value is not None}
    assert all(other != before[stage] for stage, other in stage_keys(values, run_folder, dtype=torch.bfloat16).items())


def test_every_file_of_a_recipe_is_in_the_keys_of_its_stages(world: World, run_folder: Path) -> None:
    values = stage_values(world)
    before = stage_keys(values, run_folder)
    found = {}
    for name, (by, _) in CONTENTS.items():
        with Contents(getattr(world, name), getattr(world, by)).there():
            after = stage_keys(values, run_folder)
        found[name] = {stage for stage in OUTPUTS if after[stage] != before[stage]}
    for name, by, stages in ((PLAN, world.plan2, {"merge"}), (MODEL, world.model2, {"finetune"}),
                             (FINETUNED, world.decoded2, SCORED)):  # fmt: skip
        with Contents(run_folder / name, by).there():
            after = stage_keys(values, run_folder)
        assert {stage for stage in OUTPUTS if after[stage] != before[stage]} == stages
    by_hand = {**values, "search": None, "merge": {"plan": str(world.plan)}}
    before_by_hand = stage_keys_of(by_hand, run_folder, "merge")
    with Contents(world.plan, world.plan2).there():
        assert stage_keys_of(by_hand, run_folder, "merge") != before_by_hand
    fitted = {**by_hand, "merge": {"plan": str(fitted_plan(world))}}
    before_fitted = stage_keys_of(fitted, run_folder, "merge")
    for path, by in ((world.masks, world.masks2), (world.crops, world.pixel)):
        with Contents(path, by).there():
            assert stage_keys_of(fitted, run_folder, "merge") != before_fitted
    assert found == {name: stages for name, (_, stages) in CONTENTS.items()}


def test_how_a_file_is_read_is_in_the_keys(world: World, run_folder: Path) -> None:
    """Numbers of heads stand in no file, and a file may hold several sets of weights."""
    state, average = tiny.network().state_dict(), tiny.network(1).state_dict()
    bare, several = world.home / "bare.pth", world.home / "several.pth"
    torch.save(state, bare)
    torch.save({"state_dict": state, "state_dict_ema": average}, several)
    heads = {"num_heads": 2, "head_heads": 2}
    for file, more in ((bare, {"num_heads": 4}), (bare, {"head_heads": 4}), (several, {"weights": "state_dict_ema"})):
        given = {**stage_values(world), "model": str(file), **heads}
        given |= {"weights": "state_dict"} if file == several else {}
        options = {"device": "cpu", "dtype": torch.float32, "progress": no_progress}
        lines = [Line(parse_recipe(each), run_folder, **options) for each in (given, {**given, **more})]
        assert len({line.checkpoint.contents()["network"] for line in lines}) == 2, more


def fitted_plan(world: World) -> Path:
    Plan.read(world.plan).model_copy(update={"merge_rule": "lstsq"}).write(world.home / "fitted.yaml")
    return world.home / "fitted.yaml"


def stage_keys_of(values: Mapping[str, Any], folder: Path, stage: str) -> str:
    line = Line(parse_recipe(dict(values)), folder, device="cpu", dtype=torch.float32, progress=no_progress)
    return line.key(stage, environment("cpu")).sha256


def test_a_changed_input_is_told_and_its_stages_are_done_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Cases B3 and B4: the masks, then the regressor, become others between two runs with the same recipe."""
    for stage in ("merge", "eval"):
        monkeypatch.setattr(Line, stage, lambda self: {})
    monkeypatch.setattr(Line, "made", lambda self, stage: {})
    monkeypatch.setattr(Line, "compressed", property(lambda self: api.load(world.decoded)))
    monkeypatch.setattr(runner, "OUTPUTS", {"search": (PLAN,), "eval": ()})
    values = {name: value for name, value in stage_values(world).items() if name not in ("bench", "export", "finetune")}
    recipe = parse_recipe(values)

    def resumed() -> dict[str, bool]:
        seen: dict[str, bool] = {}
        run_recipe(
            recipe, tmp_path / "r", resume=True, stage_done=lambda name, seconds, reused: seen.update({name: reused})
        )
        return {name: seen[name] for name in ("search", "eval")}

    assert resumed() == {"search": False, "eval": False} and not recwarn.list
    assert resumed() == {"search": True, "eval": True} and not recwarn.list
    for path, by, name in ((world.masks, world.masks2, "masks"), (world.regressor, world.regressor2, "regressor")):
        with Contents(path, by).there():
            assert resumed() == {"search": False, "eval": False}
        told = [str(warning.message) for warning in recwarn.list if issubclass(warning.category, Notice)]
        assert f"stage search: done again, as {name} changed" in told
        assert f"stage eval: done again, as {name} changed" in told
        assert any("search.jsonl" in each and f"{name} changed since" in each for each in told)
        assert resumed() == {"search": False, "eval": False}
        recwarn.clear()


def test_what_a_stage_left_is_looked_at(world: World, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A folder that somebody put in the place of a stage's own is not what the stage's figures are of."""
    values = {name: stage_values(world)[name] for name in ("model", "body", "data")} | {
        "merge": {"plan": str(world.plan)}
    }
    seen: list[bool] = []

    def resumed() -> bool:
        run_recipe(parse_recipe(values), tmp_path / "r", resume=True, stage_done=lambda *told: seen.append(told[2]))
        return seen[-1]

    assert [resumed(), resumed()] == [False, True] and not recwarn.list
    with Contents(tmp_path / "r" / MODEL, world.model2).there():
        assert not resumed()
    assert [str(warning.message) for warning in recwarn.list] == [
        "stage merge: done again, as what it left is not what it was"
    ]


def test_masks_have_a_hash_of_what_is_in_them(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = CropSet.open(world.crops)
    rows = crops.stretches()

    def of(source: Any) -> str:
        return masks_sha256(source, crops, rows)

    sources = [DataMasks(), NoMasks(), SelfMasks(), *map(DegradedMasks, DegradedMasks.WAYS), FileMasks(world.masks)]
    assert len({of(source) for source in sources}) == len(sources)
    assert of(FileMasks(shutil.copy(world.masks, tmp_path / "moved.npz"))) == of(FileMasks(world.masks))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(world.masks if name == "a" else world.masks2, tmp_path / name / "masks.npz")
    assert of(FileMasks(tmp_path / "a")) == of(FileMasks(world.masks)) != of(FileMasks(tmp_path / "b"))
    pngs = tmp_path / "pngs"
    pngs.mkdir()
    (pngs / "0000_000000.png").write_bytes(b"one")
    first = of(FileMasks(pngs))
    (pngs / "0000_000001.png").write_bytes(b"two")
    assert first != of(FileMasks(pngs)) != of(FileMasks(pngs, (1, 1)))
    graphs = [_graph(tmp_path, number) for number in range(2)]
    assert len({OnnxMasks(path).sha256 for path in graphs}) == 2
    assert OnnxMasks(shutil.copy(graphs[0], tmp_path / "moved.onnx")).sha256 == OnnxMasks(graphs[0]).sha256

    class Plugged:
        """A source of other people's, which has no hash."""

        name = "plugged"

        def __init__(self, value: int) -> None:
            self.value = value

        def check(self, crops: Any, indices: np.ndarray) -> None:
            """Content."""

        def person(self, crops: Any, indices: np.ndarray) -> torch.Tensor:
            tokens = torch.zeros(len(indices), 16, 12, dtype=torch.bool)
            tokens[int(np.flatnonzero(indices == self.value)[0]) if self.value in indices else 0, 3, 4] = True
            return tokens

    assert of(Plugged(2)) == of(Plugged(2)) != of(Plugged(3))
    assert mask_source(f"files:{world.masks}").sha256 == FileMasks(world.masks).sha256  # type: ignore[attr-defined]


def _graph(folder: Path, number: int) -> Path:
    """An ONNX file with its numbers in it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    held = numpy_helper.from_array(np.full(300, number, np.float32), "c")
    node = helper.make_node("Add", ["x", "c"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [300]) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [held])), folder / f"{number}.onnx")
    return folder / f"{number}.onnx"


@pytest.mark.parametrize("name", ["w.bin", "a" * 150 + ".bin"])
def test_weights_beside_an_onnx_file_are_in_its_hash(name: str, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    model = onnx.load(_graph(tmp_path, 1))
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    before = sha256_onnx(path)
    data = bytearray((tmp_path / name).read_bytes())
    assert before == sha256_onnx(path)
    data[5] ^= 1
    (tmp_path / name).write_bytes(data)
    assert before != sha256_onnx(path)


def test_everything_of_a_body_a_network_and_a_set_of_crops_is_in_its_hash(tiny_body: BodyModel) -> None:
    arrays = tiny.body_arrays()
    whole = body_of(arrays)
    assert whole.sha256 == body_of(arrays).sha256
    turned = {"f": arrays["f"][:, [0, 2, 1]], "leaf_vertices": arrays["leaf_vertices"][::-1].copy()}
    turned |= {name: _moved(arrays[name]) for name in ("v_template", "shapedirs", "J_regressor", "weights")}
    tree = arrays["kintree_table"].copy()
    tree[0, 23] = 0
    for name, other in {**turned, "kintree_table": tree}.items():
        assert body_of({**arrays, name: other}).sha256 != whole.sha256, name
    network = tiny.network()
    hashes = {network_sha256(network), network_sha256(with_heads(network, 4))}
    for tensor in network.state_dict().values():
        tensor += 1
        hashes.add(network_sha256(network))
    assert len(hashes) == 2 + len(network.state_dict())
    columns = tiny.crop_arrays(1, 3) | {
        "transl": np.zeros((3, 3), np.float32), "focal": np.ones(3, np.float32), "gender": np.zeros(3, np.int8),
        "conditions": np.zeros((3, 3), np.float32), "occluded": np.zeros(3, np.float32),
        "kind": np.zeros(3, np.int16), "keypoints": np.zeros((3, 19, 3), np.float32),
    }  # fmt: skip
    meta = tiny.crop_meta()
    found = [CropSet(columns, meta).contents_sha256(), CropSet(columns, {**meta, "fps": 25.0}).contents_sha256()]
    found += [CropSet(columns, {**meta, "protocol": "other"}).contents_sha256()]
    found += [
        CropSet(columns, meta).contents_sha256(np.arange(2)),
        CropSet(columns, meta).contents_sha256(np.arange(3)[::-1]),
    ]
    for name, values in columns.items():
        changed = values.copy()
        changed.reshape(3, -1)[1, 0] = 7 if name in ("clip", "frame") else changed.reshape(3, -1)[1, 0] == 0
        found.append(CropSet({**columns, name: changed}, meta).contents_sha256())
    assert len(set(found)) == len(found)
    assert CropSet(columns, {**meta, "name": "renamed"}).contents_sha256() == found[0]


def _moved(array: np.ndarray) -> np.ndarray:
    """The same rows, each elsewhere."""
    return np.roll(array, 5, axis=0)


def body_of(arrays: Mapping[str, np.ndarray]) -> BodyModel:
    parents = tuple(int(parent) if joint else -1 for joint, parent in enumerate(arrays["kintree_table"][0]))
    names = {
        "v_template": "v_template",
        "shapedirs": "shapedirs",
        "weights": "weights",
        "J_regressor": "joint_regressor",
    }
    return BodyModel(
        name="b", faces=arrays["f"], parents=parents, leaf_vertices=tuple(arrays["leaf_vertices"].tolist()),
        **{name: arrays[key] for key, name in names.items()},
    )  # fmt: skip


def test_pictures_are_in_the_hash_of_crops_that_are_cut_on_demand(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)

    def contents(turned: bool = False, rows: Any = None, **changes: Any) -> str:
        given = {
            "name": "d", "split": "", "fps": 30.0, "protocol": "starter24", "picture": np.array([0, 1]),
            "center": np.full((2, 2), 30.0), "side": np.full(2, 40.0), "sequence": ["s", "s"], "frame": np.arange(2),
            "pictures": FilePictures(tmp_path, ["a.png", "b.png"], turned=turned), "focal": np.full(2, 50.0),
        }  # fmt: skip
        return Annotations(**{**given, **changes}).crops("d").contents_sha256(rows)

    found = [contents(), contents(turned=True), contents(antialias=True), contents(rows=np.array([0]))]
    found += [contents(center=np.full((2, 2), 31.0)), contents(side=np.full(2, 41.0)), contents(focal=np.full(2, 51.0))]
    assert len(set(found)) == len(found) and contents() == found[0]
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "b.png")
    assert contents() != found[0] and contents(rows=np.array([0])) == found[3]


MADE_BY = {
    "search": ("searching/probe.py", "searching/eclm.py", "merging/layers.py", "merging/tokens.py", "models/vit.py",
               "models/heads.py", "data/crops.py", "data/masks.py", "metrics/points.py", "body/model.py"),
    "features": ("training/features.py", "merging/tokens.py", "models/network.py", "models/probe.py", "data/crops.py"),
    "split": ("starter/world.py", "starter/filming.py", "starter/camera.py", "render/shading.py", "render/raster.py",
              "motion/gaits.py", "body/model.py"),
    "shards": ("starter/shards.py", "render/scene.py", "motion/augment.py", "motion/procedural.py"),
    "motions": ("training/motions.py", "motion/procedural.py", "motion/amass.py", "motion/augment.py"),
    "training": ("training/loop.py", "training/heal.py", "training/decoder_fit.py", "training/vae_fit.py",
                 "decoder/model.py", "models/vit.py", "merging/tokens.py", "data/crops.py"),
    "stage {stage}": ("recipe/stages.py", "api.py", "evaluation/evaluate.py", "evaluation/row_bench.py",
                      "searching/search.py", "exporting/onnx.py", "training/heal.py", "starter/filming.py"),
    "row": ("recipe/bed.py", "evaluation/sequences.py", "decoder/clips.py", "merging/lstsq.py", "metrics/points.py"),
    "baseline": ("recipe/bed.py", "metrics/pose.py", "models/vit.py"),
    "rates": ("recipe/bed.py", "evaluation/row_bench.py", "evaluation/timing.py", "models/vit.py"),
    "starter network": ("starter/train.py", "starter/step.py", "starter/shards.py", "models/vit.py"),
    "starter-fast": ("starter/fast.py", "merging/layers.py", "models/folder.py"),
}  # fmt: skip
"""Every kind of result that is kept, and some of the files that make it."""


def kept_steps() -> dict[str, tuple[str, ...]]:
    """Steps in the sources, and the code that each of them names."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Key.of":
                step, named = (ast.unparse(each) for each in node.args)
                text = re.sub(r"^f?['\"]|['\"]$", "", step)
                namespace = {"CODE": ("recipe",), "MAKERS": dataset.MAKERS, "split": None}
                found[text] = tuple(eval(named, namespace))  # noqa: S307 - our own source
    return found


def test_every_kept_step_is_known_and_made_by_the_code_that_its_key_names() -> None:
    found = kept_steps()
    assert set(found) == set(MADE_BY)
    for step, files in MADE_BY.items():
        read = {path.relative_to(ROOT).as_posix() for path in code.sources(found[step])}
        assert set(files) <= read, step
    assert "render/overlay.py" not in {path.relative_to(ROOT).as_posix() for path in code.sources(found["split"])}


def test_hashes_of_values_serve_as_keys_nowhere_else() -> None:
    """Whoever keeps something makes a `Key`: a bare hash of values would escape the table."""
    users = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if "sha256_json(" in path.read_text()}
    parts_of_keys = {
        "io/hashes.py", "io/keys.py", "io/onnx_file.py", "data/mask_files.py", "data/onnx_masks.py",
        "models/decoder_part.py",
        "models/load.py", "models/network.py", "recipe/ablate.py", "recipe/bed.py", "searching/journal.py",
        "searching/search.py", "starter/clip_stream.py", "training/streams.py",
    }  # fmt: skip
    assert users == parts_of_keys


def test_sources_are_those_that_are_imported() -> None:
    """Against the syntax tree: whatever a file of a closure imports is in it."""
    read = code.sources(("recipe", "starter"))
    for path in read:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.startswith("hmrcompress.") and name != "hmrcompress.errors":
                    place = ROOT.joinpath(*name.split(".")[1:])
                    wanted = [each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()]
                    assert set(wanted) <= set(read), f"{path}: {name}"
    assert ROOT / "models" / "tokenhmr.py" in read and ROOT / "data" / "format_3dpw.py" in read  # named in texts
    assert not [path for path in code.sources(("metrics",)) if path.parent.name in ("recipe", "starter", "evaluation")]


def test_the_hash_of_code_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "hmrcompress"
    files = {
        "room/__init__.py": "", "room/a.py": "from hmrcompress.low import (\n    b,  # a comment\n    c as d,\n)\n",
        "low/__init__.py": "", "low/b.py": "import hmrcompress.base\n", "low/c.py": "N = 'hmrcompress.late.made:x'\n",
        "low/unread.py": "", "base.py": "from hmrcompress.errors import x\n", "errors.py": "", "late/made.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(code, "ROOT", root)
    read = {path.relative_to(root).as_posix() for path in code.sources(("room.a",))}
    assert read == {"room/a.py", "low/__init__.py", "low/b.py", "low/c.py", "base.py", "late/made.py"}

    def hashed() -> str:
        code.code_sha256.cache_clear()
        return code.code_sha256("room")

    before = hashed()
    for name in files:
        (root / name).write_text(files[name] + "# changed\n")
        assert (hashed() != before) == (name in read | {"room/__init__.py"}), name
        (root / name).write_text(files[name])
    assert hashed() == before
    with pytest.raises(ValueError, match="no module hmrcompress.nowhere"):
        code.sources(("nowhere",))
    code.code_sha256.cache_clear()


def test_code_versions_and_devices_are_in_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Key.of("step", ("io",), device=torch.device("cpu"))
    assert Key.of("step", ("io",), device=torch.device("cuda:1")).changed(before.inputs) == ["device"]
    assert Key.of("other", ("io",), device=torch.device("cpu")).sha256 != before.sha256
    with pytest.raises(TypeError, match="names contents"):
        Key.of("step", ("io",), masks=[Path("m.npz")])
    monkeypatch.setattr(keys, "code_sha256", lambda *names: "another")
    assert Key.of("step", ("io",), device=torch.device("cpu")).changed(before.inputs) == ["code"]
    monkeypatch.undo()
    for package in (np, torch):
        monkeypatch.setattr(package, "__version__", "another")
        assert Key.of("step", ("io",), device=torch.device("cpu")).changed(before.inputs) == ["versions"]
        monkeypatch.undo()


def test_devices_are_in_the_keys(world: World, run_folder: Path) -> None:
    """There is only one here, so that it cannot be changed: it is looked up."""
    given = {"settings": SearchSettings(frames_per_clip=2), "body": world.body, "device": "cpu"}
    given |= {"regressor": world.regressor}
    assert api.search_key(world.model, world.crops, **given).inputs["device"] == "cpu"
    source = CropClips(CropSet.open(world.crops), NoMasks())
    assert feature_key(tiny.network(), source, batch_size=4, dtype=torch.float32).inputs["device"] == "cpu"
    line = Line(parse_recipe(stage_values(world)), run_folder, device="cpu", dtype=torch.float32,
                progress=no_progress)  # fmt: skip
    assert all(line.key(stage, environment("cpu")).inputs["machine"]["device"] == "cpu" for stage in OUTPUTS)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], ""),
        (["a_b"], "a b"),
        (["a", "b"], "a and b"),
        (list("abc"), "a, b and c"),
        (list("abcdefg"), "a, b, c, d and 3 more"),
    ],
)
def test_names_in_a_sentence(names: list[str], sentence: str) -> None:
    assert keys.listed(names) == sentence


def test_the_second_masks_give_features_of_their_own(world: World, tmp_path: Path) -> None:
    """Case B2: another `m.npz` between two calls with the same words."""
    masks = shutil.copy(world.masks, tmp_path / "m.npz")

    def features() -> np.ndarray:
        options = {"masks": f"files:{masks}", "body": world.body, "home": tmp_path, "device": "cpu"}
        return decoder_tuning.extract_features(world.decoded, world.crops, **options).read(0).features

    first = features()
    shutil.copy(world.masks2, masks)
    with pytest.warns(Notice, match="made anew, as masks changed since they were kept"):
        second = features()
    assert not np.array_equal(first, second)
    fresh = decoder_tuning.extract_features(
        world.decoded,
        world.crops,
        masks=f"files:{world.masks2}",
        body=world.body,
        home=tmp_path / "fresh",
        device="cpu",
    )
    assert np.array_equal(second, fresh.read(0).features)
