"""The same scores in numpy, on the bounding box of each class: the fast route on a CPU.

For evaluating a folder of volumes, whose shapes and spacings differ from case to case. Equal to
`dice`, `nsd`, `hd95` and `assd` in the "touchstone" convention: DSC to the last bit, the others
to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.metrics import arguments
from touchstone_jax.metrics.ball import Ball, ball
from touchstone_jax.metrics.boxes import checked, label_boxes, mask_box, union
from touchstone_jax.metrics.evaluable import MIN_VOXELS

if TYPE_CHECKING:
    from jaxtyping import Bool, Integer

# Above, one float64 distance transform is faster than a lookup an offset.
_LOOKUPS = 500


@dataclass(frozen=True)
class Scores:
    """Scores of one class of one case, "touchstone" convention, `dice` and `nsd` in 0..1.

    ``nsd`` is NaN if both masks are empty. Distances are None unless asked for; NaN if both masks
    are empty, infinite if one is. ``evaluable`` is Touchstone's rule: more than 10 voxels of the
    reference survive an erosion by 3^rank.
    """

    dsc: float
    nsd: float
    hd95_mm: float | None
    assd_mm: float | None
    pred_voxels: int
    ref_voxels: int
    both_voxels: int
    eroded_ref_voxels: int

    @property
    def evaluable(self) -> bool:
        """Whether Touchstone scores this class of this case."""
        return self.eroded_ref_voxels > MIN_VOXELS


def evaluate_labels(
    pred: Integer[np.ndarray, "*space"],
    ref: Integer[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    classes: Mapping[str, int] | Sequence[int],
    tolerance_mm: float | Sequence[float] = 1.5,
    *,
    distances: bool = False,
) -> dict[str | int, Scores]:
    """Scores of each class of two label maps, 2-D or 3-D; keys as in ``classes``.

    Args:
        pred: integer labels >= 0; those not in ``classes`` are other tissue.
        ref: the same for the reference, in the same geometry.
        spacing_mm: mm between voxels along each axis.
        classes: labels, or name to label.
        tolerance_mm: of the NSD, mm; one, or one a class in the order of ``classes``.
        distances: also HD95 and ASSD, by the exact distance transform of ``edt``.

    Raises:
        ValueError: unlike shapes, neither 2-D nor 3-D, no integers, negative labels, no class or
            one twice, bad spacing or tolerance.
        ModuleNotFoundError: ``distances`` without the package ``edt``.
    """
    pred, ref, spacing = checked(pred, ref, spacing_mm, integers=True)
    named = dict(classes) if isinstance(classes, Mapping) else {c: c for c in classes}
    if not named or len(set(named.values())) < len(classes) or min(named.values()) < 0:
        raise ValueError(f"classes={classes!r}; expected labels of 0 or more, each once")
    tolerances = arguments.tolerances(tolerance_mm, len(named))
    boxes = [label_boxes(labels, max(named.values())) for labels in (pred, ref)]
    scores = {}
    for (name, label), tolerance in zip(named.items(), tolerances, strict=True):
        box = union(*(b.get(label) for b in boxes), pred.ndim)
        masks = (labels[box] == label for labels in (pred, ref))
        scores[name] = _score(*masks, spacing, tolerance, distances)
    return scores


def evaluate_mask(
    pred: Bool[np.ndarray, "*space"],
    ref: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.5,
    *,
    distances: bool = False,
) -> Scores:
    """Scores of two boolean masks, 2-D or 3-D: for organs kept in files that may overlap.

    Arguments and errors as in `evaluate_labels`.
    """
    pred, ref, spacing = checked(pred, ref, spacing_mm, integers=False)
    (tolerance,) = arguments.tolerances(tolerance_mm, None)
    box = union(mask_box(pred), mask_box(ref), pred.ndim)
    return _score(pred[box], ref[box], spacing, tolerance, distances)


def _score(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], tolerance: float, distances: bool
) -> Scores:
    """Scores of two masks on a box around both."""
    # Python's ints: the scores are printed and written to JSON.
    predicted, referred, both = (int(np.count_nonzero(m)) for m in (pred, ref, pred & ref))
    # The operations of `dice`, so that the bits agree.
    dsc = np.float32(2 * both) / np.float32(predicted + referred + 1)
    edges = [_edges(mask) for mask in (pred, ref)]
    hd95 = assd = None
    if distances:
        hd95, assd = _distances(*edges, spacing)
    return Scores(
        dsc=float(dsc) if predicted + referred else 0.0,
        nsd=_nsd(*edges, spacing, tolerance),
        hd95_mm=hd95,
        assd_mm=assd,
        pred_voxels=predicted,
        ref_voxels=referred,
        both_voxels=both,
        eroded_ref_voxels=_eroded_voxels(ref),
    )


def _eroded_voxels(mask: np.ndarray) -> int:
    """Voxels with all of their 3^rank neighbourhood in the mask; the outermost have not."""
    for axis in range(mask.ndim):
        lines = np.moveaxis(mask, axis, 0)
        mask = np.moveaxis(lines[:-2] & lines[1:-1] & lines[2:], 0, axis)
    return int(np.count_nonzero(mask))


def _edges(mask: np.ndarray) -> np.ndarray:
    """The mask without its erosion by the cross; outside of the box is background."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        lines, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        if len(lines):
            kept[[0, -1]] = False
        kept[1:] &= lines[:-1]
        kept[:-1] &= lines[1:]
    return mask & ~inner


