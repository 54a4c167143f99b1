"""Intensity statistics of the organs of a data set: exact, and the same in any order of cases."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64

_LOW_HU, _HIGH_HU = -2048, 8192


class ForegroundHistogram:
    """A histogram of HU over the foreground of many cases, in bins of 1 HU.

    Every case weighs the same, however large its organs are. Values beyond -2048..8192 HU count as
    the nearer of these.
    """

    def __init__(self) -> None:
        self.cases = 0
        self._weights: Float64[np.ndarray, " bins"] = np.zeros(_HIGH_HU - _LOW_HU + 1)

    def add(self, ct: Float32[np.ndarray, "x y z"], foreground: Bool[np.ndarray, "x y z"]) -> None:
        """Count one case (finite HU); one without foreground counts nowhere."""
        # Transposed, volumes lie in C order, which picking by a mask needs to be fast.
        values = ct.T[foreground.T]
        if not values.size:
            return
        bins = np.clip(np.rint(values), _LOW_HU, _HIGH_HU).astype(np.int64) - _LOW_HU
        counts = np.bincount(bins, minlength=len(self._weights))
        self._weights += counts / values.size
        self.cases += 1

    def statistics(self) -> tuple[tuple[float, float], float, float]:
        """Percentiles (0.5, 99.5), mean and standard deviation, in HU.

        Raises:
            ValueError: no case had foreground, or all of it has one value.
        """
        if not self.cases:
            raise ValueError("no case has a voxel of the labels that are wanted")
        values = np.arange(_LOW_HU, _HIGH_HU + 1, dtype=np.float64)
        # Cases are added in any order: rounding makes the last bits of the sums independent of it.
        weights = np.round(self._weights / self.cases, 12)
        weights /= weights.sum()
        below = np.cumsum(weights)
        low, high = (float(values[np.searchsorted(below, q)]) for q in (0.005, 0.995))
        mean = float(weights @ values)
        std = float(np.sqrt(weights @ (values - mean) ** 2))
        if std == 0 or low == high:
            raise ValueError(f"the foreground of all cases has one value, {mean:g} HU")
        return (low, high), round(mean, 6), round(std, 6)
