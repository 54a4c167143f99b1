"""Invariant risk minimisation (version 1) over two groups.

Source: Arjovsky et al. 2019 (arXiv 1907.02893), IRMv1; the vector of dummies, the balance and the
scaling are those of PGI's code (Ahmed et al. 2021, ICLR).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from isnet_jax.baselines.groups import balanced, group_means, memberships
from isnet_jax.baselines.terms import (
    Array,
    Result,
    Tree,
    accuracy,
    forward,
    needs,
    not_negative,
)
from isnet_jax.isnet import Programs, cross_entropy
from isnet_jax.legal import check

DUMMIES = ("vector", "scalar")


@dataclass(frozen=True)
class IRM:
    """Settings.

    Attributes:
        weight: lambda >= 0; `isnet_jax.baselines.groups.ramped` gives it over the epochs.
        dummy: "vector" multiplies every logit by its own 1 (PGI's code), "scalar" all by one
            (IRMv1 as published).
    """

    weight: float = 100.0
    dummy: str = "vector"

    def __post_init__(self) -> None:
        not_negative("IRM", weight=self.weight)
        check("IRM dummy", self.dummy, DUMMIES)


def dummy_gradients(logits: Array, labels: Array) -> Array:
    """Gradient (b, k) of each sample's ``CE(w y)`` in the multipliers w (k,) at 1.

    In closed form ``(softmax(y) - onehot) y``, so no second derivative is taken.
    """
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return (jax.nn.softmax(logits, -1) - own) * logits


def penalty(logits: Array, labels: Array, groups: Array, dummy: str = "vector") -> Array:
    """Mean over the groups of ``|d CE_g(w y) / dw|^2`` at w = 1, a scalar >= 0.

    Args:
        logits: (b, k).
        labels: (b,) int.
        groups: (b,) int, 0 or 1; an absent group counts 0.
        dummy: of `DUMMIES`.
    """
    check("IRM dummy", dummy, DUMMIES)
    slopes = group_means(dummy_gradients(logits, labels), memberships(groups, 2, logits.dtype))
    if dummy == "scalar":
        slopes = slopes.sum(-1, keepdims=True)
    return jnp.square(slopes).sum(-1).mean()


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: IRM,
    rng: Array | None = None,
    *,
    training: bool = True,
    weight: Array | float | None = None,
) -> Result:
    """``(balanced CE + lambda penalty) / max(1, lambda)``.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image", "label" and "group" (b,) int, 0 or 1.
        method: settings.
        rng: not used.
        training: BatchNorm on batch statistics.
        weight: lambda of this step; None: ``method.weight``.

    Raises:
        ValueError: no groups.
    """
    needs(batch, "IRM", "group")
    logits, rest = forward(graphs, params, rest, training=training)(batch["image"])
    labels, groups = batch["label"], batch["group"]
    plain = balanced(cross_entropy(logits, labels), groups)
    variance = penalty(logits, labels, groups, method.dummy)
    share = jnp.asarray(method.weight if weight is None else weight, plain.dtype)
    loss = (plain + share * variance) / jnp.maximum(share, 1)
    values = {"loss": loss, "cross_entropy": plain, "penalty": variance}
    return loss, (values | {"accuracy": accuracy(logits, labels)}, rest)
