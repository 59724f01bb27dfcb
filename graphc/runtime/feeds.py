"""Arrays handed to a compiled function: accepted, converted without loss, or refused with a clear error."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.errors import FeedError, FeedTypeError
from graphc.ir.graph import Graph, Value
from graphc.ir.op import Scan
from graphc.ir.types import DType

Array = np.ndarray[Any, Any]


def ordered(values: tuple[Value, ...], args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """Positional and named feeds in the order of the inputs; raises FeedTypeError like a Python call would."""
    if not named and len(args) == len(values):
        return list(args)
    names = [value.name for value in values]
    listed = ", ".join(names)
    if len(args) > len(values):
        raise FeedTypeError(f"{len(values)} inputs are taken ({listed}), {len(args)} were given")
    found = dict(zip(names, args, strict=False))
    for name, array in named.items():
        if name not in names:
            raise FeedTypeError(f"no input is called {name}; there are {listed}")
        if name in found:
            raise FeedTypeError(f"input {name} is given twice")
        found[name] = array
    missing = [name for name in names if name not in found]
    if missing:
        raise FeedTypeError(f"no array for {', '.join(missing)}")
    return [found[name] for name in names]


def conform(value: Value, given: Any) -> Array:
    """`given` as an aligned C-contiguous array of the value's dtype and rank.

    Lists and numbers are converted; an array is converted where that loses nothing (`numpy.can_cast(..., "safe")`:
    another byte order, int32 to int64), copied where it is not contiguous, and refused otherwise.

    Raises FeedTypeError for a dtype, and FeedError for a rank or extent, that does not fit.
    """
    wanted = value.dtype.numpy
    if type(given) is np.ndarray and given.dtype == wanted and given.flags.c_contiguous and given.flags.aligned:
        array = given
    else:
        array = _converted(value, given, wanted)
    if array.ndim != value.type.rank or any(
        isinstance(d, int) and d != n for d, n in zip(value.shape, array.shape, strict=True)
    ):
        raise FeedError(f"input {value.name} is {value.type}, which an array of shape {list(array.shape)} does not fit")
    return array


def bindable(value: Value, given: Any) -> Array:
    """`given` itself: an array that steps can read where it lies, now and later.

    Raises FeedTypeError for what is no array or would have to be converted, and FeedError as `conform` does.
    """
    if not isinstance(given, np.ndarray):
        raise FeedTypeError(f"input {value.name} is bound to an array, not to {type(given).__name__}")
    array = given if type(given) is np.ndarray else given.view(np.ndarray)
    if array.dtype != value.dtype.numpy or not array.flags.c_contiguous or not array.flags.aligned:
        raise FeedTypeError(
            f"input {value.name} is {value.type}: it can be bound to a C-contiguous array of {value.dtype.numpy.name}, "
            f"which is read where it lies, not to a copy"
        )
    return conform(value, array)


def _converted(value: Value, given: Any, wanted: np.dtype[Any]) -> Array:
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: torch, for what needs a gradient
        raise FeedTypeError(f"input {value.name} is {value.type}, not {type(given).__name__}: {error}") from None
    if isinstance(given, np.ndarray | np.generic):
        safe = np.can_cast(array.dtype, wanted, "safe")
    else:  # numbers and lists have no dtype of their own: their kind must fit
        safe = np.can_cast(array.dtype, wanted, "same_kind") or array.size == 0
    if not safe:
        hint = "" if array.dtype.hasobject else f"; convert it with .astype(numpy.{wanted.name})"
        raise FeedTypeError(f"input {value.name} is {value.type}, not an array of {array.dtype}{hint}")
    return np.require(array, wanted.newbyteorder("="), ["C", "A"]).view(np.ndarray)


def examples(graph: Graph, seed: int = 0) -> list[Array]:
    """Random arrays for the inputs, then the state, of a bound graph: normal floats, integers that pass its checks."""
    random = np.random.default_rng(seed)
    limits = _limits(graph)
    return [_example(value, limits.get(value, 1), random) for value in (*graph.inputs, *graph.state)]


def _example(value: Value, limit: int, random: np.random.Generator) -> Array:
    shape, dtype = value.type.extents, value.dtype
    if dtype.is_float:
        return random.standard_normal(shape).astype(dtype.numpy)
    return random.integers(0, 2 if dtype is DType.BOOL else max(1, limit), shape).astype(dtype.numpy)


def _limits(graph: Graph) -> dict[Value, int]:
    """For each value that a check or a gather takes as an index: how large it may be."""
    found: dict[Value, int] = {}
    for node in graph.nodes:
        inner = _limits(node.attrs["body"]) if "body" in node.attrs else {}
        parameters = (
            Scan.parameters(node) if isinstance(node.op.kind, Scan) else node.attrs["body"].inputs if inner else ()
        )
        for value, parameter in zip(node.inputs, parameters, strict=False):
            if parameter in inner:
                found[value] = min(inner[parameter], found.get(value, inner[parameter]))
        match node.op.name:
            case "check_index":
                value, limit = node.inputs[0], node.attrs["size"]
            case "gather":
                value, limit = node.inputs[1], node.inputs[0].type.extents[node.attrs["axis"]]
            case _:
                continue
        found[value] = min(limit, found.get(value, limit))
    return found
