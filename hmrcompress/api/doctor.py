"""What there is to work with: packages, devices, the cache, and whether the shipped network computes what it should."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from hmrcompress.api.opening import STARTER_MODEL, load
from hmrcompress.errors import UserError
from hmrcompress.io.home import cache_home
from hmrcompress.runtime import dtype_name, environment, fast_dtype
from hmrcompress.starter.network.golden import compare

EXTRAS = {
    "video": "videos in predict and profile, starter video",
    "heic": "the pictures of telephones in predict and profile",
    "plots": "cka, learning curves in a report",
    "smplx": "--body smplx:FOLDER",
    "openvino": "export --format openvino, and what it writes as a model",
    "coreml": "export --format coreml",
    "tensorrt": "building the engines that export --format tensorrt prepares",
    "cluster": "predict --on ray",
    "starter-build": "starter build --body",
}
"""Extras that commands use, and what for; the others are for working on hmrcompress."""
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@dataclass(frozen=True)
class Package:
    """A package that is needed, by an extra or (`extra` empty) by everything. version None: it is not installed."""

    name: str
    wanted: str
    version: str | None
    fits: bool
    extra: str = ""


@dataclass(frozen=True)
class Examination:
    """What was found. golden: see `starter.network.golden.compare`; {error} where it could not be compared."""

    packages: tuple[Package, ...]
    devices: dict[str, Any]
    cache: dict[str, Any]
    golden: dict[str, Any]
    environment: dict[str, Any]

    @property
    def faults(self) -> list[str]:
        """What stops hmrcompress from working as it should, a sentence each. Extras that are missing are no faults."""
        found = [
            f"{each.name} {each.version or 'is missing'}: hmrcompress needs {each.name}{each.wanted}"
            for each in self.packages
            if not each.fits and not each.extra
        ]
        if "error" in self.golden:
            return [*found, f"the shipped network: {self.golden['error']}"]
        if not self.golden["equal"]:
            gap, bound = self.golden["difference"], self.golden["bound"]
            found.append(f"the shipped network is {gap:.1e} from its golden output, expected at most {bound:.1e}")
        return found

    @property
    def missing(self) -> dict[str, list[Package]]:
        """The packages that extras of `EXTRAS` still need, by extra."""
        lacking = {name: [each for each in self.packages if each.extra == name and not each.fits] for name in EXTRAS}
        return {name: found for name, found in lacking.items() if found}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "packages": [asdict(each) for each in self.packages],
            "devices": self.devices,
            "cache": self.cache,
            "golden": self.golden,
            "missing": {name: [each.name for each in found] for name, found in self.missing.items()},
            "faults": self.faults,
        }


def examine() -> Examination:
    """Looks at everything; nothing is changed or made. Takes a second or two."""
    return Examination(tuple(packages(requirements())), devices(), cache(), golden(), environment())


def requirements() -> list[str]:
    """What hmrcompress needs, extras after `; extra ==`: of the checkout that runs, else as it was installed."""
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        return [*project["dependencies"], *(f"{each}; extra == '{name}'" for name in extras for each in extras[name])]
    return metadata.requires("hmrcompress") or []


def packages(wanted: Iterable[str]) -> list[Package]:
    """Each of them as it is installed here; those of extras that no command uses are left out."""
    found = []
    for text in wanted:
        need = Requirement(text)
        extra = next((name for name in EXTRAS if need.marker and need.marker.evaluate({"extra": name})), "")
        if need.name == "hmrcompress" or (need.marker and not extra and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = None
        fits = version is not None and need.specifier.contains(version, prereleases=True)
        found.append(Package(need.name, str(need.specifier), version, fits, extra))
    return found


def devices() -> dict[str, Any]:
    """The processor's features that matter here, CUDA devices with their memory, providers of onnxruntime."""
    cpu = torch.device("cpu")
    checks = {
        "AVX-512 VNNI": "_is_avx512_vnni_supported",
        "AVX-512 bfloat16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
    }
    features = [name for name, check in checks.items() if getattr(torch.cpu, check, lambda: False)()]
    cuda = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": {
            "features": [torch.backends.cpu.get_cpu_capability(), *features],
            "threads": torch.get_num_threads(),
            "fast_dtype": dtype_name(fast_dtype(cpu)),
        },
        "cuda": [
            {"name": each.name, "memory_bytes": each.total_memory, "capability": f"{each.major}.{each.minor}"}
            for each in cuda
        ],
        "onnxruntime": _providers(),
    }


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]


def cache() -> dict[str, Any]:
    """{folder, bytes, files, writable}: rendered data, features, and what else is kept; nothing is made."""
    home = cache_home()
    sizes = [path.lstat().st_size for path in home.rglob("*") if path.is_file()] if home.is_dir() else []
    nearest = next(path for path in (home, *home.absolute().parents) if path.exists())
    return {
        "folder": str(home),
        "bytes": sum(sizes),
        "files": len(sizes),
        "writable": nearest.is_dir() and os.access(nearest, os.W_OK),
    }


def golden() -> dict[str, Any]:
    """How far the shipped network is from its golden output; {error} where that cannot be said."""
    try:
        return compare(load("starter").network, STARTER_MODEL)
    except UserError as error:
        return {"error": str(error)}
