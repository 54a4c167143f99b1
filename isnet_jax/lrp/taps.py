"""Hidden layers' relevance, and how much of it each layer takes in and passes on.

``R = A * dq/dA`` with the view's modified derivatives: the vjp of the model in an added zero is
exactly the multiplier at that output, so hidden maps cost no convolution more. Where the sum of
``R`` is enough, a meter keeps nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@jax.custom_vjp
def _metered(value: Array, reading: Array) -> Array:
    """Identity on value (n, ...); the derivative of reading (b,) is the relevance that passes."""
    return value


def _metered_bwd(residuals, m):
    value, reading = residuals
    # Windows of an image may stand in the batch axis too: they count for the image.
    return m, (value * m).reshape(len(reading), -1).sum(1).astype(reading.dtype)


_metered.defvjp(lambda value, reading: (value, (value, reading)), _metered_bwd)


class _Metered(nnx.Module):
    """A layer with a meter at its inputs and one at its output."""

    def __init__(self, layer: nnx.Module, into: Array, out: Array) -> None:
        self.layer = layer
        self.into, self.out = nnx.Variable(into), nnx.Variable(out)

    def __call__(self, *args: Array) -> Array:
        """The layer's output."""
        metered = [_metered(arg, self.into[...]) for arg in args]
        return _metered(self.layer(*metered), self.out[...])


def call(model: nnx.Module, x: Array, zeros: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The model's output, and the outputs of the layers at the slash paths of ``zeros``.

    Args:
        model: called once; its structure is as before afterwards.
        x: its input.
        zeros: path -> zeros of the layer's output shape, or scalars.

    Raises:
        ValueError: a path is no layer of the model.
    """
    tapped = {path: _Tapped(_find(model, path), zero) for path, zero in zeros.items()}
    with _replaced(model, tapped):
        logits = model(x)
    return logits, {path: tap.kept[...] for path, tap in tapped.items()}


def flows(model: nnx.Module, x: Array, paths: Sequence[str], meters: Mapping[str, Array]) -> Array:
    """The model's output; its vjp in ``meters`` is the relevance at the layers' two sides.

    Args:
        model: called once; its structure is as before afterwards.
        x: its input, (b, ...).
        paths: slash paths of layers with the batch, or multiples of it, in their first axis.
        meters: "into" and "out", each (len(paths), b), any values.

    Raises:
        ValueError: a path is no layer of the model.
    """
    pairs = zip(paths, meters["into"], meters["out"], strict=True)
    with _replaced(model, {p: _Metered(_find(model, p), into, out) for p, into, out in pairs}):
        return model(x)


def zero_outputs(
    f: Callable[..., tuple[Array, Any]], x: Array, paths: tuple[str, ...]
) -> dict[str, Array]:
    """Zeros of the shapes of the outputs at ``paths``; ``f(x, zeros) -> (.., (.., kept))``."""
    scalars = {path: jnp.zeros((), x.dtype) for path in paths}
    shapes = jax.eval_shape(lambda x: f(x, scalars)[1][1], x)
    return {path: jnp.zeros(shape.shape, shape.dtype) for path, shape in shapes.items()}


@contextmanager
def _replaced(model: nnx.Module, layers: Mapping[str, Any]) -> Iterator[None]:
    """``layers`` (path -> wrapper with the attribute `layer`) in the model's places."""
    # Inner ones first, and last on the way back: an outer wrapper hides what is inside it.
    order = sorted(layers, key=lambda path: -path.count("/"))
    for path in order:
        _set(*_parent(model, path), layers[path])
    yield
    for path in reversed(order):
        _set(*_parent(model, path), layers[path].layer)


def _find(model: nnx.Module, path: str) -> nnx.Module:
    return _get(*_parent(model, path))


def _parent(model: nnx.Module, path: str) -> tuple[nnx.Module, str]:
    *above, name = path.split("/")
    node = model
    for step in above:
        node = _get(node, step)
    found = _get(node, name)
    callable_layer = isinstance(found, nnx.Module) and callable(found)
    if not callable_layer or (hasattr(node, "rule") and name == "norm"):  # folded: never called
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
