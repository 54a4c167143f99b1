"""Choosing by name, with an error that names the nearest and the legal values."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from typing import TypeGuard, TypeVar

T = TypeVar("T")


def unknown(what: str, name: object, legal: Iterable[str]) -> ValueError:
    """The error for a ``name`` that is none of ``legal``."""
    legal = list(legal)
    near = difflib.get_close_matches(str(name), legal, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}; {hint}legal values: {', '.join(legal)}")


def check(what: str, name: str, legal: Iterable[str]) -> None:
    """Raises ValueError unless ``name`` is one of ``legal``."""
    if name not in legal:
        raise unknown(what, name, legal)


def number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number (cards can hold text in its place)."""
    return isinstance(value, Real) and not isinstance(value, bool)


def call(what: str, name: str, table: Mapping[str, Callable[..., T]], options: Mapping) -> T:
    """``table[name](**options)``.

    Raises:
        ValueError: unknown name or option, or a missing option without default.
    """
    check(what, name, table)
    legal = _parameters(table[name])
    for option in options:
        check(f"option of {what} {name!r}", option, legal)
    for option, parameter in legal.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{what} {name!r} needs the option {option!r}")
    return table[name](**options)


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """What a caller may pass by name; a class with a metaclass hides it from `signature`."""
    fixed: set[str] = {"self"}
    if isinstance(function, partial):
        fixed |= set(function.keywords)
        function = function.func
    if inspect.isclass(function):
        function = function.__init__
    return {n: p for n, p in inspect.signature(function).parameters.items() if n not in fixed}
