"""What is wrong with a case that can be read: each finding's severity and its words."""

import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.touchstone.cases import dataset, rewrite, same, stored_as
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.verify import examine

Spoil = Callable[[Case], None]


def _ct(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda case: rewrite(case.ct, change)


def _mask(change: Callable[[np.ndarray], np.ndarray], name: str = "liver") -> Spoil:
    return lambda case: rewrite(dict(case.masks)[name], change)


def _spaced(z_mm: float) -> Spoil:
    def spoil(case: Case) -> None:
        for path in case.files:
            rewrite(path, same, np.diag([2.0, 2.0, z_mm, 1.0]))

    return spoil


def _one_slice(case: Case) -> None:
    for path in case.files:
        rewrite(path, lambda v: v[:, :, 9:10])


def _oblique(case: Case) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for path in case.files:
        rewrite(path, same, turn @ nibabel.load(path).affine)


def _set(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(v: np.ndarray) -> np.ndarray:
        v = v.astype(np.int32)
        v[10, 11, :2] = value
        return v

    return change


def _turned(case: Case) -> None:
    stored_as(dict(case.masks)["liver"], "LPS")


def _no_organ(case: Case) -> None:
    for _, path in case.masks:
        rewrite(path, lambda v: v * 0)


SPOILT = {
    "one slice": (
        _one_slice,
        "tiny_volume",
        "error",
        r"has 24 × 22 × 1 voxels; expected at least 8",
    ),
    "0.001 mm": (
        _spaced(1e-3),
        "spacing_implausible",
        "error",
        r"2 × 2 × 0\.001 mm; expected 0\.3",
    ),
    "50 mm": (_spaced(50), "spacing_implausible", "error", r"2 × 2 × 50 mm; expected 0\.3 to 10"),
    "oblique": (_oblique, "oblique", "warning", r"its axes are up to 17\.2° off the patient's"),
    "all -1024": (_ct(lambda v: v * 0 - 1024), "constant", "error", "is -1024 everywhere"),
    "padding": (_ct(_set(-3024)), "hu_padding", "warning", "from -3024 to .*; air has -1000 HU"),
    "metal": (_ct(_set(20000)), "hu_metal", "warning", "to 20000; bone ends near 3000 HU"),
    "normalised": (_ct(lambda v: (v + 1000) / 1400), "not_hu", "error", "not Hounsfield units"),
    "float labels": (
        _mask(lambda v: v * 0.9999),
        "label_rounded",
        "warning",
        "0.0001 off an integer",
    ),
    "halves": (_mask(lambda v: v * 0.5), "label_not_integer", "error", r"value 0\.5 at voxel \("),
    "a label map": (
        _mask(lambda v: v * 3 + (np.cumsum(v, 0) > 2)),
        "non_binary",
        "error",
        "a mask",
    ),
    "255": (_mask(lambda v: v * 255), "foreground_value", "warning", "has 255 as its foreground"),
    "larger": (_mask(lambda v: np.pad(v, 1)), "shape_mismatch", "error", r"\(26, 24, 22\)"),
    "LPS": (_turned, "orientation_differs", "warning", "is stored in LPS, the CT in RAS"),
    "empty": (_mask(lambda v: v * 0), "empty_mask", "warning", "liver"),
    "all ones": (_mask(lambda v: v * 0 + 1), "full_mask", "error", "liver fills the volume"),
    "no organ": (_no_organ, "no_foreground", "warning", "no organ|not a voxel|no voxel"),
}


@pytest.mark.parametrize(("spoil", "check", "severity", "words"), SPOILT.values(), ids=list(SPOILT))
def test_a_finding_says_what_was_found(
    spoil: Spoil, check: str, severity: str, words: str, tmp_path: Path
) -> None:
    (case,) = dataset(tmp_path, orientations=("RAS",))
    spoil(case)
    found = next(f for f in examine(case).findings if f.check == check)  # of the CT, then of masks
    assert found.severity == severity and found.case == case.id
    assert re.search(words, found.message), found.message
