"""What the commands share: the types of their common options, how errors end, how figures are printed and written.

A command is a function with options of the types below. It imports what it needs inside, calls one library function,
prints with `Printer` and writes its record with `write_record`. Errors need no care: `SafeGroup` turns every
`HMRCompressError` into one sentence on stderr and the error's exit code, and every `Notice` into a line there.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hmrcompress.errors import HMRCompressError, Notice, UserError, first_line
from hmrcompress.io.texts import MOST, MOST_SEED
from hmrcompress_cli.help import arrange
from hmrcompress_cli.moved import MOVED

if TYPE_CHECKING:
    from hmrcompress.io.outputs import OutputRule

DEBUG_KEY = "hmrcompress.debug"
OUTPUT_OPTIONS = ("out", "json", "json_file", "journal", "costs", "snapshot", "freeze", "sheets")
INPUT_OPTIONS = (
    "against", "body", "boxes", "checkpoint", "data", "decoder", "earlier", "fast", "file", "frontier", "masks",
    "model", "motions", "overrides", "plan", "recipe", "regressor", "results", "source", "sources", "start", "suite",
    "teacher", "tokenizer", "vae", "validation",
)  # fmt: skip
"""Parameters of commands that name what is written, and what is read. A test knows that there are no others."""
WORDS = ("auto", "data", "full", "none", "self", "starter")
"""What --masks, --boxes, --body and --motions may be instead of the name of a file."""
TOGETHER = ("search", "eval", "compress", "finetune", "starter train")
"""Commands that several processes can run together."""
INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Disk full, file larger than is allowed, quota used up."""
MAX_WIDTH = 1000
LONGEST_SENTENCE = 1500
WRITTEN = ("-o", "--out", "--json")
"""Options whose value is written, not read."""
OF_CODE = (TypeError, AttributeError, NameError, LookupError, AssertionError, ImportError, NotImplementedError)
"""Errors of the program itself; all others are such as values can cause."""


def _remember_debug(context: typer.Context, value: bool) -> bool:
    context.meta[DEBUG_KEY] = value
    return value


JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this JSON file.", show_default=False)
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:n.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
AS_PLANNED = "as the model's plan says, else {}"
FastDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16, or int8 (8-bit linear layers on the fast path; CPU).",
        show_default=AS_PLANNED.format("float32"),
    ),
]
FastOption = Annotated[
    bool | None,
    typer.Option("--fast", help="Run the compressed network on the fast path.", show_default=AS_PLANNED.format("not")),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, max=MOST, help="Crops at a time.")]
BodyOption = Annotated[
    str,
    typer.Option(
        "--body", help="starter, a body file (npz), a folder of SMPL_NEUTRAL, _MALE, _FEMALE, or smplx:FOLDER."
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, max=MOST, help="At most this many frames.", show_default=False)
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=MOST_SEED, help="Seed of everything drawn at random.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_remember_debug)]
DataOption = Annotated[
    str, typer.Option("--data", help="starter[:split], FORMAT:PATH[,option=value], or a path; see docs/data.md.")
]
ProtocolOption = Annotated[
    str | None, typer.Option("--protocol", help="Joints, pelvis and units by name.", show_default="that of the data")
]
RegressorOption = Annotated[
    Path | None,
    typer.Option("--regressor", help="Joint regressor that a protocol needs (npy, npz).", show_default=False),
]
MasksOption = Annotated[
    str, typer.Option("--masks", help="Person masks: data, files:DIR, onnx:FILE, auto, self, none or a plug-in.")
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what others wrote where this command writes; all else there stays."),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Where to write.", show_default=False)]


