"""How `pytest -n` shares the tests out: by file, so that what a file's tests share is made once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest

ROOT = Path(__file__).parents[1]


def test_a_file_stays_in_one_process_and_so_does_what_traces_graphs() -> None:
    pytest.importorskip("xdist")
    from xdist.remote import Producer

    config: Any = SimpleNamespace(rootpath=ROOT, option=SimpleNamespace(), getvalue=lambda name: ["popen", "popen"])
    place = conftest.pytest_xdist_make_scheduler(config, Producer("tests"))._split_scope
    assert place("tests/test_plan.py::test_a[x::y]") == place("tests/test_plan.py::test_b") == "tests/test_plan.py"
    assert place("tests/test_export.py::test_a") == place("tests/test_int8.py::test_b") == "graphs"
    assert config.option.loadscopereorder is False
