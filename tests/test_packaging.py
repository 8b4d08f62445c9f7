"""What a release holds: the packages of the tree and no others, the assets, and no tests; and that it works alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from release import build, empty_environment, faults, section, used, version

from hmrcompress.api.opening import STARTER_FAST, STARTER_MODEL
from hmrcompress.body.files import STARTER_BODY
from hmrcompress.data.crops import write_crops

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def packages() -> set[str]:
    """Dotted names of the folders that hold an `__init__.py`, as they are installed."""
    return {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for name, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }


def test_every_package_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages()
    loose = {path.parent for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in loose)


def test_types_are_announced_and_exporting_needs_no_extra() -> None:
    assert (ROOT / "hmrcompress" / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["hmrcompress"]
    core = {line.split(">")[0] for line in PROJECT["project"]["dependencies"]}
    assert {"onnx", "onnxruntime", "onnxscript"} <= core
    assert PROJECT["project"]["optional-dependencies"]["export"] == []


def test_what_is_shipped_is_where_it_is_looked_for() -> None:
    for place in (STARTER_MODEL / "model.safetensors", STARTER_FAST / "plan.yaml", STARTER_BODY):
        assert place.resolve().is_relative_to(ROOT / "hmrcompress" / "assets") and place.is_file()


def test_the_command_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "hmrcompress_cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "inspect" in done.stdout, done.stderr


def test_the_notes_of_a_release_are_its_section_of_the_change_log() -> None:
    text = "# Changelog\n\n## 0.2.0 (unreleased)\n\nnew\n\n- more\n\n## 0.1.0 (2026-11-28)\n\nold\n"
    assert section(text, "0.2.0") == ("0.2.0 (unreleased)", "new\n\n- more\n")
    assert section(text, "0.1.0") == ("0.1.0 (2026-11-28)", "old\n")
    with pytest.raises(ValueError, match="0.3.0"):
        section(text, "0.3.0")
    assert section((ROOT / "CHANGELOG.md").read_text(), version())[1].count("\n") > 10


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path: Path) -> None:
    """Built, installed into an empty environment, and used from another folder on the network that comes with it."""
    here = tmp_path / "elsewhere"
    (here / "pictures").mkdir(parents=True)
    crops = tiny.crop_arrays()
    write_crops(here / "crops.npz", crops, tiny.crop_meta())
    for number in range(2):
        Image.fromarray(crops["images"][number]).save(here / "pictures" / f"{number}.png")

    source, wheel = build(tmp_path)
    assert faults(source, wheel) == []
    command = empty_environment(tmp_path / "env", wheel)

    where = "import hmrcompress, hmrcompress_cli, hmrcompress_recipes as r; print(hmrcompress.__file__, r.__file__)"
    assert used(command.with_name("python"), ["-c", where], here).count(str(tmp_path / "env")) == 2

    data = "crops:crops.npz"
    assert "hmr2 (HMR2.0)" in used(command, ["inspect", "starter"], here)
    used(command, ["search", "starter", "--data", data, "--keep-tokens", "90", "-o", "plan.yaml"], here)
    used(command, ["merge", "starter", "--plan", "plan.yaml", "-o", "fast"], here)
    used(command, ["export", "fast", "--data", data, "-o", "fast.onnx"], here)
    used(command, ["predict", "fast", "pictures", "--masks", "none", "-o", "bodies"], here)
    assert (here / "fast.onnx").stat().st_size > 1_000_000
    assert np.load(here / "bodies" / "params.npz")["joints"].shape == (2, 24, 3)
