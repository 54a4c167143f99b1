"""The same scores in numpy, on the bounding box of each class: the fast route on a CPU.

For evaluating a folder of volumes, whose shapes and spacings differ from case to case. Equal to
`dice`, `nsd`, `hd95` and `assd` with their policy "convention" for empty masks: DSC to the last
bit, the others to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from touchstone_jax.metrics import arguments
from touchstone_jax.metrics.boxes import checked, label_boxes, mask_box, union
from touchstone_jax.metrics.evaluable import MIN_VOXELS
from touchstone_jax.metrics.hausdorff import absent_assd, absent_hd
from touchstone_jax.metrics.host_surface import surface_dice, surface_distances, surface_of
from touchstone_jax.metrics.overlap import CONVENTIONS

if TYPE_CHECKING:
    from jaxtyping import Bool, Integer

Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Scores:
    """Scores of one class of one case; DSC and NSD in 0..1, values of empty masks by convention.

    Distances are None unless asked for. ``evaluable`` is Touchstone's rule: more than 10 voxels of
    the reference survive an erosion by 3^rank.
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
    classes: Mapping[Name, int] | Sequence[Name],
    tolerance_mm: float | Sequence[float] = 1.5,
    *,
    convention: str = "touchstone",
    distances: bool = False,
) -> dict[Name, Scores]:
    """Scores of each class of two label maps, 2-D or 3-D; keys as in ``classes``.

    Args:
        pred: integer labels >= 0; those not in ``classes`` are other tissue.
        ref: the same for the reference, in the same geometry.
        spacing_mm: mm between voxels along each axis.
        classes: labels, or name to label.
        tolerance_mm: of the NSD, mm; one, or one a class in the order of ``classes``.
        convention: "touchstone", "monai" or "deepmind", as in `dice`, `nsd` and `hd95`.
        distances: also HD95 and ASSD, by the exact distance transform of ``edt``.

    Raises:
        ValueError: unknown convention, unlike shapes, neither 2-D nor 3-D, no integers, negative
            labels, no class or one twice, bad spacing or tolerance.
        ModuleNotFoundError: ``distances`` without the package ``edt``.
    """
    arguments.known("convention", convention, CONVENTIONS)
    pred, ref, spacing = checked(pred, ref, spacing_mm, integers=True)
    named: dict[Any, int]
    named = dict(classes) if isinstance(classes, Mapping) else {c: c for c in list[Any](classes)}
    if not named or len(set(named.values())) < len(classes) or min(named.values()) < 0:
        raise ValueError(f"classes={classes!r}; expected labels of 0 or more, each once")
    tolerances = arguments.tolerances(tolerance_mm, len(named))
    boxes = [label_boxes(labels, max(named.values())) for labels in (pred, ref)]
    scores: dict[Name, Scores] = {}
    for (name, label), tolerance in zip(named.items(), tolerances, strict=True):
        box = union(boxes[0].get(label), boxes[1].get(label), pred.ndim)
        found, wanted = (labels[box] == label for labels in (pred, ref))
        scores[name] = _score(found, wanted, spacing, tolerance, convention, distances)
    return scores


def evaluate_mask(
    pred: Bool[np.ndarray, "*space"],
    ref: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.5,
    *,
    convention: str = "touchstone",
    distances: bool = False,
) -> Scores:
    """Scores of two boolean masks, 2-D or 3-D: for organs kept in files that may overlap.

    Arguments and errors as in `evaluate_labels`.
    """
    arguments.known("convention", convention, CONVENTIONS)
    pred, ref, spacing = checked(pred, ref, spacing_mm, integers=False)
    (tolerance,) = arguments.tolerances(tolerance_mm, None)
    box = union(mask_box(pred), mask_box(ref), pred.ndim)
    return _score(pred[box], ref[box], spacing, tolerance, convention, distances)


def _score(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing: tuple[float, ...],
    tolerance: float,
    convention: str,
    distances: bool,
) -> Scores:
    """Scores of two masks on a box around both."""
    # Python's ints: the scores are printed and written to JSON.
    predicted, referred, both = (int(np.count_nonzero(m)) for m in (pred, ref, pred & ref))
    dsc = CONVENTIONS[convention]
    if predicted + referred:
        # The operations of `dice`, so that the bits agree.
        whole = predicted + referred + (convention == "touchstone")
        dsc = float(np.float32(2 * both) / np.float32(whole))
    found, wanted = (surface_of(mask, spacing, convention) for mask in (pred, ref))
    hd95 = assd = None
    if distances and predicted and referred:
        hd95, assd = surface_distances(found, wanted, spacing, convention)
    elif distances:
        which = 1 if referred else 2 if predicted else 0
        hd95, assd = absent_hd(convention, 95.0)[which], absent_assd(convention, "both")[which]
    return Scores(
        dsc=dsc,
        nsd=surface_dice(found, wanted, spacing, tolerance),
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
