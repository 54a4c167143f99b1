"""Attenuation in HU: of organs outside their lesions, of lesions against their organ, fat."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Real

from touchstone_jax.report.schema import tenth

FATTY_LIVER_HU = 40.0
"""A liver of at most this mean on a CT without contrast is fatty."""

FATTY_PANCREAS_INDEX = 0.7
"""A pancreas of at most this share of the spleen's mean HU, without contrast, is fatty."""


def mean_sd_hu(
    hu: Real[np.ndarray, "a b c"], mask: Bool[np.ndarray, "a b c"]
) -> tuple[float, float] | None:
    """Mean and population standard deviation in HU, float64; None without voxels."""
    values = hu[mask].astype(np.float64)
    return (float(values.mean()), float(values.std())) if values.size else None


def attenuation(
    lesion_hu: float, organ_hu: float, organ_sd_hu: float, *, published: bool = False
) -> str:
    """Iso within a tenth of the organ's standard deviation around its mean, else hypo or hyper.

    "published" has no iso beside a standard deviation of 0, equal means are hyper there.

    All three are rounded to 0.1 HU first: the text must follow from the numbers that it prints.
    """
    lesion, organ, margin = tenth(lesion_hu), tenth(organ_hu), tenth(organ_sd_hu) / 10
    if organ - margin < lesion < organ + margin or (lesion == organ and not published):
        return "iso"
    return "hypo" if lesion < organ else "hyper"


def pancreatic_index(pancreas_hu: float, spleen_hu: float) -> float:
    """Mean HU of the pancreas over that of the spleen (P/S); infinite where the spleen has 0 HU."""
    return pancreas_hu / spleen_hu if spleen_hu else float("inf")
