"""Hidden layers' relevance: a zero added to a layer's output catches its multiplier.

``R = A * dq/dA`` with the view's modified derivatives: the vjp of the model in an added zero is
exactly the multiplier at that output, so hidden maps cost no convolution more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class _Tapped(nnx.Module):
    """A layer whose output gets a zero added and is kept."""

    def __init__(self, layer: nnx.Module, zero: Array) -> None:
        self.layer = layer
        self.zero = nnx.Variable(zero)

    def __call__(self, *args: Array) -> Array:
        """The layer's output."""
        out = self.layer(*args) + self.zero[...]
        self.kept = nnx.Variable(out)
        return out


def call(model: nnx.Module, x: Array, zeros: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The model's output, and the outputs of the layers at the slash paths of ``zeros``.

    Args:
        model: called once; its structure is as before afterwards.
        x: its input.
        zeros: path -> zeros of the layer's output shape, or scalars.

    Raises:
        ValueError: a path is no layer of the model.
    """
    tapped = {}
    for path, zero in zeros.items():
        parent, name = _parent(model, path)
        tapped[path] = _Tapped(_get(parent, name), zero)
        _set(parent, name, tapped[path])
    logits = model(x)
    kept = {path: tap.kept[...] for path, tap in tapped.items()}
    for path, tap in tapped.items():
        _set(*_parent(model, path), tap.layer)
    return logits, kept


def zero_outputs(
    f: Callable[..., tuple[Array, Any]], x: Array, paths: tuple[str, ...]
) -> dict[str, Array]:
    """Zeros of the shapes of the outputs at ``paths``; ``f(x, zeros) -> (.., (.., kept))``."""
    scalars = {path: jnp.zeros((), x.dtype) for path in paths}
    shapes = jax.eval_shape(lambda x: f(x, scalars)[1][1], x)
    return {path: jnp.zeros(shape.shape, shape.dtype) for path, shape in shapes.items()}


def _parent(model: nnx.Module, path: str) -> tuple[nnx.Module, str]:
    *above, name = path.split("/")
    node = model
    for step in above:
        node = _get(node, step)
    if _get(node, name) is None:
        raise ValueError(f"{type(model).__name__} has no layer at path {path!r}")
    return node, name


def _get(node: nnx.Module | None, step: str):
    if isinstance(node, nnx.List):
        return node[int(step)] if step.isdigit() and int(step) < len(node) else None
    return getattr(node, step, None)


def _set(node: nnx.Module, step: str, value: nnx.Module) -> None:
    if isinstance(node, nnx.List):
        node[int(step)] = value
    else:
        setattr(node, step, value)
