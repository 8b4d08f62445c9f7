"""`hmrcompress doctor`: what is told of packages, devices and cache, and when the shipped network is not itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hmrcompress.api import doctor
from hmrcompress.api.opening import STARTER_MODEL, load
from hmrcompress.errors import UserError
from hmrcompress.io.hashes import sha256_file
from hmrcompress.models.files.folder import WEIGHTS
from hmrcompress.starter.network.golden import GOLDEN, OUTPUTS, bound_of, compare, crop, outputs_of, write_golden
from hmrcompress_cli.main import app


def test_the_golden_output_is_that_of_the_shipped_weights() -> None:
    """Other weights are shipped now? `starter train --freeze` writes the file; else see `golden.write_golden`."""
    kept = json.loads((STARTER_MODEL / GOLDEN).read_text())
    assert kept["weights_sha256"] == sha256_file(STARTER_MODEL / WEIGHTS)
    network = load("starter").network
    found = compare(network, STARTER_MODEL)
    assert found["equal"] and found["difference"] <= found["bound"] < 1e-3
    exact = network.double()(crop().double())  # float64 is within the bound of what is kept, which float32 computed
    for name in OUTPUTS:
        gap = (getattr(exact, name).flatten() - torch.tensor(kept["outputs"][name], dtype=torch.float64)).abs().max()
        assert gap <= found["bound"], name


def test_the_crop_is_the_same_everywhere() -> None:
    made = crop()
    assert made.shape == (1, 3, 256, 192) and made.dtype == torch.float32
    row, column, channel = 200, 70, 2
    assert (
        made[0, channel, row, column] == ((7 * row + 13 * column + 31 * channel + row * column // 64) % 256) / 128 - 1
    )


def test_a_network_that_computes_otherwise_is_found(tmp_path: Path) -> None:
    network = load("starter").network
    shutil.copy(STARTER_MODEL / WEIGHTS, tmp_path / WEIGHTS)
    write_golden(network, tmp_path, tmp_path)
    bound = bound_of(network, outputs_of(network))
    for shift, equal in ((bound / 2, True), (2 * bound, False)):
        kept = json.loads((STARTER_MODEL / GOLDEN).read_text())
        kept["outputs"]["cam"][0] += shift
        (tmp_path / GOLDEN).write_text(json.dumps(kept))
        assert compare(network, tmp_path)["equal"] is equal
    (tmp_path / WEIGHTS).write_bytes(b"others")
    with pytest.raises(UserError, match="is of other weights"):
        compare(network, tmp_path)
    (tmp_path / GOLDEN).unlink()
    with pytest.raises(UserError, match="no such file"):
        compare(network, tmp_path)


def test_packages_are_held_against_their_bounds() -> None:
    own = metadata.version("numpy")
    wanted = [
        "numpy>=1.0", "numpy<1", "no-such-package>=3", "av>=99; extra == 'video'", "numpy; python_version < '3'",
        "pytest; extra == 'dev'", "hmrcompress[docs]; extra == 'dev'",
    ]  # fmt: skip
    found = doctor.packages(wanted)
    assert [(each.name, each.wanted, each.version, each.fits, each.extra) for each in found[:3]] == [
        ("numpy", ">=1.0", own, True, ""),
        ("numpy", "<1", own, False, ""),
        ("no-such-package", ">=3", None, False, ""),
    ]
    assert [(each.name, each.fits, each.extra) for each in found[3:]] == [("av", False, "video")]


def test_what_is_needed_is_what_pyproject_says() -> None:
    text = doctor.PROJECT.read_text()
    needed = doctor.requirements()
    assert len(needed) > 20 and all(f'"{each.partition(";")[0]}"' in text for each in needed)
    assert {each.extra for each in doctor.packages(needed)} <= {"", *doctor.EXTRAS}


def test_the_cache_is_measured_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HMRCOMPRESS_HOME", str(home))
    assert doctor.cache() == {"folder": str(home), "bytes": 0, "files": 0, "writable": True} and not home.exists()
    (home / "a").mkdir(parents=True)
    (home / "a" / "b").write_bytes(bytes(7))
    assert (doctor.cache()["bytes"], doctor.cache()["files"]) == (7, 1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMRCOMPRESS_HOME", str(tmp_path))
    file = tmp_path / "d.json"
    done = CliRunner().invoke(app, ["doctor", "--json", str(file)])
    assert done.exit_code == 0 and done.stdout.endswith("all is well\n"), done.output
    told = json.loads(file.read_text())["doctor"]
    assert told["faults"] == [] and told["golden"]["equal"] and "CPU" in told["devices"]["onnxruntime"]
    assert {each["name"] for each in told["packages"]} >= {"torch", "numpy", "onnxruntime", "typer"}

    found = doctor.examine()
    lacking = replace(found.packages[0], version=None, fits=False)
    extra = doctor.Package("av", ">=17", None, False, "video")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"packages": (lacking,)}, f"{lacking.name} is missing: hmrcompress needs {lacking.name}{lacking.wanted}"),
        ({"golden": {"equal": False, "difference": 0.1, "bound": 1e-5}}, "is 1.0e-01 from its golden output"),
        ({"golden": {"error": "was eaten"}}, "the shipped network: was eaten"),
    ]
    for change, sentence in bad:
        monkeypatch.setattr(doctor, "examine", partial(replace, found, **change))
        done = CliRunner().invoke(app, ["doctor"])
        assert done.exit_code == 3 and sentence in done.stderr and "all is well" not in done.stdout
    monkeypatch.setattr(doctor, "examine", partial(replace, found, packages=(extra,)))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert (
        "missing for videos in predict and profile, starter video: av. Try: pip install 'hmrcompress[video]'"
        in done.stdout
    )
