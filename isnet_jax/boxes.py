"""Composites as a card lists them, with the box of z^B taken from how images are normalised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isnet_jax.legal import call
from isnet_jax.lrp.composite import Composite, create
from isnet_jax.lrp.rules import RULES, ZB


@dataclass(frozen=True)
class Shown:
    """One rule of the job: the column's label, the files' name, the composite."""

    label: str
    file: str
    composite: Composite


def shown_rules(
    rules: Sequence[str | Mapping[str, Any]], low: tuple[float, ...], high: tuple[float, ...]
) -> tuple[Shown, ...]:
    """Composites by name or by {"name", options, "label"}; boxes of z^B filled in.

    A z^B rule (Montavon et al. 2017) needs to know where the darkest and brightest input lies.
    Where a preset takes `low` and `high` and is not given them, they are the normalised image's:
    a bound a channel if the rule takes that, else the smallest and the largest.

    Args:
        rules: the card's.
        low: of the input, a number a channel.
        high: likewise.

    Raises:
        ValueError: unknown composite or option, or two rules of the same label.
    """
    made: list[Shown] = []
    labels: list[str] = []
    for rule in rules:
        options = dict(rule) if isinstance(rule, Mapping) else {"name": rule}
        if not isinstance(options.get("name"), str):
            raise ValueError(f"rules: {rule!r} has no name; legal are names or mappings with one")
        label = str(options.pop("label", options["name"]))
        if label in labels or not label:
            raise ValueError(f"rules: label {label!r} is there twice; give each a label of its own")
        labels.append(label)
        name = f"{len(made) + 1:02d}_" + re.sub(r"[^a-z0-9]+", "_", options["name"].lower())
        made.append(Shown(label, name, _boxed(options, low, high)))
    if not made:
        raise ValueError("rules: there are none")
    return tuple(made)


def _boxed(
    options: Mapping[str, Any], low: tuple[float, ...], high: tuple[float, ...]
) -> Composite:
    """The composite of the options, its z^B boxes per channel where they may be."""
    options = dict(options)
    if options["name"] == "table":
        options["rows"] = [_boxed_row(row, low, high) for row in options.get("rows", ())]
        return create(**options)
    plain = create(**options)
    has_box = any(isinstance(rule, ZB) for _, rule in plain.entries)
    if not has_box or "low" in options or "high" in options:
        return plain
    try:
        return create(**options, low=low, high=high)
    except ValueError:  # a scaled bias has no meaning per channel
        return create(**options, low=min(low), high=max(high))


def _boxed_row(row: Sequence[Any], low: tuple[float, ...], high: tuple[float, ...]) -> tuple:
    pattern, name, *more = row
    options = dict(more[0]) if more else {}
    if name == "zb" and not {"low", "high"} & set(options):
        call("rule", name, RULES, options)  # what is wrong with them is told as the user wrote them
        per_channel = options.get("bias") == "cancel"
        box = {"low": low, "high": high} if per_channel else {"low": min(low), "high": max(high)}
        options |= box
    return (pattern, name, options)


def check_box(rule: Shown, low: tuple[float, ...], high: tuple[float, ...]) -> None:
    """Refuse a z^B whose box, as the card gives it, does not hold the inputs.

    Raises:
        ValueError: some input may lie outside, where the rule means nothing.
    """
    for _, one in rule.composite.entries:
        if isinstance(one, ZB):
            below = np.asarray(one.low, np.float32) > np.asarray(low, np.float32)
            above = np.asarray(one.high, np.float32) < np.asarray(high, np.float32)
            if np.any(below) or np.any(above):
                raise ValueError(
                    f"rule {rule.label!r}: the box [{one.low}, {one.high}] of z^B does not hold "
                    f"inputs from {min(low):g} to {max(high):g}; leave low and high out"
                )
