"""Arrays out of a pickle that somebody else made, without running anything that it names.

A pickle is a program. This reader knows three names, those by which NumPy writes an array, and
puts passive records in their place; every other name ends it. The bytes become arrays only after
type, shape and length have been compared.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

_KINDS = "fiub"  # numbers and truth values; never objects
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


class _DType:
    """Stands for numpy.dtype: remembers what it was called with."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]
        else:
            raise pickle.UnpicklingError(f"a dtype of state {state!r:.80}")


class _NDArray:
    """Stands for numpy.ndarray and for the function that makes an empty one."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array itself, a copy.

        Raises:
            ValueError: the record is not that of an array of numbers.
        """
        try:
            _, shape, dtype, fortran, raw = self.state
            code = dtype.order.replace("|", "") + dtype.code
            kind = np.dtype(code)
        except (TypeError, ValueError, AttributeError):
            raise ValueError("the pickle holds an array without a proper description") from None
        sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if kind.kind not in _KINDS or not sizes or type(raw) is not bytes:
            raise ValueError(f"the pickle holds an array of type {code!r} and shape {shape!r:.80}")
        if math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError(
                f"the pickle holds {len(raw)} bytes for an array of type {code!r}, shape {shape}"
            )
        array = np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
        return array.astype(kind.newbyteorder("="))


_STANDS_FOR = {"_reconstruct": _NDArray, "ndarray": _NDArray, "dtype": _DType}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _STANDS_FOR:
            return _STANDS_FOR[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r:.80} outside itself")


def arrays_of_pickle(data: bytes) -> Any:
    """What a pickle of nested dicts, lists, tuples, numbers, text and arrays holds.

    Args:
        data: the whole pickle, of protocol 3 or 4 (Python 3's own).

    Raises:
        ValueError: it is damaged, names anything that is not NumPy's array (nothing is called),
            or describes an array whose type, shape and bytes do not fit.
    """
    try:
        _check_memo(data)
        return _unveiled(_Reader(io.BytesIO(data)).load(), {})
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(f"not a pickle of arrays: {error}") from error


def _check_memo(data: bytes) -> None:
    """Python's reader takes memory for all numbers below that of the last remembered value."""
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"the pickle remembers a value by the number {argument}")


def _unveiled(value: Any, seen: dict[int, Any]) -> Any:
    # Once each: lists in lists in lists, each twice, would be more than there is memory for.
    if id(value) not in seen:
        seen[id(value)] = _of(value, seen)
    return seen[id(value)]


def _of(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, _NDArray):
        return value.array()
    if isinstance(value, dict):
        return {key: _unveiled(inner, seen) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unveiled(inner, seen) for inner in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"the pickle holds a {type(value).__name__}")
