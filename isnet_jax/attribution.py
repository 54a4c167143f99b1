"""Attributions beside LRP: gradients, their averages, Grad-CAM, attention rollout, occlusion.

Each works on any pure function ``f``: x (b, *space, c) to logits (b, k), e.g.
``lambda x: model(x)`` of a model in ``eval()`` mode, explains one logit a sample and is itself
pure: jit, vmap and grad it. Wrapped in ``jax.jit`` it compiles once; bare, its loops compile at
every call. ``target`` is None, the class predicted at x; an int, that class; or (b,) ints. A
class outside the logits is refused; where it is only known inside a jit, that sample's map is
NaN. NaN or infinity in x goes on into the map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Function = Callable[[Array], Array]
Target = int | Array | np.ndarray | None


# ---------------------------------------------------------------- what is explained


def chosen(logits: Array | jax.ShapeDtypeStruct, target: Target) -> Array:
    """The explained classes (b,) int of logits (b, k): ``target``, or the arg-max if None.

    Raises:
        ValueError: a target of another type or shape, a class outside 0..k-1, other logits.
    """
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(f"f must give logits (b, k), got {shape or type(logits)}")
    if target is None:
        return cast(Array, logits).argmax(-1)  # a shape alone comes with a target
    batch, count = shape
    known = not isinstance(target, jax.core.Tracer)
    classes: Any = np.asarray(target) if known else target
    if not jnp.issubdtype(classes.dtype, jnp.integer) or classes.shape not in ((), (batch,)):
        raise ValueError(
            f"target must be None, one int or ({batch},) ints, got {classes.dtype} {classes.shape}"
        )
    if known and not ((classes >= 0) & (classes < count)).all():
        raise ValueError(f"target has a class outside 0..{count - 1}: {classes}")
    return jnp.broadcast_to(jnp.asarray(classes), (batch,))


def _selector(classes: Array, logits: Array) -> Array:
    """1 at each sample's class (b, k); NaN all along the row of an unknown class."""
    hot = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    known = (classes >= 0) & (classes < logits.shape[-1])
    return jnp.where(known[:, None], hot, jnp.asarray(jnp.nan, logits.dtype))


def checked(x: Array | np.ndarray) -> Array:
    """The images as a JAX array.

    Raises:
        ValueError: x isn't (b, *space, c) or not floating point.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must be (b, *space, c), got shape {x.shape}")
    return x


def filled(baseline: float | Array | np.ndarray, x: Array) -> Array:
    """The baseline at the shape and type of x.

    Raises:
        ValueError: it does not broadcast to x.
    """
    baseline = jnp.asarray(baseline, x.dtype)
    try:
        return jnp.broadcast_to(baseline, x.shape)
    except ValueError:
        raise ValueError(
            f"baseline has shape {baseline.shape}, which does not broadcast to x {x.shape}"
        ) from None


def classes_of(f: Function, x: Array, target: Target) -> Array:
    """Classes (b,); f is only computed where it has to choose them."""
    return chosen(f(x) if target is None else jax.eval_shape(f, x), target)


def selected(logits: Array, classes: Array) -> Array:
    """Value (b,) of (b, k) at each sample's class; NaN for an unknown class."""
    hot = _selector(classes, logits)
    return jnp.where(hot == 0, jnp.zeros_like(logits), logits * hot).sum(-1)


def _slope(f: Function, x: Array, target: Target) -> Array:
    """Derivative of the target's logit in x; NaN for an unknown class, dead ReLUs or not."""
    logits, pull = jax.vjp(f, x)
    hot = _selector(chosen(logits, target), logits)
    (slope,) = pull(hot)
    return slope * hot.sum(-1).astype(slope.dtype).reshape(-1, *(1,) * (slope.ndim - 1))


# ---------------------------------------------------------------- gradients


def gradient(f: Function, x: Array | np.ndarray, target: Target = None) -> Array:
    """Derivative of the target's logit in x, signed; shape of x (Simonyan et al. 2014).

    Raises:
        ValueError: bad x, f or target.
    """
    return _slope(f, checked(x), target)


def gradient_x_input(f: Function, x: Array | np.ndarray, target: Target = None) -> Array:
    """`gradient` times x; shape of x. Of a bias-free ReLU network it sums to the logit.

    Raises:
        ValueError: bad x, f or target.
    """
    return jnp.asarray(x) * gradient(f, x, target)