class SafeGroup(TyperGroup):
    """A group of commands in which an error made on purpose ends in one sentence and its exit code."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Reads the options before the command's name; what is wrong with them is one sentence, too."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except Exception as error:
            if parent is None and _is_misuse(error):
                complain(_misuse(error))
                raise typer.Exit(HMRCompressError.exit_code) from error
            raise

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. `--debug` lets the exception through with its traceback."""
        _speak_any_letter()
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        try:
            with _notices_as_lines():
                return super().invoke(ctx)
        except HMRCompressError as error:
            if ctx.meta.get(DEBUG_KEY) and error.exit_code:
                raise
            if error.exit_code and not _told_by_the_first(error):
                complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if ctx.meta.get(DEBUG_KEY) or error.errno == errno.EPIPE:
                raise
            if error.errno in NO_ROOM:
                complain(f"there was no room to write ({error.strerror}); nothing was left half-written. Free some.")
            elif error.filename is None:
                complain(unexpected(error, words)[0])
            else:
                complain(f"{error.filename}: {error.strerror}.")
            raise typer.Exit(HMRCompressError.exit_code) from error
        except KeyboardInterrupt as error:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            if _is_misuse(error):
                complain(_misuse(error))
                raise typer.Exit(HMRCompressError.exit_code) from error
            of_typer = isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "show")
            if ctx.meta.get(DEBUG_KEY) or of_typer:
                raise
            sentence, code = unexpected(error, words)
            complain(sentence)
            raise typer.Exit(code) from error


def _told_by_the_first(error: Exception) -> bool:
    """Whether the first of several processes says what went wrong in this one."""
    from hmrcompress.io.together import leads

    return bool(getattr(error, "told", False)) and not leads()


def _is_misuse(error: Exception) -> bool:
    """Whether the command line itself is wrong: no such option or command, a value of another type. Not the error that
    typer shows the help for, where a group is called without a command."""
    return hasattr(error, "format_message") and "NoArgsIsHelp" not in type(error).__name__


def _misuse(error: Any) -> str:
    text = error.format_message().strip().rstrip(".")
    where = "" if getattr(error, "ctx", None) is None else f". `{error.ctx.command_path} --help` shows what it takes"
    return f"{text[:1].lower()}{text[1:]}{where}"


class SafeCommand(TyperCommand):
    """A command whose outputs follow one rule (`hmrcompress.io.outputs`); `--json` is looked at before it begins. Its
    help is arranged by `cli/help.py`; a flag that it no longer has says what to give instead."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.params = arrange(self.params, markup=self.rich_markup_mode == "rich")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the command line. UserError for a flag of earlier days."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            flag = getattr(error, "option_name", None)
            instead = MOVED.get(command_name(ctx), {}).get(flag or "")
            if instead is None:
                raise
            raise UserError(f"is no flag any more, give {instead}", flag) from error

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`, in the last panel."""
        option = super().get_help_option(ctx)
        if option is not None:
            arrange([option], markup=False)
        return option

    def invoke(self, ctx: Any) -> Any:
        from hmrcompress.io.outputs import OutputRule
        from hmrcompress.io.together import process_of

        inputs = [
            value
            for name, value in ctx.params.items()
            if name in INPUT_OPTIONS and not (name in ("masks", "boxes", "body", "motions") and value in WORDS)
        ]
        name, outputs = command_name(ctx), OutputRule(overwrite=bool(ctx.params.get("overwrite")), inputs=inputs)
        if process_of()[1] > 1 and name not in TOGETHER:
            what = f"runs in one process, and {process_of()[1]} were launched"
            raise UserError(what, name, f"Of several processes make use: {', '.join(TOGETHER)}")
        record = ctx.params.get("json") or ctx.params.get("json_file")
        if record is not None:
            outputs.check_file(record, name, "json")
        stdout = any(str(ctx.params.get(name)) == "-" for name in OUTPUT_OPTIONS)
        given = {
            each.name: max(each.opts, key=len)
            for each in self.params
            if each.name and getattr(ctx.get_parameter_source(each.name), "name", "") == "COMMANDLINE"
        }
        token = _RUNNING.set(_Running(name, outputs, stdout, given))
        try:
            return super().invoke(ctx)
        finally:
            _RUNNING.reset(token)


@dataclass(frozen=True)
class _Running:
    """The command that runs: its name, the rule for its outputs, whether one of them is stdout, and the flags on its
    line by parameter."""

    name: str
    outputs: OutputRule
    stdout: bool
    given: dict[str, str]


_RUNNING: ContextVar[_Running] = ContextVar("running")


def command_name(context: Any) -> str:
    """The command as its record has it, such as `starter train`."""
    names: list[str] = []
    while context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    return " ".join(names)


def outputs_here() -> OutputRule:
    """The rule for the outputs of the command that runs."""
    return _RUNNING.get().outputs


def options_given() -> dict[str, str]:
    """The options that stand on the line of the command that runs: their flags, by the names of parameters."""
    return _RUNNING.get().given


