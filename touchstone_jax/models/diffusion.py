"""Gaussian diffusion of label maps: what is added in training, and how a sample is drawn.

All times are steps of Ho et al. 2020: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with a_t the
running product of 1 - beta. The network is one that predicts x_0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

STEPS = 1000
BETAS = (1e-4, 0.02)


def kept_share() -> Float32[np.ndarray, " 1000"]:
    """a_t for t = 0..999, from 0.9999 down to 4e-5: linear betas (Ho et al. 2020, section 4)."""
    return np.cumprod(1 - np.linspace(*BETAS, STEPS)).astype(np.float32)


def noised(
    x: Float[Array, "b *sides k"], time: Int[Array, " b"], noise: Float[Array, "b *sides k"]
) -> Float[Array, "b *sides k"]:
    """x_t of x_0 = ``x`` (Ho et al. 2020, equation 4).

    Args:
        x: in [-1, 1].
        time: 0..999, one a sample.
        noise: standard normal.
    """
    share = jnp.asarray(kept_share())[time].reshape(-1, *[1] * (x.ndim - 1))
    return jnp.sqrt(share) * x + jnp.sqrt(1 - share) * noise


def respaced(steps: int) -> Int[np.ndarray, " steps"]:
    """Times of a sampler of fewer steps: evenly spaced from 0 to 999, rounded, rising."""
    return np.round(np.linspace(0, STEPS - 1, steps)).astype(np.int32)


def ddim(
    network: Callable[[Float[Array, "b x y z k"], Int[Array, " b"]], Float[Array, "b x y z k"]],
    noise: Float[Array, "b x y z k"],
    steps: int,
) -> Float[Array, "steps b x y z k"]:
    """Draw x_0 from noise without further noise (Song et al. 2021, equation 12 with sigma 0).

    What comes back is the network's output at each step, the noisiest first; clipped to [-1, 1],
    the last is x_0.

    Args:
        network: x_t and times to x_0.
        noise: standard normal: x_999.
        steps: 2..1000.
    """
    times = respaced(steps)
    share = kept_share()[times]
    before = np.concatenate([np.ones(1, np.float32), share[:-1]])

    def step(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        time, now, then = at
        output = network(x, jnp.full(x.shape[0], time))
        clean = jnp.clip(output, -1, 1)
        direction = (x - jnp.sqrt(now) * clean) / jnp.sqrt(1 - now)
        return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * direction, output

    moments, now, then = (jnp.asarray(a[::-1].copy()) for a in (times, share, before))
    return jax.lax.scan(step, noise, (moments, now, then))[1]


def fused(outputs: Float[Array, "runs steps b x y z k"]) -> Float[Array, "b x y z k"]:
    """Mean of x_0 over steps and runs, by what step it is and how sure it is; in [-1, 1].

    Xing et al. 2023, equations 5 and 6: step i of s weighs exp(sigmoid(i / s) (1 - u)) with
    u = -p log p and p the sigmoid of the runs' mean output. Theirs is the weighted sum; divided by
    the sum of weights it has the same sign, and overlapping windows count alike.

    Args:
        outputs: of `ddim` on the noise of each run.
    """
    steps = outputs.shape[1]
    p = jnp.maximum(jax.nn.sigmoid(outputs.mean(0)), jnp.float32(1e-3))
    unsure = -p * jnp.log(p)
    rank = jax.nn.sigmoid(jnp.arange(1, steps + 1, dtype=jnp.float32) / steps)
    weight = jnp.exp(rank.reshape(-1, *[1] * (p.ndim - 1)) * (1 - unsure))
    return (weight * jnp.clip(outputs, -1, 1).mean(0)).sum(0) / weight.sum(0)
