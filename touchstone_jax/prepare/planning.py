"""From a data set to its plan: a pass over all headers and over the voxels of some cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np

from touchstone_jax.findings import VolumeError
from touchstone_jax.io import read_geometry
from touchstone_jax.io.geometry import canonical
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.prepare.intensities import ForegroundHistogram
from touchstone_jax.prepare.plan import Plan
from touchstone_jax.prepare.planning_rules import patch_size, target_spacing
from touchstone_jax.verify import Examined, examine


def make_plan(
    cases: Sequence[Case],
    *,
    labels: str = "abdomenatlas_1.0",
    spacing_mm: Sequence[float] | None = None,
    patch_voxels: int = 128**3,
    multiple: int = 16,
    intensity_cases: int = 64,
    antialias: bool = True,
    overlap: str = "smallest",
    allow: Collection[str] = (),
    workers: int = 1,
) -> Plan:
    """The plan of a data set; the same for the same files, in any number of threads.

    Spacing and shapes come from the headers of all cases, intensities (0.5 and 99.5 percentile,
    mean and standard deviation over the labelled voxels) from ``intensity_cases`` of them, evenly
    spread over the list. A case that cannot be used is passed over here; it is an error when it is
    prepared.

    Args:
        cases: from `touchstone_jax.layouts.discover`.
        labels: scheme that the labels are brought into.
        spacing_mm: target spacing (x, y, z) in mm; None for the data set's median.
        patch_voxels: voxels of the proposed patch.
        multiple: of which every side of the patch is one.
        intensity_cases: voxels of at most so many cases are read; 0 for all.
        antialias: smooth axes that get fewer voxels.
        overlap: policy for voxels of several masks.
        allow: checks of `touchstone_jax.findings.ALLOWABLE` that are let pass.
        workers: threads that read.

    Raises:
        ValueError: an argument out of range, no usable case, or no labelled voxel in any.
    """
    if patch_voxels < 1 or multiple < 1 or intensity_cases < 0:
        raise ValueError(
            f"patch_voxels={patch_voxels}, multiple={multiple}, intensity_cases={intensity_cases}: "
            "expected at least 1, 1 and 0"
        )
    grids = list(_grids(cases))
    if not grids:
        raise ValueError(f"none of {len(cases)} cases has a readable CT header")
    spacings, shapes = (np.array(column, np.float64) for column in zip(*grids, strict=True))
    target = target_spacing(spacings, shapes) if spacing_mm is None else tuple(spacing_mm)
    chosen = _spread(cases, intensity_cases)
    histogram, refused = ForegroundHistogram(), []
    for seen in _examined(chosen, labels, overlap, workers):
        refused += seen.errors(allow)[:1]
        if seen.labels is not None and seen.ct is not None and not seen.errors(allow):
            histogram.add(seen.ct.array, seen.labels > 0)
    if refused and not histogram.cases:
        raise ValueError(
            f"no plan: {len(refused)} of {len(chosen)} cases cannot be used, and no other has a "
            f"voxel of the labels that are wanted; the first: {refused[0]}"
        )
    clip, mean, std = histogram.statistics()
    median = np.median(shapes * spacings / np.array(target), axis=0)
    return Plan(
        labels=labels,
        spacing_mm=cast(tuple[float, float, float], tuple(float(s) for s in target)),
        clip_hu=clip,
        mean_hu=mean,
        std_hu=std,
        patch=patch_size(median, target, patch_voxels, multiple),
        antialias=antialias,
        overlap=overlap,
        cases=(len(grids), histogram.cases),
    )


def _grids(cases: Sequence[Case]) -> Iterable[tuple[tuple[float, ...], tuple[int, ...]]]:
    """Canonical spacing in mm and shape of every CT whose header can be read."""
    for case in cases:
        try:
            geometry, _ = read_geometry(case.ct, case=case.id)
        except VolumeError:
            continue
        geometry = geometry.reoriented(canonical(geometry))
        yield geometry.spacing_mm, geometry.shape


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    if not 0 < count < len(cases):
        return list(cases)
    return [cases[i] for i in np.linspace(0, len(cases) - 1, count).round().astype(int)]


def _examined(cases: Sequence[Case], labels: str, overlap: str, workers: int) -> Iterable[Examined]:
    """The cases in their order; no more than ``workers`` of them are in memory."""
    for start in range(0, len(cases), workers):
        batch = cases[start : start + workers]
        if workers == 1:
            yield examine(batch[0], labels, overlap=overlap)
            continue
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(lambda case: examine(case, labels, overlap=overlap), batch)
