"""Zoom-out, zoom-in: find organs in the volume made small, then look closely where they are.

Du et al. 2024, "SegVol: Universal and Interactive Volumetric Medical Image Segmentation", section
3.4. A network that was trained on windows and on whole volumes made as small as a window sees the
whole first. Windows then only go through the box of what it saw of an organ, so that what looks
like the organ elsewhere is not taken for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8

from touchstone_jax.infer.sliding import Box, SlidingWindow, Told, checked_image
from touchstone_jax.prompts import Arrays, of_organ, places_asked, with_box


class Zoom:
    """Zoom-out, zoom-in by the programs of a `SlidingWindow`: nothing more is compiled.

    Args:
        sliding: of a network that is told `touchstone_jax.prompts` of each window, of organs each
            against its absence: the background's logit is 0.
    """

    def __init__(self, sliding: SlidingWindow) -> None:
        self._sliding = sliding

    def labels(
        self, image: Float32[np.ndarray, "x y z"], *, case: str, told: Told, small: Told
    ) -> tuple[UInt8[np.ndarray, "x y z"], int]:
        """Labels as of `SlidingWindow.labels`, and how many windows they took.

        An organ that the first look does not see is not looked for again: it has no voxel, as in
        the original. Host memory: 5 bytes a voxel, 4 more in the box of one organ at a time.

        Args:
            image: as the network takes it, any shape.
            case: id for messages.
            told: what the network is told of each window of the image ...
            small: ... and of the one window that the image is made as small (or as large) as.

        Raises:
            ValueError: as `SlidingWindow.labels`.
        """
        image = checked_image(image, case)
        window = self._sliding.window
        seen = self._sliding.logits(shrunk(image, window), case=case, told=small) > 0
        count = self._sliding.count(window)
        asked = small((0, 0, 0), (False,) * 3)
        labels = np.zeros(image.shape, np.uint8, order="F")
        best = np.zeros(image.shape, np.float32, order="F")
        for organ in range(1, self._sliding.num_classes):
            mask = seen[..., organ]
            if not mask.any():
                continue
            box = zoom_box(mask, image.shape, window)
            part = image[box]
            closely = self._told_closely(told, organ - 1, mask, image.shape, box, asked)
            logits = self._sliding.logits(part, case=case, told=closely, channel=organ)
            better = logits > best[box]
            best[box][better], labels[box][better] = logits[better], organ
            count += self._sliding.count(part.shape)
        return labels, count

    def _told_closely(
        self,
        told: Told,
        organ: int,
        mask: Bool[np.ndarray, "a b c"],
        shape: Sequence[int],
        box: Box,
        asked: Arrays,
    ) -> Told:
        """What windows of the box are told: of one organ alone, and where it was seen.

        As in the original an organ that was asked for by points or a box also gets the box of what
        was seen of it in the window, in the place of its own where several windows share that.
        """
        origin, window = [side.start for side in box], self._sliding.window
        sides = [side.stop - side.start for side in box]
        points, boxed = places_asked(asked, organ)
        whole = boxed and all(n <= w for n, w in zip(sides, window, strict=True))

        def closely(corner: Sequence[int], flips: Sequence[bool]) -> Arrays:
            at = np.add(corner, origin).tolist()
            given = of_organ(told(at, flips), organ)
            if whole or not (points or boxed):
                return given
            return with_box(given, organ, seen_in(mask, shape, at, flips, window))

        return closely


def shrunk(image: Shaped[np.ndarray, "x y z"], shape: Sequence[int]) -> Shaped[np.ndarray, "a b c"]:
    """The volume on ``shape`` voxels of the same extent: `nearest_voxels` of each."""
    at = (nearest_voxels(m, n) for m, n in zip(shape, image.shape, strict=True))
    return image[np.ix_(*at)]


def zoom_box(mask: Bool[np.ndarray, "a b c"], shape: Sequence[int], window: Sequence[int]) -> Box:
    """Where windows go: around the mask, no smaller than a window where the volume is not.

    Args:
        mask: what was seen, some voxel of it, on any grid of the volume's extent.
        shape: voxels (x, y, z) of the volume.
        window: voxels (x, y, z). What the mask's box lacks is added on both sides, half each, or
            where the volume ends on the other side.
    """
    box = []
    for axis, (n, w) in enumerate(zip(shape, window, strict=True)):
        seen, m = np.flatnonzero(_along(mask, axis)), mask.shape[axis]
        low, high = int(seen[0] * n // m), int(-(-(seen[-1] + 1) * n // m))
        size = max(high - low, min(w, n))
        start = min(max(low - (size - (high - low)) // 2, 0), n - size)
        box.append(slice(start, start + size))
    x, y, z = box
    return x, y, z


def seen_in(
    mask: Bool[np.ndarray, "a b c"],
    shape: Sequence[int],
    corner: Sequence[int],
    flips: Sequence[bool],
    window: Sequence[int],
) -> Float32[np.ndarray, " 6"] | None:
    """First and last voxel (x, y, z, x, y, z) of the mask in a window as its network sees it.

    Args:
        mask: on any grid of the volume's extent.
        shape: voxels (x, y, z) of the volume.
        corner: first voxel of the window; it may reach beyond the volume.
        flips: axes along which the window is mirrored.
        window: voxels (x, y, z).

    Returns:
        None if nothing of the mask is there.
    """
    spans = [(max(c, 0), min(c + w, n)) for c, w, n in zip(corner, window, shape, strict=True)]
    at = [nearest_voxels(n, m)[slice(*s)] for n, m, s in zip(shape, mask.shape, spans, strict=True)]
    inside = mask[np.ix_(*at)]
    if not inside.any():
        return None
    ends = []
    for axis, (first, _) in enumerate(spans):
        found = np.flatnonzero(_along(inside, axis))[[0, -1]] + first - corner[axis]
        ends.append(np.sort(window[axis] - 1 - found) if flips[axis] else found)
    return np.stack(ends, axis=1).reshape(6).astype(np.float32)


def _along(mask: np.ndarray, axis: int) -> Bool[np.ndarray, " n"]:
    return np.asarray(mask.any(tuple(a for a in range(3) if a != axis)))


def nearest_voxels(size: int, of: int) -> Int[np.ndarray, " size"]:
    """For each of ``size`` voxels the nearest of ``of`` over the same extent.

    Of equally near ones the later (torch's ``nearest-exact``).
    """
    return (2 * np.arange(size) + 1) * of // (2 * size)
