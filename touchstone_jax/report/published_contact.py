"""The angle of contact between a tumor and a vessel as the released generator measures it.

The vessel's main branch is followed from slice to slice, thinned, turned onto the x axis, and in
each window of 4 mm the share of a ring around it that the tumor covers is taken (spec/report.md
4.3). Branches that run across the body have almost no thinned voxels and are missed; use
`touchstone_jax.report.encirclement` for the truth.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from scipy.spatial.transform import Rotation

from touchstone_jax.report.regions import Index, Region

Mask = Bool[np.ndarray, "x y z"]
_CROSS_2D = ndimage.generate_binary_structure(2, 1)
_CUBE = np.ones((3, 3, 3), bool)
WINDOW, PAD, IN_PLANE_PAD = 4, 4, 8


def published_angle_deg(vessel: Region, tumor: Region, *, whole: bool) -> int | None:
    """The angle in degrees, 0 for no contact; None where the released generator fails.

    Args:
        vessel: at 1 mm.
        tumor: dilated by 4 mm, of the same volume, at least one voxel.
        whole: take the vessel as it is, not its main branch.
    """
    start, stop = neighbourhood(tumor)
    mass, wall = tumor.window(start, stop), vessel.window(start, stop)
    if not wall.any():
        return 0
    if not whole:
        wall = _main_branch(wall)
    if not (wall & mass).any():
        return 0
    line = _centre_line(wall)
    if not line.any():
        return None
    shares = _window_shares(*_aligned((wall, mass, line)))
    return None if not shares else round(360 * max(shares))


def neighbourhood(tumor: Region) -> tuple[Index, Index]:
    """First and end index of the box in which the vessel is followed.

    On every side it reaches beyond the tumor by the distance between the tumor's first and last
    voxel, which is one less than the voxels it spans. One slice more would shift the centre line's
    principal axis, and every window with it.
    """
    return tumor.padded([n - 1 for n in tumor.mask.shape])


def _largest(mask: np.ndarray) -> np.ndarray:
    pieces, count = ndimage.label(mask)
    return mask if count < 2 else pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


def _main_branch(vessel: Mask) -> Mask:
    """From below: the largest piece of the first slices, then what touches the slice before."""
    slices = np.flatnonzero(vessel.any(axis=(0, 1)))
    first = max(3, int(0.05 * len(slices)))
    branch, before = np.zeros_like(vessel), vessel[:, :, 0]
    for k, z in enumerate(slices):
        here = vessel[:, :, z]
        if k < first:
            before = _largest(here)
        else:
            pieces, _ = ndimage.label(here)
            # Downwards: of pieces alike in size the last one is followed.
            touched = np.unique(pieces[ndimage.binary_dilation(before, _CROSS_2D) & here])[::-1]
            if len(touched):
                before = pieces == touched[np.bincount(pieces.ravel())[touched].argmax()]
        branch[:, :, z] = before
    core = ndimage.binary_erosion(branch, _CUBE)
    if not core.any():
        return branch
    return _largest(ndimage.binary_dilation(core, _CUBE) & vessel)


def _centre_line(vessel: Mask) -> Mask:
    """Thinned; forks taken out; in each slice only the largest of the pieces met."""
    from skimage.morphology import skeletonize

    line = skeletonize(vessel) > 0
    around = ndimage.convolve(line.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant")
    pieces, count = ndimage.label(line & (around <= 3))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    largest = np.zeros_like(line)
    for z in np.flatnonzero((pieces > 0).any(axis=(0, 1))):
        here = np.unique(pieces[:, :, z])
        largest[:, :, z] = pieces[:, :, z] == here[sizes[here].argmax()]
    return largest


def _axis(points: np.ndarray) -> np.ndarray:
    """First principal axis of points (n, 3), its x not negative; x itself for a single point."""
    if len(points) == 1:
        return np.array([1.0, 0, 0])
    if len(points) == 2:
        axis = (points[1] - points[0]).astype(np.float64)
    else:
        axis = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][0]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
    return axis / np.linalg.norm(axis) * (-1 if axis[0] < 0 else 1)


def _onto_x(axis: np.ndarray) -> np.ndarray:
    """The smallest rotation that brings a unit vector onto +x, from which it is at most 90 degrees.

    Through the rotation vector, as released: voxels halfway between two others go by rounding.
    """
    cross = np.cross(axis, [1.0, 0, 0])
    if np.allclose(cross, 0):
        return np.eye(3)
    turn = np.arccos(np.clip(axis[0], -1, 1)) * (cross / np.linalg.norm(cross))
    return Rotation.from_rotvec(turn).as_matrix()


def _aligned(masks: tuple[Mask, Mask, Mask]) -> tuple[Mask, ...]:
    """A cube around the last mask, turned so that its principal axis is x; nearest neighbour."""
    points = np.argwhere(masks[-1])
    axis = _axis(points)
    # Of many points every hundredth alone makes the centre, as in the released generator.
    centre = (points[::100] if len(points) > 100 else points).mean(axis=0)
    span = int(np.ptp(points, axis=0).max()) + 1
    start = np.trunc(centre - span).astype(int)
    side = np.trunc(centre + span).astype(int) + 1 - start
    back = _onto_x(axis).T
    middle = side / 2
    out = []
    for mask in masks:
        cube = _cropped(mask, start, side)
        turned = ndimage.affine_transform(
            cube.astype(np.uint8), back, offset=middle - back @ middle, order=0, mode="constant"
        )
        out.append(turned > 0)
    return tuple(out)


def _cropped(mask: Mask, start: np.ndarray, side: np.ndarray) -> Mask:
    out = np.zeros(tuple(side), bool)
    low = np.maximum(start, 0)
    high = np.maximum(np.minimum(start + side, mask.shape), low)
    place = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    out[place] = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return out


def _window_shares(wall: Mask, mass: Mask, line: Mask) -> list[float]:
    """Share of the ring around the vessel that is tumor, in every window along x."""
    shares, length = [], len(wall)
    for first in range(length):
        last = first + WINDOW if first + WINDOW <= length else length - 1
        # Whatever would run beyond the end stops before the last slice.
        end = last + PAD if last + PAD <= length else length - 1
        window = slice(max(0, first - PAD), end)
        pieces = (wall[window], mass[window], line[window])
        if not (pieces[0] & pieces[1]).any() or pieces[2].sum() <= 1:
            continue
        vessel, tumor, _ = _aligned(pieces)
        middle = len(vessel) // 2
        kept = slice(max(0, middle - WINDOW // 2), middle + WINDOW // 2)
        total = covered = 0
        for here, near in zip(vessel[kept], tumor[kept], strict=True):
            ring = outer_ring(np.pad(here, IN_PLANE_PAD))
            inner = ndimage.binary_erosion(np.pad(near, IN_PLANE_PAD), _CROSS_2D)
            total += int(ring.sum())
            covered += int((ring & inner).sum())
        if total:
            shares.append(covered / total)
    return shares


def outer_ring(vessel: Bool[np.ndarray, "a b"]) -> Bool[np.ndarray, "a b"]:
    """Pixels more than 1 and at most 2 from a vessel's slice.

    An empty slice gives two pixels beside the corner, as the distance transform that the released
    generator uses does without any background.
    """
    if not vessel.any():
        ring = np.zeros_like(vessel)
        ring[tuple(np.array([[0, 1], [1, 0]]).T)] = True
        return ring
    away = ndimage.distance_transform_edt(~vessel)
    return (away > 1) & (away <= 2)
