"""Keywords of a job's constructor: those that a card does not list, and the types of all."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from launch.experiment import SetupError, unknown_key

_ANY: tuple[type, ...] = (object,)


def parameters(cls: Any) -> dict[str, inspect.Parameter] | None:
    """Name -> parameter of a constructor, `optimizer` aside; None if it takes any name."""
    found = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    return {name: p for name, p in found.items() if name != "optimizer"}


def listed(card: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The card with those keywords of its jobs, at their defaults, that only `overrides` name.

    Where a default does not tell its type (None, or one of several legal ones) the card gets None,
    beside which any Python literal will do; `check_types` judges it.

    Raises:
        SetupError: the job's constructor has no such keyword.
    """
    jobs = card.get("jobs")
    made = {k: dict(v) if isinstance(v, Mapping) else v for k, v in (jobs or {}).items()}
    for key, _ in overrides:
        parts = key.split(".")
        section = made.get(parts[1]) if len(parts) == 3 and parts[0] == "jobs" else None
        if not isinstance(section, dict) or str(section.get("name")).count(":") != 1:
            continue
        if parts[2] not in section:
            section[parts[2]] = _default(section, parts[1], parts[2])
    return {**card, "jobs": made} if jobs else dict(card)


def _default(section: Mapping[str, Any], verb: str, name: str) -> Any:
    from launch.build import found  # loads JAX, as the job's module does

    cls = found(section, f"jobs.{verb}", "cases")
    known = parameters(cls)
    if known is not None and name not in known:
        raise unknown_key(f"config.jobs.{verb}.{name}", [f"config.jobs.{verb}.{n}" for n in known])
    one = known[name] if known else None
    if one is None or one.default is one.empty or len(_kinds(_hints(cls).get(name))) > 1:
        return None
    return one.default


# ------------------------------------------------------------------------- types


def check_types(cls: Any, keywords: Mapping[str, Any], key: str) -> None:
    """Refuse values that the annotations of a constructor rule out.

    Annotations that are no plain types, mappings, sequences or unions of these allow anything.

    Raises:
        SetupError: it names the key, the value and the legal types.
    """
    hints = _hints(cls)
    for name, value in keywords.items():
        kinds = _kinds(hints.get(name))
        legal = (*kinds, int) if float in kinds else kinds
        fits = isinstance(value, legal) and not (
            # In Python a truth value is a number, and a text a sequence.
            (isinstance(value, bool) and not {bool, object} & set(legal))
            or (isinstance(value, str) and not {str, object} & set(legal))
        )
        if not fits:
            told = " or ".join(dict.fromkeys(_WORDS.get(k, k.__name__) for k in kinds))
            raise SetupError(
                f"config.{key}.{name} = {value!r} must be {told}, not {type(value).__name__}"
            )


_WORDS = {Sequence: "a sequence", Mapping: "a mapping", type(None): "None"}


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, TypeError, AttributeError):  # names that only type checkers import
        return {}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes of which a value may be."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part))
    origin = typing.get_origin(hint) or hint
    if origin in (tuple, list):  # a card's lists become tuples on their way
        return (Sequence,)
    if origin is dict:
        return (Mapping,)
    if hint is None:
        return _ANY
    plain = (bool, int, float, str, type(None), Sequence, Mapping)
    return (origin,) if origin in plain else _ANY
