"""What is wrong with a case, in one form for messages, files and programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

SEVERITIES = ("error", "warning")

CHECKS = {
    "missing_file": "the CT, the label map or a mask is not there",
    "missing_labels": "labels are wanted and the case has none",
    "missing_mask": "a class that the data set annotates has no mask in this case",
    "unknown_mask": "a mask whose name the data set's scheme does not know",
    "unknown_name": "a class of dataset.json that may be a wanted one by another name",
    "unreadable": "not NIfTI, empty, or the file system refuses",
    "truncated": "the file ends early",
    "not_3d": "two or four axes",
    "voxel_type": "colours or complex numbers",
    "spacing_invalid": "spacing of 0, below 0 or not finite",
    "spacing_implausible": "spacing outside 0.1-20 mm (error) or 0.3-10 mm (warning)",
    "too_large": "an axis of more than 2.5 m",
    "no_orientation": "neither sform nor qform",
    "affine_singular": "an affine without inverse or with NaN",
    "affine_sheared": "axes that are not at right angles",
    "qform_sform": "two affines that disagree",
    "pixdim_mismatch": "pixdim is not the spacing of the affine",
    "oblique": "axes turned against the patient's",
    "tiny_volume": "an axis of one voxel (error) or fewer than 8",
    "nonfinite": "NaN or infinite voxels",
    "constant": "a CT of one value",
    "not_hu": "values that cannot be Hounsfield units",
    "hu_padding": "values below -1500 HU: padding outside the field of view",
    "hu_metal": "values above 4000 HU: metal, or a wrong scale",
    "shape_mismatch": "labels on a grid of another shape than the CT",
    "affine_mismatch": "labels that lie elsewhere than the CT",
    "orientation_differs": "labels stored in other axes than the CT",
    "label_not_integer": "labels that are no integers",
    "label_out_of_range": "labels below 0 or above 65535",
    "label_rounded": "labels a hair off an integer",
    "label_unknown": "labels that the scheme does not name",
    "non_binary": "a mask with more than two values",
    "foreground_value": "a mask whose foreground is not 1",
    "empty_mask": "an organ without a voxel",
    "full_mask": "an organ that fills the volume",
    "no_foreground": "no organ at all",
    "overlap": "voxels that several organs claim",
    "dropped": "voxels of a pair of organs that belong to neither side",
    "lesion_outside": "a lesion without a voxel in its organ",
    "organ_hu": "a solid organ far from soft tissue: labels and CT do not fit",
    "sides_swapped": "a left organ to the right of its right twin",
    "mirrored": "liver to the left of the spleen",
    "duplicate": "the voxels of another case",
}
"""Every check and what it speaks of."""


ALLOWABLE = (
    *("spacing_implausible", "too_large", "tiny_volume", "constant", "not_hu"),
    *("missing_mask", "label_unknown", "full_mask", "sides_swapped"),
)
"""Errors about content that a user may know better of (a transplanted kidney, a cropped CT): the
case can be read, and goes on if the check is allowed by name."""


@dataclass(frozen=True)
class Finding:
    """One problem of one case.

    Attributes:
        case: id of the case.
        check: short name of the check that spoke, such as "affine_mismatch".
        severity: "error", the case cannot be used as it is; "warning", it can, knowing this.
        message: one line with the values found and what was expected.
        fix: one line with what to do about it.
    """

    case: str
    check: str
    severity: str
    message: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """The five fields, for ``json.dumps``."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.case}: {self.message}"


class VolumeError(ValueError):
    """A case that cannot be used; its text is the case id and one line.

    Attributes:
        finding: the same as data.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding

    def __str__(self) -> str:
        return str(self.finding)


def refusal(case: str, check: str, message: str, fix: str) -> VolumeError:
    """The exception for an error found in ``case``; arguments as in `Finding`."""
    return VolumeError(Finding(case, check, "error", message, fix))


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if any finding is an error, else 0: warnings alone do not stop a script."""
    return int(any(f.severity == "error" for f in findings))


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(finding.to_json(), ensure_ascii=False) + "\n" for finding in findings)
    path.write_text("".join(lines), encoding="utf-8")


def read_findings(path: Path) -> list[Finding]:
    """What `write_findings` wrote."""
    return [Finding(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
