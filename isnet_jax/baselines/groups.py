"""Losses by group: what IRM, GroupDRO and PGI share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from isnet_jax.baselines.terms import Array


def group_means(values: Array, members: Array) -> Array:
    """Mean of values (b, ...) over each group, (g, ...); 0 for a group without members.

    Args:
        values: (b, ...) float.
        members: (b, g), 1 where a sample belongs to a group.
    """
    flat = values.reshape(len(values), -1)
    weights = members.astype(values.dtype)
    count = jnp.maximum(weights.sum(0), 1)
    means = (weights.T[:, :, None] * flat[None]).sum(1) / count[:, None]
    return means.reshape(-1, *values.shape[1:])


def memberships(groups: Array, count: int, dtype: jnp.dtype) -> Array:
    """One-hot (b, count) of groups (b,) int; a group outside 0..count-1 is none."""
    return jax.nn.one_hot(groups, count, dtype=dtype)


def balanced(losses: Array, groups: Array) -> Array:
    """``mean_{g=0} / 2 + mean_{g=1} / 2`` of losses (b,), a scalar; an absent group counts 0.

    Source: PGI's code (Ahmed et al. 2021): with one group only the loss is halved.
    """
    return group_means(losses, memberships(groups, 2, losses.dtype)).sum() / 2


def ramped(weight: float, epoch: Array | float, epochs: float) -> Array:
    """Penalty weight at ``epoch`` (0, 1, …): 0 in the first, then linear to all after ``epochs``.

    Source: PGI's code. ``epochs`` = 0 gives it all from the second epoch on. Traceable in epoch.
    """
    grown = 1.0 if epochs <= 0 else jnp.minimum(1.0, jnp.asarray(epoch, jnp.float32) / epochs)
    return jnp.where(jnp.asarray(epoch) < 1, 0.0, weight * grown)
