"""How a plan follows from spacings and shapes: nnU-Net's rules (Isensee et al. 2021, Note 2).

The patch departs from them: it fills a stated number of voxels instead of a GPU's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

ANISOTROPY = 3.0
"""From this ratio of coarsest to finest spacing on, the coarse axis is treated apart."""


def target_spacing(
    spacings_mm: Float64[np.ndarray, "n 3"], shapes: Float64[np.ndarray, "n 3"]
) -> tuple[float, float, float]:
    """Median spacing (x, y, z) of n cases, in mm; of a coarse axis the 10th percentile.

    An axis is coarse if its median spacing is more than 3 times the others' largest and its median
    size less than a third of the others' smallest; it then gets its 10th percentile, but not less
    than the others' largest (nnU-Net, ``determine_fullres_target_spacing``).
    """
    target = np.median(spacings_mm, axis=0)
    sizes = np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    if (
        target[worst] > ANISOTROPY * target[others].max()
        and sizes[worst] * ANISOTROPY < sizes[others].min()
    ):
        fine = float(np.percentile(spacings_mm[:, worst], 10))
        target[worst] = max(fine, target[others].max())
    x, y, z = (round(float(s), 6) for s in target)
    return x, y, z


def coarse_axis(spacing_mm: Sequence[float]) -> int | None:
    """The one axis whose spacing is more than 3 times the finest; None if there is none or two.

    Across it images and labels are taken from the nearest slice, not interpolated (nnU-Net,
    ``determine_do_sep_z_and_axis``).
    """
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.max() <= ANISOTROPY * spacing.min():
        return None
    coarse = np.flatnonzero(np.isclose(spacing, spacing.max(), rtol=1e-3))
    return int(coarse[0]) if len(coarse) == 1 else None


def patch_size(
    shape: Sequence[float], spacing_mm: Sequence[float], voxels: int, multiple: int
) -> tuple[int, int, int]:
    """A patch of at most about ``voxels`` voxels that is as nearly a cube in mm as fits.

    Args:
        shape: median shape (x, y, z) of the prepared cases.
        spacing_mm: target spacing, in mm.
        voxels: budget.
        multiple: each side is a multiple of it (what the network halves), at least once.

    An axis that reaches the median shape stays there and the others share the rest.
    """
    limits = [max(multiple, int(np.ceil(n / multiple)) * multiple) for n in shape]
    sides = np.zeros(3)
    free = [0, 1, 2]
    while free:
        held = np.prod([sides[a] for a in range(3) if a not in free]) if len(free) < 3 else 1.0
        volume = np.prod([spacing_mm[a] for a in free])
        edge_mm = (voxels / held * volume) ** (1 / len(free))
        full = [a for a in free if edge_mm / spacing_mm[a] >= limits[a]]
        for a in full or free:
            sides[a] = limits[a] if full else edge_mm / spacing_mm[a]
        free = [a for a in free if a not in full] if full else []
    rounded = (max(multiple, round(float(s) / multiple) * multiple) for s in sides)
    x, y, z = (min(r, limit) for r, limit in zip(rounded, limits, strict=True))
    return x, y, z
