"""Predictive group invariance: a class' mean prediction shall be the same in both its groups.

Source: Ahmed et al. 2021, ICLR ("Systematic generalisation with group invariant predictions"),
equation 3 and its code. `isnet_jax.baselines.group_inference` finds the groups.
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
from isnet_jax.distill.heads import freeze
from isnet_jax.isnet import Programs, cross_entropy

TINY = 1e-12


@dataclass(frozen=True)
class PGI:
    """Settings.

    Attributes:
        weight: lambda >= 0; `isnet_jax.baselines.groups.ramped` gives it over the epochs.
        head: path of the last linear layer, which the penalty does not move.
    """

    weight: float = 50.0
    head: str = "classifier"

    def __post_init__(self) -> None:
        not_negative("PGI", weight=self.weight)


def penalty(logits: Array, labels: Array, groups: Array) -> Array:
    """``sum_c mean_k p1_k log(p1_k / p0_k)``, a scalar >= 0 but for the clip.

    p_g is the mean softmax of class c's samples in group g (1 = minority), clipped to
    [1e-12, 1 - 1e-12]; classes of which the batch lacks a group count 0.

    Args:
        logits: (b, k).
        labels: (b,) int.
        groups: (b,) int, 0 or 1.
    """
    count, dtype = logits.shape[-1], logits.dtype
    # A batch as (class, group) cells, group fastest.
    members = memberships(labels * 2 + groups.astype(labels.dtype), 2 * count, dtype)
    p = group_means(jax.nn.softmax(logits, -1), members).reshape(count, 2, count)
    both = members.any(0).reshape(count, 2).all(1)
    # In float32 1 - 1e-12 is 1, where the logarithm still is finite.
    p = jnp.clip(p, TINY, 1 - TINY)
    divergence = (p[:, 1] * (jnp.log(p[:, 1]) - jnp.log(p[:, 0]))).mean(-1)
    return jnp.where(both, divergence, 0).sum()


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: PGI,
    rng: Array | None = None,
    *,
    training: bool = True,
    weight: Array | float | None = None,
) -> Result:
    """``balanced CE + lambda penalty``; the penalty moves all but the last linear layer.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image", "label" and "group" (b,) int: 0 majority, 1 minority.
        method: settings.
        rng: not used.
        training: BatchNorm on batch statistics.
        weight: lambda of this step; None: ``method.weight``.

    Raises:
        ValueError: no groups, or no parameters at ``method.head``.
    """
    needs(batch, "PGI", "group")
    x, labels, groups = batch["image"], batch["label"], batch["group"]
    logits, updated = forward(graphs, params, rest, training=training)(x)
    # The same program on the same numbers: XLA merges the two forwards.
    fixed, _ = forward(graphs, freeze(params, method.head), rest, training=training)(x)
    plain = balanced(cross_entropy(logits, labels), groups)
    divergence = penalty(fixed, labels, groups)
    share = jnp.asarray(method.weight if weight is None else weight, plain.dtype)
    loss = plain + share * divergence
    values = {"loss": loss, "cross_entropy": plain, "penalty": divergence}
    return loss, (values | {"accuracy": accuracy(logits, labels)}, updated)
