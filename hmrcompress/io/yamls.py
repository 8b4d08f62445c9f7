"""YAML from elsewhere: the one reader of it, for plans, recipes, `--set` and the settings of other code bases.

Values are those that JSON has, and names of fields are texts as they are written: dates stay text, tags that make
other objects are unknown. Aliases may not stand for more than `MOST_VALUES`, written out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hmrcompress.errors import UserError
from hmrcompress.io.texts import DEEPEST, MOST_DIGITS, check_integer, check_text, decoded, read_bytes

LONGEST = 1 << 17
"""Characters: eight times our longest recipe. Parsing takes a second for every 50,000, and a kilobyte a value."""
MOST_VALUES = 10_000
MERGE = "tag:yaml.org,2002:merge"
PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


def parse_yaml(text: str | bytes, where: object) -> Any:
    """The value in a text: dict (names of fields are texts), list, str, int, float, bool or None.

    UserError, naming `where`, for what is not YAML, not UTF-8, longer than `LONGEST`, nested deeper than `DEEPEST`, has
    a field twice, a number that is not finite or beyond 64 bits, or aliases that contain themselves or stand for more
    than `MOST_VALUES` values.
    """
    try:
        if len(text) > LONGEST:
            raise ValueError(f"{len(text)} characters, expected at most {LONGEST}")
        return yaml.load(check_text(decoded(text)), _Loader)
    except LookupError as error:  # PyYAML's own for `!!int ""` and the like
        raise UserError("not valid YAML (a value that is not of the type that its tag says)", where) from error
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise UserError(f"not valid YAML ({reason})", where) from error


def read_yaml(path: Path | str) -> Any:
    """The value in a file. UserError as `parse_yaml`, and where the file is missing."""
    return parse_yaml(read_bytes(path), path)


class _Loader(yaml.SafeLoader):
    """Counts what the text stands for, level by level and alias by alias, before anything is made of it."""

    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (*PLAIN, None)}
    yaml_implicit_resolvers = {
        letter: [(tag, form) for tag, form in found if tag in (*PLAIN, MERGE)]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def fetch_flow_collection_start(self, kind: Any) -> None:
        """A bracket; the scanner runs far ahead of the nodes, so their depth is bounded here, too."""
        if self.flow_level >= DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
        super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; an alias counts as often as what it stands for."""
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise ValueError("an alias that contains itself")
            self._count(self._sizes[id(node)])
            return node
        before = self._values
        self._count(1)
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping whose fields are texts, each once."""
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError("a field whose name is no text")
            if key.value in names:
                raise ValueError(f"the field {key.value[:60]!r} occurs twice")
            names.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        """A text without characters that are none."""
        node = super().compose_scalar_node(anchor)
        check_text(node.value)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Fields by their names as written, merged ones (`<<`) included."""
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise ValueError(f"stands for more than {MOST_VALUES} values")


def _whole(loader: _Loader, node: Any) -> int:
    if len(node.value) > MOST_DIGITS:
        raise ValueError("a whole number beyond 64 bits")
    return check_integer(loader.construct_yaml_int(node))


def _broken(loader: _Loader, node: Any) -> float:
    value = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        raise ValueError(f"{node.value[:40]} is not a finite number")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _broken)
