"""How far a student's map, features or logits are from the teacher's; all (b, ...) to (b,).

Source: arXiv 2407.09788 (maps), Hinton et al. 2015 (outputs).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from isnet_jax.lrp.rules import magnitude

Array = jax.Array


def _mean_size(values: Array) -> Array:
    return magnitude(values).reshape(len(values), -1).mean(1)


def _root(value: Array) -> Array:
    """Square root with derivative 0 at 0, where the true one is infinite."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0)


def geometric_l1(student: Array, teacher: Array) -> Array:
    """``<|s - t|> / (sqrt(<|s|> <|t|>) + 1e-10)`` per sample, (b, ...) twice to (b,) >= 0.

    Unchanged by a common factor; the normaliser is part of the derivative (arXiv 2407.09788).

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(student, teacher)
    level = _root(_mean_size(student)) * _root(_mean_size(teacher)) + 1e-10
    return _mean_size(student - teacher) / level


def _check_shapes(student: Array, teacher: Array) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"distillation compares arrays of one shape, got student {student.shape} and "
            f"teacher {teacher.shape}"
        )


def pyramid_scales(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Pooling factors 1, 2, 4, … that leave 8 or more of the shortest side; always 1."""
    scales = [1]
    while min(sides) // (2 * scales[-1]) >= 8:
        scales.append(2 * scales[-1])
    return tuple(scales)


def pyramid_distance(student: Array, teacher: Array) -> Array:
    """Mean of `geometric_l1` over average-pooled maps (b, h, w, c); (b,) >= 0.

    Windows have side and stride of `pyramid_scales`; what does not fill a window is left out.

    Raises:
        ValueError: shapes differ.
    """
    each = [
        geometric_l1(_pooled(student, s), _pooled(teacher, s))
        for s in pyramid_scales(student.shape[1:3])
    ]
    return jnp.stack(each).mean(0)


def _pooled(maps: Array, scale: int) -> Array:
    b, h, w, c = maps.shape
    h, w = h // scale, w // scale
    cut = maps[:, : h * scale, : w * scale]
    return cut.reshape(b, h, scale, w, scale, c).mean((2, 4))


def output_distance(student: Array, teacher: Array, temperature: float) -> Array:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` of logits (b, k), (b,) >= 0 (Hinton 2015).

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(student, teacher)
    log_t = jax.nn.log_softmax(teacher / temperature, -1)
    log_s = jax.nn.log_softmax(student / temperature, -1)
    return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1)
