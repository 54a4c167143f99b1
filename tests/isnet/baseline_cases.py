"""Tiny networks and exact derivatives for the tests of distillation and baselines."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isnet_jax.models.simple_cnn import SimpleCNN

# Each program runs a few times on a few hundred numbers: compile fast, not well.
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def in_float64(make, seed=0):
    """The model that ``make()`` gives, in float64, with every number drawn.

    Nothing is compiled, and biases and gates that start at 0 are not 0, where they could not be
    told from absent ones.
    """
    model = nnx.eval_shape(make)
    rng = np.random.default_rng(seed)

    def drawn(path, value):
        name = jax.tree_util.keystr(path)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return jnp.asarray(rng.integers(0, 9, value.shape), value.dtype)
        fan_in = max(int(np.prod(value.shape[:-1])), 1) if "kernel" in name else 10
        some = rng.normal(size=value.shape) * (2 / fan_in) ** 0.5
        if "scale" in name or "var" in name:
            some = 1 + 0.2 * np.abs(some)
        return jnp.asarray(some, jnp.float64)

    nnx.update(model, jax.tree_util.tree_map_with_path(drawn, nnx.state(model)))
    return model


def cnn(seed, widths=(2, 3), norm=True, pooled=1, classes=3):
    def make():
        return SimpleCNN(
            num_classes=classes,
            in_channels=2,
            widths=widths,
            norm=norm,
            pooled=pooled,
            rngs=nnx.Rngs(0),
        )

    return in_float64(make, seed)


def directional(f, at, direction, h=2e-5):
    """Directional derivative by Richardson-extrapolated central differences, error O(h^4)."""

    def central(h):
        plus = jax.tree.map(lambda p, d: p + h * d, at, direction)
        minus = jax.tree.map(lambda p, d: p - h * d, at, direction)
        return (f(plus) - f(minus)) / (2 * h)

    return (4 * central(h / 2) - central(h)) / 3


def random_like(tree, seed=9):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), tree)


def inner(a, b):
    leaves = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return sum(float((x * y).sum()) for x, y in leaves)
