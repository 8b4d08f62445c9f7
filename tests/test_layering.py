"""Imports go downwards only, and what trains the starter network needs few packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = ("errors", "records", "runtime")
# The rooms of the design, top to bottom; rooms that do not exist yet keep their place.
ORDER = (
    "recipe", "api", "report", "frontier", "pipeline", "starter", "timing", "live", "exporting", "evaluation",
    "training", "searching", "decoder", "merging", "models", "data", "motion", "metrics", "body", "render", "geometry",
    "plan", "io", *BASE,
)  # fmt: skip


def below(room: str) -> set[str]:
    return set(ORDER[ORDER.index(room) + 1 :])


def from_room(room: str) -> set[str]:
    """The room and what is below it, without the plan: only rooms that name it may know it."""
    return ({room} | below(room)) - {"plan"}


MAY_IMPORT: dict[str, set[str]] = {
    **{room: below(room) for room in ORDER[: ORDER.index("merging")]},
    "merging": {"plan"} | from_room("models"),
    "models": {"plan"} | from_room("data"),
    "data": from_room("motion"),
    "motion": from_room("metrics"),
    "metrics": from_room("body"),
    "body": from_room("render"),
    "render": {"io", *BASE},
    "geometry": {"io", *BASE},
    "io": set(BASE),
    "plan": {"io", *BASE},
    "runtime": {"errors", "records"},
    "records": {"errors"},
    "errors": set(),
}
CLI_MODULE_LEVEL = {"hmrcompress.errors", "hmrcompress.io.texts", "hmrcompress.recipe.schema", "hmrcompress.plan"}
# `starter train` runs where only torch, numpy, numba, safetensors, typer and rich are installed.
NOT_FOR_TRAINING = ("pydantic", "roma", "yaml", "PIL", "scipy")
TRAINING_PATH = (
    "records", "body", "geometry", "motion", "render",
    "models.vit", "models.heads", "models.network", "metrics.pose", "io.atomic",
)  # fmt: skip


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file."""
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path, *, module_level: bool = False) -> list[tuple[str, int]]:
    """Dotted names imported by a file and their lines; `from a import b` gives `a.b`."""
    found: list[tuple[str, int]] = []
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in _statements(parsed(path), running=module_level):
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = (
                ".".join(package[: len(package) - node.level + 1] + [node.module or ""]) if node.level else node.module
            )
            found += ((f"{source}.{alias.name}", node.lineno) for alias in node.names)
    return found


def _statements(node: ast.AST, *, running: bool) -> Iterator[ast.AST]:
    """All statements below a node; of those `running` only what runs when the module is imported: no function bodies,
    no TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        if running and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if running and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield child
            yield from _statements(child, running=running)


def room_of(dotted: str) -> str | None:
    """The room that a dotted name of ours lies in; None for the package itself and for other packages."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "hmrcompress" and len(parts) > 1 and parts[1] in ORDER else None


def test_every_room_is_in_the_table() -> None:
    found = {path.relative_to(ROOT / "hmrcompress").parts[0].removesuffix(".py") for path in sources("hmrcompress")}
    assert found - {"__init__", "assets"} <= set(MAY_IMPORT)


def offences(room: str, path: Path) -> list[str]:
    """Imports in a file of `room` that the table does not allow."""
    found = []
    for name, line in imports(path):
        target = room_of(name)
        ours = name.split(".")[0] in ("hmrcompress", "hmrcompress_cli", "hmrcompress_recipes")
        if ours and name != "hmrcompress.__version__" and target != room and target not in MAY_IMPORT[room]:
            found.append(f"{path.name}:{line}: {room} may not import {name}")
    return found


@pytest.mark.parametrize("room", ORDER)
def test_imports_go_downwards(room: str) -> None:
    home = ROOT / "hmrcompress" / room
    paths = sources(f"hmrcompress/{room}") if home.is_dir() else [home.with_suffix(".py")]
    assert [fault for path in paths if path.exists() for fault in offences(room, path)] == []


