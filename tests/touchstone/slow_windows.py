"""Sliding-window prediction written down plainly, in float64 on whole arrays, for comparison."""

import itertools
from collections.abc import Callable

import numpy as np

Network = Callable[[np.ndarray], np.ndarray]


def starts(size: int, window: int, overlap: float) -> list[int]:
    """As few windows as overlap enough, evenly spaced: counted up, not computed."""
    count = 1
    while True:
        at = [round(i * (size - window) / max(count - 1, 1)) for i in range(count)]
        gaps = [b - a for a, b in itertools.pairwise(at)]
        reaches = at[-1] + window == size
        if reaches and all(gap <= max(1, window * (1 - overlap)) for gap in gaps):
            return at
        count += 1


def weights(window: tuple[int, ...]) -> np.ndarray:
    grids = np.meshgrid(*(np.arange(w) - (w - 1) / 2 for w in window), indexing="ij")
    return np.exp(-sum(0.5 * (g / (w / 8)) ** 2 for g, w in zip(grids, window, strict=True)))


def logits(
    network: Network,
    image: np.ndarray,
    window: tuple[int, ...],
    overlap: float = 0.5,
    mirror: tuple[int, ...] = (),
) -> np.ndarray:
    """Weighted mean of all windows, (x, y, z, k); the volume is at least as large as the window."""
    at = [starts(n, w, overlap) for n, w in zip(image.shape, window, strict=True)]
    weight, total, norm = weights(window)[..., None], 0.0, np.zeros(image.shape)[..., None]
    for corner in itertools.product(*at):
        box = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        outs = []
        for n in range(len(mirror) + 1):
            for axes in itertools.combinations(mirror, n):
                out = network(np.flip(image[box], axes)[None, ..., None].astype(np.float32))
                outs.append(np.flip(np.asarray(out, np.float64)[0], axes))
        if np.ndim(total) == 0:
            total = np.zeros((*image.shape, outs[0].shape[-1]))
        total[box] += np.mean(outs, axis=0) * weight
        norm[box] += weight
    return total / norm
