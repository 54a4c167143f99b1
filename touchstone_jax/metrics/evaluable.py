"""Which references are scored at all: Touchstone's rule by the size of the eroded mask.

An organ of a case is scored iff more than 10 voxels of its reference survive an erosion by 3³
voxels (2-D: 3²): the rule in the comments of its code, whose lists of what it skipped were not
published. It asks of the reference only: an organ predicted where there is none is never
penalised, an organ not predicted scores 0.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from touchstone_jax.metrics import arguments
from touchstone_jax.metrics.edges import compact, padded, shifted

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Shaped, UInt

MIN_VOXELS = 10
"""More than so many voxels must survive."""


def evaluable(
    ref: Shaped[Array | np.ndarray, "*space"],
    *,
    num_classes: int | None = None,
    min_voxels: int = MIN_VOXELS,
) -> Bool[Array, "*classes"]:
    """Whether a reference is scored: () for a boolean mask, (num_classes,) for a label map.

    Args:
        ref: boolean mask, 2-D or 3-D, or with ``num_classes`` integer labels.
        num_classes: number of labels, the background 0 included; its value comes first.
        min_voxels: more than so many voxels must survive the erosion.

    Raises:
        ValueError: as `eroded_voxels`.
    """
    return eroded_voxels(ref, num_classes=num_classes) > jnp.uint32(min_voxels)


def eroded_voxels(
    ref: Shaped[Array | np.ndarray, "*space"], *, num_classes: int | None = None
) -> UInt[Array, "*classes"]:
    """Voxels whose 3^rank neighbourhood has their class: uint32, () or (num_classes,).

    The erosion of ``scipy.ndimage.binary_erosion(ref, ones((3, 3, 3)))``: outside is background.

    Raises:
        ValueError: neither 2-D nor 3-D, another type of mask, or a label out of range (under jit
            and vmap such voxels belong to no class).
    """
    arguments.volume("erosion", np.shape(ref))
    inside = _eroded(arguments.mask_or_labels("ref", ref, num_classes), num_classes)
    return inside[0] if num_classes is None else inside


@partial(jax.jit, static_argnums=1)
def _eroded(ref: Array, num_classes: int | None) -> Array:
    labels, none = compact(ref, num_classes)
    # One axis after another: what is left of a line of three is compared along the next axis.
    for axis in range(labels.ndim):
        margin = tuple(int(a == axis) for a in range(labels.ndim))
        around = padded(labels, margin, none)
        back = tuple(-m for m in margin)
        same = (shifted(around, margin, margin) == labels) & (
            shifted(around, back, margin) == labels
        )
        labels = jnp.where(same, labels, labels.dtype.type(none))
    counts = jnp.bincount(labels.ravel().astype(jnp.int32), length=none + 1)
    return counts[:-1].astype(jnp.uint32)
