"""What the grid and the values of a CT must look like; used by `touchstone_jax.verify.examine`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from touchstone_jax.findings import Finding
from touchstone_jax.io import Volume

LONGEST_MM = 2500.0


def judge_ct(case: str, ct: Volume) -> Iterator[Finding]:
    """What is wrong with the grid and the values of a CT (float32 (x, y, z), HU)."""
    yield from _judge_grid(case, ct)
    array = ct.array
    finite = np.isfinite(array)
    if not finite.all():
        bad = array.size - int(finite.sum())
        yield Finding(
            case,
            "nonfinite",
            "error",
            f"the CT has {bad} NaN or infinite of {array.size} voxels; expected none",
            "set them to -1024 HU if they are padding, else export the CT again",
        )
        array = array[finite]
    if array.size:
        yield from _judge_values(case, array)


def _judge_grid(case: str, ct: Volume) -> Iterator[Finding]:
    spacing, shape = ct.spacing_mm, ct.array.shape
    if not all(0.3 <= s <= 10 for s in spacing):
        error = not all(0.1 <= s <= 20 for s in spacing)
        yield Finding(
            case,
            "spacing_implausible",
            "error" if error else "warning",
            f"spacing {' × '.join(f'{s:.4g}' for s in spacing)} mm; expected 0.3 to 10",
            "look at the header: is it in metres or micrometres, or a scout view?",
        )
    extents = [n * s for n, s in zip(shape, spacing, strict=True)]
    if max(extents) > LONGEST_MM:
        yield Finding(
            case,
            "too_large",
            "error",
            f"the CT is {' × '.join(f'{e:.0f}' for e in extents)} mm large; expected at most "
            f"{LONGEST_MM:.0f} mm an axis, which is longer than people are",
            "look at the spacing in the header: on a plan's spacing the CT would fill the memory",
        )
    if min(shape) < 8:
        yield Finding(
            case,
            "tiny_volume",
            "error" if min(shape) == 1 else "warning",
            f"the CT has {shape[0]} × {shape[1]} × {shape[2]} voxels; expected at least 8 an axis",
            "leave the case out, or stack all slices into one file",
        )


def _judge_values(case: str, values: Float32[np.ndarray, "..."]) -> Iterator[Finding]:
    low, high = float(values.min()), float(values.max())
    told = f"the CT's values run from {low:g} to {high:g}"
    if low == high:
        yield Finding(
            case, "constant", "error", f"the CT is {low:g} everywhere", "export the CT again"
        )
        return
    if low > -200 or high < 0 or high - low < 200:
        yield Finding(
            case,
            "not_hu",
            "error",
            f"{told}: not Hounsfield units, which have air near -1000 and tissue near 0",
            "apply the rescale intercept and slope; do not normalise before preparing",
        )
        return
    if low < -1500:
        fix = "nothing to do: intensities are clipped when the case is prepared"
        yield Finding(case, "hu_padding", "warning", f"{told}; air has -1000 HU", fix)
    if high > 4000:
        fix = "nothing to do for metal: intensities are clipped; else check slope and intercept"
        yield Finding(case, "hu_metal", "warning", f"{told}; bone ends near 3000 HU", fix)
