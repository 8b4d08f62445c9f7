"""The command line as it is: commands, their arguments and flags, and what `--set` takes.

    python tests/command_line.py        # or: make commands

writes it to tests/data/command_line.json. `tests/test_command_line.py` holds the two equal, so that nobody adds, loses
or renames a flag without saying so in a diff of that file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from hmrcompress.recipe.listing import settings_of
from hmrcompress.recipe.schema import SECTIONS
from hmrcompress_cli.main import app

FILE = Path(__file__).with_name("data") / "command_line.json"


def commands(group: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its full name, those of groups as `starter build`."""
    for key, each in sorted((group or typer.main.get_command(app)).commands.items()):
        path = f"{name} {key}".strip()
        if hasattr(each, "commands"):
            yield from commands(each, path)
        else:
            yield path, each


def command_line() -> dict[str, Any]:
    """What the file holds."""
    found: dict[str, Any] = {}
    for name, command in commands():
        kinds = {
            kind: [each for each in command.params if each.param_type_name == kind] for kind in ("argument", "option")
        }
        flags = sorted("/".join([*each.opts, *each.secondary_opts]) for each in kinds["option"] if not each.hidden)
        found[name] = {"arguments": [each.name for each in kinds["argument"]], "flags": flags}
    return {
        "commands": found,
        "settings": {name: [each.key for each in settings_of(model, name)] for name, model in SECTIONS.items()},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(command_line(), indent=1) + "\n")
