"""What a release holds: the packages of the tree and no others, the assets, and no tests; and that it works alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_the_command_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "hmrcompress_cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "inspect" in done.stdout, done.stderr
