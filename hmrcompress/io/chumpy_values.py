"""The values of chumpy arrays, computed from what their pickles hold.

A chumpy array is either values (`Ch`, its `x`) or an operation on other arrays. MANO's shape directions, for one, are a
`Select` of others. The operations are those of https://github.com/mattloper/chumpy (MIT): the names of their operands
are the names in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
ELEMENTWISE = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.true_divide}


def chumpy_value(
    operation: str, state: Mapping[str, Any], value: Callable[[Any], Any], spend: Callable[[int], None]
) -> Array | None:
    """The array that `operation` gives on the operands in `state`; None for an empty `Ch`.

    value: turns an operand into an array. spend: is told how many bytes the result takes before it is made. Raises
    KeyError, ValueError, IndexError or TypeError where the operands do not fit.
    """
    if operation == "Ch":
        return np.asarray(value(state["x"])) if "x" in state else None
    if operation in ELEMENTWISE:
        a, b = _array(value(state["a"])), _array(value(state["b"]))
        spend(8 * int(np.prod(np.broadcast_shapes(a.shape, b.shape), dtype=float)))
        return ELEMENTWISE[operation](a, b)
    if operation == "MatVecMult":
        return _matrix_product(_array(value(state["mtx"])), _array(value(state["vec"])))
    if operation == "Concatenate":
        parts = [_array(value(state[name])) for name in value(state["dterms"])]
        spend(sum(part.nbytes for part in parts))
        return np.concatenate(parts, axis=int(value(state["axis"])))
    if operation == "AtleastNd":
        x, missing = _array(value(state["x"])), {1: np.atleast_1d, 2: np.atleast_2d, 3: np.atleast_3d}
        return missing[int(value(state["ndims"]))](x)
    a = _array(value(state["a"]))
    if operation == "Select":
        places = _array(value(state["idxs"]))
        spend(places.size * a.dtype.itemsize)
        selected = a.ravel()[places]
        return selected.reshape(_sizes(value(state["preferred_shape"]))) if "preferred_shape" in state else selected
    if operation == "Reshape":
        return a.reshape(_sizes(value(state["newshape"])))
    if operation == "transpose":
        axes = value(state.get("axes"))
        return np.transpose(a, None if axes is None else _sizes(axes))
    raise ValueError(f"an unknown operation {operation}")


def _matrix_product(matrix: Array, vector: Array) -> Array:
    """matrix (M,N) times all N values of `vector`; a `vector` of several columns gives rows of as many."""
    product = matrix @ vector.ravel()
    return product.reshape(-1, vector.shape[1]) if vector.ndim > 1 and vector.shape[1] > 1 else product


def _array(value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError("an operand that is no array of numbers")
    return array


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.atleast_1d(np.asarray(value)))
