"""Journals and features are kept under all that they depend on, and masks are in it by what is in them."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from kept import ON_THE_CPU, PLACE, REGRESSED, SAVES, TELLS, TOKENS, Contents, Step, World, check, names_of, with_heads
from test_search import deep_network

from hmrcompress.api import finetune_decoder as decoder_tuning
from hmrcompress.api import search as opened
from hmrcompress.body.files import load_body
from hmrcompress.data.crops import CropSet
from hmrcompress.data.mask_files import FileMasks
from hmrcompress.data.masks import DataMasks, DegradedMasks, NoMasks, SelfMasks, mask_source, masks_sha256
from hmrcompress.data.onnx_masks import OnnxMasks
from hmrcompress.errors import Notice
from hmrcompress.io.onnx_file import sha256_onnx
from hmrcompress.metrics.measure import Measure
from hmrcompress.metrics.points import STARTER24
from hmrcompress.plan import CheckpointRef, TokenSettings
from hmrcompress.records import CropSize
from hmrcompress.searching import search as searching
from hmrcompress.searching.search import SearchSettings, search
from hmrcompress.starter.data.clip_stream import StarterClips
from hmrcompress.training.features import CropClips, extract_features, feature_key


def of_search(world: World) -> Iterator[Step]:
    """The journal, from the strings that the command line hands over, and from the objects that `search` takes."""
    settings = SearchSettings(frames_per_clip=2, batch_size=4, tokens=TOKENS, with_tokens=True)
    given = {
        "model": world.model, "data": world.crops, "settings": settings, "masks": f"files:{world.masks}",
        "protocol": REGRESSED, "regressor": world.regressor, "body": world.body, "device": "cpu",
    }  # fmt: skip
    yield Step(
        opened.search_key,
        lambda **given: opened.search_key(**given).inputs,
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
        rest = {name: "see above" for name in names_of(opened.search_key) - set(changes)}
        yield Step(opened.search_key, lambda **given: opened.search_key(**given).inputs, base, changes, rest)
    with_tau = "no evaluation depends on it: it only says which are made"
    yield Step(
        SearchSettings,
        lambda **changes: opened.search_key(**{**given, "settings": replace(settings, **changes)}).inputs,
        {},
        {
            "frames_per_clip": [3], "limit": [3], "merge_rule": ["mean", "lstsq"], "with_tokens": [False],
            "tokens": [TokenSettings(keep=150, per_layer=30)], "batch_size": [3], "target": ["teacher"],
            "dtype": [torch.bfloat16], "cache_dtype": [torch.bfloat16],
        },
        {
            **dict.fromkeys(("tau_mm", "method", "as_printed", "layers"), with_tau),
            "seed": "of random weights, which are in the key, and of which candidates evolution looks at",
            **dict.fromkeys(("cache", "cache_gb", "reject_early"), SAVES),
        },
    )  # fmt: skip
    network, crops, body = deep_network(4), CropSet.open(world.crops), load_body(world.body)

    def journal(**given: Any) -> Any:
        """What the journal is opened with: nothing is measured."""
        opened: list[Any] = []

        def stop(path: Path, settings: Any, **options: Any) -> None:
            opened.append(settings)
            raise InterruptedError

        with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(searching, "Journal", stop)
            search(**{**given, "journal": world.home / "journal.jsonl"})
        return opened

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
            "overwrite": "what stood there before is no journal",
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
        {
            "split": ["calib"],
            "masks": [DataMasks()],
            "frames": [17],
            "size": [CropSize(512, 384), CropSize(256, 192, 32)],
        },
        {"workers": "who renders"},
    )


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
@pytest.mark.parametrize("steps", [of_search, of_features])
def test_every_input_is_in_the_key(steps: Callable[[World], Iterator[Step]], world: World) -> None:
    check(steps(world))


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