def refuse_unused(what: str, remedy: str, names: Iterable[str], settings: Any = None, keys: Iterable[str] = ()) -> None:
    """UserError, saying what it is, for the first of these options that stands on the line, or of the keys of the
    settings that was set."""
    given = options_given()
    found = [given[name] for name in names if name in given]
    found += [f"--set {_RUNNING.get().name}.{key}" for key in keys if key in getattr(settings, "model_fields_set", ())]
    if found:
        raise UserError(what, found[0], remedy)


@contextmanager
def _notices_as_lines() -> Iterator[None]:
    """While the block runs, each `Notice` is a sentence on stderr, the same one only once, and by one process."""
    from hmrcompress.io.together import leads

    with warnings.catch_warnings():
        show, told = warnings.showwarning, set[str]()

        def line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, Notice):
                show(message, category, *where, **more)
            elif str(message) not in told and leads():
                told.add(str(message))
                complain(str(message))

        warnings.simplefilter("always", Notice)
        warnings.filterwarnings("ignore", module="PIL")  # its thoughts on damaged files, beside our sentence
        warnings.showwarning = line
        yield


def unexpected(error: Exception, words: Sequence[str]) -> tuple[str, int]:
    """One sentence for an error that nobody raised on purpose, and the exit code; words: of the command line.

    What values can cause (numbers, texts, memory, depth, a library that gives up) is put down to the inputs: 2. What
    the program itself does wrong, such as asking for a name that a module does not have, is a fault of ours: 1.
    """
    inputs = ", ".join(inputs_of(words)) or "what was given"
    what = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError):
        return f"{inputs}: takes more memory than there is. Give less at a time", HMRCompressError.exit_code
    if isinstance(error, OF_CODE):
        return f"internal error ({what}) while working on {inputs}. Please report it with what --debug shows", 1
    return f"{inputs}: cannot be worked on ({what}). --debug shows where it went wrong", HMRCompressError.exit_code


def inputs_of(words: Sequence[str]) -> list[str]:
    """The files and folders among the words of a command line that are there and are read: `X`, `kind:X,…`."""
    found, written = [], False
    for word in words:
        if written or word in WRITTEN:
            written = not written
            continue
        value = word.partition("=")[2] if word.startswith("-") else word
        for path in (value, value.partition(":")[2].partition(",")[0]):
            if path and os.path.exists(path):
                found.append(path)
                break
    return found


def _speak_any_letter() -> None:
    """Lets stdout and stderr write names and texts that their encoding does not have, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(sentence: str) -> None:
    """One sentence on stderr."""
    text = "".join(letter if letter.isprintable() else " " for letter in sentence)
    typer.echo(f"hmrcompress: {' '.join(text.split())[:LONGEST_SENTENCE]}", err=True)


class Printer:
    """Prints to stdout, to stderr where an output is `-`, or nothing at all when quiet. Progress bars are
    `hmrcompress.runtime.progress_bar`."""

    def __init__(self, quiet: bool = False) -> None:
        running = _RUNNING.get(None)
        self.quiet, self.err = quiet, running is not None and running.stdout

    def say(self, text: str) -> None:
        """A line of text, printed as it is (no markup, no wrapping)."""
        if not self.quiet:
            typer.echo(text, err=self.err)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; floats with one decimal, None as a dash, all but the first column flush right.

        It is as wide as it needs to be, however narrow the terminal: a figure that is cut off is worse than a wrap.
        """
        if self.quiet:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        if title:
            self.say(title)
        table = Table(box=box.SIMPLE_HEAD)
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(cell, row))
        console = Console(highlight=False, markup=False, emoji=False, stderr=self.err)
        needed = console.measure(table, options=console.options.update(max_width=MAX_WIDTH)).maximum
        console.width = max(console.width if console.is_terminal else 0, needed)
        console.print(table)


def cell(value: Any) -> str:
    """A figure as the tables show it."""
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def write_record(
    path: Path | None, command: str, figures: dict[str, Any], *, device: Any = "cpu", seed: int | None = None
) -> dict[str, Any]:
    """The record of a command (`hmrcompress.runtime.record`); figures that are None are left out. Written if `path`."""
    from hmrcompress.runtime import record

    measured = {key: value for key, value in figures.items() if value is not None}
    made = record(command, measured, device=device, seed=seed)
    if path is not None:
        outputs_here().write_json(path, made, command)
    return made
