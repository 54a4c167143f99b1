"""From masks and a CT to the numbers of an organ and its lesions; staging comes after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Real

from touchstone_jax.report.attenuation import attenuation, mean_sd_hu
from touchstone_jax.report.components import lesions_of
from touchstone_jax.report.diameters import Diameters, diameters, published_diameters
from touchstone_jax.report.grid import Grid
from touchstone_jax.report.locate import locate
from touchstone_jax.report.regions import Region, union
from touchstone_jax.report.schema import Lesion, Organ, tenth

RESIDUAL_VOXELS = 10
"""What is left of the mask of untyped lesions counts from so many voxels (published)."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What everything is measured on.

    Attributes:
        ct: (x, y, z) HU, canonical axes.
        spacing_mm: of the CT.
        grid: see `touchstone_jax.report.grid`.
        published: whether the released generator's rules hold.
        min_component_mm3: smallest lesion.
    """

    ct: Real[np.ndarray, "x y z"]
    spacing_mm: tuple[float, float, float]
    grid: Grid
    published: bool
    min_component_mm3: float


@dataclass(frozen=True, eq=False)
class Found:
    """An organ's numbers, and the region of each of its lesions on the grid.

    Attributes:
        organ: the numbers.
        regions: of ``organ.lesions``, in their order.
    """

    organ: Organ
    regions: tuple[Region, ...]


def measure_organ(
    scan: Scan,
    name: str,
    sides: Mapping[str, Region | None],
    lesion_masks: Mapping[str, Region],
    parts: Mapping[int, Region],
    *,
    unknown: Sequence[str] = (),
) -> Found:
    """One section's numbers.

    Args:
        scan: the CT and how to measure.
        name: of the section.
        sides: the organ's regions in voxels of the CT, by side; one entry for an organ of one
            piece; None for a mask that cannot be used.
        lesion_masks: kind of lesion to region in voxels of the CT, in the order of the text.
        parts: number of a sub-segment to its region in voxels of the CT.
        unknown: reasons to pass on.
    """
    grid = scan.grid
    usable = {side: grid.region(r) for side, r in sides.items() if r is not None}
    usable = {side: region for side, region in usable.items() if region.mask.size}
    whole = union(list(usable.values())) if usable else None
    masks = {kind: grid.region(region) for kind, region in lesion_masks.items()}
    cut = any(r.touches_border() for r in usable.values())
    complete = len(usable) == len(sides) and not cut
    volumes = {
        side: None
        if side not in usable or usable[side].touches_border()
        else usable[side].voxels * grid.voxel_mm3
        for side in sides
    }
    hu = _Hu(scan, [*([whole] if whole else []), *masks.values()])
    healthy = None
    if whole is not None:
        healthy = mean_sd_hu(*hu.of(whole.minus(list(masks.values()))))
    organ_hu = None if healthy is None else (tenth(healthy[0]), tenth(healthy[1]))
    lesions, regions = _lesions(scan, name, masks, hu, organ_hu, whole, parts)
    total = sum(v for v in volumes.values() if v is not None) if complete and usable else None
    organ = Organ(
        name,
        total,
        volumes if len(sides) > 1 else {},
        None if organ_hu is None else organ_hu[0],
        None if organ_hu is None else organ_hu[1],
        tuple(lesions),
        tuple(masks),
        cut,
        tuple(unknown),
    )
    return Found(organ, tuple(regions))


class _Hu:
    """The CT in the box of some regions, sampled once."""

    def __init__(self, scan: Scan, regions: Sequence[Region]) -> None:
        self._box = union(regions) if regions else None
        if self._box is not None and self._box.mask.size:
            self._hu = scan.grid.hu(scan.ct, self._box.start, self._box.stop)

    def of(self, region: Region):
        """HU in the region's box, and its mask."""
        if not region.mask.size:
            return np.zeros((0, 0, 0)), region.mask
        assert self._box is not None  # it is around all regions
        start = self._box.start
        box = tuple(
            slice(a - s, b - s) for a, b, s in zip(region.start, region.stop, start, strict=True)
        )
        return self._hu[box], region.mask


def _residual(scan: Scan, masks: Mapping[str, Region]) -> dict[str, Region]:
    """The masks, with typed lesions taken out of the mask of untyped ones."""
    if "lesion" not in masks or len(masks) == 1:
        return dict(masks)
    rest = masks["lesion"].minus([r for kind, r in masks.items() if kind != "lesion"])
    out = {**masks, "lesion": rest}
    if scan.published and rest.voxels < RESIDUAL_VOXELS:
        del out["lesion"]
    return out


def _lesions(scan: Scan, name, masks, hu: _Hu, organ_hu, whole, parts):
    lesions, regions = [], []
    parts = {number: scan.grid.region(region) for number, region in parts.items()}
    for kind, mask in _residual(scan, masks).items():
        found = lesions_of(
            mask,
            scan.grid.spacing_mm,
            min_component_mm3=scan.min_component_mm3,
            erosion=scan.min_component_mm3 > 0,
        )
        for number, region in enumerate(found, 1):
            lesion = _lesion(scan, kind, number, region, mean_sd_hu(*hu.of(region)), organ_hu)
            location = _location(scan, name, region, parts)
            outside = whole is not None and not region.overlaps(whole)
            lesions.append(_with(lesion, location=location, outside=outside))
            regions.append(region)
    return lesions, regions


def _with(lesion: Lesion, **changes) -> Lesion:
    from dataclasses import replace

    return replace(lesion, **changes)


def _location(scan: Scan, name: str, region: Region, parts: Mapping[int, Region]):
    if not parts:
        return ()
    if name != "liver":
        found = locate(region, parts, "last")
        # The released generator names one kidney alone, the left if the lesion is in both.
        return found[:1] if scan.published and name == "kidney" else found
    return locate(region, parts, "sum" if scan.published else "first")


def _lesion(scan: Scan, kind: str, number: int, region: Region, stats, organ_hu) -> Lesion:
    grid = scan.grid
    measured = published_diameters(region) if scan.published else diameters(region, grid.spacing_mm)
    start, stop = _in_ct(grid, region)
    mean, sd = tenth(stats[0]), tenth(stats[1])
    longest, across = measured.longest_mm, measured.perpendicular_mm
    return Lesion(
        kind,
        number,
        region.voxels * grid.voxel_mm3,
        mean,
        sd,
        float(int(longest)) if scan.published else longest,
        float(int(across)) if scan.published else across,
        _slice(scan, measured),
        _points(grid, measured.ends),
        _points(grid, measured.across),
        start,
        stop,
        None if organ_hu is None else attenuation(mean, *organ_hu, published=scan.published),
        cut=region.touches_border(),
    )


def _slice(scan: Scan, measured: Diameters) -> int:
    """Axial slice of the CT; "published" divides by the spacing and cuts the decimals."""
    if not scan.published:
        return measured.slice_index
    return int(round(measured.slice_index / scan.spacing_mm[2], 1))


def _in_ct(grid: Grid, region: Region):
    """A region's box in voxels of the CT."""
    at = grid.nearest
    start = tuple(int(at[k][region.start[k]]) for k in range(3))
    return start, tuple(int(at[k][region.stop[k] - 1]) + 1 for k in range(3))


def _points(grid: Grid, points):
    """Points of an axial slice of the grid in voxels of the CT."""
    out = []
    for point in points:
        pairs = zip(point, grid.position[:2], strict=True)
        out.append(tuple(float(np.interp(p, np.arange(len(at)), at)) for p, at in pairs))
    return tuple(out)
