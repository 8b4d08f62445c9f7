"""Recipes and settings from YAML and from `--set`, with a sentence for whatever is wrong in them.

Reading one needs neither torch nor the files that it names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from importlib import resources
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hmrcompress.errors import UserError, shown
from hmrcompress.io.texts import DEEPEST, read_bytes
from hmrcompress.io.yamls import parse_yaml
from hmrcompress.recipe.listing import field_at, is_union, type_text
from hmrcompress.recipe.schema import SECTIONS, Recipe, Section

UNKNOWN = "no such key in a recipe"
LISTED = "`--settings` lists the keys of {}"
Part = TypeVar("Part", bound=Section)


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe from a YAML file, or by name from those shipped (`starter`), with `a.b=c` overrides (c is YAML).

    Raises UserError naming file, field and fault for whatever is wrong.
    """
    path, text = Path(source), recipe_text(source, "starter, ci, hmr2 or camerahmr")
    values = parse_yaml(text, path)
    for override in overrides:
        values = _override(values, override)
    return parse_recipe(values, path)


def recipe_text(source: str | Path, shipped: str) -> bytes:
    """The text of a recipe file, or of a shipped one by its name. UserError naming those (`shipped`) otherwise."""
    path = Path(source)
    inside = resources.files("hmrcompress_recipes").joinpath(f"{source}.yaml")
    if path.is_file():
        return read_bytes(path)
    if path.parent == Path() and not path.suffix and inside.is_file():
        return inside.read_bytes()
    raise UserError("no such recipe", path, f"Give a YAML file, or the name of a shipped recipe: {shipped}.")


def parse_recipe(values: Any, where: object = "recipe") -> Recipe:
    """Recipe from what a YAML file holds. Raises UserError naming `where`, the field and the fault."""
    if not isinstance(values, dict):
        raise UserError(f"got {type(values).__name__}, expected a mapping of stages", where)
    return _validated(Recipe, values, where)


def read_section(name: str, overrides: Sequence[str]) -> Section:
    """The section of that name from `NAME.KEY=VALUE` overrides alone (VALUE is YAML); those that were given are its
    `model_fields_set`. Raises UserError naming the key and the fault."""
    values: Any = {}
    for override in overrides:
        values = _override(values, override)
    if odd := [key for key in values if key != name]:
        raise UserError(f"got {shown(odd[0])}, expected {name}.KEY", "--set", LISTED.format(name))
    if not isinstance(values.get(name, {}), dict):
        raise UserError(f"got {shown(values[name])}, expected {name}.KEY=VALUE", "--set", LISTED.format(name))
    return _validated(SECTIONS[name], values.get(name, {}), f"--set {name}", unknown="no such setting", joint=".")


def _validated(
    model: type[Part], values: dict[str, Any], where: object, *, unknown: str = UNKNOWN, joint: str = ": "
) -> Part:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        first, (field, holder) = faults[0], field_at(model, faults[0]["loc"])
        parts, value = [part for part in first["loc"] if part != "[key]"], first["input"]
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            text = unknown
        elif holder is not None and len(parts) > len(field) and is_union(holder):
            # Of a union: pydantic says what is wrong with it as each of its members.
            parts, text, value = field, f"expected {type_text(holder)}", reduce(getitem, field, values)
            faults = [first, *(each for each in faults if field_at(model, each["loc"])[0] != field)]
        elif first["type"] == "tuple_type":
            text = "expected a list such as [1, 2]"
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        got = "" if first["type"] in ("missing", "value_error", "extra_forbidden") else f"got {shown(value)}: "
        remedy = "YAML reads 1e-4 as text; write 1.0e-4." if _like_1e4(first["input"]) else ""
        place = f"{where}{joint}{'.'.join(map(str, parts))}" if parts else where
        raise UserError(f"{got}{text[:1].lower()}{text[1:]}{more}", place, remedy) from error


def _like_1e4(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) is not None


def _override(values: Any, override: str) -> Any:
    """`values` with the field a.b set to c, for `a.b=c`. The input is left as it was."""
    key, sign, text = override.partition("=")
    names = key.split(".")
    if not sign or not all(names) or len(names) > DEEPEST:
        raise UserError(f"got {shown(override)}, expected a.b=c", "--set", "Try: --set search.tau_mm=0.2")
    return _replaced(values, names, parse_yaml(text, f"--set {key}"))


def _replaced(values: Any, names: Sequence[str], value: Any) -> dict[str, Any]:
    values = dict(values) if isinstance(values, dict) else {}
    values[names[0]] = _replaced(values.get(names[0]), names[1:], value) if names[1:] else value
    return values
