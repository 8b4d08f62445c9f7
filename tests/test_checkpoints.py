"""Opening checkpoint files: every wrapping, nothing executed, faults in one sentence."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import math
import os
import pathlib
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch

from hmrcompress.errors import UserError
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.hashes import sha256_file, sha256_json
from hmrcompress.io.safetensors_file import read_safetensors, write_safetensors
from hmrcompress.merging.merge import merge_checkpoint
from hmrcompress.models.files.convert import convert_checkpoint
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.models.files.original import write_original
from hmrcompress.models.network import NetworkConfig
from hmrcompress.plan import Plan

HEADS = {"num_heads": 2, "head_heads": 2}


@pytest.fixture
def fake_yacs() -> Iterator[type]:
    """A class that pickles as `yacs.config.CfgNode`; the module is gone again when the file is read."""

    class CfgNode(dict):
        def __init__(self, values: dict) -> None:
            super().__init__(values)
            self.__dict__["__immutable__"] = True

        def __getattr__(self, name: str) -> object:
            return self[name]

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules.update({"yacs": package, "yacs.config": module})
    yield CfgNode
    sys.modules.pop("yacs", None)
    sys.modules.pop("yacs.config", None)


class Evil:
    """Unpickling this with the standard unpickler would make the file `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


def state() -> dict[str, torch.Tensor]:
    return tiny.network().state_dict()


def same(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(loaded) == set(expected) and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_lightning_checkpoint_with_a_configuration_object(tmp_path: Path, fake_yacs: type) -> None:
    decoder = fake_yacs({"depth": 2, "heads": 4, "dim_head": 4})
    config = fake_yacs(
        {
            "MODEL": fake_yacs({"SMPL_HEAD": fake_yacs({"TRANSFORMER_DECODER": decoder, "IEF_ITERS": 3})}),
            "paths": [pathlib.PurePosixPath("/data/a"), argparse.Namespace(lr=0.1)],
            "counts": collections.defaultdict(list, {"a": [1]}),
            "numbers": (np.float64(1.5), np.arange(3)),
        }
    )
    path = tmp_path / "epoch=35.ckpt"
    extra = {
        "initialized": torch.tensor(True),
        "discriminator.D_conv1.bias": torch.zeros(32),
        "smpl.faces": torch.ones(2),
    }
    torch.save({"epoch": 35, "state_dict": state() | extra, "hyper_parameters": {"cfg": config}}, path)
    del sys.modules["yacs"], sys.modules["yacs.config"]

    file = open_state_file(path)
    assert file.taken.keys == ("state_dict",)
    assert file.hyper_parameters["cfg"]["paths"] == ["/data/a", {"lr": 0.1}]
    assert file.hyper_parameters["cfg"]["counts"] == {"a": [1]}
    json.dumps(file.hyper_parameters)

    checkpoint = load_checkpoint(path, num_heads=2)
    assert checkpoint.config.head_heads == 4 and checkpoint.config.iterations == 3
    assert set(checkpoint.ignored) == set(extra)
    assert same(checkpoint.state(), state())
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == checkpoint.reference.sha256
    assert load_checkpoint(path, num_heads=2, head_heads=2).config.head_heads == 2


def test_model_config_beside_or_above(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "a.pt"
    torch.save(state(), path)
    with pytest.raises(UserError, match="Give head_heads"):
        load_checkpoint(path, num_heads=2)
    text = "MODEL:\n  SMPL_HEAD:\n    TRANSFORMER_DECODER: {depth: 2, heads: 4}\n"
    (tmp_path / "model_config.yaml").write_text(text)
    assert load_checkpoint(path, num_heads=2).config.head_heads == 4
    (tmp_path / "checkpoints" / "model_config.yaml").write_text(text.replace("4", "8"))
    assert load_checkpoint(path, num_heads=2).config.head_heads == 8
    assert load_checkpoint(path, num_heads=2).config.iterations == 1


@pytest.mark.parametrize("form", ["bare", "state_dict", "model", "module", "legacy", "safetensors", "half"])
def test_every_wrapping_gives_the_same_network(tmp_path: Path, form: str) -> None:
    expected, path = state(), tmp_path / "w.pth"
    if form == "bare":
        torch.save(expected, path)
    elif form == "legacy":
        torch.save(expected, path, _use_new_zipfile_serialization=False)
    elif form == "module":
        torch.save({f"module.{name}": tensor for name, tensor in expected.items()}, path)
    elif form == "safetensors":
        path = tmp_path / "w.safetensors"
        safetensors.torch.save_file(expected, path)
    elif form == "half":
        expected = {name: tensor.half() for name, tensor in expected.items()}
        torch.save(expected, path)
    else:
        torch.save({form: expected}, path)
    checkpoint = load_checkpoint(path, **HEADS)
    assert checkpoint.config == tiny.CONFIG and not checkpoint.network.training
    assert same(checkpoint.state(), {name: tensor.float() for name, tensor in expected.items()})
    assert checkpoint.stored_dtype == ("float16" if form == "half" else "float32")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle2", "pickle4"])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"state_dict": {"a": torch.zeros(2)}, "payload": Evil(target)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content["payload"], protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"evil\.pt: the pickle asks for (posix|nt)\.system") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and not target.exists()
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists(), "the payload would have worked"


def test_an_unknown_class_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": NetworkConfig()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="asks for hmrcompress.models.network.NetworkConfig"):
        open_state_file(tmp_path / "a.pt")


@pytest.mark.parametrize("cut", [0, 4, 100, 0.5, -1])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".legacy.pt"])
def test_truncated_files(tmp_path: Path, suffix: str, cut: float) -> None:
    whole, path = tmp_path / "whole", tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state(), whole)
    else:
        torch.save(state(), whole, _use_new_zipfile_serialization=suffix == ".ckpt")
    data = whole.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(UserError, match="truncated|damaged") as caught:
        load_checkpoint(path, **HEADS)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_other_faults_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.ckpt: no such file"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"ending in '\.txt', expected one of \.ckpt"):
        load_checkpoint(tmp_path / "a.txt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, expected a state dict"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(UserError, match=r"holds no weights \(its keys: epoch\)"):
        load_checkpoint(tmp_path / "empty.pt")
    with pytest.raises(UserError, match="not a compressed model"):
        load_checkpoint(tmp_path)


def test_leftover_and_missing_keys_are_counted_with_five_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(state() | {f"backbone.extra.{n}": torch.zeros(1) for n in range(7)}, path)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, **HEADS)
    text = str(caught.value)
    assert "7 keys unknown" in text and text.count("backbone.extra.") == 5

    torch.save({k: v for k, v in state().items() if not k.startswith("backbone.blocks.1.")}, path)
    with pytest.raises(UserError, match=r"12 keys missing: backbone\.blocks\.\d.*…; 12 keys unknown"):
        load_checkpoint(path, **HEADS)  # three blocks, numbered 0, 2, 3

    torch.save(state() | {"smpl_head.deccam.weight": torch.zeros(4, 32)}, path)
    with pytest.raises(UserError, match="1 keys of another shape: smpl_head.deccam.weight 4x32 instead of 3x32"):
        load_checkpoint(path, **HEADS)


def test_families_are_told_by_keys(tmp_path: Path) -> None:
    torch.save(
        {f"backbone.{name}": torch.zeros(1) for name in ("conv1.weight", "downsample_stage_1.0.weight")}
        | {"fc3.weight": torch.zeros(2, 8)},
        tmp_path / "c.pt",
    )
    with pytest.raises(UserError, match="this is CameraHMR's field-of-view network"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save(
        {"net": {"quantizer.codebook": torch.zeros(1), "decoder.decoder.0.weight": torch.zeros(1)}}, tmp_path / "t.pth"
    )
    with pytest.raises(UserError, match="this is TokenHMR's tokenizer"):
        load_checkpoint(tmp_path / "t.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "r.pt")
    with pytest.raises(UserError, match=r"no known family; HMR2\.0 has backbone\.pos_embed"):
        load_checkpoint(tmp_path / "r.pt")


def test_convert_round_trip_needs_no_arguments(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": state() | {"smpl.faces": torch.ones(2)}}, path)
    checkpoint = load_checkpoint(path, **HEADS)
    made = convert_checkpoint(checkpoint, tmp_path / "out")
    again = load_checkpoint(made.weights)
    assert again.config == checkpoint.config and same(again.state(), state())
    assert again.source["sha256"] == checkpoint.sha256
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["left_out"] == ["smpl.faces"] and record["sha256"] == again.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "out.json", "out.safetensors"]
    with pytest.raises(UserError, match="is an input, and would be written over"):
        convert_checkpoint(again, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match=r"ending in '\.npz', expected \.safetensors"):
        convert_checkpoint(again, tmp_path / "out.npz")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    """Neither converted nor merged nor written for the original code; what was there stays."""
    state = tiny.network().state_dict()
    state["backbone.blocks.2.mlp.fc1.weight"][3, 5] = value
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    checkpoint = load_checkpoint(tmp_path / "a.ckpt", num_heads=2, head_heads=2)
    plan = Plan(checkpoint=checkpoint.reference, groups=((0,), (1,), (2, 3)))
    before = sorted(tmp_path.iterdir())
    writers: list[Callable[[], object]] = [
        lambda: convert_checkpoint(checkpoint, tmp_path / "b.safetensors"),
        lambda: merge_checkpoint(checkpoint, plan, tmp_path / "c"),
        lambda: write_original(checkpoint, tmp_path / "d.ckpt"),
    ]
    for write in writers:
        with pytest.raises(UserError, match="mlp.fc1.weight holds NaN or infinity"):
            write()
    assert sorted(tmp_path.iterdir()) == before


def test_our_safetensors_equal_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.randn(5).bfloat16(),
        "flag": torch.tensor(True),
        "none": torch.zeros(0, 3),
        "turned": torch.randn(4, 6).T,
        "big": torch.arange(3),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors, {"note": "ü"})
    assert same(safetensors.torch.load_file(tmp_path / "a.safetensors"), tensors)
    loaded, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert same(loaded, tensors) and metadata["note"] == "ü"
    first = (tmp_path / "a.safetensors").read_bytes()
    write_safetensors(tmp_path / "a.safetensors", dict(reversed(tensors.items())), {"note": "ü"})
    assert (tmp_path / "a.safetensors").read_bytes() == first
    with pytest.raises(UserError, match="tensor c is torch.complex64"):
        write_safetensors(tmp_path / "c.safetensors", {"c": torch.zeros(1, dtype=torch.complex64)})


def test_hashes(tmp_path: Path) -> None:
    data = os.urandom(1 << 23) + b"tail"
    (tmp_path / "a").write_bytes(data)
    seen: list[tuple[int, int]] = []
    assert sha256_file(tmp_path / "a", lambda _, done, total: seen.append((done, total)))
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert seen[-1] == (len(data), len(data)) and len(seen) == 3
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": [3]})
