"""A left and a right organ out of one mask.

A source with one class for a left and a right organ is split into its two largest
26-connected components; the one with the smaller mean x (canonical axes: x grows to the patient's
right) is the left one. Voxels of further components are dropped and counted. With a single
component the side of the grid's centre decides.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from touchstone_jax.components import components


def split_left_right(
    mask: Bool[np.ndarray, "x y z"],
) -> tuple[Bool[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"], int]:
    """The left and the right organ of one mask (canonical axes), and voxels of neither."""
    pieces, count = components(mask)
    if not count:
        return mask.copy(), mask.copy(), 0
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    # Stable, so that of equal components the first in memory comes first on every machine.
    largest = np.argsort(-sizes, kind="stable")[:2] + 1
    along_x = np.arange(mask.shape[0])
    parts, centres = [], []
    for component in largest:
        part = pieces == component
        parts.append(part)
        centres.append(float(part.sum(axis=(1, 2)) @ along_x / part.sum()))
    dropped = int(mask.sum()) - sum(int(part.sum()) for part in parts)
    if len(parts) == 1:
        left = centres[0] < (mask.shape[0] - 1) / 2
        pair = (parts[0], np.zeros_like(mask)) if left else (np.zeros_like(mask), parts[0])
        return *pair, dropped
    left, right = (parts[i] for i in np.argsort(centres, kind="stable"))
    return left, right, dropped
