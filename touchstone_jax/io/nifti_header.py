"""From a NIfTI header to a grid by the rules of `touchstone_jax.io.volumes`, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from touchstone_jax.findings import Finding, refusal
from touchstone_jax.io.geometry import Geometry, obliqueness_deg, shear_deg
from touchstone_jax.io.grids import TOLERANCE_MM, corner_distance_mm

MAX_SHEAR_DEG = 0.1
_NEW_HEADER = "write the header anew from the DICOM series (e.g. with dcm2niix)"


def geometry_of(header: Any, path: Path, case: str) -> tuple[Geometry, tuple[Finding, ...]]:
    """The grid that a nibabel header describes, unrepaired, and the warnings about it.

    Raises:
        VolumeError: not three axes, or no usable spacing, affine or orientation.
    """
    shape = _shape(header, path, case)
    pixdim = np.asarray(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise refusal(
            case,
            "spacing_invalid",
            f"{path.name} has the spacing {pixdim.tolist()} mm in its header; expected numbers "
            "above 0",
            _NEW_HEADER,
        )
    # The standard lets pixdim[0] be 0 and mean 1; nibabel insists on a sign.
    header = header.copy()
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    affine, notes = _affine(header, shape, path, case)
    geometry = Geometry(shape, affine, _orientation_fields(header))
    if (angle := shear_deg(geometry)) > MAX_SHEAR_DEG:
        raise refusal(
            case,
            "affine_sheared",
            f"{path.name} has axes {90 - angle:.2f}° apart; expected 90° within {MAX_SHEAR_DEG}°",
            "resample onto a grid of right angles (gantry-tilt correction of dcm2niix)",
        )
    return geometry, (*notes, *_header_notes(geometry, pixdim, path, case))


def _shape(header: Any, path: Path, case: str) -> tuple[int, int, int]:
    ndim = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(ndim, 0)]]
    # Axes of one voxel behind the third are a habit of some writers, not a time series.
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or min(sizes) < 1:
        raise refusal(
            case,
            "not_3d",
            f"{path.name} is {len(sizes)}-D with shape {tuple(sizes)}; expected three axes",
            "give one 3-D volume a file: split a series, stack slices",
        )
    x, y, z = sizes
    return x, y, z


def _affine(header: Any, shape, path: Path, case: str):
    """The affine by rule 2, and a warning or an error where qform and sform disagree."""
    candidates = []
    if int(header["sform_code"]) > 0:
        candidates.append(("sform", header.get_sform()))
    if int(header["qform_code"]) > 0:
        try:
            candidates.append(("qform", header.get_qform()))
        except ValueError:
            candidates.append(("qform", np.full((4, 4), np.nan)))
    if not candidates:
        raise refusal(
            case,
            "no_orientation",
            f"{path.name} has sform_code and qform_code 0: left and right are unknown",
            _NEW_HEADER,
        )
    name, affine = candidates[0]
    if not _invertible(affine):
        raise refusal(
            case,
            "affine_singular",
            f"{path.name} has a singular or non-finite affine (its {name}): "
            f"{np.asarray(affine)[:3].tolist()}",
            _NEW_HEADER,
        )
    affine = np.asarray(affine, np.float64)
    if len(candidates) == 1 or not _invertible(candidates[1][1]):
        return affine, ()
    return affine, _disagreement(affine, candidates[1][1], shape, path, case)


def _invertible(affine: np.ndarray) -> bool:
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # Of unit columns, so that the size of the voxels does not matter.
    return bool((lengths > 0).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6)


def _disagreement(sform, qform, shape, path: Path, case: str) -> tuple[Finding, ...]:
    a, b = (Geometry(shape, np.asarray(f, np.float64)) for f in (sform, qform))
    distance = corner_distance_mm(a, b)
    if distance <= TOLERANCE_MM:
        return ()
    told = (
        f"{path.name}: sform ({a.orientation}) and qform ({b.orientation}) put voxels up to "
        f"{distance:.3g} mm apart"
    )
    if a.orientation != b.orientation:
        raise refusal(case, "qform_sform", told + "; expected the same", _NEW_HEADER)
    note = "write one header; here the sform is taken, other tools may take the qform"
    return (Finding(case, "qform_sform", "warning", told, note),)


def _header_notes(geometry: Geometry, pixdim, path: Path, case: str) -> tuple[Finding, ...]:
    notes = []
    spacing = geometry.spacing_mm
    if not np.allclose(spacing, pixdim, rtol=1e-3, atol=0):
        told = (
            f"{path.name}: pixdim says {pixdim.tolist()} mm, the affine "
            f"{[round(s, 6) for s in spacing]} mm"
        )
        fix = "here the affine is taken; programs that read pixdim will scale distances wrongly"
        notes.append(Finding(case, "pixdim_mismatch", "warning", told, fix))
    if (angle := obliqueness_deg(geometry)) > 0.5:
        told = f"{path.name} is oblique: its axes are up to {angle:.1f}° off the patient's"
        fix = "nothing to do: voxels are taken along the stored axes"
        notes.append(Finding(case, "oblique", "warning", told, fix))
    return tuple(notes)


_FIELDS = (
    *("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def _orientation_fields(header: Any) -> dict[str, Any]:
    fields = {name: np.asarray(header[name]).tolist() for name in _FIELDS}
    # NaN is no JSON; a field that its code switches off carries no information.
    off = {"q": fields["qform_code"] <= 0, "s": fields["sform_code"] <= 0}
    for name, value in fields.items():
        if off.get(name[0], False) and not np.isfinite(value).all():
            fields[name] = np.zeros_like(value, np.float64).tolist()
    return {**fields, "pixdim": np.asarray(header["pixdim"][:4], np.float64).tolist()}


def orient(header: Any, geometry: Geometry) -> None:
    """Give a new NIfTI-1 header the orientation fields of the source, or of a grid in memory."""
    if geometry.header:
        for name in _FIELDS:
            header[name] = geometry.header[name]
        header["pixdim"][:4] = geometry.header["pixdim"]
        return
    header["pixdim"][1:4] = geometry.spacing_mm
    header.set_sform(geometry.affine, code="scanner")
    header.set_qform(geometry.affine, code="scanner")
    header.set_xyzt_units("mm")
