"""`hmrcompress inspect, convert, merge` from the command line; the full-size network is in the slow part."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from test_checkpoints import Evil
from typer.testing import CliRunner, Result

from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.models.network import NetworkConfig, build, random_sha256
from hmrcompress.plan import CheckpointRef, Plan, TokenSettings, trivial_groups
from hmrcompress_cli.main import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.ckpt"
    extra = {"smpl.faces": torch.ones(2), "backbone.mystery": torch.ones(1)}
    torch.save({"state_dict": tiny.network().state_dict() | extra}, path)
    return path


def plan_for(path: Path, tokens: int = 100) -> Plan:
    reference = load_checkpoint(path).reference
    return Plan(checkpoint=reference, groups=((0,), (1,), (2, 3)), tokens=TokenSettings(keep=tokens))


def test_inspect_convert_merge_inspect(tmp_path: Path, weights: Path) -> None:
    figures = tmp_path / "inspect.json"
    seen = run("inspect", weights, "--num-heads", 2, "--head-heads", 2, "--json", figures)
    assert seen.exit_code == 0, seen.output
    found = json.loads(figures.read_text())
    assert found["command"] == "inspect" and found["schema"] == 1
    assert found["unknown_keys"] == ["backbone.mystery"] and found["ignored_keys"] == ["smpl.faces"]
    assert found["layers"] == {"before": 4, "after": 4} and found["tokens"] == {"by_layer": [192]}
    assert found["params"]["before"] == sum(p.numel() for p in tiny.network().parameters())
    assert found["sha256"] in seen.output and "1 (backbone)" in seen.output

    torch.save(tiny.network().state_dict(), weights)
    made = run("convert", weights, "-o", tmp_path / "tiny", "--num-heads", 2, "--head-heads", 2, "--quiet")
    assert (made.exit_code, made.output) == (0, "")
    plan_for(tmp_path / "tiny.safetensors").write(tmp_path / "plan.yaml")
    merged = run("merge", tmp_path / "tiny.safetensors", "--plan", tmp_path / "plan.yaml", "-o", tmp_path / "out")
    assert merged.exit_code == 0 and merged.output.startswith("4 -> 3 layers"), merged.output
    assert "192 -> 100 tokens" in merged.output

    assert run("inspect", tmp_path / "out", "--json", figures).exit_code == 0
    found = json.loads(figures.read_text())
    assert found["layers"] == {"before": 4, "after": 3} and found["groups"] == [[0], [1], [2, 3]]
    assert found["tokens"]["by_layer"] == [192, 152, 112, 100] and found["tokens"]["keep"] == 100
    assert found["macs"]["after"] < found["macs"]["before"]


def test_faults_end_in_one_sentence_exit_2_and_no_output(tmp_path: Path, weights: Path) -> None:
    torch.save(tiny.network().state_dict(), weights)
    assert run("convert", weights, "-o", tmp_path / "good", "--num-heads", 2, "--head-heads", 2).exit_code == 0
    good = tmp_path / "good.safetensors"
    plan_for(good).write(tmp_path / "plan.yaml")
    other = plan_for(good).model_copy(update={"checkpoint": CheckpointRef(family="hmr2", sha256="f" * 64, layers=4)})
    other.write(tmp_path / "other.yaml")
    (tmp_path / "wrong.yaml").write_text("schema: 1\ngroups: []\n")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    torch.save({"state_dict": {}, "x": Evil(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    merge = ("merge", good, "-o", out, "--plan")
    cases = {
        ("inspect", tmp_path / "none.ckpt"): "no such file",
        ("inspect", tmp_path / "cut.safetensors"): "truncated",
        ("inspect", tmp_path / "evil.ckpt"): "asks for",
        ("convert", tmp_path / "evil.ckpt", "-o", out): "asks for",
        ("convert", tmp_path / "cut.safetensors", "-o", out): "truncated",
        ("convert", weights, "-o", out): "Give num_heads",
        ("convert", tmp_path / "none.pkl", "-o", out): "no such file",
        ("convert", "random:vit", "-o", out): "family: got 'vit'",
        (*merge, tmp_path / "none.yaml"): "no such plan",
        (*merge, tmp_path / "wrong.yaml"): "groups: there are no layers",
        (*merge, tmp_path / "other.yaml"): "--force",
        ("merge", tmp_path / "cut.safetensors", "-o", out, "--plan", tmp_path / "plan.yaml"): "truncated",
    }
    for arguments, message in cases.items():
        ended = run(*arguments)
        assert ended.exit_code == 2, (arguments, ended.output)
        assert message in ended.stderr and ended.stderr.count("\n") == 1, (arguments, ended.stderr)
        assert "Traceback" not in ended.output
    assert sorted(tmp_path.iterdir()) == before


FULL_SIZE = """
import sys
from hmrcompress.models.files.load import load_checkpoint
from hmrcompress.timing.memory import peak_resident
checkpoint = load_checkpoint(sys.argv[1])
total = sum(float(tensor.sum()) for tensor in checkpoint.state().values())  # touches every page
assert total == total and checkpoint.sha256
print(peak_resident())
"""


@pytest.mark.slow
def test_full_size_from_random_to_merged_within_memory(tmp_path: Path) -> None:
    """2.7 GB written and read; the network is not run (`eval` has its own test)."""

    def command(*arguments: object) -> float:
        """Runs a command in a process of its own; its greatest memory in bytes."""
        code = (
            "import sys; from hmrcompress.timing.memory import peak_resident; from hmrcompress_cli.main import app\n"
            "try: app(sys.argv[1:])\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "print('peak', peak_resident())"
        )
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(re.findall(r"peak (\d+)", done.stdout)[-1])

    file, out = tmp_path / "full.safetensors", tmp_path / "merged"
    figures, merging = tmp_path / "inspect.json", tmp_path / "merge.json"
    command("convert", "random:hmr2", "-o", file)
    size = file.stat().st_size
    assert size > 4 * 670_000_000
    assert command("inspect", file, "--json", figures) < 1.3 * size
    found = json.loads(figures.read_text())
    assert round(found["macs"]["before"] / 1e9, 2) == 122.59 and found["layers"]["before"] == 32

    read = subprocess.run([sys.executable, "-c", FULL_SIZE, str(file)], capture_output=True, text=True, check=True)
    assert float(read.stdout) < 1.3 * size
    lightning = tmp_path / "full.ckpt"
    torch.save({"state_dict": load_checkpoint(file).state(), "epoch": 1}, lightning)
    read = subprocess.run([sys.executable, "-c", FULL_SIZE, str(lightning)], capture_output=True, text=True, check=True)
    assert float(read.stdout) < 1.3 * size
    lightning.unlink()

    groups = (*trivial_groups(27), (27, 28, 29, 30, 31))
    plan = Plan(checkpoint=load_checkpoint(file).reference, groups=groups, tokens=TokenSettings())
    plan.write(tmp_path / "plan.yaml")
    assert command("merge", file, "--plan", tmp_path / "plan.yaml", "-o", out, "--json", merging) < 2 * size
    found = json.loads(merging.read_text())
    assert found["layers"] == {"before": 32, "after": 28}
    assert round(found["macs"]["after"] / 1e9, 2) == 52.82
    merged = load_checkpoint(out)
    assert merged.config == NetworkConfig(depth=28) and merged.tokens == TokenSettings()


def test_random_weights_have_the_hash_of_their_name() -> None:
    assert random_sha256("hmr2", 3) == random_sha256("hmr2", 3) != random_sha256("hmr2", 4)
    assert build(tiny.CONFIG, seed=1).config == tiny.CONFIG
