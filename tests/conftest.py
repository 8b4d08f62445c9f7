"""Fixtures over the tiny world of `tests/tiny.py`; made once a session and only read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from hmrcompress.body.files import load_body
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.models.folder import write_model_folder
from hmrcompress.models.network import HMR2


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks of the tests are too small for more than one thread to pay."""
    torch.set_num_threads(1)


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
