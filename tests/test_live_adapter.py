"""Networks of other code from the command line: an adapter, searched, merged, healed and timed, and its faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from live_networks import GRID, pictures, stranger
from test_model_commands import run as invoke

import hmrcompress as hc
from hmrcompress.plan import Plan


def run(*words: Any) -> Any:
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    return done


TESTS = Path(__file__).parent
ADAPTER = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from live_networks import pictures, stranger

def model():
    return stranger("WiLoR", depth=5).float()

def batches(split):
    return [pictures(2, 10 * ["search", "train", "test"].index(split) + seed)[0].float() for seed in range(2)]

def run(model, batch):
    return model(batch)

def distance(outputs, teacher, batch):
    return 1000 * (outputs[0] - teacher[0]).flatten(1).abs().mean(1)

def masks(batch):
    return pictures(len(batch))[1]
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("adapter") / "wilor.py"
    path.write_text(ADAPTER)
    return f"adapter:{path}"


def test_the_whole_line(adapter: str, tmp_path: Path) -> None:
    plan, fast, healed, figures = (tmp_path / name for name in ("plan.yaml", "fast", "healed", "figures.json"))
    tokens = ["--keep-tokens", 14, "--merge-per-layer", 8, "--with-tokens"]
    tokens += ["--set", "search.tokens.read=restored"]
    line = ["search", adapter, "--tau", 800, "--method", "eclm", *tokens, "-o", plan]
    said = run(*line, "--json", figures).output
    found = Plan.read(plan)
    assert 1 < len(found.groups) < 5 and f"5 -> {len(found.groups)} layers" in said and "distance mm" in said
    assert found.checkpoint.family == "live:Stranger" and found.search is not None
    assert found.search.data.name == "wilor" and found.tokens is not None and found.tokens.read == "restored"
    assert run(*line).output.splitlines()[-1] == str(plan)  # from the journal

    assert "hc.live.restore" in run("merge", adapter, "--plan", plan, "-o", fast).output
    sets = ["--set", "finetune.steps=10", "--set", "finetune.rank=2"]
    heal = ["finetune", adapter, "--stage", "heal", "--plan", fast, "-o", healed, *sets]
    assert "mm from the untouched model after 10 steps" in run(*heal).output
    model, images = stranger("WiLoR", depth=5).float(), pictures()[0].float()
    outputs = []
    for folder in (fast, healed):
        hc.live.restore(model, folder)
        with torch.no_grad(), hc.person_mask(model, pictures()[1]):
            outputs.append(model(images)[0])
        hc.unapply(model)
    assert not torch.equal(*outputs)

    speeds = tmp_path / "speeds.json"
    timed = run("bench", adapter, "--plan", fast, "--rounds", 1, "--json", speeds).output
    assert "times as fast" in timed and "compressed" in timed
    contenders = json.loads(speeds.read_text())["live"]["contenders"]
    assert list(contenders) == ["original", "layers", "tokens", "compressed"]
    assert contenders["compressed"]["macs_ratio"] > contenders["layers"]["macs_ratio"] > 1


def test_a_template_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("adapter", "new", "sam3d").output.strip() == "sam3d.py"
    text = Path("sam3d.py").read_text()
    compile(text, "sam3d.py", "exec")
    assert "adapter:sam3d.py" in text and "your code" in text
    refused("is there already", "adapter", "new", "sam3d")
    assert Path("sam3d.py").read_text() == text
    refused("model.. fails .NotImplementedError: load your model here", "search", "adapter:sam3d.py", "-o", "plan.yaml")


def refused(message: str, *words: Any) -> None:
    done = invoke(*words)
    assert done.exit_code == 2 and re.search(message, done.output) and "Traceback" not in done.output, done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("def distance", "def other"), "has no distance; adapters need model, batches, run, distance"),
        (("def model():", "def model():\n    return 3\n"), "model.. gave a int, expected a torch.nn.Module"),
        (("def run", "1 / 0\ndef run"), "fails when it is run .ZeroDivisionError: division by zero"),
        (("def run", "STACK = {'depth': 3}\ndef run"), "STACK: there is no depth, expected blocks, grid"),
        (("def run", "STACK = {'blocks': 'encoder'}\ndef run"), "there is no encoder. Try backbone.blocks"),
        (("range(2)]", "range(0)]"), "batches.*search.* gives none"),
    ],
)
def test_faults_of_adapters_are_told(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(ADAPTER.replace(*change))
    refused(message, "search", f"adapter:{path}", "-o", tmp_path / "plan.yaml")
    assert not (tmp_path / "plan.yaml").exists()


def test_options_that_would_do_nothing_are_refused(adapter: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("no such adapter", "search", "adapter:nowhere.py", "-o", out)
    refused("--data: has no effect on an adapter", "search", adapter, "--data", "starter", "-o", out)
    refused("--batch-sizes: has no effect", "bench", adapter, "--plan", out, "--batch-sizes", 3)
    refused("--plan: adapters need a plan", "bench", adapter)
    refused("--stage: got probe", "finetune", adapter, "--stage", "probe", "-o", out)
    refused("--set search.protocol: has no effect", "search", adapter, "--set", "search.protocol=starter24", "-o", out)
    refused("--max-minutes: healing an adapter needs an end", "finetune", adapter, "--plan", out, "-o", out)
    refused("--plan: is for adapters", "finetune", "starter", "--plan", out, "-o", out)
    assert GRID and not out.exists()
