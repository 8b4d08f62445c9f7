"""The helper process of `test_soak`: random command lines beside files of the user's, killed at random file events.

Arguments: folder of the inputs (`output_world`), an empty folder, first seed, number of seeds, step. stdout: JSON list
of faults found. Commands run in forks of this process, which has imported everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import output_world
import torch
from interrupt_worker import graphs_once
from output_world import COMMANDS, FOLDER, Command

import hmrcompress.api.finetune
import hmrcompress.pipeline.starter_video
import hmrcompress.recipe.ablate
import hmrcompress.recipe.benchmarks
import hmrcompress.recipe.runner
from hmrcompress_cli.main import main

_ = (hmrcompress.recipe.ablate, hmrcompress.recipe.benchmarks, hmrcompress.recipe.runner, hmrcompress.api.finetune)
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "ctypes.dlsym")
MODEL = ("config.json", "model.safetensors", "plan.yaml", "README.md", "probe.safetensors", "decoder.safetensors")
RUN = (
    "recipe.yaml",
    "summary.json",
    "plan.yaml",
    "search.jsonl",
    *(f"{stage}.json" for stage in ("search", "merge", "eval")),
)
WRITES = {"predict": ("params.npz", "summary.json"), "run": (*RUN, *(f"model/{name}" for name in MODEL))}
SECONDS = 300.0
NAMES = ("out", "a b", "ünï", "deep/er/out", "mine", "link", ".", "results", "-x")
NEVER = 1 << 30


@dataclass
class World:
    """A folder with files of the user's. `safe`: hash of each file that may never change; `texts`: hashes of what must
    be somewhere; `free`: names that the command may replace because it was asked to."""

    folder: Path
    rng: random.Random
    safe: dict[str, str] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)

    def put(self, name: str, text: str = "") -> None:
        path = self.folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(path):
                path.write_text(text or f"of mine {self.rng.random()}\n")
                self.safe[name] = digest(path)

    def link(self, name: str, target: str) -> None:
        path = self.folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
            self.safe[name] = f"-> {target}"

    def edit(self, name: str) -> None:
        """A line of the user's in a file of ours: it has to be somewhere afterwards."""
        path = self.folder / name
        if path.is_file() and not path.is_symlink() and name not in self.safe:
            with open(path, "ab") as file:
                file.write(b"# by hand\n")
            self.texts.add(digest(path))

    def faults(self) -> list[str]:
        found = [
            f"{name} is gone or changed" for name, known in self.safe.items() if state(self.folder / name) != known
        ]
        there = {digest(path) for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()}
        return found + ["an edited file is gone"] * len(self.texts - there)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return digest(path) if path.is_file() else "no file"


def furnish(world: World, command: Command, name: str) -> None:
    """Files of the user's beside, in the place of and within what is to be written."""
    rng = world.rng
    places = command.outputs(name)
    for place, kind in places.items():
        chance = rng.random()
        if chance < 0.15:
            world.put(place)
        elif chance < 0.3 and kind == FOLDER:
            for inside in rng.sample(("notes.txt", "exports/a.onnx", "config.json", "summary.json", "plan.yaml"), 2):
                world.put(f"{place}/{inside}")
        elif chance < 0.4:
            world.put(f"target{len(world.safe)}")
            world.link(
                place, os.path.relpath(world.folder / f"target{len(world.safe) - 1}", (world.folder / place).parent)
            )
        elif chance < 0.5:
            world.link(place, "nowhere")
    for name_of_mine in ("diary.txt", f"{name}.bak", f"{name}.json.bak", f"{name}.new", f"{name}.training/lab_book.txt",
                         f"{name}.hmrcompress-training/lab_book.txt", f".{name}-hmrcompress-0123456789ab.part/mine",
                         f".{name}-0123456789ab.part", "results/one.md", "empty.json"):  # fmt: skip
        if rng.random() < 0.5:
            world.put(name_of_mine)


def spoil(world: World, command: Command, name: str) -> None:
    """What the user does to outputs before the command is run again."""
    rng = world.rng
    for place, kind in command.outputs(name).items():
        if rng.random() < 0.3 and kind == FOLDER:
            world.put(f"{place}/{rng.choice(('notes.txt', 'exports/x', '.hidden', 'README'))}")
        elif rng.random() < 0.2 and place.endswith((".yaml", ".md")):
            world.edit(place)
        elif rng.random() < 0.1 and (world.folder / place).is_file() and place not in world.safe:
            (world.folder / place).unlink()
            world.put(place)


