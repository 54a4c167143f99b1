"""Masks that can be read and still cannot be right: swapped sides, a mask of everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from touchstone_jax.findings import Finding
from touchstone_jax.report.masks import Masks
from touchstone_jax.report.regions import Region
from touchstone_jax.report.schema import Organ
from touchstone_jax.verify.label_checks import SOLID_HU

_FILES = ("spleen", "liver", "pancreas", "kidney_left", "kidney_right", "colon")


def judge_masks(case: str, masks: Masks, organs: Sequence[Organ]) -> Iterator[Finding]:
    """What is wrong with the organs of a case, as `touchstone_jax.verify` judges label maps.

    Args:
        case: id.
        masks: of the case.
        organs: as measured.
    """
    regions = {name: masks.get(name) for name in _FILES}
    for name, region in regions.items():
        if region is not None and region.voxels == prod(region.shape):
            told = f"{name} fills the volume: all {region.voxels} voxels"
            yield Finding(case, "full_mask", "error", told, "export the mask again")
    where = {name: _mean_x(region) for name, region in regions.items()}
    left, right = where["kidney_left"], where["kidney_right"]
    if left is not None and right is not None and left > right:
        told = (
            "kidney_left lies to the patient's right of kidney_right (mean x index "
            f"{left:.1f} against {right:.1f})"
        )
        fix = "exchange the two masks, or correct the affine if the whole volume is mirrored"
        yield Finding(case, "sides_swapped", "error", told, fix)
    liver, spleen = where["liver"], where["spleen"]
    if liver is not None and spleen is not None and liver < spleen:
        told = f"the liver lies left of the spleen (mean x index {liver:.1f} against {spleen:.1f})"
        fix = "correct the affine if the volume is mirrored; nothing to do in situs inversus"
        yield Finding(case, "mirrored", "warning", told, fix)
    low, high = SOLID_HU
    for organ in organs:
        if organ.name == "colon" or organ.mean_hu is None:
            continue
        if not low <= organ.mean_hu <= high:
            told = f"{organ.name} has {organ.mean_hu} HU on average; expected {low:g}..{high:g}"
            fix = "look whether mask and CT are of one patient and one orientation"
            yield Finding(case, "organ_hu", "warning", told, fix)


def _mean_x(region: Region | None) -> float | None:
    """Mean index along x, which grows to the patient's right; None without voxels."""
    if region is None or not region.mask.size:
        return None
    along = np.count_nonzero(region.mask, axis=(1, 2))
    return region.start[0] + float(along @ np.arange(len(along)) / along.sum())
