"""What names, numbers and places of labels must look like, for `touchstone_jax.verify.examine`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from touchstone_jax.findings import Finding
from touchstone_jax.io.label_values import label_counts
from touchstone_jax.labels.painting import Report
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import SCHEMES
from touchstone_jax.layouts.case_files import Case

_TWINS = ("kidney", "adrenal_gland", "lung", "femur")
_SOLID = ("liver", "spleen", "kidney_left", "kidney_right", "pancreas", "aorta")
SOLID_HU = (-50.0, 600.0)
"""Mean HU of organs without air or fat; far off, labels and CT do not belong together."""


def absent_files(case: Case) -> Iterator[Finding]:
    """An error for each label file that is not there (a look, no reading)."""
    for path in case.files[1:]:
        if not path.is_file():
            fix = f"expected it at {path}"
            yield Finding(case.id, "missing_file", "error", f"{path.name} is missing", fix)


def judge_names(case: Case, source: Scheme, target: Scheme) -> Iterator[Finding]:
    """Masks that are missing for the classes of ``target``, and masks of unknown names."""
    there = {name for own, _ in case.masks for name in source.names_in(target, own)}
    expected = set(target.classes) - set(source.missing_from(target))
    if missing := sorted(expected - there):
        yield Finding(
            case.id,
            "missing_mask",
            "error",
            f"no mask of {', '.join(missing)}; these organs would be background",
            "add the masks (an empty one where the organ is not in the CT), or give the data set "
            "the scheme that it annotates (labels=)",
        )
    for own, path in case.masks:
        if own not in source.indices:
            near = difflib.get_close_matches(own, source.indices, n=1)
            hint = f"rename it to {near[0]} if that is meant" if near else "nothing to do"
            told = f"{path.name} is no organ of {source.name} and is left out"
            yield Finding(case.id, "unknown_mask", "warning", told, hint)


def judge_label_map(
    case: str, labels: UInt8[np.ndarray, "x y z"] | UInt16[np.ndarray, "x y z"], source: Scheme
) -> Iterator[Finding]:
    """Labels of a map that its scheme does not name, unless the scheme lists only a part."""
    counts = label_counts(labels)
    legal = {0, *source.indices.values()}
    unknown = [int(v) for v in np.flatnonzero(counts) if int(v) not in legal]
    if unknown and not source.partial:
        told = ", ".join(f"{v} ({int(counts[v])} voxels)" for v in unknown[:5])
        yield Finding(
            case,
            "label_unknown",
            "error",
            f"labels that {source.name} does not name: {told}; it has 0..{max(legal)}",
            "name the scheme that the label map has (labels=), or remove the voxels",
        )


def judge_own_names(case: str, report: Report, source: Scheme, target: Scheme) -> Iterator[Finding]:
    """Classes of ``target`` that a scheme of the data set's own may have by another name."""
    if source is SCHEMES.get(source.name) or not (report.missing and report.ignored):
        return
    wanted = {_words(name): name for name in report.missing}
    near = [f"{own} to {wanted[_words(own)]}" for own in report.ignored if _words(own) in wanted]
    yield Finding(
        case,
        "unknown_name",
        "warning",
        f"{source.name} has no {', '.join(report.missing)} of {target.name}; left out are its "
        f"{', '.join(report.ignored)}",
        f"rename {', '.join(near)} in dataset.json"
        if near
        else "rename them in dataset.json if they are among these; else nothing to do",
    )


def _words(name: str) -> str:
    """The same for "left kidney", "Kidney_Left" and kidney_left."""
    return "".join(sorted(re.findall("[a-z]+", name.lower())))


def judge_labels(
    case: str,
    labels: UInt8[np.ndarray, "x y z"],
    report: Report,
    target: Scheme,
    ct: Float32[np.ndarray, "x y z"],
) -> Iterator[Finding]:
    """What is wrong with a label map of ``target`` on its CT (both (x, y, z), canonical axes)."""
    for pair, voxels in report.overlaps.items():
        told = f"{pair} share {voxels} voxels"
        fix = "nothing to do: each voxel goes to one class by the overlap policy"
        yield Finding(case, "overlap", "warning", told, fix)
    for own, voxels in report.dropped.items():
        told = f"{voxels} voxels of {own} lie in neither of its two largest parts"
        yield Finding(case, "dropped", "warning", told, "look whether the mask has stray voxels")
    if not any(report.voxels.values()):
        fix = "nothing to do if the scan shows none of the organs"
        yield Finding(case, "no_foreground", "warning", f"no voxel of {target.name}", fix)
        return
    yield from _judge_sizes(case, labels, report)
    yield from _judge_places(case, labels, target)
    yield from _judge_fit(case, labels, target, ct)


def _judge_sizes(case: str, labels, report: Report) -> Iterator[Finding]:
    empty = sorted(name for name, voxels in report.voxels.items() if not voxels)
    if empty:
        fix = "nothing to do if they are outside the scan or were removed"
        yield Finding(case, "empty_mask", "warning", f"no voxel of {', '.join(empty)}", fix)
    for name, voxels in report.voxels.items():
        if voxels == labels.size:
            told = f"{name} fills the volume: all {voxels} voxels"
            yield Finding(case, "full_mask", "error", told, "export the mask again")


def _judge_places(case: str, labels, target: Scheme) -> Iterator[Finding]:
    """Sides: x grows to the patient's right, so what is left has the smaller mean x."""
    where = {
        name: _mean_x(labels, target.indices[name])
        for name in (*(f"{t}_{s}" for t in _TWINS for s in ("left", "right")), "liver", "spleen")
        if name in target.indices
    }
    for twin in _TWINS:
        left, right = where.get(f"{twin}_left"), where.get(f"{twin}_right")
        if left is not None and right is not None and left > right:
            yield Finding(
                case,
                "sides_swapped",
                "error",
                f"{twin}_left lies to the patient's right of {twin}_right (mean x index "
                f"{left:.1f} against {right:.1f})",
                "exchange the two masks, or correct the affine if the whole volume is mirrored",
            )
    liver, spleen = where.get("liver"), where.get("spleen")
    if liver is not None and spleen is not None and liver < spleen:
        told = f"the liver lies left of the spleen (mean x index {liver:.1f} against {spleen:.1f})"
        fix = "correct the affine if the volume is mirrored; nothing to do in situs inversus"
        yield Finding(case, "mirrored", "warning", told, fix)


def _mean_x(labels, index: int) -> float | None:
    along_x = np.count_nonzero(labels == index, axis=(1, 2))
    total = along_x.sum()
    return float(along_x @ np.arange(len(along_x)) / total) if total else None


def _judge_fit(case: str, labels, target: Scheme, ct) -> Iterator[Finding]:
    for name in _SOLID:
        if name not in target.indices:
            continue
        # Transposed, volumes lie in C order, which picking by a mask needs to be fast.
        inside = (labels == target.indices[name]).T
        values = ct.T[inside]
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        mean = float(np.mean(values, dtype=np.float64))
        if not SOLID_HU[0] <= mean <= SOLID_HU[1]:
            told = f"{name} has {mean:.0f} HU on average; expected {SOLID_HU[0]:g}..{SOLID_HU[1]:g}"
            fix = "look whether mask and CT are of one patient and one orientation"
            yield Finding(case, "organ_hu", "warning", told, fix)
