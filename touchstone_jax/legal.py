"""What a name or an option may be: errors that tell the nearest and the legal values."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

T = TypeVar("T")


def unknown(what: str, name: object, legal: Iterable[str]) -> ValueError:
    """The error for a ``name`` that is none of ``legal``."""
    legal = list(legal)
    near = difflib.get_close_matches(str(name), legal, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}; {hint}legal: {', '.join(legal)}")


def options_of(function: Callable) -> tuple[str, ...]:
    """Names of the arguments that a caller may still pass to ``function`` or class."""
    fixed: set[str] = {"self"}
    if isinstance(function, partial):
        fixed |= set(function.keywords)
        function = function.func
    # The metaclass of a module hides its arguments from `signature`.
    called = function.__init__ if inspect.isclass(function) else function
    return tuple(name for name in inspect.signature(called).parameters if name not in fixed)


def call(what: str, name: str, table: Mapping[str, Callable[..., T]], options: Mapping) -> T:
    """``table[name](**options)``.

    Raises:
        ValueError: a name that is not in the table, or an option that it does not take.
    """
    if name not in table:
        raise unknown(what, name, table)
    legal = options_of(table[name])
    for option in options:
        if option not in legal:
            raise unknown(f"option of {what} {name!r}", option, legal)
    return table[name](**options)
