"""Staging of pancreatic tumors: contact with vessels and organs, T stage, resectability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from touchstone_jax.report.celiac import MARGIN, split_celiac
from touchstone_jax.report.encirclement import GAP_MM, contact_angle_deg
from touchstone_jax.report.grid import Grid, staging_grid
from touchstone_jax.report.masks import Masks
from touchstone_jax.report.published_contact import published_angle_deg
from touchstone_jax.report.regions import Region, fitted, union
from touchstone_jax.report.resectability import published_resectability, resectability
from touchstone_jax.report.schema import NEIGHBOURS, VESSELS, Lesion, Staging
from touchstone_jax.report.tstage import published_t_stage, t_stage

BRANCHES = ("CA", "CHA", "SA")
_NEEDED = ("SMA", "CA", "CHA", "portal vein and SMV", "IVC")
_HEAD = 1


def stage(
    lesions: Sequence[Lesion],
    regions: Sequence[Region],
    masks: Masks,
    spacing_mm: Sequence[float],
) -> list[Staging | None]:
    """The staging of each pancreatic lesion, from its own voxels; None for cysts ("corrected").

    Args:
        lesions: of the pancreas.
        regions: theirs, in voxels of the CT.
        masks: of the case.
        spacing_mm: of the CT.
    """
    vessels = {name: masks.called(name) for name in VESSELS if name not in BRANCHES}
    celiac = masks.called("celiac")
    branches = None
    out: list[Staging | None] = []
    for lesion, region in zip(lesions, regions, strict=True):
        if lesion.kind == "cyst":
            out.append(None)
            continue
        angles = {
            name: None if vessel is None else contact_angle_deg(vessel, region, spacing_mm)
            for name, vessel in vessels.items()
        }
        unknown = [f"{name} (no usable mask)" for name, a in angles.items() if a is None]
        if celiac is None:
            unknown.append("CA, CHA, SA (no usable mask)")
            angles |= dict.fromkeys(BRANCHES)
        elif not contact_angle_deg(celiac, region, spacing_mm):
            angles |= dict.fromkeys(BRANCHES, 0)
        else:
            branches = branches or celiac_branches(celiac, vessels["aorta"], spacing_mm)
            angles |= {
                name: contact_angle_deg(branches[name], region, spacing_mm) if branches else None
                for name in BRANCHES
            }
            if not branches:
                unknown.append("CA, CHA, SA (the celiac artery could not be divided)")
        contacts = _contacts(region, masks, spacing_mm)
        if blind := [name for name, contact in contacts.items() if contact is None]:
            unknown.append(f"contact with {', '.join(blind)} (no usable mask)")
        out.append(_staged(lesion, angles, contacts, unknown))
    return out


def _staged(lesion: Lesion, angles, contacts, unknown: list[str]) -> Staging:
    found, blind = t_stage(lesion.longest_mm / 10, angles, contacts, pnet=lesion.kind == "PNET")
    if blind:
        unknown.append(f"T stage, at least {found} (no usable mask of {', '.join(blind)})")
    angles = {name: angles[name] for name in VESSELS}
    missing = [name for name in _NEEDED if angles[name] is None]
    said = None
    if missing:
        unknown.append(f"resectability (no usable mask of {', '.join(missing)})")
    elif not lesion.location and any(angles[name] for name in _NEEDED):
        unknown.append("resectability (the part of the pancreas is not known)")
    else:
        said = resectability(angles, head=_HEAD in lesion.location)
    return Staging(angles, contacts, None if blind else found, said, tuple(unknown))


def _contacts(region: Region, masks: Masks, spacing_mm: Sequence[float]) -> dict[str, bool | None]:
    """Whether an organ lies within `GAP_MM` of the tumor; organs without a mask are None."""
    start, stop = region.padded([int(np.ceil((GAP_MM + 1) / s)) + 1 for s in spacing_mm])
    away = ndimage.distance_transform_edt(~region.window(start, stop), sampling=list(spacing_mm))
    # Between the centres of two voxels that share a face lies one spacing, and no gap.
    near = away <= GAP_MM + min(spacing_mm)
    out = {}
    for name in NEIGHBOURS:
        organ = masks.called(name)
        out[name] = None if organ is None else bool((organ.window(start, stop) & near).any())
    return out


def celiac_branches(
    celiac: Region, aorta: Region | None, spacing_mm: Sequence[float], *, exchanged: bool = False
) -> dict[str, Region] | None:
    """Regions of "CA", "CHA" and "SA" in the celiac's volume; None if it cannot be divided.

    The division is made on voxels of 1 mm in the celiac's box and brought back, nearest neighbour.

    Args:
        celiac: at least one voxel.
        aorta: None if unknown.
        spacing_mm: of the volume.
        exchanged: as for `touchstone_jax.report.celiac.split_celiac`.
    """
    if aorta is None or not celiac.mask.size:
        return None
    start, stop = celiac.padded([int(np.ceil(MARGIN / s)) for s in spacing_mm])
    fine, coarse = [], []
    for a, b, s in zip(start, stop, spacing_mm, strict=True):
        steps = max(1, round((b - a) * s))
        fine.append(np.minimum(((np.arange(steps) + 0.5) / s).astype(int), b - a - 1))
        coarse.append(np.minimum(((np.arange(b - a) + 0.5) * s).astype(int), steps - 1))
    masks = [r.window(start, stop) for r in (celiac, aorta)]
    parts = split_celiac(*(m[np.ix_(*fine)] for m in masks), exchanged=exchanged)
    if parts is None:
        return None
    back = {name: part[np.ix_(*coarse)] & masks[0] for name, part in parts.items()}
    return {name: fitted(part, start, celiac.shape) for name, part in back.items()}


# ------------------------------------------------------------------------- published


def published_stage(
    lesions: Sequence[Lesion], masks: Masks, shape: Sequence[int], spacing_mm: Sequence[float]
) -> list[Staging | None]:
    """What the released generator says of each pancreatic lesion; None where it says nothing.

    Every lesion gets the contacts of all tumors together; a missing vessel, or a PDAC mask without
    a PNET mask, silences it for the case (spec/report.md 4).

    Args:
        lesions: of the pancreas.
        masks: of the case.
        shape: of the CT.
        spacing_mm: of the CT.
    """
    tumor = _published_tumor(masks)
    names = {
        "SMA": "superior_mesenteric_artery",
        "aorta": "aorta",
        "portal vein and SMV": "veins",
        "IVC": "postcava",
        "celiac": "celiac_aa",
    }
    found = {name: masks.get(file) for name, file in names.items()}
    vessels = {name: vessel for name, vessel in found.items() if vessel is not None}
    if (
        tumor is None
        or len(vessels) < len(names)
        or all(lesion.kind == "cyst" for lesion in lesions)
    ):
        return [None for _ in lesions]
    grid = staging_grid(shape, spacing_mm)
    tumor = grid.region(tumor)
    if not tumor.mask.size:
        return [None for _ in lesions]
    on_grid = {name: grid.region(vessel) for name, vessel in vessels.items()}
    angles = published_angles(tumor, on_grid)
    if angles is None:
        return [None for _ in lesions]
    contacts = _published_contacts(dilated(tumor, 4), masks, grid)
    return [None if x.kind == "cyst" else published_staging(x, angles, contacts) for x in lesions]


def published_staging(
    lesion: Lesion, angles: Mapping[str, int], contacts: Mapping[str, bool | None]
) -> Staging | None:
    """Stage and resectability as released; None where it fails.

    Args:
        lesion: its size and kind.
        angles: of `VESSELS`, degrees.
        contacts: of `NEIGHBOURS`.
    """
    found = published_t_stage(lesion.size_cm, angles, contacts, pnet=lesion.kind == "PNET")
    if found is None:
        return None
    staging = Staging({name: angles[name] for name in VESSELS}, contacts, found)
    touched = any(angles[name] for name in ("SMA", "CHA", "CA", "portal vein and SMV"))
    if touched and not lesion.location:
        # It fails here after the findings are written, so the impression lacks the stage.
        return replace(staging, summarised=False)
    return replace(staging, resectability=published_resectability(angles))


def _published_tumor(masks: Masks) -> Region | None:
    if masks.has("pancreatic_pdac"):
        pdac, pnet = masks.get("pancreatic_pdac"), masks.get("pancreatic_pnet")
        return None if pdac is None or pnet is None else union([pdac, pnet])
    return masks.get("pancreatic_lesion")


def dilated(region: Region, times: int) -> Region:
    """A region of the same volume, dilated so many times by its six neighbours."""
    start, stop = region.padded((times,) * 3)
    grown = ndimage.binary_dilation(region.window(start, stop), iterations=times)
    return fitted(grown, start, region.shape)


def published_angles(tumor: Region, vessels: Mapping[str, Region]) -> dict[str, int] | None:
    """The released generator's angle of each of `VESSELS`; None where it fails.

    Args:
        tumor: all tumors, on the staging grid, at least one voxel.
        vessels: "SMA", "aorta", "portal vein and SMV", "IVC" and "celiac", on the same grid.
    """
    near = dilated(tumor, 4)
    pieces = {name: vessels[name] for name in VESSELS if name not in BRANCHES}
    celiac = vessels["celiac"]
    if celiac.overlaps(dilated(tumor, 1)):
        parts = celiac_branches(celiac, vessels["aorta"], (1, 1, 1), exchanged=True)
        if parts is None:
            return None
        pieces |= parts
    angles = dict.fromkeys(VESSELS, 0)
    for name, vessel in pieces.items():
        angle = published_angle_deg(vessel, near, whole=name in ("aorta", "IVC"))
        if angle is None:
            return None
        angles[name] = angle
    return angles


def _published_contacts(near: Region, masks: Masks, grid: Grid) -> dict[str, bool | None]:
    out: dict[str, bool | None] = {}
    for name in NEIGHBOURS:
        organ = masks.called(name)
        out[name] = None if organ is None else grid.region(organ).overlaps(near)
    return out
