"""What all scores check before anything is computed: masks, labels, spacing, tolerance, options."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped


def known(what: str, name: str, legal: Iterable[str]) -> None:
    """Refuses an option that is not in ``legal``.

    Raises:
        ValueError: naming ``what``, the value, the nearest legal one and all legal ones.
    """
    if name not in legal:
        near = difflib.get_close_matches(str(name), legal, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}legal values: {', '.join(legal)}")


def mask_or_labels(
    name: str, mask: Shaped[Array | np.ndarray, "*space"], num_classes: int | None
) -> Shaped[Array, "*space"]:
    """One boolean mask, or with ``num_classes`` one map of labels, as a JAX array.

    It is looked at before the conversion, since JAX cuts int64 down to int32.

    Raises:
        ValueError: the type is wrong, or a label lies outside 0..num_classes-1 (not seen under
            jit and vmap).
    """
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    # Above, a pair of labels no longer fits int32.
    if num_classes is not None and not 1 <= num_classes <= 2**15:
        raise ValueError(f"num_classes={num_classes}; must lie in 1..{2**15}")
    if num_classes is None:
        if mask.dtype != bool:
            raise ValueError(
                f"{name} is {mask.dtype}: give boolean masks, or num_classes for label maps"
            )
    elif not jnp.issubdtype(mask.dtype, jnp.integer):
        raise ValueError(f"{name} is {mask.dtype}; with num_classes, give integer labels")
    elif mask.size and not isinstance(mask, jax.core.Tracer):
        for label in (int(mask.min()), int(mask.max())):
            if not 0 <= label < num_classes:
                raise ValueError(f"{name} has label {label}; legal: 0..{num_classes - 1}")
    return jnp.asarray(mask)


def pair(
    pred: Shaped[Array | np.ndarray, "*space"],
    ref: Shaped[Array | np.ndarray, "*space"],
    num_classes: int | None,
) -> tuple[Shaped[Array, "*space"], Shaped[Array, "*space"]]:
    """Prediction and reference of one shape; the rest as in `mask_or_labels`.

    Raises:
        ValueError: also for unlike shapes.
    """
    if np.shape(pred) != np.shape(ref):
        raise ValueError(f"pred has shape {np.shape(pred)}, ref {np.shape(ref)}; expected the same")
    return mask_or_labels("pred", pred, num_classes), mask_or_labels("ref", ref, num_classes)


def _numbers(name: str, values: float | Sequence[float]) -> tuple[float, ...]:
    traced = isinstance(values, jax.core.Tracer) or (
        isinstance(values, (tuple, list)) and any(isinstance(v, jax.core.Tracer) for v in values)
    )
    if traced:
        raise ValueError(f"{name} is traced by jit or vmap; it must be numbers known before")
    try:
        if values is None:  # to NumPy a NaN
            raise TypeError
        return tuple(float(v) for v in np.asarray(values, np.float64).reshape(-1))
    except (TypeError, ValueError):
        raise ValueError(f"{name}={values!r}; expected numbers in mm") from None


def spacing(spacing_mm: Sequence[float], shape: tuple[int, ...]) -> tuple[float, ...]:
    """Voxel spacing as a tuple of floats, mm, one an axis of ``shape``.

    Raises:
        ValueError: another number of values than axes, a value that is not positive and finite,
            or a traced value (neighbourhoods in mm are part of the compiled program).
    """
    values = _numbers("spacing_mm", spacing_mm)
    if len(values) != len(shape):
        raise ValueError(f"spacing_mm={values} for masks of shape {shape}; expected one an axis")
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"spacing_mm={values}; expected positive, finite mm")
    return values


def tolerances(tolerance_mm: float | Sequence[float], num_classes: int | None) -> tuple[float, ...]:
    """Tolerance in mm of every class (of the one mask without ``num_classes``).

    Raises:
        ValueError: negative, NaN or traced values, or neither one nor ``num_classes`` of them.
    """
    values = _numbers("tolerance_mm", tolerance_mm)
    count = 1 if num_classes is None else num_classes
    if len(values) not in (1, count):
        raise ValueError(f"tolerance_mm has {len(values)} values; expected 1 or {count}")
    if not all(v >= 0 for v in values):
        raise ValueError(f"tolerance_mm={values}; expected 0 or more mm")
    return values if len(values) == count else values * count


def volume(name: str, shape: tuple[int, ...]) -> None:
    """Refuses what is neither 2-D nor 3-D.

    Raises:
        ValueError: naming the score and the shape.
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"{name} of masks of shape {shape}; expected 2-D or 3-D (vmap a batch)")
