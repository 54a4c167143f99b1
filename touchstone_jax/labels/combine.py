"""From any label map or set of organ masks to one label map of a given scheme.

Voxels that several masks claim are decided in `touchstone_jax.labels.painting`, classes that hold
a left and a right organ are split in `touchstone_jax.labels.sides`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from touchstone_jax.io.label_values import label_counts
from touchstone_jax.labels.painting import Painting, Report
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.labels.sides import split_left_right


def combine_masks(
    masks: Iterable[tuple[str, Bool[np.ndarray, "x y z"]]],
    source: str | Scheme,
    target: str | Scheme,
    *,
    shape: tuple[int, int, int],
    overlap: str = "smallest",
    case: str = "case",
) -> tuple[UInt8[np.ndarray, "x y z"], Report]:
    """One label map (x, y, z) of the scheme ``target`` from masks of single organs.

    Args:
        masks: name in the scheme ``source`` and mask, one after the other: only one is held at a
            time. Names that the target has no place for are passed over.
        source: scheme of the names.
        target: scheme of the result; at most 255 classes.
        shape: shape of every mask.
        overlap: policy for voxels of several classes, see the module.
        case: id for messages.

    Raises:
        VolumeError: voxels of several classes under "refuse".
        ValueError: unknown scheme or policy, or a mask of another shape.
    """
    source, target = scheme(source), scheme(target)
    merged = Painting(shape, target, overlap, case)
    ignored = []
    for own, mask in masks:
        if mask.shape != tuple(shape):
            raise ValueError(f"{case}: mask {own!r} has shape {mask.shape}; expected {shape}")
        names = source.names_in(target, own)
        if not set(names) & set(target.indices):
            ignored.append(own)
            continue
        parts = [mask]
        if len(names) == 2:
            left, right, dropped = split_left_right(mask)
            parts = [left, right]
            merged.report.dropped.update({own: dropped} if dropped else {})
        for name, part in zip(names, parts, strict=True):
            if name in target.indices:
                merged.add(name, part)
    merged.report.ignored = tuple(sorted(ignored))
    merged.report.missing = source.missing_from(target)
    return merged.labels, merged.report


def map_labels(
    labels: Integer[np.ndarray, "x y z"],
    source: str | Scheme,
    target: str | Scheme,
    *,
    case: str = "case",
) -> tuple[UInt8[np.ndarray, "x y z"], Report]:
    """A label map (x, y, z) of ``source`` in the numbers of ``target``, canonical axes.

    Labels that the source does not name become background (DAP Atlas and JHH hold many more
    organs); `verify` is where unknown labels are found.

    Raises:
        ValueError: unknown scheme.
    """
    source, target = scheme(source), scheme(target)
    table = np.zeros(1 + max(int(labels.max(initial=0)), source.num_classes), np.uint8)
    report = Report(missing=source.missing_from(target))
    ignored, pairs = [], []
    for own, index in source.indices.items():
        names = source.names_in(target, own)
        if len(names) == 2 and set(names) & set(target.indices):
            pairs.append((own, index, names))
        elif names[0] in target.indices:
            table[index] = target.indices[names[0]]
        else:
            ignored.append(own)
    report.ignored = tuple(sorted(ignored))
    mapped = table[labels]
    for own, index, names in pairs:
        *sides, dropped = split_left_right(labels == index)
        for name, side in zip(names, sides, strict=True):
            mapped[side] = target.indices.get(name, 0)
        report.dropped.update({own: dropped} if dropped else {})
    counts = label_counts(mapped, target.num_classes)
    there = set(target.classes) - set(report.missing)
    report.voxels = {name: int(counts[target.indices[name]]) for name in sorted(there)}
    return mapped, report
