"""Dropout whose random stream is plain state of the network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RandomStream(nnx.Variable):
    """Key data (uint32) of the next draws: plain numbers, which any checkpoint can hold."""


class Dropout(nnx.Module):
    """In training, zeroes a share ``rate`` of the entries and scales the others up.

    Args:
        rate: in [0, 1).
        whole_channels: whether all voxels of a channel of a sample share one draw.
        whole_samples: whether all entries of a sample share one draw.
        rngs: seed of the stream, which every call in training mode advances.

    Raises:
        ValueError: another rate.
    """

    def __init__(
        self,
        rate: float,
        *,
        whole_channels: bool = False,
        whole_samples: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"dropout={rate}; expected a share in [0, 1)")
        self.rate, self.deterministic = rate, True
        self.whole_channels, self.whole_samples = whole_channels, whole_samples
        self.stream = RandomStream(jax.random.key_data(rngs.dropout())) if rate else None

    def __call__(self, x: Float[Array, "b *sides c"]) -> Float[Array, "b *sides c"]:
        """See the class."""
        if self.deterministic or self.stream is None:
            return x
        onward, now = jax.random.split(jax.random.wrap_key_data(self.stream[...]))
        self.stream.set_value(jax.random.key_data(onward))
        shape = x.shape
        if self.whole_channels or self.whole_samples:
            shape = (len(x), *[1] * (x.ndim - 2), 1 if self.whole_samples else x.shape[-1])
        keep = jnp.broadcast_to(jax.random.bernoulli(now, 1 - self.rate, shape), x.shape)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic
