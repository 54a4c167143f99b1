"""Bounding boxes of masks and labels: scores of a class need no voxel beyond its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from touchstone_jax.metrics import arguments

if TYPE_CHECKING:
    from jaxtyping import Integer, Shaped

Box = tuple[slice, ...]


def crop_to_foreground(
    pred: Integer[np.ndarray, "*space"], ref: Integer[np.ndarray, "*space"], *, multiple: int = 32
) -> tuple[Integer[np.ndarray, "*box"], Integer[np.ndarray, "*box"]]:
    """Both label maps on the box of all labels > 0, its sizes rounded up to a multiple.

    No score of a class > 0 changes, since outside of a volume is no class; what is added is 0.
    Before jit: fewer voxels, and few shapes, so that few programs are compiled.

    Raises:
        ValueError: unlike shapes, neither 2-D nor 3-D, no integers, negative labels.
    """
    pred, ref, _ = checked(pred, ref, (1.0,) * np.ndim(pred), integers=True)
    box = union(mask_box(pred), mask_box(ref), pred.ndim)
    sizes = [max(1, -(-(s.stop - s.start) // multiple)) * multiple for s in box]
    cropped = []
    for labels in (pred, ref):
        crop = np.zeros(sizes, labels.dtype)
        crop[tuple(slice(0, s.stop - s.start) for s in box)] = labels[box]
        cropped.append(crop)
    return cropped[0], cropped[1]


def checked(
    pred: Shaped[np.ndarray, "*space"],
    ref: Shaped[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    *,
    integers: bool,
) -> tuple[Shaped[np.ndarray, "*space"], Shaped[np.ndarray, "*space"], tuple[float, ...]]:
    """Prediction, reference and spacing in mm, once they are found to fit.

    Raises:
        ValueError: unlike shapes, neither 2-D nor 3-D, bad spacing; with ``integers`` another
            type or negative labels, without another type than boolean.
    """
    pred, ref = np.asarray(pred), np.asarray(ref)
    if pred.shape != ref.shape:
        raise ValueError(f"pred has shape {pred.shape}, ref {ref.shape}; expected the same")
    arguments.volume("scores", pred.shape)
    for name, mask in (("pred", pred), ("ref", ref)):
        if integers and not np.issubdtype(mask.dtype, np.integer):
            raise ValueError(f"{name} is {mask.dtype}; expected integer labels")
        if not integers and mask.dtype != bool:
            raise ValueError(f"{name} is {mask.dtype}; expected a boolean mask")
        if np.issubdtype(mask.dtype, np.signedinteger) and mask.size and mask.min() < 0:
            raise ValueError(f"{name} has label {mask.min()}; expected 0 or more")
    return pred, ref, arguments.spacing(spacing_mm, pred.shape)


def mask_box(mask: Shaped[np.ndarray, "*space"]) -> Box | None:
    """Bounding box of what is not 0, axis by axis on what the axes before have left; or None."""
    box: Box = ()
    for axis in range(mask.ndim):
        place: tuple[Any, ...] = (*box, ...)
        part = mask[place]
        hit = np.flatnonzero(part.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not hit.size:
            return None
        box = (*box, slice(int(hit[0]), int(hit[-1]) + 1))
    return box


def label_boxes(labels: Integer[np.ndarray, "*space"], largest: int) -> dict[int, Box]:
    """Bounding box of each label up to ``largest`` that is there; of 0 the whole volume."""
    from scipy import ndimage

    boxes: dict[int, Box] = {0: tuple(slice(0, n) for n in labels.shape)}
    around = mask_box(labels)
    if around is None or largest < 1:
        return boxes
    for label, box in enumerate(ndimage.find_objects(labels[around], largest), start=1):
        if box is not None:
            boxes[label] = tuple(
                slice(o.start + s.start, o.start + s.stop) for o, s in zip(around, box, strict=True)
            )
    return boxes


def union(one: Box | None, other: Box | None, rank: int) -> Box:
    """The box around both; without either, one of no voxels."""
    if one is None or other is None:
        return one or other or (slice(0, 0),) * rank
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
