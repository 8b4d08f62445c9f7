"""The command `hmrcompress`. Every command lives in a module of its own that imports nothing heavy at module level."""

from __future__ import annotations

import importlib

import typer

from hmrcompress_cli.common import SafeGroup

app = typer.Typer(
    name="hmrcompress",
    help="Compress pretrained transformer networks for human mesh recovery, and measure what it cost.",
    cls=SafeGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# command -> (module, function). The function of each command carries the command's name.
COMMANDS = {
    "inspect": ("inspect_", "inspect"),
    "search": ("search", "search"),
    "cka": ("cka", "cka"),
    "merge": ("merge", "merge"),
    "eval": ("evaluate", "evaluate"),
    "export": ("export", "export"),
    "convert": ("convert", "convert"),
    "run": ("run", "run"),
}


def _register() -> None:
    for name, (module, function) in COMMANDS.items():
        try:
            loaded = importlib.import_module(f"hmrcompress_cli.{module}")
        except ModuleNotFoundError as error:
            if error.name != f"hmrcompress_cli.{module}":
                raise
            continue
        app.command(name)(getattr(loaded, function))
    try:
        starter = importlib.import_module("hmrcompress_cli.starter")
    except ModuleNotFoundError as error:
        if error.name != "hmrcompress_cli.starter":
            raise
    else:
        app.add_typer(starter.app, name="starter")


_register()


@app.callback()
def _root() -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app()
