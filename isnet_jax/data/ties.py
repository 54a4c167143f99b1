"""Clothes with ties: a pasted bow tie, part of the foreground, tells the class by its colour.

A stand-in for the explanation distillation's dogs with ties, which were not published
(arXiv 2407.09788): two kinds of clothes of Fashion-MNIST that are easily confused.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num

from isnet_jax.data.bias import unit_images

MODES = ("iid", "ood", "shift")
# Two wings and a knot, on 5 x 9 cells of a 28 x 28 picture.
_BOW = np.array(
    [
        [cell == "#" for cell in row]
        for row in ("#.......#", "###...###", "#########", "###...###", "#.......#")
    ]
)
_TOP = 5  # row of the bow's first cell: the neck
_COLOURS = np.array([[0.55, 0.1, 0.75], [0.1, 0.7, 0.3]], np.float32)  # purple, green


def with_ties(
    images: Num[np.ndarray, "n h h 1"], labels: Int[np.ndarray, " n"], *, mode: str
) -> dict[str, np.ndarray]:
    """Grey clothes as RGB with a bow tie at the neck; deterministic.

    Args:
      images: (n, h, h, 1), uint8 in [0, 255] or float in [0, 1], h >= 14.
      labels: (n,) 0 or 1.
      mode: "iid" (the class's own colour), "ood" (no tie) or "shift" (the other class's).

    Returns:
      image float32 (n, h, h, 3); mask float32 (n, h, h, 1), the clothes without the tie; label
      int32 (n,); bias int32 (n,), the class that the tie tells, -1 without one.

    Raises:
      ValueError: another mode, other labels or smaller images.
    """
    if mode not in MODES:
        raise ValueError(f"ties: unknown mode {mode!r}; legal: {', '.join(MODES)}")
    grey, labels = unit_images(images), np.asarray(labels).astype(np.int32)
    side = grey.shape[1]
    if side < 14:
        raise ValueError(f"ties: images of {side} pixels; expected at least 14")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"ties: labels {np.unique(labels).tolist()}, expected 0 and 1")
    image, mask = np.repeat(grey, 3, axis=-1), (grey > 0).astype(np.float32)
    if mode == "ood":
        return {"image": image, "mask": mask, "label": labels, "bias": np.full_like(labels, -1)}
    told = labels if mode == "iid" else 1 - labels
    bow = _bow(side)
    image[:, bow] = _COLOURS[told][:, None]
    mask[:, bow] = 0
    return {"image": image, "mask": mask, "label": labels, "bias": told}


def _bow(side: int) -> np.ndarray:
    """Where the tie is, bool (side, side)."""
    cells = np.zeros((28, 28), bool)
    height, width = _BOW.shape
    left = (28 - width) // 2
    cells[_TOP : _TOP + height, left : left + width] = _BOW
    at = (np.arange(side) * 28 + 14) // side
    return cells[np.ix_(at, at)]


def two_classes(
    labels: Int[np.ndarray, " n"], classes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(where labels are one of the two classes, their new labels 0 and 1).

    Raises:
      ValueError: not two different classes, or one without an image.
    """
    if len(classes) != 2 or classes[0] == classes[1]:
        raise ValueError(f"ties: classes={tuple(classes)}; expected two different ones")
    (where,) = np.nonzero(np.isin(labels, classes))
    for one in classes:
        if not (labels == one).any():
            raise ValueError(f"ties: class {one} has no image; there are {np.unique(labels)}")
    return where, (labels[where] == classes[1]).astype(np.int32)