def integrated_gradients(
    f: Function,
    x: Array | np.ndarray,
    target: Target = None,
    *,
    baseline: float | Array | np.ndarray = 0.0,
    steps: int = 32,
) -> Array:
    """Integrated gradients (Sundararajan et al. 2017) by the midpoint rule; shape of x.

    ``(x - baseline) * mean_i df/dx(baseline + (i + 1/2) / steps * (x - baseline))``, one gradient
    at a time, so memory does not grow with ``steps``. The sum over a map tends to
    ``f(x) - f(baseline)``; what is left, `completeness_gap`, falls as 1/steps^2 for smooth f and
    as 1/steps across the kinks of ReLUs.

    Args:
        f: x to logits (b, k).
        x: (b, *space, c) float.
        target: see the module; None is the class predicted at x, all along the path.
        baseline: where the path starts; a number or an array that broadcasts to x.
        steps: points on the path, >= 1.

    Raises:
        ValueError: bad x, f, target, baseline or steps.
    """
    _at_least("steps", steps, 1)
    x = checked(x)
    classes = classes_of(f, x, target)
    start = filled(baseline, x)

    def add(total: Array, i: Array) -> tuple[Array, None]:
        share = (i.astype(x.dtype) + jnp.asarray(0.5, x.dtype)) / steps
        return total + _slope(f, start + share * (x - start), classes), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(steps))
    return (x - start) * total / steps


def completeness_gap(
    f: Function,
    x: Array | np.ndarray,
    attribution: Array,
    target: Target = None,
    *,
    baseline: float | Array | np.ndarray = 0.0,
) -> Array:
    """``f(x) - f(baseline) - sum of the map``, in logits: (b,) for a map (b, ...).

    Raises:
        ValueError: bad x, f, target or baseline.
    """
    x = checked(x)
    logits = f(x)
    classes = chosen(logits, target)
    rise = selected(logits, classes) - selected(f(filled(baseline, x)), classes)
    return rise - attribution.sum(tuple(range(1, attribution.ndim)))


def smooth_grad(
    f: Function,
    x: Array | np.ndarray,
    target: Target = None,
    *,
    rng: Array,
    samples: int = 16,
    noise: float = 0.15,
) -> Array:
    """Mean gradient over noisy copies of x (Smilkov et al. 2017); shape of x.

    Args:
        f: x to logits (b, k).
        x: (b, *space, c) float.
        target: see the module; None is the class predicted at x without noise.
        rng: random key.
        samples: noisy copies, one at a time, >= 1.
        noise: standard deviation as a share of each sample's range max(x) - min(x), >= 0.

    Raises:
        ValueError: bad x, f, target, samples or noise.
    """
    _at_least("samples", samples, 1)
    _at_least("noise", noise, 0)
    x = checked(x)
    classes = classes_of(f, x, target)
    axes = tuple(range(1, x.ndim))
    sd = noise * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))

    def add(total: Array, i: Array) -> tuple[Array, None]:
        draw = jax.random.normal(jax.random.fold_in(rng, i), x.shape, x.dtype)
        return total + _slope(f, x + sd * draw, classes), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(samples))
    return total / samples


# ---------------------------------------------------------------- inside the network


def grad_cam(
    features: Function,
    head: Function,
    x: Array | np.ndarray,
    target: Target = None,
    *,
    resize: bool = True,
) -> Array:
    """Grad-CAM (Selvaraju et al. 2017) of the network ``head(features(x))``; (b, *space) >= 0.

    The features' channels, weighted by the spatial mean of the logit's derivative in them, summed
    and cut at zero.

    Args:
        features: x to (b, *space', channels), usually the last convolution's output.
        head: that to logits (b, k).
        x: (b, *space, c) float.
        target: see the module.
        resize: bilinear (trilinear, …) to x's space, half-pixel centres; else (b, *space').

    Raises:
        ValueError: bad x, head or target, or features without the space of x.
    """
    x = checked(x)
    maps = features(x)
    if maps.ndim < 3 or (resize and maps.ndim != x.ndim):
        raise ValueError(
            f"features have shape {maps.shape} for x {x.shape}; expected (b, *space, channels)"
            + (", as many axes as x to resize" if resize else "")
        )
    space = tuple(range(1, maps.ndim - 1))
    weights = _slope(head, maps, target).mean(space, keepdims=True)
    cam = jax.nn.relu((weights * maps).sum(-1))
    if not resize or cam.shape == x.shape[:-1]:
        return cam
    return jax.image.resize(cam, x.shape[:-1], "linear", antialias=False)


