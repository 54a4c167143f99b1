"""A small folder of results in Touchstone's format, and its metadata, for the benchmark's tests."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

ORGANS = ("aorta", "liver", "spleen")
ALGORITHMS = ("nnU-Net_U-Net", "MONAI_SegVol", "_MedFormer", "home<made>")
NAMES = ("U-Net", "SegVol", "MedFormer", "home<made>")
CASES = 48


def scores(seed: int = 0) -> np.ndarray:
    """(metric, algorithm, case, organ); every third case shows the aorta only, case 0 nothing."""
    rng = np.random.default_rng(seed)
    case = rng.normal(0, 0.08, (1, 1, CASES, 1))
    skill = np.array([0.88, 0.85, 0.80, 0.87])[None, :, None, None]
    organ = np.array([-0.25, 0.05, 0.02])
    table = np.clip(skill + case + organ + rng.normal(0, 0.04, (2, 4, CASES, 3)), 0, 1)
    table[:, :, ::3, 1:] = np.nan
    table[:, :, 0] = np.nan
    table[:, 2, 5, 0] = 0.0
    return table


def write(folder: Path, table: np.ndarray | None = None, *, absent: Sequence[int] = (3, 4)) -> Path:
    """The folder of results; the last algorithm has no row for the cases ``absent``."""
    table = scores() if table is None else table
    for metric, of_metric in zip(("dsc", "nsd"), table, strict=True):
        for name, of_algorithm in zip(ALGORITHMS, of_metric, strict=False):
            left_out = set(absent) if name == ALGORITHMS[-1] else set()
            rows = [
                [f"s{i:04}", *("" if np.isnan(x) else repr(float(x)) for x in row)]
                for i, row in enumerate(of_algorithm)
                if i not in left_out
            ]
            write_csv(folder / name / f"{metric}.csv", [["name", *ORGANS], *rows])
    return folder


def write_csv(path: Path, rows: Iterable[Sequence[str]], separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=separator).writerows(rows)
    return path


def write_metadata(path: Path) -> Path:
    """In the form of TotalSegmentator's meta.csv; case 1 has no row, one group has one case."""
    rows = [["image_id", "age", "gender", "institute", "split", "pathology", "race"]]
    for i in range(CASES):
        if i != 1:
            pathology = "trauma" if i % 3 == 0 else ("tumor" if i % 2 else "no_pathology")
            age = "" if i == 2 else f"{20 + i}.00"
            sex, split = "mf"[i % 2], "test" if i % 4 == 2 else "train"
            rows.append([f"s{i:04}", age, sex, "I" if i else "Z", split, pathology, ""])
    return write_csv(path, rows, ";")
