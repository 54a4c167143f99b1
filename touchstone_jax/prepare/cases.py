"""From the files of a case to the arrays that a network is trained on, and back to the CT's grid.

The steps are nnU-Net's (Isensee et al. 2021): clip to the plan's percentiles, subtract its mean,
divide by its standard deviation, then resample (`touchstone_jax.prepare.resample`) to its spacing.
Where the CT's spacing or the plan's is coarse along one axis, slices along it are taken whole from
the nearest instead of interpolated. The volume is not cropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16, UInt8

from touchstone_jax.findings import write_findings
from touchstone_jax.io import Volume
from touchstone_jax.io.geometry import Geometry, canonical
from touchstone_jax.io.label_values import label_counts
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.prepare.plan import Plan
from touchstone_jax.prepare.planning_rules import coarse_axis
from touchstone_jax.prepare.prepared import write_prepared
from touchstone_jax.prepare.resample import resample_image, resample_labels
from touchstone_jax.verify import Examined, examine

VERSION = 1
"""Goes up when the same files and plan give other arrays."""


def prepare_case(
    case: Case,
    plan: Plan,
    folder: str | Path,
    *,
    samples: int = 2000,
    allow: Collection[str] = (),
) -> dict[str, Any]:
    """Verify, prepare and write one case into an existing folder; what was done, as flat values.

    Args:
        case: its files.
        plan: the data set's plan.
        folder: where the files of `touchstone_jax.prepare.prepared` and ``findings.jsonl`` go.
        samples: at most so many voxels of each label are listed in foreground.npy.
        allow: checks of `touchstone_jax.findings.ALLOWABLE` that are let pass.

    Raises:
        VolumeError: the first error that `verify` finds in the case.
        OSError: the folder cannot be written.
    """
    seen = examine(case, plan.labels, overlap=plan.overlap)
    seen.raise_errors(allow)
    assert seen.ct is not None and seen.labels is not None  # else there was an error
    image = prepare_image(seen.ct, plan).astype(np.float16)
    shape = image.shape
    labels = resample_labels(seen.labels, shape, order=_orders(seen.ct.spacing_mm, plan, 1))
    meta = _meta(case, plan, seen, labels)
    write_findings(Path(folder) / "findings.jsonl", seen.findings)
    write_prepared(folder, image, labels, sample_foreground(labels, case.id, samples), meta)
    return {
        "shape": " ".join(map(str, shape)),
        "spacing_mm": " ".join(f"{s:g}" for s in meta["spacing_mm"]),
        "foreground_voxels": sum(meta["voxels"].values()),
        "overlap_voxels": sum(meta["overlaps"].values()),
        "findings": len(seen.findings),
        "digest": seen.digest,
        "plan": plan.digest(),
    }


def prepare_image(ct: Volume, plan: Plan) -> Float32[np.ndarray, "a b c"]:
    """A CT as the network sees it: normalised float32 on the plan's spacing, canonical axes.

    `predict` uses this very function, so a network meets what it was trained on.
    """
    shape = target_shape(ct.array.shape, ct.spacing_mm, plan)
    # Before resampling: splines would carry metal of 20,000 HU into the tissue around it.
    normalised = (np.clip(ct.array, *plan.clip_hu) - np.float32(plan.mean_hu)) / np.float32(
        plan.std_hu
    )
    orders = _orders(ct.spacing_mm, plan, 3)
    return resample_image(normalised, shape, order=orders, antialias=plan.antialias)


def target_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], plan: Plan
) -> tuple[int, int, int]:
    """Voxels (x, y, z) of a volume (canonical axes) on the plan's spacing: at least one an axis."""
    extents = zip(shape, spacing_mm, plan.spacing_mm, strict=True)
    x, y, z = (max(1, round(n * s / target)) for n, s, target in extents)
    return x, y, z


def to_source_grid(
    labels: UInt8[np.ndarray, "a b c"], source: Geometry, plan: Plan
) -> UInt8[np.ndarray, "x y z"]:
    """A label map on the plan's spacing back on the voxels of the CT, canonical axes.

    `touchstone_jax.io.write` with the same ``source`` then writes it in the CT's own axes.

    Args:
        labels: uint8 (a, b, c), of the shape that `prepare_image` gives.
        source: `Volume.geometry` of the CT, or `Prepared.source`.
        plan: the plan.
    """
    grid = source.reoriented(canonical(source))
    expected = target_shape(grid.shape, grid.spacing_mm, plan)
    if labels.shape != expected:
        raise ValueError(f"labels have shape {labels.shape}; the plan makes {expected} of this CT")
    return resample_labels(labels, grid.shape, order=_orders(grid.spacing_mm, plan, 1))


def sample_foreground(
    labels: UInt8[np.ndarray, "x y z"], case: str, samples: int
) -> Int16[np.ndarray, "n 4"]:
    """Rows (label, x, y, z) of at most ``samples`` voxels of each label, sorted; by the case's id.

    Patches are centred on them, so that small organs are seen often (nnU-Net's oversampling).
    """
    rows = []
    for label in np.flatnonzero(label_counts(labels)[1:]) + 1:
        # Transposed, volumes lie in C order (`touchstone_jax.io`), which NumPy is fast at.
        inside = (labels == label).T
        flat = np.flatnonzero(inside)
        if len(flat) > samples:
            seed = hashlib.blake2b(f"{case}/{label}".encode(), digest_size=8).digest()
            rng = np.random.default_rng(int.from_bytes(seed, "little"))
            flat = np.sort(rng.choice(flat, samples, replace=False, shuffle=False))
        z, y, x = np.unravel_index(flat, labels.T.shape)
        rows.append(np.stack([np.full(len(flat), label), x, y, z], axis=1))
    return np.concatenate(rows or [np.zeros((0, 4))]).astype(np.int16)


def _orders(spacing_mm: Sequence[float], plan: Plan, order: int) -> tuple[int, ...]:
    coarse = coarse_axis(spacing_mm)
    if coarse is None:
        coarse = coarse_axis(plan.spacing_mm)
    return tuple(0 if axis == coarse else order for axis in range(3))


def _meta(case: Case, plan: Plan, seen: Examined, labels: UInt8[np.ndarray, "x y z"]):
    assert seen.ct is not None and seen.report is not None  # else there was an error
    counts, target = label_counts(labels, 256), scheme(plan.labels)
    extents = zip(seen.ct.array.shape, seen.ct.spacing_mm, labels.shape, strict=True)
    # What nobody looked for is not the same as what nobody found.
    known = seen.report.voxels
    return {
        "case": case.id,
        "shape": list(labels.shape),
        # Not quite the plan's: the extent stays, and voxels are whole.
        "spacing_mm": [n * s / new for n, s, new in extents],
        "geometry": seen.ct.geometry.to_json(),
        "digest": seen.digest,
        "plan": plan.digest(),
        "version": VERSION,
        "voxels": {n: int(counts[target.indices[n]]) for n in target.classes if n in known},
        "missing": [name for name in target.classes if name not in known],
        "overlaps": seen.report.overlaps,
    }
