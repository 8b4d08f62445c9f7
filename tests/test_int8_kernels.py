"""The kernel of 8-bit products is chosen by measuring, kept by processor, and refused where it is slower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from hmrcompress.api import running as api
from hmrcompress.api.running import running
from hmrcompress.errors import Notice, UserError
from hmrcompress.models.fast.linear import INT8_KINDS, RowInt8Linear, exact_int8, linear
from hmrcompress.models.fast.network import make_fast
from hmrcompress.models.fast.running import RunPath
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.plan import CheckpointRef, Plan, RunSettings, trivial_groups
from hmrcompress.timing import int8_kernels as timing
from hmrcompress.timing.int8_kernels import Int8Kernels, int8_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_scales_of_their_own(dtype: torch.dtype) -> None:
    """Each row against a loop in float64: whole numbers of its own steps, summed exactly."""
    seeded = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 40, generator=seeded), torch.randn(24, generator=seeded)
    x = (torch.randn(2, 9, 40, generator=seeded) * torch.logspace(-3, 3, 9)[:, None]).to(dtype)
    found = RowInt8Linear(weight, bias)(x)
    assert found.shape == (2, 9, 24) and found.dtype == dtype
    scale = weight.abs().amax(1).double() / 127
    rounded = (weight.double() / scale[:, None]).round()
    for row, given in zip(found.flatten(0, 1), x.flatten(0, 1).double(), strict=True):
        step = given.abs().max() / 127
        expected = (given / step).round() @ rounded.T * step * scale + bias.double()
        # A quotient that lies halfway may fall to either side in float32: one step of one input.
        allowed = step * weight.abs().max() + 2**-7 * expected.abs() if dtype == torch.bfloat16 else step * 2
        assert bool(((row.double() - expected).abs() <= allowed + 1e-5).all())
    residual = torch.randn(2, 9, 24, generator=seeded).to(dtype)
    added = RowInt8Linear(weight, bias)(x, residual=residual.clone()).double()
    assert torch.allclose(added, found.double() + residual.double(), rtol=2**-7, atol=1e-6)
    through = torch.nn.functional.gelu(found.double())
    assert torch.allclose(RowInt8Linear(weight, bias)(x, gelu=True).double(), through, rtol=2**-5, atol=1e-2)
    assert torch.equal(RowInt8Linear(weight, None)(torch.zeros(3, 40)), torch.zeros(3, 24))


@pytest.mark.parametrize("kind", INT8_KINDS)
def test_every_kernel_gives_the_same_numbers(kind: Any) -> None:
    """Whole numbers up to 127, the largest among them in every row, are their own 8-bit values."""
    seeded = torch.Generator().manual_seed(0)
    weight = torch.randint(-126, 127, (24, 64), generator=seeded).float()
    x = torch.randint(-126, 127, (5, 64), generator=seeded).float()
    weight[:, 0], x[:, 0] = 127.0, -127.0
    layer = linear(kind, weight, torch.arange(24.0))
    assert torch.equal(layer(x.clone()), x @ weight.T + torch.arange(24.0))
    network = tiny.network()
    images = torch.randn(2, 3, 256, 192, generator=seeded)
    with torch.no_grad():
        first = make_fast(network, int8=True)(images).body_pose
        other = make_fast(network, int8=True, kernel=kind)(images).body_pose
        plain = network(images).body_pose
    moved = (first - plain).abs().max()
    assert (other - plain).abs().max() < 3 * moved + 1e-4


def test_a_choice_is_measured_once_and_kept_by_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def times(kinds: dict[str, Any], inputs: int, *more: Any) -> dict[str, float]:
        calls.append(inputs)
        return {"plain": 2.0, "int8": 4.0, "int8_unsigned": 100.0, "int8_rows": 1.0 if inputs > timing.PROBE else 3.0}

    monkeypatch.setattr(timing, "_times", times)
    monkeypatch.setattr(timing, "exact_int8", lambda kind: kind != "int8")
    found = int8_kernels(1280, 5120, torch.bfloat16, home=tmp_path)
    assert calls == [timing.PROBE, 1280] and found.best == "int8_rows" and found.speedup == 2.0
    assert "overflow" in found.left_out["int8"] and "50 times" in found.left_out["int8_unsigned"]
    assert int8_kernels(1280, 5120, torch.bfloat16, home=tmp_path) == found and len(calls) == 2
    (kept,) = (tmp_path / "int8").iterdir()
    assert json.loads(kept.read_text())["dtype"] == "bfloat16"
    int8_kernels(1280, 5120, torch.float32, home=tmp_path)
    monkeypatch.setattr(timing, "cpu_name", lambda: "another")
    int8_kernels(1280, 5120, torch.float32, home=tmp_path)
    assert len(calls) == 6 and len(list((tmp_path / "int8").iterdir())) == 3
    whole = kept.read_text()
    for text in ("", "[]", '{"a": 1}', whole.replace("int8_rows", "rm"), whole.replace("2.0", "0")):
        monkeypatch.undo()
        monkeypatch.setattr(timing, "_times", times)
        monkeypatch.setattr(timing, "exact_int8", lambda kind: kind != "int8")
        kept.write_text(text)
        assert int8_kernels(1280, 5120, torch.bfloat16, home=tmp_path) == found, text


def test_real_kernels_are_timed_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PROBE", 16)
    found = int8_kernels(32, 48, torch.float32, rows=4, home=tmp_path)
    assert found.milliseconds["plain"] > 0 and set(found.milliseconds) <= {"plain", *INT8_KINDS}
    for kind in found.left_out:
        assert not exact_int8(kind) or "times" in found.left_out[kind]  # type: ignore[arg-type]


@pytest.fixture
def model() -> Checkpoint:
    return Checkpoint(tiny.network(), "hmr2", "tiny", known_sha256="0" * 64)


def told(model: Checkpoint, found: Int8Kernels, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    monkeypatch.setattr(api, "int8_kernels", lambda *sizes: found)
    return running(model, CPU, **({"dtype": torch.float32} | more))


def test_8_bits_that_are_slower_are_refused_or_left_out(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = RunPath(int8=True)
    fast = Int8Kernels({"plain": 2.0, "int8_rows": 1.0, "int8": 1.5}, {})
    slow = Int8Kernels({"plain": 2.0, "int8_rows": 5.0}, {})
    made = told(model, fast, monkeypatch, path=asked, only_if_faster=True)
    assert made.path.int8 is True and made.path.kernel == "int8_rows"
    for found, words in (
        (slow, "take 2.5 times the time"),
        (Int8Kernels({"plain": 2.0}, {}), "take many times the time"),
    ):
        with pytest.raises(UserError, match=f"--dtype int8: products in 8 bits {words} of those in float32 on this"):
            told(model, found, monkeypatch, path=asked, only_if_faster=True)
        with pytest.warns(Notice, match="products in 8 bits"):
            assert told(model, found, monkeypatch, path=asked).path.int8 is True
    plan = Plan(
        checkpoint=CheckpointRef(family="hmr2", sha256="0" * 64, layers=4),
        groups=trivial_groups(4),
        run=RunSettings(int8=(1, 2)),
    )
    with pytest.warns(Notice, match="so they are left out"):
        made = told(replace(model, plan=plan), slow, monkeypatch, dtype=None, only_if_faster=True)
    assert made.path.int8 is False and made.path.fast
    assert told(replace(model, plan=plan), fast, monkeypatch, dtype=None).path.int8 == (1, 2)
    assert told(model, slow, monkeypatch, path=RunPath(fast=True), only_if_faster=True).path == RunPath(fast=True)
