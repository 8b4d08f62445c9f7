"""Rendered crops, motions and unfinished trainings are kept under all that they depend on."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_decoder
import torch
from kept import PLACE, TELLS, TOKENS, Contents, Step, World, changed, check, names_of, replace_tokens

from hmrcompress.body.files import load_body
from hmrcompress.data.crops import CropSet
from hmrcompress.data.mask_files import FileMasks
from hmrcompress.data.masks import DataMasks, NoMasks
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.metrics.points import STARTER24
from hmrcompress.records import BodyParams, CropSize
from hmrcompress.starter.data import dataset
from hmrcompress.starter.data.dataset import open_split, split_key
from hmrcompress.starter.data.rendering import shard_home, shard_key
from hmrcompress.starter.data.shards import ShardSettings, shard_path
from hmrcompress.starter.data.stream import ShardStream
from hmrcompress.starter.motion import gaits, procedural
from hmrcompress.starter.network.fast import fast_folder, fast_key
from hmrcompress.training import loop
from hmrcompress.training.augment_time import TimeSettings
from hmrcompress.training.decoder_fit import DecoderFit, DecoderSettings
from hmrcompress.training.features import ClipFeatures, CropClips, clip_features
from hmrcompress.training.heal import Healing, HealSettings, Pair, Validation
from hmrcompress.training.loop import LoopSettings, train
from hmrcompress.training.motions import MotionBank, MotionSettings, motion_key
from hmrcompress.training.streams import CropStream
from hmrcompress.training.vae_fit import VAEFit, VAESettings


def of_rendering(world: World) -> Iterator[Step]:
    """Splits, shards of crops and of motions, the compressed starter network."""
    body, body2 = load_body(world.body), load_body(world.body2)
    held = world.home / "mocap"
    if not held.exists():
        shutil.copytree(world.motions, held)
        (held / "one.npz").rename(held / "02_06.npz")
        shutil.copytree(world.motions2, held.with_name("mocap2"))
        (held.with_name("mocap2") / "one.npz").rename(held.with_name("mocap2") / "02_06.npz")
    changes = {"name": ["val"], "body": [body2], "clips": [2], "size": [CropSize(512, 384)]}
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
        {
            "body": [body2],
            "motions": [held.with_name("mocap2"), Contents(held, held.with_name("mocap2"))],
            "size": [CropSize(256, 256)],
        },
        {"name": "see above", "clips": "it has no number of clips"},
    )

    def opened(**given: Any) -> Any:
        """Where the split is looked for: nothing is rendered."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "_render_split", lambda *arguments: None)
            patch.setattr(dataset, "make_clip", lambda *arguments: None)
            patch.setattr(dataset, "_read", lambda folder, *rest: folder.name)
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
        {"size": [(64, 48)], "crops": [5], "difficulty": [0.5], "mocap": [0.25], "patch": [14]},
    )
    files = [world.motions / "one.npz"]
    base = {"settings": MotionSettings(frames=20), "files": files, "seed": 0, "generate": procedural.generate}
    changes = {
        "settings": [MotionSettings(frames=21)], "seed": [1], "generate": [gaits.walk],
        "files": [[], [world.motions2 / "one.npz"], Contents(files[0], world.motions2 / "one.npz")],
    }  # fmt: skip
    yield Step(motion_key, lambda **given: motion_key(**given).inputs, base, changes)
    yield Step(
        MotionSettings,
        lambda **given: motion_key(MotionSettings(**given), files, 0, procedural.generate).inputs,
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
        return loop.state_key(task, settings or LoopSettings(1)).inputs

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
        {
            "masks": [NoMasks()],
            "batch_size": [3],
            "seed": [1],
            "images": [200],
            "size": [CropSize(512, 384), CropSize(256, 192, 32)],
        },
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
    with MotionBank(world.home / "b", MotionSettings(frames=18), generate=procedural.generate, workers=0) as bank:
        with MotionBank(
            world.home / "b", MotionSettings(frames=18), generate=procedural.generate, seed=1, workers=0
        ) as bank2:
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


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
@pytest.mark.parametrize("steps", [of_rendering, of_training])
def test_every_input_is_in_the_key(steps: Callable[[World], Iterator[Step]], world: World) -> None:
    check(steps(world))