def modules() -> dict[str, set[str]]:
    """Every module of the package and those that it imports, also inside functions."""
    files = {module_name(path): path for path in sources("hmrcompress")}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = (name for name, _ in imports(path))
        targets = {next((each for each in (name, name.rpartition(".")[0]) if each in files), "") for name in names}
        found[module] = targets - {"", module, "hmrcompress"}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Shortest ways from a module back to itself, one for each module that has one."""
    found = []
    for start in graph:
        ways = [[start]]
        known = set()
        while ways:
            way = ways.pop(0)
            if start in graph[way[-1]]:
                found.append([*way, start])
                break
            ways += [[*way, each] for each in sorted(graph[way[-1]] - known)]
            known |= graph[way[-1]]
    return found


def test_there_are_no_circles() -> None:
    assert circles(modules()) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"], ["c", "b", "c"]]


def test_the_check_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    module = tmp_path / "hmrcompress" / "body" / "model.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import torch\nfrom hmrcompress.geometry.rotations import x\nfrom hmrcompress import plan\n"
        "def f():\n    from ..models.vit import ViT\n    import hmrcompress_cli.main\n"
    )
    assert [fault.split(": ")[0] for fault in offences("body", module)] == ["model.py:3", "model.py:5", "model.py:6"]


def test_commands_import_little_at_module_level() -> None:
    for path in sources("cli"):
        for name, line in imports(path, module_level=True):
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            assert name.split(".")[0] not in ("torch", "numpy", "numba", "onnx", "onnxruntime", "matplotlib"), where
            if name.split(".")[0] == "hmrcompress":
                assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in CLI_MODULE_LEVEL), where


def test_recipes_and_plans_need_no_torch() -> None:
    code = "import sys, hmrcompress, hmrcompress.recipe.reading, hmrcompress.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_training_imports_few_packages_at_module_level() -> None:
    for entry in TRAINING_PATH:
        home = ROOT / "hmrcompress" / entry.replace(".", "/")
        for path in sources(str(home.relative_to(ROOT))) if home.is_dir() else [home.with_suffix(".py")]:
            for name, line in imports(path, module_level=True):
                assert name.split(".")[0] not in NOT_FOR_TRAINING, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_training_starts_without_the_other_packages() -> None:
    """The modules that training imports, imported where the packages that may be missing raise ImportError."""
    code = f"""
import sys
for name in {(*NOT_FOR_TRAINING, "smplx", "onnx", "onnxruntime", "matplotlib", "psutil")!r}:
    sys.modules[name] = None
import hmrcompress.starter.network.train, hmrcompress_cli.starter
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BY_THE_RULE = {"data/crops.py write_crops", "plan.py Plan.write"}
GIVEN_A_ROOM = {
    "exporting/onnx.py _write_graph", "exporting/onnx_runtime.py _Maker._run",
    "exporting/onnx_runtime.py _Maker.opened", "exporting/runtimes/runtime.py Source.write_onnx",
    "exporting/runtimes/runtime.py Source.with_graph",
    "exporting/runtimes/tensorrt.py TensorRt.compile", "exporting/runtimes/coreml.py CoreMl.compile",
    "pipeline/bvh.py write_bvh", "pipeline/drawing.py write_png", "pipeline/glb.py write_glb",
    "pipeline/store.py RowStore.append",
    "pipeline/store.py RowStore.write_npz", "report/plots.py draw_similarity",
    "starter/network/golden.py write_golden",
}  # fmt: skip
IN_MEMORY = {"api/front_pictures.py _jpeg"}
ADDED_TO = {
    "frontier/ledger.py Ledger._read", "frontier/ledger.py Ledger.put",
    "searching/journal.py Journal._read", "searching/journal.py Journal.add", "starter/network/log.py Log.write",
    "training/book.py FolderBook.open", "training/book.py FolderBook._add",
}  # fmt: skip
"""Functions that change files outside of a block that the rule of `io.outputs` opens: they call it, or are handed what
lies in such a block, or add to files that grow, whose place was looked at before, or touch no file."""
CHANGE = {
    "write_text", "write_bytes", "unlink", "rmdir", "rmtree", "rename", "touch", "symlink_to", "copyfile", "copy2",
    "copytree", "move", "save", "savez", "savez_compressed", "save_file", "savefig",
}  # fmt: skip
OF_OS = {"replace", "remove", "rename", "truncate", "link", "symlink", "rmdir", "unlink"}
OPEN_A_ROOM = {"file", "folder", "additions", "room", "whole_file", "TemporaryDirectory"}


def called(node: ast.AST) -> tuple[str, str]:
    """(what a function is of, its name), such as `os`, `replace`."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return (function.value.id if isinstance(function.value, ast.Name) else ""), function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def changes_files(call: ast.Call) -> bool:
    owner, name = called(call)
    if name == "open":
        given = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
        modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return any(len(mode) < 4 and set(mode) & set("wax+") for mode in modes)
    return (owner == "os" and name in OF_OS) or (name in CHANGE and owner not in ("os", "rule", "outputs"))


def loose_changes(node: ast.AST, where: str = "", in_room: bool = False) -> Iterator[str]:
    """Functions that change files, by name, but for what happens within a block that the rule opens."""
    for child in ast.iter_child_nodes(node):
        place, safe = where, in_room
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            place, safe = f"{where}.{child.name}".lstrip("."), False
        if isinstance(child, ast.With):
            safe = safe or any(called(item.context_expr)[1] in OPEN_A_ROOM for item in child.items)
        if isinstance(child, ast.Call) and not safe and changes_files(child):
            yield place
        yield from loose_changes(child, place, safe)


def test_files_are_written_by_the_one_rule() -> None:
    """Whoever adds a writer uses `io.outputs`, or says here why not."""
    found = set()
    for folder in ("hmrcompress", "cli"):
        for path in sources(folder):
            name = path.relative_to(ROOT / folder).as_posix()
            if folder != "hmrcompress" or not name.startswith("io/"):
                found |= {f"{name} {where}" for where in loose_changes(parsed(path))}
    assert found == BY_THE_RULE | GIVEN_A_ROOM | IN_MEMORY | ADDED_TO
