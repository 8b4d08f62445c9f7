"""The values of chumpy arrays, computed from what their pickles hold.

A chumpy array is either values (`Ch`, its `x`) or an operation on other arrays. MANO's shape directions, for one, are a
`Select` of others. The operations are those of https://github.com/mattloper/chumpy (MIT): the names of their operands
are the names in the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

ITEM = 8
"""Bytes of a number at most."""
LONGEST_EMPTY = 1 << 20
Array = np.ndarray
ELEMENTWISE = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.true_divide}


def chumpy_value(
    operation: str, state: Mapping[str, Any], value: Callable[[Any], Any], spend: Callable[[int], None]
) -> Array | None:
    """The array that `operation` gives on the operands in `state`; None for an empty `Ch`.

    value: turns an operand into an array, a number or a list. spend: is told how many bytes the result takes before it
    is made, and raises where there are none left. Raises KeyError, ValueError, IndexError or TypeError where the
    operands do not fit.
    """

    def array(name: str) -> Array:
        return numbers(value(state[name]), spend)

    if operation == "Ch":
        return array("x") if "x" in state else None
    if operation in ELEMENTWISE:
        a, b = array("a"), array("b")
        spend(ITEM * math.prod(np.broadcast_shapes(a.shape, b.shape)))
        return ELEMENTWISE[operation](a, b)
    if operation == "MatVecMult":
        return _matrix_product(array("mtx"), array("vec"), spend)
    if operation == "Concatenate":
        parts = [array(name) for name in value(state["dterms"])]
        spend(ITEM * sum(part.size for part in parts))
        return np.concatenate(parts, axis=int(value(state["axis"])))
    if operation == "AtleastNd":
        return {1: np.atleast_1d, 2: np.atleast_2d, 3: np.atleast_3d}[int(value(state["ndims"]))](array("x"))
    a = array("a")
    if operation == "Select":
        places = array("idxs")
        spend(a.nbytes + ITEM * places.size)
        selected = a.ravel()[places]
        return selected.reshape(_sizes(value(state["preferred_shape"]))) if "preferred_shape" in state else selected
    if operation == "Reshape":
        spend(a.nbytes)
        return checked(a.reshape(_sizes(value(state["newshape"]))))
    if operation == "transpose":
        axes = value(state.get("axes"))
        return np.transpose(a, None if axes is None else _sizes(axes))
    raise ValueError(f"an unknown operation {operation}")


def numbers(given: Any, spend: Callable[[int], None]) -> Array:
    """An array of numbers: as it is, or made of a number or of nested lists, which spends what it takes.

    Lists may stand in many places of a file, and in each other: what they stand for is counted as it is written out.
    Raises ValueError for anything else, text among the numbers included.
    """
    if not isinstance(given, np.ndarray):
        _count(given, spend)
        given = np.asarray(given)
    if given.dtype.kind not in "biuf":
        raise ValueError("an operand that is no array of numbers")
    return checked(given)


def checked(array: Array) -> Array:
    """The array itself. ValueError where it is empty and yet claims to be long along some axis: whoever multiplies it
    would make what the file does not hold."""
    if not array.size and math.prod(max(1, size) for size in array.shape) > LONGEST_EMPTY:
        raise ValueError(f"an empty array of the shape {array.shape}")
    return array


def _count(given: Any, spend: Callable[[int], None]) -> None:
    if isinstance(given, list):
        spend(ITEM * (len(given) + 1))
        for item in given:
            if not isinstance(item, (bool, int, float)):
                _count(item, spend)
    elif isinstance(given, np.ndarray):
        spend(ITEM * given.size)
    elif not isinstance(given, (bool, int, float)):
        raise ValueError(f"a {type(given).__name__} among numbers")


def _matrix_product(matrix: Array, vector: Array, spend: Callable[[int], None]) -> Array:
    """matrix (M,N) times all N values of `vector`; a `vector` of several columns gives rows of as many."""
    if matrix.ndim != 2 or matrix.shape[1] != vector.size:
        raise ValueError(f"a product of {matrix.shape} and {vector.shape}")
    spend(ITEM * (matrix.shape[0] + vector.size))
    product = matrix @ vector.ravel()
    return product.reshape(-1, vector.shape[1]) if vector.ndim > 1 and vector.shape[1] > 1 else product


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in (value if isinstance(value, list) else np.atleast_1d(value)))
