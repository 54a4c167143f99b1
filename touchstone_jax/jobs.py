"""Work on a CT data set case by case, in the form that the launcher runs.

`Verify` and `Prepare` are defined here, `Predict` and `Evaluate` in modules of their own.

A job is constructed from keywords, lists `cases()`, says by `fingerprint(case)` what a case's
result depends on, does one by `run(case, folder)` and sums up by `finish(rows, folder)`. Nothing
here knows the launcher; a library user may call the same methods.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from touchstone_jax.evaluate import Evaluate
from touchstone_jax.findings import ALLOWABLE, Finding, read_findings, write_findings
from touchstone_jax.labels.painting import OVERLAPS
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.predict import Predict
from touchstone_jax.prepare import VERSION, prepare_case
from touchstone_jax.prepare.plan import Plan, read_plan, write_plan
from touchstone_jax.prepare.planning import make_plan
from touchstone_jax.verify import examine
from touchstone_jax.verify.duplicates import duplicates
from touchstone_jax.verify.fingerprints import OverCases, hash_of, stat_of

__all__ = ["Evaluate", "Predict", "Prepare", "Verify"]


class Verify(OverCases):
    """Look for everything that `touchstone_jax.verify` knows; ``findings.jsonl`` tells all.

    Each case's folder holds its own. A case with errors is a case done; `finish` ends in a
    ValueError if there were any, which the launcher turns into exit code 1.

    Args:
        data: folder of the data set.
        layout: of `touchstone_jax.layouts`.
        labels: scheme that the labels are wanted in; None to look at the CTs alone.
        source_labels: scheme that the data set's labels are in; None for the layout's.
        fingerprints: tell a changed case by the "content" of its files, or by "stat": size and
            time, which reads nothing.

    Raises:
        FileNotFoundError: no such folder, or no case in it.
        ValueError: an unknown layout, scheme or way of fingerprints, or an ambiguous data set.
    """

    places: ClassVar[tuple[str, ...]] = ("data",)

    def __init__(
        self,
        data: str,
        *,
        layout: str = "auto",
        labels: str | None = "abdomenatlas_1.0",
        source_labels: str | None = None,
        fingerprints: str = "content",
    ) -> None:
        self._labels = None if labels is None else scheme(labels)
        super().__init__(data, layout, source_labels, fingerprints)

    def fingerprint(self, case: str) -> str:
        """Hash of the case's files."""
        return self.hash_files(self._cases[case])

    def run(self, case: str, folder: Path) -> dict[str, Any]:
        """Write ``findings.jsonl``; numbers of errors and warnings, the first finding, a digest."""
        seen = examine(self._cases[case], self._labels)
        write_findings(folder / "findings.jsonl", seen.findings)
        errors = sum(finding.severity == "error" for finding in seen.findings)
        return {
            "errors": errors,
            "warnings": len(seen.findings) - errors,
            "first": str(seen.findings[0]) if seen.findings else "",
            "digest": seen.digest,
        }

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write ``findings.jsonl``: those of all cases, and cases that are one CT.

        Raises:
            ValueError: there are errors; how many, and the first.
        """
        told = _gathered(rows, folder)
        write_findings(folder / "findings.jsonl", told)
        errors = [finding for finding in told if finding.severity == "error"]
        if errors:
            cases = len({finding.case for finding in errors})
            raise ValueError(
                f"{len(errors)} errors in {cases} of {len(rows)} cases, all in "
                f"{folder / 'findings.jsonl'}; the first: {errors[0]}"
            )


class Prepare(OverCases):
    """Prepare a data set for training: `touchstone_jax.prepare.prepared` arrays, plan, case list.

    The plan is made at the first case that needs it and kept as ``plan.json`` beside the cases'
    folders; a later start reads it. It depends on the keywords and on the list and sizes of the
    data set's files: if these change, every case is prepared anew. `finish` writes
    ``dataset.json`` and ``findings.jsonl``.

    Args:
        data: folder of the data set.
        layout: of `touchstone_jax.layouts`.
        labels: scheme of the prepared labels.
        source_labels: scheme that the data set's labels are in; None for the layout's.
        plan: file of a plan to follow (a test set follows its training set's); the following
            arguments then have no say, and must stay at their defaults.
        spacing_mm: target spacing (x, y, z) in mm; None for the median.
        patch_voxels: voxels of the proposed patch.
        multiple: of which each side of the patch is one.
        intensity_cases: how many cases' voxels the plan reads; 0 for all.
        antialias: smooth axes that get fewer voxels.
        overlap: policy for voxels of several masks, see `touchstone_jax.labels.painting`.
        samples: voxels of each label listed for drawing patches.
        allow: checks of `touchstone_jax.findings.ALLOWABLE` that are let pass, such as
            "sides_swapped".
        fingerprints: as for `Verify`.

    Raises:
        FileNotFoundError: no such folder, no case in it, or no such plan.
        ValueError: an unknown or illegal value, or a plan for other labels.
    """

    places: ClassVar[tuple[str, ...]] = ("data", "plan")

    def __init__(
        self,
        data: str,
        *,
        layout: str = "auto",
        labels: str = "abdomenatlas_1.0",
        source_labels: str | None = None,
        plan: str | None = None,
        spacing_mm: Sequence[float] | None = None,
        patch_voxels: int = 128**3,
        multiple: int = 16,
        intensity_cases: int = 64,
        antialias: bool = True,
        overlap: str = "smallest",
        samples: int = 2000,
        allow: Sequence[str] = (),
        fingerprints: str = "content",
    ) -> None:
        self._how: dict[str, Any] = {
            "labels": scheme(labels).name,
            "spacing_mm": None if spacing_mm is None else _spacing(spacing_mm),
            "patch_voxels": patch_voxels,
            "multiple": multiple,
            "intensity_cases": intensity_cases,
            "antialias": antialias,
            "overlap": overlap,
            "allow": sorted(allow),
        }
        _check(self._how, samples)
        self._samples, self._lock = samples, threading.Lock()
        self._plan = None if plan is None else _given(plan, self._how)
        super().__init__(data, layout, source_labels, fingerprints)
        self._key = self._plan.digest() if self._plan else self._inputs()

    def fingerprint(self, case: str) -> str:
        """Hash of the case's files, of what the plan depends on and of the version of the code."""
        ours = [self._key, self._samples, *self._how["allow"], VERSION]
        return hash_of([self.hash_files(self._cases[case]), *ours])

    def run(self, case: str, folder: Path) -> dict[str, Any]:
        """Prepare one case into ``folder``; its row.

        Raises:
            VolumeError: the first error of `verify`.
            ValueError: no plan can be made of the data set.
        """
        plan = self.plan(folder.parent)
        allow = self._how["allow"]
        return prepare_case(self._cases[case], plan, folder, samples=self._samples, allow=allow)

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write ``plan.json``, ``dataset.json`` and ``findings.jsonl`` for the cases prepared.

        Two cases that are one CT are told in ``findings.jsonl`` and left out of ``dataset.json``
        but for the first.

        Raises:
            ValueError: cases were prepared by another plan.
        """
        plan = self.plan(folder)
        if odd := [row["case"] for row in rows if row["plan"] != plan.digest()]:
            raise ValueError(
                f"{len(odd)} cases, {odd[0]} among them, were prepared by another plan than "
                f"{folder / 'plan.json'}: delete their folders and start again"
            )
        told = _gathered(rows, folder)
        write_findings(folder / "findings.jsonl", told)
        twice = {finding.case for finding in told if finding.check == "duplicate"}
        target = scheme(plan.labels)
        summary = {
            "plan": plan.to_json(),
            "classes": ["background", *target.classes],
            "cases": [row["case"] for row in rows if row["case"] not in twice],
            "duplicates": sorted(twice),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (folder / "dataset.json").write_text(text, encoding="utf-8")

    def plan(self, folder: Path) -> Plan:
        """The plan: given, made before, found in ``folder`` from the same inputs, or made now.

        Raises:
            ValueError: no plan can be made of the data set.
        """
        with self._lock:
            if self._plan is None:
                self._plan = _kept(folder, self._key) or self._made()
            if _kept(folder, self._key) is None:
                write_plan(folder / "plan.json", self._plan)
                (folder / ".plan-key").write_text(self._key, encoding="utf-8")
            return self._plan

    def _made(self) -> Plan:
        plan = make_plan(list(self._cases.values()), **self._how)
        print(plan, flush=True)
        return plan

    def _inputs(self) -> str:
        """What a plan depends on: keywords, and names and sizes of all files; nothing is read."""
        listed = [
            f"{case.id} {path.name} {stat_of(path)[0]}"
            for case in self._cases.values()
            for path in case.files
        ]
        return hash_of([json.dumps(self._how, sort_keys=True), VERSION, *listed])


def _spacing(spacing_mm: Sequence[float]) -> list[float]:
    try:
        found = [float(s) for s in spacing_mm]
    except (TypeError, ValueError):
        found = []
    if len(found) != 3 or not all(0.1 <= s <= 20 for s in found):
        raise ValueError(f"spacing_mm={found or spacing_mm!r}; expected three numbers in 0.1..20")
    return found


def _check(how: Mapping[str, Any], samples: int) -> None:
    for key, least in (("patch_voxels", 1), ("multiple", 1), ("intensity_cases", 0)):
        if how[key] < least:
            raise ValueError(f"{key}={how[key]}; expected at least {least}")
    if how["overlap"] not in OVERLAPS:
        raise ValueError(f"overlap={how['overlap']!r}; legal values: {', '.join(OVERLAPS)}")
    for check in how["allow"]:
        if check not in ALLOWABLE:
            raise ValueError(f"allow={check!r}; legal values: {', '.join(ALLOWABLE)}")
    if samples < 1:
        raise ValueError(f"samples={samples}; expected at least 1")


def _given(path: str, how: Mapping[str, Any]) -> Plan:
    plan = read_plan(path)
    if plan.labels != how["labels"]:
        raise ValueError(f"plan {path} is for {plan.labels}; labels={how['labels']!r}")
    usual = inspect.signature(make_plan).parameters
    for key, value in how.items():
        if key not in ("labels", "allow") and value != usual[key].default:
            raise ValueError(f"{key}={value!r} has no effect beside plan={str(path)!r}")
    return plan


def _kept(folder: Path, key: str) -> Plan | None:
    """The plan in ``folder``, if it was made from the same inputs and can be read."""
    try:
        if (folder / ".plan-key").read_text(encoding="utf-8") != key:
            return None
        return read_plan(folder / "plan.json")
    except (OSError, ValueError):
        return None


def _gathered(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Finding]:
    """The findings in the cases' folders, then cases that are one CT."""
    files = (folder / row["case"] / "findings.jsonl" for row in rows)
    told = [finding for file in files for finding in read_findings(file)]
    return [*told, *duplicates({row["case"]: row["digest"] for row in rows})]
