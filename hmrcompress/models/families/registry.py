"""The families there are, and which of them a state dict belongs to, told by its keys.

A family is added by a file of its own beside this one, with a `FAMILY`, and its name in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.models.families import camerahmr, camerahmr_smplx, hamer, hmr2, tokenhmr
from hmrcompress.models.families.family import Family
from hmrcompress.models.families.fov import FIELD_OF_VIEW
from hmrcompress.models.families.tokenhmr import TOKENIZER
from hmrcompress.models.network import HALVES, HMR2, LARGEST, MOST_LAYERS, NetworkConfig

FAMILIES = {each.FAMILY.name: each.FAMILY for each in (hmr2, camerahmr, camerahmr_smplx, tokenhmr, hamer)}
HELPERS = {
    "CameraHMR's field-of-view network, which gives focal lengths": FIELD_OF_VIEW,
    "TokenHMR's tokenizer, which belongs beside a TokenHMR checkpoint": TOKENIZER.marks,
}
"""Files that belong to a family and are no model by themselves: what they are, and the keys by which they are told."""
OTHER_CODE = "Networks of other code run as adapter:FILE.py, and merge --format original takes their files"
MARKS = (tuple(each.has for each in FAMILIES.values()), tuple(HELPERS.values()))
"""Keys by which `open_state_file` knows weights in whatever wraps them: a family's, else a helper's."""


def family(name: str) -> Family:
    """The family of that name. Raises UserError naming those there are."""
    if name not in FAMILIES:
        raise UserError(f"got {name!r}, expected one of {', '.join(FAMILIES)}", "family")
    return FAMILIES[name]


def network_class(name: str) -> type[HMR2]:
    """The class of a family's networks. Raises UserError naming the families there are."""
    return family(name).network


def recognise(keys: Collection[str], where: object = "checkpoint") -> Family:
    """The family that these keys belong to. Raises UserError: for a file that only belongs to a family, saying what it
    is; else naming the nearest family and a key it misses."""
    if (what := helper_of(keys)) is not None:
        raise UserError(f"this is {what}, expected a checkpoint of one of {', '.join(FAMILIES)}", where)
    nearest, missing = None, None
    for candidate in FAMILIES.values():
        absent = [key for key in candidate.has if key not in keys]
        if not absent and not any(key in keys for key in candidate.lacks):
            return candidate
        if missing is None or len(absent) < len(missing):
            nearest, missing = candidate, absent
    first = f"; {nearest.title} has {missing[0]}" if nearest and missing else ""
    examples = ", ".join(sorted(keys)[:5]) or "none"
    raise UserError(
        f"the keys belong to no known family{first}. The file's {len(keys)} keys begin {examples}", where, OTHER_CODE
    )


def is_known(keys: Collection[str]) -> bool:
    """Whether these keys are those of a family, or of a file that belongs to one."""
    try:
        recognise(keys)
    except UserError:
        return helper_of(keys) is not None
    return True


def helper_of(keys: Collection[str]) -> str | None:
    """What a file with these keys is, if it is one of `HELPERS`."""
    return next((what for what, marks in HELPERS.items() if all(key in keys for key in marks)), None)


def read_config(values: Mapping[str, Any], where: object = "") -> NetworkConfig:
    """The sizes that `NetworkConfig.to_dict` wrote, of any family (HMR2.0 where none is named). Raises UserError naming
    an unknown family, or fields that are unknown or missing."""
    given = dict(values)
    kind = network_class(str(given.pop("family", HMR2.config_class.family))).config_class
    known = {field.name for field in fields(kind)}
    if odd := sorted(set(given) ^ known - (set(HALVES) - set(given))):
        raise UserError(f"unknown or missing fields: {', '.join(odd)}", where)
    for name in HALVES:
        numbers = given.get(name, [])
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < MOST_LAYERS for n in numbers):
            raise UserError(f"got {numbers!r}, expected numbers of layers", f"{where}: {name}")
    for name, value in given.items():
        if name in HALVES:
            continue
        sizes = list(value) if isinstance(value, (list, tuple)) else [value]
        fits = len(sizes) == (2 if name == "grid" else 1)
        if name != "token_input" and not (fits and all(type(n) is int and 1 <= n <= LARGEST for n in sizes)):
            raise UserError(f"got {value!r}, expected sizes of 1 to {LARGEST}", f"{where}: {name}")
    if max(given["depth"], given["head_depth"], given["iterations"]) > MOST_LAYERS:
        raise UserError(f"more than {MOST_LAYERS} layers or iterations", where)
    return kind(**given)
