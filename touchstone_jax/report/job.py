"""Reports of a folder of CTs with masks, in the form that the launcher runs.

Each case's folder gets ``report.txt``, ``report.json``, ``findings.jsonl`` and a picture of every
lesion; the job's folder gets ``reports.csv``, ``measurements.json``, ``metadata.csv``,
``statistics.json`` and all findings.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from touchstone_jax.findings import (
    ALLOWABLE,
    Finding,
    VolumeError,
    exit_code,
    read_findings,
    write_findings,
)
from touchstone_jax.io import read_ct
from touchstone_jax.layouts.case_files import is_id, volumes
from touchstone_jax.report import check_rules
from touchstone_jax.report.case import report_case
from touchstone_jax.report.endpoint import endpoint_of
from touchstone_jax.report.masks import Masks
from touchstone_jax.report.metadata import empty_row, metadata_row, write_metadata
from touchstone_jax.report.narrative import narrative
from touchstone_jax.report.pictures import draw_lesions
from touchstone_jax.report.schema import Report as Measured
from touchstone_jax.report.statistics import statistics
from touchstone_jax.report.tables import write_table
from touchstone_jax.report.write import write_report
from touchstone_jax.verify.ct_checks import judge_ct
from touchstone_jax.verify.fingerprints import OverCases, hash_of

VERSION = 2
"""Of what `run` writes; a change makes every case new."""

PHASES = ("Plain", "Arterial", "Venous", "Delay")
"""AbdomenAtlas' names of contrast phases; fat is judged on "Plain" alone."""

FOLDERS = ("segmentations", "predictions")
"""Where the masks of a case are looked for."""


