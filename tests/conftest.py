"""Fixtures over the tiny world of `tests/tiny.py`; made once a session (and process) and only read."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer import testing

from hmrcompress.api import opening
from hmrcompress.body.files import load_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.metrics.points import PROTOCOLS
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.network import HMR2

THREADS = int(os.environ.get("HMRCOMPRESS_TEST_THREADS", "1"))
"""Threads of torch in every process: by default one, as the networks of the tests are too small for more to pay."""


@pytest.hookimpl(optionalhook=True)  # unknown where pytest-xdist is not in use
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: as many processes as the cores that may be used have room for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // THREADS)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process, which makes its fixtures once; the files that trace graphs share one, and
    come first, as they take longest. The groups of pytest-xdist 3.8 would do, were they not lost in pytest 9.2."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "graphs" if traces(config.rootpath / file) else file

    config.option.loadscopereorder = False  # by number of tests, which says little about their time
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not traces(item.path))


def pytest_collection_finish() -> None:
    """What collecting the tests imported stays until the end: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


@cache
def traces(file: Path) -> bool:
    """Whether tests of a file ask for the fixture `graphs`."""
    return 'usefixtures("graphs")' in file.read_text()


@pytest.fixture(scope="session")
def graphs() -> Iterator[None]:
    """Everything that exports traces the same network once. See `traced`."""
    import traced

    with pytest.MonkeyPatch.context() as patch:
        traced.use(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_are_made_once() -> Iterator[None]:
    """The command of an app is made once a process, not for each line that a test gives it: that takes 0.1 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "_get_command", lru_cache(testing._get_command))
        yield


@pytest.fixture(scope="session")
def tiny_network() -> HMR2:
    return tiny.network()


@pytest.fixture(scope="session")
def tiny_body_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_body(tmp_path_factory.mktemp("body") / "tiny.npz")


@pytest.fixture(scope="session")
def tiny_body(tiny_body_file: Path) -> BodyModel:
    return load_body(tiny_body_file)


@pytest.fixture(scope="session")
def tiny_crops_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crops") / "crops.npz"
    write_crops(path, tiny.crop_arrays(), tiny.crop_meta())
    return path


@pytest.fixture(scope="session")
def tiny_crops(tiny_crops_file: Path) -> CropSet:
    return CropSet.open(tiny_crops_file)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_network: HMR2) -> Path:
    """The tiny network as a model folder, which nothing was merged in."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_model_folder(path, tiny_network.state_dict(), tiny.CONFIG, body="tiny")
    return path


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of inputs of one kind (see `tests/cases`), made once a session. Tests only read them."""
    from cases import makers

    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("cases") / kind
            makers()[kind](made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from kept import World

    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def world(_world: Any) -> Iterator[Any]:
    """`kept.World`, while its protocol is known and the same files give the same network."""
    from kept import REGRESSED, load_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "regressed", REGRESSED)
        patch.setattr(opening, "load_checkpoint", load_once())
        yield _world
