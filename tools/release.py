"""Builds what is published, into dist/, and checks it: `make release`.

dist/ receives the source archive, the wheel and NOTES.md, the section of CHANGELOG.md for this version. Both are built
from the last commit, not from what lies around it. Then the wheel is installed into an empty environment, which sees
the dependencies of this one and nothing else, and used from another folder.

Refused where files differ from the last commit, where the version is not that of the package, or where the section is
still called unreleased; `--rehearsal` leaves the first and the last of these out.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
WANTED = (
    "hmrcompress/py.typed",
    "hmrcompress/assets/people/detector.onnx",
    "hmrcompress/assets/people/README.md",
    "hmrcompress/assets/starter/model.safetensors",
    "hmrcompress/assets/starter_body.npz",
    "hmrcompress_cli/__main__.py",
    "hmrcompress_recipes/starter.yaml",
)
"""Some of what every wheel has to hold."""
OUTSIDE = ("tests/", "docs/", "tools/", ".ci/")
"""What is in neither of the archives."""


def version() -> str:
    """The version of pyproject.toml. ValueError where the package has another one."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = re.search(r'^__version__ = "(.*)"', (ROOT / "hmrcompress" / "__init__.py").read_text(), re.M)
    if found is None or found[1] != said:
        raise ValueError(f"pyproject.toml says {said}, hmrcompress/__init__.py {found and found[1]}")
    return said


def section(text: str, wanted: str) -> tuple[str, str]:
    """Title and text of a version's section of a change log. ValueError where there is none."""
    found = re.search(rf"^## ({re.escape(wanted)}\b[^\n]*)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section for {wanted}")
    return found[1], found[2].strip() + "\n"


def changed_files() -> str:
    """What differs from the last commit, as git says it; empty where nothing does."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def build(out: Path) -> tuple[Path, Path]:
    """Source archive and wheel of the last commit, in the folder `out`. Needs no network."""
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as tree:
            tree.extractall(folder, filter="data")
        options = ["--no-isolation", "--skip-dependency-check", "--outdir", str(out)]
        done = subprocess.run([sys.executable, "-m", "build", *options, folder], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"building failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def contents(archive: Path) -> list[str]:
    """Names of the files in a wheel or a source archive, without the folder that holds all of the latter."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.namelist()
    with tarfile.open(archive) as tree:
        return [name.partition("/")[2] for name in tree.getnames() if "/" in name]


def faults(source: Path, wheel: Path) -> list[str]:
    """What is wrong with the contents of the two archives, a sentence each."""
    found = [f"{wheel.name} lacks {name}" for name in WANTED if name not in contents(wheel)]
    tracked = subprocess.run(["git", "ls-files", "hmrcompress"], cwd=ROOT, capture_output=True, text=True, check=True)
    held = set(contents(wheel))
    found += [f"{wheel.name} lacks {name}" for name in tracked.stdout.split() if name not in held]
    for archive in (source, wheel):
        found += [f"{archive.name} holds {name}" for name in contents(archive) if name.startswith(OUTSIDE)]
    return found


def empty_environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel in it; its command `hmrcompress`.

    The dependencies are those of the running Python, through a .pth file, which does not pass on what is installed
    there for editing. Needs no network.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)], check=True)
    place = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    import torch

    shared = {str(Path(torch.__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (place / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(shared)))
    return folder / "bin" / "hmrcompress"


def used(command: Path, words: list[str], folder: Path) -> str:
    """What an installed command prints when run in another folder. ValueError where it fails."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(command), *words], cwd=folder, capture_output=True, text=True, env=clean)
    if done.returncode:
        raise ValueError(f"{' '.join(words)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def release(rehearsal: bool) -> None:
    """Builds and checks; prints what is in dist/. ValueError where something is in the way."""
    title, notes = section((ROOT / "CHANGELOG.md").read_text(), version())
    if not rehearsal:
        if "unreleased" in title:
            raise ValueError(f"CHANGELOG.md: {title!r} has no date yet")
        if changed := changed_files():
            raise ValueError(f"these files differ from the last commit:\n{changed}")
    for old in DIST.glob("*"):
        old.unlink()
    source, wheel = build(DIST)
    (DIST / "NOTES.md").write_text(notes)
    if found := faults(source, wheel):
        raise ValueError("\n".join(found))
    with tempfile.TemporaryDirectory() as folder:
        command = empty_environment(Path(folder) / "env", wheel)
        used(command, ["inspect", "starter"], Path(folder))
    for path in sorted(DIST.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sys.stdout.write(f"{digest}  {path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB\n")
    sys.stdout.write("installed alone, it opens the starter network\n")


if __name__ == "__main__":
    try:
        release("--rehearsal" in sys.argv[1:])
    except ValueError as error:
        sys.exit(f"release: {error}")
