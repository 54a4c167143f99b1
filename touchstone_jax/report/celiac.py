"""Splitting the mask of the celiac artery into its trunk and the two branches.

The trunk (CA) is followed from the aorta to the front until it forks; of what is left, pieces on
the patient's right are the common hepatic artery (CHA), those on the left the splenic artery (SA).
The released generator has the two sides exchanged. Balls and limits are its own (spec/report.md
4.2); all is done on a grid of 1 mm, in the box of the mask.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

Mask = Bool[np.ndarray, "x y z"]
_CROSS_2D = ndimage.generate_binary_structure(2, 1)
MARGIN = 18
"""The balls reach no further than this, in mm."""

FORK = 10
"""A slice of two pieces is no fork if one is more than so many times as large as the other."""


def split_celiac(celiac: Mask, aorta: Mask, *, exchanged: bool = False) -> dict[str, Mask] | None:
    """Masks of "CA", "CHA" and "SA"; None if no trunk is found.

    Args:
        celiac: (x, y, z) at 1 mm, x to the patient's right, y to the front.
        aorta: of the same shape.
        exchanged: give the branches the names that the released generator gives them.
    """
    trunk, reach = _trunk(celiac, aorta, cleaned=True)
    if not trunk.any():
        trunk, reach = _trunk(celiac, aorta, cleaned=False)
    if not trunk.any():
        return None
    middle = np.argwhere(trunk)[:, 0].mean()
    pieces, count = ndimage.label(celiac & ~reach)
    branches = {"CHA": np.zeros_like(celiac), "SA": np.zeros_like(celiac)}
    for piece in range(1, count + 1):
        mask = pieces == piece
        right = np.argwhere(mask)[:, 0].mean() > middle
        branches["CHA" if right != exchanged else "SA"] |= mask
    return {"CA": trunk, **branches}


def _trunk(celiac: Mask, aorta: Mask, cleaned: bool) -> tuple[Mask, Mask]:
    """The trunk, and all that is level with it: what branches cannot be."""
    near = celiac
    if cleaned:
        thick = _dilated(aorta, 7) | celiac
        near = _dilated(_eroded(thick, 2), 4) & celiac
    path = _followed(near, aorta)
    if cleaned:
        _drop_wide_end(path)
    reach = path.copy()
    for x in np.flatnonzero(path.any(axis=(1, 2))):
        reach[x] |= _touching(celiac[x], path[x])
    trunk = _dilated(_eroded(reach, 4), 5) & celiac if cleaned else reach
    pieces, count = ndimage.label(trunk)
    if count:
        trunk = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return trunk, reach


def _followed(near: Mask, aorta: Mask) -> Mask:
    """From the back to the front: pieces that touch the slice before, up to the fork."""
    path = np.zeros_like(near)
    before = None
    for y in range(1, near.shape[1]):
        here = near[:, y]
        if not here.any():
            continue
        pieces, count = ndimage.label(here)
        start = before is None
        if not start and count > 1:
            largest, second = np.sort(np.bincount(pieces.ravel())[1:])[::-1][:2]
            if largest <= FORK * second:
                break
        from_ = ndimage.binary_dilation(aorta[:, y - 1] if start else before, _CROSS_2D)
        touched = np.unique(pieces[from_ & here])
        if not len(touched):
            if not start:
                before = np.zeros_like(here)
            continue
        if start:
            touched = touched[[np.bincount(pieces.ravel())[touched].argmax()]]
        before = np.isin(pieces, touched)
        path[:, y] = before
    return path


def _drop_wide_end(path: Mask) -> None:
    """Take out, in place, those of the last tenth of the slices that are twice the mean or more."""
    slices = np.flatnonzero(path.any(axis=(0, 2)))
    if not len(slices):
        return
    areas = path[:, slices].sum(axis=(0, 2))
    last = slices[int(0.9 * len(slices)) :]
    wide = path[:, last].sum(axis=(0, 2)) >= 2 * areas.mean()
    path[:, last[wide]] = False


def _touching(mask: Bool[np.ndarray, "y z"], seed: Bool[np.ndarray, "y z"]) -> np.ndarray:
    """The pieces of a slice that share a pixel with the seed."""
    pieces, _ = ndimage.label(mask)
    return mask & np.isin(pieces, np.unique(pieces[seed & mask]))


def _dilated(mask: Mask, radius: int) -> Mask:
    """Dilated by a ball, exactly: voxels at most so far from the mask."""
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask) <= radius + 1e-6


def _eroded(mask: Mask, radius: int) -> Mask:
    """Eroded by a ball; outside of the array is empty."""
    framed = np.pad(mask, radius)
    inner = (slice(radius, -radius),) * 3
    return (ndimage.distance_transform_edt(framed) > radius + 1e-6)[inner]
