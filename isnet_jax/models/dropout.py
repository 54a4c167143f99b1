"""Dropout whose random stream is plain state of the model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class RandomStream(nnx.Variable):
    """Key data (uint32) of the next random numbers.

    Plain numbers, unlike `flax.nnx.RngKey`: whatever stores, shards or compares the BatchNorm
    averages can do the same with it.
    """


class Dropout(nnx.Module):
    """Zeroes entries with probability ``rate`` in training mode and scales the others up.

    Linear in its input, so it needs no LRP rule: map and logits share one mask. Any shape.

    Args:
        rate: in [0, 1).
        rngs: seed of the stream, which every call in training mode advances.

    Raises:
        ValueError: rate outside [0, 1).
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"dropout={rate}; must lie in [0, 1)")
        self.rate = rate
        self.deterministic = False
        self.stream = RandomStream(jax.random.key_data(rngs.dropout()))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops entries of x."""
        if self.deterministic or self.rate == 0:
            return x
        onward, now = jax.random.split(jax.random.wrap_key_data(self.stream[...]))
        self.stream.set_value(jax.random.key_data(onward))
        keep = jax.random.bernoulli(now, 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)
