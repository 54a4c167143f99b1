"""Is a case fit for use? One finding for each problem; the gate of `prepare` and `predict`.

`touchstone_jax.findings.CHECKS` lists what is looked at. Every file is read once. What
`touchstone_jax.io` refuses is an error; so is what makes training or scoring wrong without a sound
(values that are not HU, a mask of everything, left and right exchanged). A case never raises: its
files are judged one by one, and the next case goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from touchstone_jax.findings import ALLOWABLE, Finding, VolumeError
from touchstone_jax.io import Volume, read_ct, read_labels, read_mask
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.labels import combine_masks, map_labels
from touchstone_jax.labels.painting import Report
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layouts import Case
from touchstone_jax.verify.ct_checks import judge_ct
from touchstone_jax.verify.duplicates import digest, duplicates
from touchstone_jax.verify.label_checks import (
    absent_files,
    judge_label_map,
    judge_labels,
    judge_names,
    judge_own_names,
)


@dataclass(frozen=True, eq=False)
class Examined:
    """A case in memory and what was found.

    Attributes:
        findings: errors and warnings, in the order of the checks.
        ct: the CT; None if it cannot be read.
        labels: uint8 (x, y, z) label map of the scheme asked for; None if there is none or a
            file of it cannot be used.
        report: what happened to the labels; None as above.
        digest: hash of the CT's canonical voxels and spacing, the same however it is stored; ""
            without a CT.
    """

    findings: tuple[Finding, ...]
    ct: Volume | None = None
    labels: UInt8[np.ndarray, "x y z"] | None = None
    report: Report | None = None
    digest: str = ""

    def errors(self, allow: Collection[str] = ()) -> list[Finding]:
        """The errors, but for the checks in ``allow`` (of `touchstone_jax.findings.ALLOWABLE`)."""
        judged = [finding for finding in self.findings if finding.severity == "error"]
        return [finding for finding in judged if finding.check not in allow]

    def raise_errors(self, allow: Collection[str] = ()) -> None:
        """Nothing if there are only warnings and errors that are allowed.

        Raises:
            VolumeError: the first other error.
        """
        for finding in self.errors(allow):
            raise VolumeError(finding)


def verify(
    cases: Iterable[Case], target: str | Scheme | None = "abdomenatlas_1.0"
) -> Iterator[Finding]:
    """The findings of all cases, one case after the other, then those about several cases.

    Args:
        cases: from `touchstone_jax.layouts.discover`.
        target: scheme that the labels are wanted in; None if only the CTs matter.

    Raises:
        ValueError: unknown scheme.
    """
    digests = {}
    for case in cases:
        seen = examine(case, target)
        digests[case.id] = seen.digest
        yield from seen.findings
    yield from duplicates(digests)


def examine(
    case: Case, target: str | Scheme | None = "abdomenatlas_1.0", *, overlap: str = "smallest"
) -> Examined:
    """Read a case, judge it, and bring its labels into the scheme ``target``.

    Args:
        case: its files.
        target: as for `verify`.
        overlap: policy for voxels of several masks, see `touchstone_jax.labels`.

    Raises:
        ValueError: unknown scheme or policy.
    """
    target = None if target is None else scheme(target)
    findings: list[Finding] = []
    ct = _collect(findings, read_ct, case.ct, case=case.id, nonfinite="keep")
    if ct is None:
        # Without the CT's grid the labels cannot be placed; whether they are there can be said.
        findings += absent_files(case) if target is not None else ()
        return Examined(tuple(findings))
    findings += [*ct.notes, *judge_ct(case.id, ct)]
    if target is None:
        return Examined(tuple(findings), ct, digest=digest(ct))
    labels, report = _labels(case, ct, target, overlap, findings)
    return Examined(tuple(findings), ct, labels, report, digest(ct))


def _collect(findings: list[Finding], read, *args, **kwargs):
    """What ``read`` gives, or None and its refusal among the findings."""
    try:
        return read(*args, **kwargs)
    except VolumeError as error:
        findings.append(error.finding)
        return None


def _labels(
    case: Case, ct: Volume, target: Scheme, overlap: str, findings: list[Finding]
) -> tuple[UInt8[np.ndarray, "x y z"] | None, Report | None]:
    """The case's labels in the scheme ``target``; None if a file of theirs is unusable."""
    own = case.scheme
    if own is None or not case.files[1:]:
        fix = "add the masks, or look at layout= and segmentations="
        findings.append(Finding(case.id, "missing_labels", "error", "the case has no labels", fix))
        return None, None
    if case.label_map is not None:
        got = _collect(findings, _mapped, case.id, case.label_map, own, ct, target, findings)
    else:
        findings += judge_names(case, own, target)
        masks = _masks(case, own, ct.geometry, target, findings)
        how: dict[str, Any] = {"shape": ct.array.shape, "overlap": overlap, "case": case.id}
        got = _collect(findings, combine_masks, masks, own, target, **how)
    labels, report = got or (None, None)
    if labels is not None and report is not None:
        findings += judge_labels(case.id, labels, report, target, ct.array)
    unusable = {f.check for f in findings if f.severity == "error"} - {*ALLOWABLE, "nonfinite"}
    return (None, None) if unusable else (labels, report)


def _mapped(
    case: str, path: Path, own: Scheme, ct: Volume, target: Scheme, findings: list[Finding]
):
    found, notes = read_labels(path, case=case, like=ct.geometry)
    findings += [*notes, *judge_label_map(case, found, own)]
    labels, report = map_labels(found, own, target, case=case)
    findings += judge_own_names(case, report, own, target)
    return labels, report


def _masks(case: Case, scheme: Scheme, like: Geometry, target: Scheme, findings: list[Finding]):
    """Name and mask of every organ that ``target`` has a place for and that can be read."""
    for own, path in case.masks:
        if set(scheme.names_in(target, own)) & set(target.indices):
            got = _collect(findings, read_mask, path, case=case.id, like=like)
            if got is not None:
                findings += got[1]
                yield own, got[0]
