"""Kind C: a checkpoint in any wrapper and any depth of it is the plain one, and `inspect` says what was peeled off."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from typer.testing import CliRunner

import hmrcompress as hc
from hmrcompress.errors import UserError
from hmrcompress.io.checkpoints import open_state_file
from hmrcompress.io.safetensors_file import write_safetensors
from hmrcompress.io.wrappers import TRANSPARENT
from hmrcompress.models.families.registry import MARKS
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress_cli.main import app

HEADS = {"num_heads": 2, "head_heads": 2}
FLAGS = ["--num-heads", "2", "--head-heads", "2"]
CASE_FLAGS = ["--num-heads", "3", "--head-heads", "6"]
Content = dict[str, Any]


def run(*arguments: object) -> str:
    """Output of a command line that has to succeed."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    """The sentence of a command line that has to be refused."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return " ".join(result.output.split())


def inspected(tmp_path: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    """What inspect writes to JSON, and what it prints."""
    record = tmp_path / "inspected.json"
    text = run("inspect", *arguments, "--json", record)
    return json.loads(record.read_text()), " ".join(text.split())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return tiny.network().state_dict()


@pytest.mark.parametrize(
    ("name", "said", "average"),
    [
        ("plain.pth", "peeled off nothing", None),
        ("orig_mod.ckpt", "peeled off the key state_dict, the prefix _orig_mod. heads", None),
        ("module_orig_mod.pth", "peeled off the prefix module._orig_mod. heads", None),
        ("orig_mod_module.pth", "peeled off the prefix _orig_mod.module. heads", None),
        ("backbone_orig_mod.ckpt", "the key state_dict, _orig_mod. in the middle of 29 names", None),
        ("model_prefix.ckpt", "peeled off the key state_dict, the prefix model. heads", None),
        ("network_module.pth", "peeled off the key state_dict, the prefix network.module. heads", None),
        ("deepspeed.pt", "peeled off the key module heads", None),
        ("model_state_dict.pth", "peeled off the key model_state_dict heads", None),
        ("ema_only.pth", "the key state_dict_ema weights taken state_dict_ema (an average)", "state_dict_ema"),
        ("swa.pth", "the prefix module. weights taken module (an average of 5)", "n_averaged"),
        (
            "raw_and_ema.pth",
            "the key state_dict weights taken state_dict (as trained) weights not taken state_dict_ema (an average)",
            None,
        ),
    ],
)
def test_every_wrapped_file_is_the_plain_one(
    cases: Callable[[str], Path], tmp_path: Path, name: str, said: str, average: str | None
) -> None:
    folder = cases("checkpoints")
    plain = load_checkpoint(folder / "plain.pth", num_heads=3, head_heads=6)
    found, text = inspected(tmp_path, folder / name, *CASE_FLAGS)
    assert said in text
    assert found["weights"]["taken"]["average"] == average and found["unknown_keys"] == []
    loaded = load_checkpoint(folder / name, num_heads=3, head_heads=6)
    assert loaded.config == plain.config and same(loaded.state(), plain.state())


WRAPS: dict[str, Callable[[Content], Content]] = {
    **{
        f"key {key}": lambda content, key=key: {"epoch": 3, key: content, "optimizer": {0: {"m": torch.ones(3)}}}
        for key in ("state_dict", "model", "module", "model_state_dict", "net", "network", "weights", "state", "G")
    },
    **{
        f"prefix {prefix}": lambda content, prefix=prefix: prefixed(content, prefix)
        for prefix in ("module.", "_orig_mod.", "model.", "network.", "net.hmr.", "_fsdp_wrapped_module.", "ema_model.")
    },
    "list": lambda content: {"models": [content, 7]},
}  # fmt: skip


def prefixed(content: Content, prefix: str) -> Content:
    """Every name of the tensors behind a prefix; of a dictionary without tensors, every key."""
    return {prefix + name: value for name, value in content.items()}


@pytest.mark.parametrize("seed", range(24))
def test_random_nestings(tmp_path: Path, state: dict[str, Tensor], seed: int) -> None:
    """Up to six wrappers in any order, and wrappers of submodules in the middle of names."""
    rng = random.Random(seed)
    inner = {}
    for name, tensor in state.items():
        parts = name.split(".")
        for place, wrapper in ((0, "_orig_mod"), (1, "module"))[: seed % 3]:
            parts[place] = f"{parts[place]}.{wrapper}"
        inner[".".join(parts)] = tensor
    content, names = inner, []
    for _ in range(rng.randrange(1, 7)):
        names.append(rng.choice(list(WRAPS)))
        content = WRAPS[names[-1]](content)
    path = tmp_path / "wrapped.pt"
    torch.save(content, path)
    loaded = load_checkpoint(path, **HEADS)
    assert same(loaded.state(), state), names
    # Laid out flat, what was peeled off is all that stands before the names, dictionaries and prefixes alike.
    flat, at = content, []
    while not any(isinstance(value, Tensor) for value in flat.values()):
        at.append(next(key for key, value in flat.items() if isinstance(value, (dict, list)) and key != "optimizer"))
        flat = flat[at[-1]]
        if isinstance(flat, list):
            at, flat = [*at, "0"], flat[0]
    first = next(name for name in flat if "pos_embed" in name and "backbone" in name)
    before = first[: first.index("backbone")].strip(".")
    assert loaded.taken.name == ".".join(part for part in (*at, before) if part)
    assert loaded.taken.keys == tuple(at)
    assert loaded.taken.within == dict.fromkeys(("_orig_mod", "module")[: seed % 3], len(state))


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
@pytest.mark.parametrize("layout", ["submodules", "safetensors", "flat", "twice"])
def test_other_layouts(tmp_path: Path, state: dict[str, Tensor], layout: str) -> None:
    path = tmp_path / "w.pt"
    if layout == "submodules":  # each part's own state dict
        parts = {"backbone": {}, "smpl_head": {}}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            parts[first][f"module.{rest}"] = tensor
        torch.save({"epoch": 2, "weights": parts}, path)
    elif layout == "safetensors":
        path = tmp_path / "w.safetensors"
        write_safetensors(path, prefixed(dict(state), "model._orig_mod."))
    elif layout == "flat":  # a Lightning module with a loss and a copy of its own beside the network
        losses = {"criterion.weight": torch.ones(3), "step": torch.tensor(4)}
        shadow = {f"ema.module.{name}": 0 * tensor for name, tensor in state.items()}
        torch.save({"state_dict": losses | prefixed(dict(state), "model.") | shadow}, path)
    else:
        torch.save({"model": state, "best": state, "copy": dict(state)}, path)
    loaded = load_checkpoint(path, **HEADS)
    assert same(loaded.state(), state) and loaded.taken.average is None
    if layout == "flat":
        assert {"criterion.weight", "step"} <= set(loaded.ignored)
        assert [each.name for each in loaded.others] == ["state_dict.ema.module"]
    if layout == "twice":
        assert loaded.others == ()


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
def test_which_of_several(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Weights as trained come before averages; of two that nothing tells apart one has to be named."""
    less = {name: tensor / 2 for name, tensor in state.items()}
    path = tmp_path / "both.pt"
    torch.save({"ema": {"module": less}, "state_dict": state}, path)
    raw, average = load_checkpoint(path, **HEADS), load_checkpoint(path, **HEADS, weights="ema")
    assert same(raw.state(), state) and same(average.state(), less) and average.taken.average == "ema"
    assert raw.sha256 != average.sha256 != load_checkpoint(path, **HEADS, weights="state_dict").sha256 == raw.sha256
    line = run("convert", path, *FLAGS, "-o", tmp_path / "raw.safetensors")
    assert "took the weights state_dict (as trained), not ema.module (an average); --weights takes others" in line
    found, text = inspected(tmp_path, path, *FLAGS, "--weights", "ema.module")
    assert "weights taken ema.module (an average) weights not taken state_dict (as trained)" in text
    assert found["sha256"] == average.sha256
    run("convert", path, *FLAGS, "--weights", "ema", "-o", tmp_path / "average.safetensors")
    assert same(load_checkpoint(tmp_path / "average.safetensors").state(), less)

    torch.save({"student": state, "teacher": less}, path)
    sentence = refused("inspect", path, *FLAGS)
    assert "nothing tells which to take: student (as trained), teacher (as trained). Name one: --weights" in sentence
    assert same(load_checkpoint(path, **HEADS, weights="teacher").state(), less)
    line = ["merge", path, *FLAGS, "--weights", "ema", "--plan", "x", "-o", tmp_path / "o"]
    assert "no weights called 'ema', but student (as trained), teacher (as trained)" in refused(*line)
    torch.save({"ema_decay_999": state, "ema_decay_9999": less}, path)
    assert "nothing tells which to take" in refused("inspect", path, *FLAGS)
    torch.save({"teacher": less, "model": state}, path)
    assert same(load_checkpoint(path, **HEADS).state(), state)


def test_two_tensors_of_one_name(tmp_path: Path, state: dict[str, Tensor]) -> None:
    doubled = dict(state) | {"backbone._orig_mod.pos_embed": torch.ones_like(state["backbone.pos_embed"])}
    torch.save(doubled, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"two tensors are called backbone\.pos_embed"):
        load_checkpoint(tmp_path / "a.pt", **HEADS)
    torch.save(dict(state) | {"backbone._orig_mod.pos_embed": state["backbone.pos_embed"]}, tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt", **HEADS).state(), state)


def test_leftovers_inside_a_wrapper_are_still_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": prefixed(dict(state) | {"backbone.extra": torch.ones(2)}, "module.")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"1 keys unknown: backbone\.extra"):
        load_checkpoint(tmp_path / "a.pt", **HEADS)
    assert "keys not known 1 (backbone)" in inspected(tmp_path, tmp_path / "a.pt", *FLAGS)[1]


def test_helpers_are_told_in_any_wrapper(tmp_path: Path) -> None:
    marks = {"backbone.downsample_stage_1.0.weight": torch.zeros(1), "fc3.weight": torch.zeros(2, 8)}
    torch.save({"model": prefixed(marks, "module.")}, tmp_path / "fov.pt")
    line = ["merge", tmp_path / "fov.pt", "--plan", "x", "-o", tmp_path / "o"]
    assert "this is CameraHMR's field-of-view network" in refused(*line)
    tokenizer = {"quantizer.codebook": torch.zeros(1), "decoder.decoder.0.weight": torch.zeros(1)}
    torch.save({"net": prefixed(tokenizer, "_orig_mod.")}, tmp_path / "t.pth")
    text = inspected(tmp_path, tmp_path / "t.pth")[1]
    assert "TokenHMR's tokenizer" in text and "peeled off the key net, the prefix _orig_mod." in text


def test_configurations_lie_at_any_depth(tmp_path: Path, state: dict[str, Tensor]) -> None:
    head = {"MODEL": {"SMPL_HEAD": {"TRANSFORMER_DECODER": {"heads": 4}}}}
    for around in ({"hyper_parameters": {"cfg": head}}, {"hparams": head}):
        torch.save({"saved": {"state_dict": prefixed(dict(state), "model."), **around}}, tmp_path / "a.pt")
        loaded = load_checkpoint(tmp_path / "a.pt", num_heads=2)
        assert loaded.config.head_heads == 4
        assert loaded.origins["heads of the head"] == "the configuration in the file"


def test_hostile_nesting_takes_no_time(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Dictionaries that are named often are gone through once, deep ones not at all; the number of sets is bounded."""
    laughs: Any = {"x": torch.zeros(2)}
    for _ in range(60):
        laughs = {str(number): laughs for number in range(9)}
    torch.save({"a": laughs, "state_dict": state}, tmp_path / "a.pt")
    start = time.process_time()
    assert len(open_state_file(tmp_path / "a.pt", *MARKS).tensors) == len(state)
    torch.save({f"member_{number}": {"backbone.pos_embed": torch.zeros(1)} for number in range(65)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="more than 64 sets"):
        open_state_file(tmp_path / "b.pt", *MARKS)
    names = {".".join([*sorted(TRANSPARENT)] * 400 + [str(number)]): torch.zeros(1) for number in range(20)}
    torch.save(names, tmp_path / "c.pt")
    assert len(open_state_file(tmp_path / "c.pt", *MARKS).tensors) == 20
    assert time.process_time() - start < 5


def test_where_heads_come_from(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """The argument where it counts, the configuration only where it says something, our own files above all."""
    path = tmp_path / "a.pt"
    torch.save(state, path)
    (tmp_path / "model_config.yaml").write_text("MODEL: {IMAGE_SIZE: 256}\n")
    origins = load_checkpoint(path, **HEADS).origins
    assert origins["heads of the backbone"] == "given as num_heads"
    assert origins["heads of the head"] == "given as head_heads"
    assert origins["iterations of the head"] == "usual, nothing says more"
    (tmp_path / "model_config.yaml").write_text("MODEL: {SMPL_HEAD: {TRANSFORMER_DECODER: {heads: 4}, IEF_ITERS: 2}}\n")
    told = load_checkpoint(path, num_heads=2)
    assert told.config.head_heads == 4 and told.config.iterations == 2
    assert (
        told.origins["heads of the head"]
        == str(tmp_path / "model_config.yaml")
        == told.origins["iterations of the head"]
    )
    origins = load_checkpoint(path, **HEADS).origins
    assert origins["heads of the head"] == f"given as head_heads, where {tmp_path / 'model_config.yaml'} says 4"

    run("convert", path, *FLAGS, "-o", tmp_path / "c.safetensors")
    assert set(load_checkpoint(tmp_path / "c.safetensors").origins.values()) == {"the file's header"}
    assert load_checkpoint(tmp_path / "c.safetensors", **HEADS).config.num_heads == 2
    sentence = refused("inspect", tmp_path / "c.safetensors", "--num-heads", "4")
    assert "the file's header says num_heads 2, which cannot be changed to 4. Leave num_heads out" in sentence
    folder = tmp_path / "folder"
    run("convert", tmp_path / "c.safetensors", "--format", "half", "-o", folder)
    assert "config.json says head_heads 2" in refused("inspect", folder, "--head-heads", "4")
    assert set(load_checkpoint(folder).origins.values()) == {"config.json"}


def test_usual_heads_are_named_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    found = hc.load("starter")
    assert set(found.origins.values()) == {"config.json"}
    from hmrcompress.models import told

    shapes = {"backbone.pos_embed": torch.empty(1, 193, 1280, device="meta")}
    shapes["smpl_head.transformer.to_token_embedding.weight"] = torch.empty(1024, 1, device="meta")
    sizes, origins = told.told_sizes(told.Sizes(), {}, None, shapes, type(found.network))
    assert sizes == told.Sizes() and origins["heads of the backbone"] == "usual at dim 1280"
    assert origins["heads of the head"] == "usual at width 1024"


QUICK = ("inspect", "search", "cka", "merge", "finetune", "eval", "convert", "predict", "profile")
COMMANDS = (*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("bench", "export")))


@pytest.mark.parametrize("command", COMMANDS)
def test_heads_can_be_given_to_every_command(
    command: str,
    tmp_path: Path,
    state: dict[str, Tensor],
    tiny_crops_file: Path,
    tiny_body_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without them each says what it lacks; with them it runs on the very network."""
    from PIL import Image

    path, data = tmp_path / "bare.pth", f"crops:{tiny_crops_file}"
    torch.save({"model": prefixed(dict(state), "module.")}, path)
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "a.png")
    body = ["--body", tiny_body_file]
    plan = tmp_path / "plan.yaml"
    if command == "merge":
        run(
            "search",
            path,
            *FLAGS,
            "--data",
            data,
            "--frames-per-clip",
            1,
            *body,
            "--tau",
            1000,
            "--set",
            "search.tokens=null",
            "-o",
            plan,
        )
    rest = {
        "search": ["--data", data, "--frames-per-clip", 1, *body, "-o", plan],
        "cka": ["--data", data, *body, "--limit", 4, "-o", tmp_path / "cka.png"],
        "merge": ["--plan", plan, "-o", tmp_path / "merged"],
        "finetune": ["--stage", "probe", "--data", data, "--images", 4, "--batch-size", 4, *body, "-o", tmp_path / "p"],
        "eval": ["--data", data, *body, "--limit", 2],
        "bench": ["--layers", 2, "--rounds", 1, "--batch-sizes", 1, "--no-memory", *body],
        "export": ["--data", data, *body, "--limit", 2, "--batch-size", 2, "-o", tmp_path / "a.onnx"],
        "convert": ["-o", tmp_path / "c.safetensors"],
        "predict": [tmp_path / "a.png", "--no-overlay", "--no-glb", *body, "-o", tmp_path / "predicted"],
        "profile": [tmp_path / "a.png", "--no-overlay", "--no-glb", *body],
    }.get(command, [])
    assert "Give num_heads" in refused(command, path, *rest)
    run(command, path, *rest, *FLAGS)


def test_heads_can_be_given_to_a_recipe(tmp_path: Path, state: dict[str, Tensor], tiny_crops_file: Path,
                                        tiny_body_file: Path) -> None:  # fmt: skip
    path = tmp_path / "bare.pth"
    torch.save(state, path)
    recipe = tmp_path / "r.yaml"
    data = f"crops:{tiny_crops_file}"
    recipe.write_text(
        f"model: {path}\nbody: {tiny_body_file}\ndata: {{search: '{data}', eval: '{data}'}}\neval: {{limit: 2}}\n"
    )
    assert "Give num_heads" in refused("run", recipe, "-o", tmp_path / "a")
    run("run", recipe, "-o", tmp_path / "b", "--set", "num_heads=2", "--set", "head_heads=2")