class Report(OverCases):
    """Write the structured report of every case.

    Args:
        data: folder of the CTs, in a layout of `touchstone_jax.layouts`.
        layout: of `touchstone_jax.layouts`.
        masks: folder with ``<case>/<segmentations>/<name>.nii.gz``; None for ``data``.
        segmentations: folder of the masks inside a case's; None for "segmentations" or, where there
            is none, "predictions", which `predict` writes.
        rules: "corrected" or "published", see `touchstone_jax.report`.
        min_component_mm3: smallest lesion, in mm³; 0 keeps every voxel.
        phases: CSV with the columns "BDMAP ID" (or "Case") and "CT Phase"; None if unknown.
        pictures: draw the slice of each lesion with its diameters.
        narrative: write ``narrative.txt`` as well, running text from a template.
        endpoint: keywords of `touchstone_jax.report.endpoint.Endpoint`, which adapts the style of
            the narrative; None, and no connection is ever made.
        allow: checks of `touchstone_jax.findings.ALLOWABLE` that are no errors, such as
            "missing_mask".
        fingerprints: tell a changed case by the "content" of its files, or by "stat".

    Raises:
        FileNotFoundError: no such folder or CSV, or no case.
        ValueError: an unknown or illegal value.
    """

    places = ("data", "masks", "segmentations", "phases")

    def __init__(
        self,
        data: str,
        *,
        layout: str = "auto",
        masks: str | None = None,
        segmentations: str | None = None,
        rules: str = "corrected",
        min_component_mm3: float = 10.0,
        phases: str | None = None,
        pictures: bool = True,
        narrative: bool = False,
        endpoint: Mapping[str, Any] | None = None,
        allow: Sequence[str] = (),
        fingerprints: str = "content",
    ) -> None:
        check_rules(rules)
        if isinstance(min_component_mm3, bool) or not 0 <= min_component_mm3 < 1e6:
            raise ValueError(f"min_component_mm3={min_component_mm3}; expected 0..1000000 mm³")
        for check in allow:
            if check not in ALLOWABLE:
                raise ValueError(f"allow={check!r}; legal values: {', '.join(ALLOWABLE)}")
        if segmentations is not None and not is_id(segmentations):
            raise ValueError(f"segmentations={segmentations!r}; expected the name of a folder")
        self._endpoint = None if endpoint is None else endpoint_of(endpoint)
        if self._endpoint is not None and not narrative:
            raise ValueError("endpoint has no effect without narrative=True")
        self._rules, self._smallest = rules, float(min_component_mm3)
        self._pictures, self._narrative, self._allow = pictures, narrative, tuple(allow)
        self._phases = {} if phases is None else read_phases(phases)
        super().__init__(data, layout, None, fingerprints)
        if self._phases and not self._phases.keys() & self._cases.keys():
            raise ValueError(f"phases={phases}: it names none of the {len(self._cases)} cases")
        root = None if masks is None else Path(masks)
        if root is not None and not root.is_dir():
            raise FileNotFoundError(f"masks {root}: no such folder")
        self._folders = {}
        names = FOLDERS if segmentations is None else (segmentations,)
        for case in self._cases.values():
            if root is None and case.ct.parent.name != case.id:
                raise ValueError(f"{case.ct}: no folder of its own, so masks= must name the masks'")
            place = root / case.id if root else case.ct.parent
            folder = next((place / n for n in names if (place / n).is_dir()), place / names[0])
            found = tuple(sorted(volumes(folder).items()))
            self._cases[case.id] = replace(case, masks=found, label_map=None)
            self._folders[case.id] = folder

    def fingerprint(self, case: str) -> str:
        """Hash of the case's files and phase, and of the version of the code."""
        how = [self._rules, self._smallest, self._phases.get(case, ""), VERSION]
        return hash_of([self.hash_files(self._cases[case]), *how])

    def run(self, case: str, folder: Path) -> dict[str, Any]:
        """Report one case into ``folder``; numbers of lesions, errors and warnings.

        A CT that cannot be read or holds no HU gives a report that says so; a missing or unusable
        mask makes its organ unknown. Both are errors in ``findings.jsonl``. Under "published" a
        case without a mask that the released generator needs has no report, and an error, too.

        Raises:
            EndpointError: the endpoint fails, or its answer says something else.
        """
        files = self._cases[case]
        try:
            ct = read_ct(files.ct, case=case)
        except VolumeError as error:
            return _without_ct(case, [error.finding], folder)
        judged = self._allowed([*ct.notes, *judge_ct(case, ct)])
        if exit_code(judged):
            return _without_ct(case, judged, folder)
        masks = Masks(case, dict(files.masks), ct.geometry, ct.array.shape)
        if not files.masks:
            told = f"no mask in {self._folders[case].name}/ of the case"
            fix = f"expected <name>.nii.gz in {self._folders[case]}; see masks= and segmentations="
            masks.findings.append(Finding(case, "missing_labels", "error", told, fix))
        how: dict[str, Any] = {"rules": self._rules, "min_component_mm3": self._smallest}
        report, refused = None, []
        try:
            report = report_case(ct, masks, case=case, phase=self._phases.get(case), **how)
        except VolumeError as error:
            refused = [error.finding]  # there is no report, so nothing can allow it
        others = [finding for finding in masks.findings if finding not in refused]
        findings = [*judged, *self._allowed(others), *refused]
        write_findings(folder / "findings.jsonl", findings)
        if report is not None:
            self._write(report, folder)
            if self._pictures:
                draw_lesions(ct, report, folder)
        lesions = sum(len(organ.lesions) for organ in report.organs) if report else 0
        return {"lesions": lesions, **_counted(findings)}

    def _allowed(self, findings: Sequence[Finding]) -> list[Finding]:
        return [replace(f, severity="warning") if f.check in self._allow else f for f in findings]

    def _write(self, report: Measured, folder: Path) -> None:
        text = write_report(report)
        (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
        _write_json(folder / "report.json", report.to_json())
        if self._narrative:
            told = narrative(report)
            if self._endpoint is not None:
                told = self._endpoint.adapt(told, case=report.case)
            (folder / "narrative.txt").write_text(told + "\n", encoding="utf-8")
        write_metadata(folder / "metadata.csv", [metadata_row(report, text)])

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write the files about all cases.

        Raises:
            ValueError: there are errors; how many, and the first.
        """
        cases = [row["case"] for row in rows]
        files = {c: folder / c / "report.txt" for c in cases}
        texts = {c: f.read_text(encoding="utf-8")[:-1] for c, f in files.items() if f.is_file()}
        write_reports(folder / "reports.csv", texts)
        measured = {c: _read_json(folder / c / "report.json") for c in cases}
        measured = {c: content for c, content in measured.items() if content is not None}
        _write_json(folder / "measurements.json", measured)
        _write_json(folder / "statistics.json", statistics(measured, texts) | {"cases": len(cases)})
        table = []
        for case in cases:
            path = folder / case / "metadata.csv"
            if path.is_file():
                with path.open(encoding="utf-8", newline="") as file:
                    table += list(csv.DictReader(file))
        write_metadata(folder / "metadata.csv", table)
        told = [f for c in cases for f in read_findings(folder / c / "findings.jsonl")]
        write_findings(folder / "findings.jsonl", told)
        errors = [finding for finding in told if finding.severity == "error"]
        if errors:
            bad = len({finding.case for finding in errors})
            raise ValueError(
                f"{len(errors)} errors in {bad} of {len(rows)} cases, all in "
                f"{folder / 'findings.jsonl'}; the first: {errors[0]}"
            )


def _without_ct(case: str, findings: Sequence[Finding], folder: Path) -> dict[str, int]:
    """The files of a case whose CT is of no use; its row."""
    write_findings(folder / "findings.jsonl", findings)
    first = next(f for f in findings if f.severity == "error")
    text = f"FINDINGS: \nNot assessed: {first.message}.\n\nIMPRESSION:\nNot assessed."
    (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
    write_metadata(folder / "metadata.csv", [empty_row(case, text)])
    return {"lesions": 0, **_counted(findings)}


def _counted(findings: Sequence[Finding]) -> dict[str, int]:
    errors = sum(f.severity == "error" for f in findings)
    return {"errors": errors, "warnings": len(findings) - errors}


def write_reports(path: Path, texts: Mapping[str, str]) -> None:
    """Write the table of the columns Case and Report."""
    columns = ("Case", "Report")
    write_table(path, columns, (dict(zip(columns, item, strict=True)) for item in texts.items()))


def read_phases(path: str | Path) -> dict[str, str]:
    """Case to phase from a CSV with the columns "BDMAP ID" or "Case", and "CT Phase".

    AbdomenAtlas' phases (`PHASES`) may be written in any case of letters; others are kept as told.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, a column is missing, or two rows disagree on a case.
    """
    found: dict[str, str] = {}
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        key = next((name for name in ("BDMAP ID", "Case") if name in names), None)
        if key is None or "CT Phase" not in names:
            raise ValueError(
                f"{path}: columns {names}; expected 'BDMAP ID' (or 'Case'), 'CT Phase'"
            )
        for row in rows:
            case, phase = (row[key] or "").strip(), (row["CT Phase"] or "").strip()
            phase = next((p for p in PHASES if p.lower() == phase.lower()), phase)
            if phase and found.setdefault(case, phase) != phase:
                raise ValueError(f"{path}: {case} has the phases {found[case]!r} and {phase!r}")
    return found


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
