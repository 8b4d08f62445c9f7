"""Settings as a person reads them: key, type, default and description of every field of a pydantic model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NAMES = {int: "int", float: "number", str: "text", bool: "true or false", NoneType: "null"}
BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
MUCH = 1 << 30
"""Bounds from here on are there to stop nonsense, and are not worth telling of."""


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, what it takes, its default as `--set` takes it, and what it is for."""

    key: str
    type: str
    default: str
    description: str


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Every field of a model, in order, those of models inside it after the field that holds them."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        yield Setting(key, type_text(field), _default(field), field.description or _described(field))
        for inner in _models(field.annotation):
            yield from settings_of(inner, key)


def field_at(model: type[BaseModel], place: Sequence[Any]) -> tuple[list[Any], FieldInfo | None]:
    """The part of a pydantic error's place that names a field of the model, and that field. What follows says which
    member of a union, or which item of a list, it was."""
    found: list[Any] = []
    field: FieldInfo | None = None
    models: list[type[BaseModel]] = [model]
    for part in place:
        inner = next((each.model_fields[part] for each in models if part in each.model_fields), None)
        if inner is None:
            break
        found, field, models = [*found, part], inner, list(_models(inner.annotation))
    return found, field


def is_union(field: FieldInfo) -> bool:
    """Whether a field takes values of several types, null aside."""
    return len([each for each in _members(field.annotation) if each is not NoneType]) > 1


def type_text(field: FieldInfo) -> str:
    """What a field takes: `int > 0 or null`, `native or restored`, `list of int > 0`."""
    members = [_text(part, field.metadata) for part in _members(field.annotation)]
    plain = [each for each in members if each != "null"]
    names = [each for part in plain for each in part.split(", ")] + (["null"] if "null" in members else [])
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _text(kind: Any, metadata: Sequence[Any]) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *more = get_args(kind)
        return _text(
            inner, [part for each in more for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
        )
    if origin is Literal:
        return ", ".join(map(_plain, get_args(kind)))
    if origin in (tuple, list):
        return f"list of {_text(get_args(kind)[0], ())}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "mapping"
    if kind is NoneType:
        return NAMES[kind]
    bounds = [(sign, getattr(each, name)) for each in metadata for name, sign in BOUNDS if hasattr(each, name)]
    return " ".join([NAMES[kind], *(f"{sign} {_plain(bound)}" for sign, bound in bounds if bound < MUCH)])


def _members(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """The models that a field may hold, its mappings aside: their keys are for the user to choose."""
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member


def _default(field: FieldInfo) -> str:
    if isinstance(field.default, BaseModel):
        return "as below"
    return "needed" if field.is_required() else _plain(field.default)


def _described(field: FieldInfo) -> str:
    """The first sentence about the model that a field holds, where it has no description of its own."""
    text = next((inner.__doc__ or "" for inner in _models(field.annotation)), "")
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _plain(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