def run(folder: Path, line: list[str], *, kill_at: int = NEVER, seconds: float = SECONDS) -> tuple[int, str]:
    """Status and what was said. The command is killed before file event `kill_at`, or after `seconds`."""
    said, write = os.pipe()
    child = os.fork()
    if not child:
        in_the_fork(folder, line, kill_at, write)
    os.close(write)
    end, text = time.monotonic() + seconds, b""
    os.set_blocking(said, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(said, 65536):
                text += part
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end += SECONDS
        time.sleep(0.005)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(said, 65536):
            text += part
    os.close(said)
    return os.waitstatus_to_exitcode(status), text.decode(errors="replace")


def in_the_fork(folder: Path, line: list[str], kill_at: int, write: int) -> None:
    code, events = 1, 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal events
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            events += 1
            if events == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.chdir(folder)
        sys.argv = ["hmrcompress", *line]
        sys.addaudithook(hook)
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the parent is told by what is printed
        traceback.print_exc()
    finally:
        os._exit(code)


def allowed(name: str, command: str, world: World) -> list[str]:
    """Files of the user's that --overwrite gives up: those by the names that the command writes."""
    found = []
    for place, kind in COMMANDS[command].outputs(name).items():
        inside = WRITES.get(command, MODEL) if kind == FOLDER else ()
        asked = {str(PurePosixPath(place)), *(str(PurePosixPath(place, each)) for each in inside)}
        real = {os.path.realpath(world.folder / each) for each in asked}
        found += [
            mine
            for mine in world.safe
            if str(PurePosixPath(mine)) in asked
            or os.path.realpath(world.folder / mine) in real
            or (
                kind == FOLDER and command == "starter video" and mine.startswith(f"{place}/") and mine.endswith(".png")
            )
        ]
    return found


def case(seed: int, inputs: Path, room: Path) -> list[str]:
    """One command line: run before or not, killed somewhere, run again. What was wrong."""
    rng = random.Random(seed)
    weights = [1 if command.slow else 3 for command in COMMANDS.values()]
    chosen = rng.choices(list(COMMANDS), weights)[0]
    command, name = COMMANDS[chosen], rng.choice(NAMES)
    if name in (".", "-x") and (FOLDER not in command.outputs("x").values() or name == "-x"):
        name = "out"
    world = World(room / str(seed), rng)
    world.folder.mkdir()
    line = command.line(inputs, name)
    if command.json and "--json" not in line and rng.random() < 0.3:
        line += ["--json", rng.choice((f"{name}.record.json", "diary.txt", f"{name}/record.json", "link.json"))]
    faults: list[str] = []

    def check(when: str, status: int, text: str, fine: tuple[int, ...]) -> None:
        wrong = world.faults()
        if status not in fine or "Traceback" in text:
            wrong.append(f"status {status}: {text[-600:]}")
        faults.extend(f"{seed} {' '.join(line)}: {when}: {each}" for each in wrong)

    early = rng.random() < 0.5
    if not early:
        furnish(world, command, name)
    if rng.random() < 0.6:
        check("first", *run(world.folder, line), (0, 2))
        spoil(world, command, name)
    if early:
        furnish(world, command, name)
    overwrite = rng.random() < 0.35
    if overwrite:
        line += ["--overwrite"]
        for mine in allowed(name, chosen, world):
            world.safe.pop(mine, None)
        if "--json" in line:
            record = line[line.index("--json") + 1]
            for mine in [
                m for m in world.safe if os.path.realpath(world.folder / m) == os.path.realpath(world.folder / record)
            ]:
                world.safe.pop(mine)
    for _ in range(2):
        if rng.random() < 0.8:
            check("killed", *run(world.folder, line, kill_at=int(2 ** rng.uniform(0, 6.5))), (0, 2, -9))
        else:
            check("killed by the clock", *run(world.folder, line, seconds=2 ** rng.uniform(-5, 1)), (0, 2, -9))
    status, text = run(world.folder, line)
    check("in the end", status, text, (0, 2))
    if status == 0:
        left = [str(path.relative_to(world.folder)) for path in world.folder.rglob(".*-hmrcompress-*.part")]
        left = [each for each in left if "0123456789ab" not in each]
        faults.extend(f"{seed} {' '.join(line)}: leaves {each}" for each in left)
    elif status == 2 and text.strip().count("\n") > 1 + text.count("warning") + text.count("was edited"):
        faults.append(f"{seed} {' '.join(line)}: says more than a sentence: {text}")
    return faults


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, empty = Path(sys.argv[1]), Path(sys.argv[2])
    first, count, step = map(int, sys.argv[3:])
    graphs_once(str(empty))
    before = output_world.hashes(given)
    wrong: list[str] = []
    for number in range(first, first + count * step, step):
        wrong += case(number, given, empty)
    if output_world.hashes(given) != before:
        wrong.append("the inputs have changed")
    json.dump(wrong, sys.stdout)
