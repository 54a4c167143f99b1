"""Writing a case in the folder layout of AbdomenAtlas 1.0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8

from touchstone_jax.io import write
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.labels.schemes import SCHEMES

_SCHEME = SCHEMES["abdomenatlas_1.0"]


def write_case(
    folder: Path,
    ct: Int16[np.ndarray, "x y z"],
    labels: UInt8[np.ndarray, "x y z"],
    geometry: Geometry,
) -> None:
    """Write one case of the nine organs in the AbdomenAtlas layout: ct, combined_labels and masks.

    Args:
        folder: the case's folder, made if need be.
        ct: int16 (x, y, z) HU, canonical axes.
        labels: uint8 (x, y, z), AbdomenAtlas 1.0.
        geometry: the stored grid.
    """
    (folder / "segmentations").mkdir(parents=True, exist_ok=True)
    write(folder / "ct.nii.gz", ct, geometry)
    write(folder / "combined_labels.nii.gz", labels, geometry)
    for name, index in _SCHEME.indices.items():
        write(folder / "segmentations" / f"{name}.nii.gz", labels == index, geometry)