def attention_rollout(attentions: Array | np.ndarray, *, residual: bool = True) -> Array:
    """Attention rollout (Abnar & Zuidema 2020): (layers, b, heads, t, t) to (b, t, t).

    Row i says where the last layer's token i came from; a ViT's map is the class token's row.
    Heads are averaged; the product runs from the first layer to the last.

    Args:
        attentions: softmax weights, query before key, first layer first.
        residual: the skip connection counts as much as the attention: A becomes A + I, its rows
            normalised to 1.

    Raises:
        ValueError: another shape or type.
    """
    attentions = jnp.asarray(attentions)
    shape = attentions.shape
    if len(shape) != 5 or shape[-1] != shape[-2] or not shape[0]:
        raise ValueError(f"attentions have shape {shape}; expected (layers, b, heads, t, t)")
    if not jnp.issubdtype(attentions.dtype, jnp.floating):
        raise ValueError(f"attentions must be floating point, got {attentions.dtype}")
    eye = jnp.broadcast_to(jnp.eye(shape[-1], dtype=attentions.dtype), (shape[1], *shape[3:]))

    def onwards(below: Array, layer: Array) -> tuple[Array, None]:
        a = layer.mean(1)
        if residual:
            a = a + eye
            a = a / a.sum(-1, keepdims=True)
        return a @ below, None

    return jax.lax.scan(onwards, eye, attentions)[0]


# ---------------------------------------------------------------- by covering


def occlusion(
    f: Function,
    x: Array | np.ndarray,
    target: Target = None,
    *,
    window: int | Sequence[int],
    stride: int | Sequence[int],
    baseline: float | Array | np.ndarray = 0.0,
) -> Array:
    """Fall of the target's logit while a window is covered (Zeiler & Fergus 2014); (b, *space).

    A pixel gets the mean over the windows that cover it. All channels are covered together. A
    last window is added where the strides do not reach the border, so every pixel is covered.

    Args:
        f: x to logits (b, k).
        x: (b, *space, c) float, with at least one axis of space.
        target: see the module; None is the class predicted at the uncovered x.
        window: side in pixels, one for all axes or one an axis.
        stride: step in pixels, likewise, 1..window.
        baseline: what covers; a number or an array that broadcasts to x.

    Raises:
        ValueError: bad x, f, target, window, stride or baseline.
    """
    x = checked(x)
    space = x.shape[1:-1]
    if not space:
        raise ValueError(f"x has shape {x.shape}: no axis of space to cover")
    sides, strides = _per_axis("window", window, space), _per_axis("stride", stride, space)
    if any(not s <= w <= n for s, w, n in zip(strides, sides, space, strict=True)):
        raise ValueError(f"stride {strides} <= window {sides} <= space {space} does not hold")
    axes = [_starts(*axis) for axis in zip(space, sides, strides, strict=True)]
    logits = f(x)
    classes = chosen(logits, target)
    whole, cover = selected(logits, classes), filled(baseline, x)

    def add(total: Array, start: Array) -> tuple[Array, None]:
        inside = jnp.ones(space, bool)
        for a, side in enumerate(sides):
            ahead = jax.lax.broadcasted_iota(jnp.int32, space, a) - start[a]
            inside &= (ahead >= 0) & (ahead < side)
        covered = jnp.where(jnp.broadcast_to(inside[None, ..., None], x.shape), cover, x)
        fall = (whole - selected(f(covered), classes)).reshape(-1, *(1,) * len(space))
        return total + jnp.where(inside[None], fall, jnp.zeros_like(fall)), None

    starts = jnp.array(list(itertools.product(*axes)), jnp.int32)  # (windows, axes)
    total, _ = jax.lax.scan(add, jnp.zeros(x.shape[:-1], logits.dtype), starts)
    times = np.ones(())  # windows over each pixel (*space)
    for n, side, firsts in zip(space, sides, axes, strict=True):
        ahead = np.arange(n)[:, None] - np.array(firsts)[None]
        over = ((ahead >= 0) & (ahead < side)).sum(1)
        times = np.multiply.outer(times, over)
    return total / jnp.asarray(times[None], total.dtype)


def _starts(n: int, side: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis of n pixels; the last window ends at the border."""
    return [*range(0, n - side, stride), n - side]


def _per_axis(what: str, value: int | Sequence[int], space: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) * len(space) if isinstance(value, int | np.integer) else tuple(value)
    if len(values) != len(space) or any(v < 1 for v in values):
        raise ValueError(f"{what}={value}; expected a number >= 1, or one for each axis of {space}")
    return values


def _at_least(what: str, value: float, least: float) -> None:
    if not isinstance(value, jax.core.Tracer) and not (value >= least and math.isfinite(value)):
        raise ValueError(f"{what}={value}; must be a number >= {least}")
