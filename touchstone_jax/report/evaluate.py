"""How well reports find tumors: sensitivity, specificity, F1, by organ and by size; and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from touchstone_jax.report.components import CUBE
from touchstone_jax.report.grid import report_grid
from touchstone_jax.report.regions import Region, fitted

SMALL_MM = 20.0


@dataclass(frozen=True)
class Scores:
    """Counts of cases and what follows from them; NaN where the denominator is 0.

    Attributes:
        tp, fp, tn, fn: true and false positives and negatives.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def sensitivity(self) -> float:
        """Share of the cases with a tumor that were found."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of the cases without a tumor that were cleared."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> float:
        """Share of the cases called positive that have a tumor."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and positive predictive value."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def evaluate(
    truth: Mapping[str, Mapping[str, float]],
    predicted: Mapping[str, Mapping[str, float]],
    *,
    drop_incomplete: bool = False,
) -> dict[str, Scores]:
    """Scores of each organ over the cases that both have.

    Args:
        truth: case to organ to 1, 0 or NaN (left out).
        predicted: the same.
        drop_incomplete: leave a case out for every organ if any prediction of it is NaN (RadGPT).

    Raises:
        ValueError: the two have no case in common, or a value is none of 1, 0 and NaN.
    """
    cases = [case for case in truth if case in predicted]
    if not cases:
        raise ValueError("truth and predictions have no case in common")
    if drop_incomplete:
        whole = {c for c in cases if not any(math.isnan(v) for v in predicted[c].values())}
        cases = [case for case in cases if case in whole]
    organs = list(dict.fromkeys(organ for labels in truth.values() for organ in labels))
    return {
        organ: count(
            [(truth[c].get(organ, math.nan), predicted[c].get(organ, math.nan)) for c in cases]
        )
        for organ in organs
    }


def count(pairs: Sequence[tuple[float, float]]) -> Scores:
    """Scores of pairs of truth and prediction, each 1, 0 or NaN; pairs with a NaN are left out.

    Raises:
        ValueError: another value.
    """
    known = [pair for pair in pairs if not any(math.isnan(value) for value in pair)]
    if odd := [pair for pair in known if not set(pair) <= {0, 1}]:
        raise ValueError(f"label pair {odd[0]}; expected 1, 0 or NaN each")
    tally = [known.count(pair) for pair in ((1, 1), (0, 1), (0, 0), (1, 0))]
    return Scores(*tally)


def sensitivity_by_size(
    pairs: Sequence[tuple[float, float]], sizes_mm: Sequence[float], *, small_mm: float = SMALL_MM
) -> dict[str, Scores]:
    """Scores for "small" (at most ``small_mm``) and "large" tumors, each with all negatives.

    Args:
        pairs: truth and prediction of each case.
        sizes_mm: of the case's largest tumor; NaN leaves a positive out of both.
        small_mm: the limit.

    Raises:
        ValueError: lists of different lengths, or an illegal label.
    """
    if len(pairs) != len(sizes_mm):
        raise ValueError(f"{len(pairs)} label pairs, {len(sizes_mm)} sizes; expected as many")
    both = list(zip(pairs, sizes_mm, strict=True))
    negatives = [pair for pair, _ in both if pair[0] == 0]
    small = [pair for pair, size in both if pair[0] == 1 and size <= small_mm]
    large = [pair for pair, size in both if pair[0] == 1 and size > small_mm]
    return {"small": count([*small, *negatives]), "large": count([*large, *negatives])}


def mask_label(
    lesion: Region, organ: Region | None, spacing_mm: Sequence[float], *, min_mm3: float = 70.0
) -> int:
    """1 if a mask shows a tumor, else 0: no report is needed to say so.

    The lesion inside the organ, on the 1 mm grid, is eroded once by 3 × 3 × 3 voxels and must then
    have more than ``min_mm3`` (RadGPT's detection from segmentation; 70 mm³ is its default).

    Args:
        lesion: in voxels of the CT.
        organ: of the same volume; None to take the lesion as it is.
        spacing_mm: of the CT.
        min_mm3: limit, from 0.
    """
    from scipy import ndimage

    inside = lesion
    if organ is not None:
        inside = fitted(lesion.mask & organ.like(lesion), lesion.start, lesion.shape)
    fine = report_grid(lesion.shape, spacing_mm).region(inside)
    left = ndimage.binary_erosion(fine.mask, CUBE) if fine.mask.size else fine.mask
    return int(left.sum() > min_mm3)