def _nsd(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> float:
    """NSD of two maps of edges."""
    whole = int(np.count_nonzero(pred)) + int(np.count_nonzero(ref))
    if not whole:
        return float("nan")
    near = ball(tolerance, spacing, pred.shape)
    far = _beyond if near.count > _LOOKUPS else _missed
    missed = far(pred, ref, near, spacing, tolerance) + far(ref, pred, near, spacing, tolerance)
    return (whole - missed) / whole


def _missed(
    seekers: np.ndarray,
    targets: np.ndarray,
    near: Ball,
    spacing: tuple[float, ...],
    tolerance: float,
) -> int:
    """Seekers without a target at any offset: one lookup an offset of those still seeking."""
    margin = near.margin()
    around = np.pad(targets, [(m, m) for m in margin])
    strides = np.array([int(np.prod(around.shape[a + 1 :])) for a in range(around.ndim)])
    places = (np.argwhere(seekers) + margin) @ strides
    flat = around.ravel()
    for offset in sorted(near.offsets(), key=lambda o: np.square(np.multiply(o, spacing)).sum()):
        if not places.size:
            break
        places = places[~flat[places + int(np.dot(offset, strides))]]
    return int(places.size)


def _beyond(
    seekers: np.ndarray,
    targets: np.ndarray,
    near: Ball,
    spacing: tuple[float, ...],
    tolerance: float,
) -> int:
    """The same by distance, compared in float32 as `ball` does."""
    from scipy import ndimage

    if not targets.any():
        return int(np.count_nonzero(seekers))
    distance = ndimage.distance_transform_edt(~targets, sampling=spacing)[seekers]
    return int(np.count_nonzero(distance.astype(np.float32) > np.float32(tolerance)))


def _distances(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]
) -> tuple[float, float]:
    """HD95 and ASSD of two maps of edges, mm."""
    if not pred.any() or not ref.any():
        absent = float("inf") if pred.any() or ref.any() else float("nan")
        return absent, absent
    import edt

    # Ones beyond the box would not be nearer: both surfaces lie inside of it.
    forth, back = (
        edt.edt(~targets, anisotropy=spacing, black_border=False, parallel=1)[seekers]
        for seekers, targets in ((pred, ref), (ref, pred))
    )
    hd95 = max(np.percentile(d, 95, method="linear") for d in (forth, back))
    return float(hd95), float(np.concatenate([forth, back]).mean(dtype=np.float64))
