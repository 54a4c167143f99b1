"""Is a newcomer's folder complete? Everything that is missing or wrong, one line each.

Two kinds of folder: scores (``dsc.csv`` and ``nsd.csv`` of one algorithm) and predictions
(``<case>/predictions/<organ>.nii.gz`` or ``<case>/segmentations/<organ>.nii.gz``). What they are
held against: the results of others, which tell the cases and which organs were evaluated; the data
set, which tells the cases and their grids. Nothing is changed, and no voxel is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from touchstone_jax.benchmark.names import METRICS, TOUCHSTONE_ORGANS
from touchstone_jax.benchmark.reading import read_results, read_scores
from touchstone_jax.benchmark.results import Results
from touchstone_jax.findings import VolumeError
from touchstone_jax.io import read_geometry
from touchstone_jax.io.grids import same_geometry
from touchstone_jax.layouts import discover
from touchstone_jax.layouts.case_files import Case, folders, volume, volumes

SHOWN = 5
"""How many cases a line names; it always says how many there are."""


def check(
    folder: str | Path, *, results: str | Path | None = None, data: str | Path | None = None
) -> tuple[str, ...]:
    """What is missing from, or wrong with, the folder of one algorithm; empty if nothing.

    Args:
        folder: scores or predictions; also the name of one below ``results``.
        results: results of others on the test set (`touchstone_jax.benchmark.reading`).
        data: the test set (`touchstone_jax.layouts`), for predictions.

    Raises:
        FileNotFoundError: no such folder, or neither scores nor predictions in it.
        ValueError: ``results`` or ``data`` cannot be read.
    """
    below = None if results is None else Path(results) / folder
    folder = below if below is not None and below.is_dir() else Path(folder)
    if not folder.is_dir():
        where = "" if below is None else f", nor {below}"
        raise FileNotFoundError(f"submission {folder}: no such folder{where}")
    others = None if results is None else read_results(results)
    if any((folder / f"{metric}.csv").is_file() for metric in METRICS):
        return tuple(_scores(folder, others))
    inner = {case.name: masks for case in folders(folder) if (masks := _masks(case)) is not None}
    if not inner:
        raise FileNotFoundError(
            f"submission {folder}: neither dsc.csv nor <case>/predictions/<organ>.nii.gz"
        )
    cases = None if data is None else {case.id: case for case in discover(data)}
    return tuple(_predictions(inner, others, cases))


def _some(cases: Collection[str]) -> str:
    ordered = sorted(cases)
    more = f", … ({len(ordered)} in all)" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def _case_sets(where: str, ours: Collection[str], theirs: Collection[str]) -> list[str]:
    told = []
    if missing := set(theirs) - set(ours):
        told.append(f"{where}: {len(missing)} of {len(theirs)} cases missing: {_some(missing)}")
    if strange := set(ours) - set(theirs):
        told.append(f"{where}: {len(strange)} cases that the test set lacks: {_some(strange)}")
    return told


# ------------------------------------------------------------------------- scores

Scores = Mapping[str, Mapping[str, float]]


def _scores(folder: Path, others: Results | None) -> list[str]:
    told: list[str] = []
    read: dict[str, Scores] = {}
    for metric in METRICS:
        file = folder / f"{metric}.csv"
        if not file.is_file():
            told.append(f"{file.name}: missing")
            continue
        try:
            organs, read[metric] = read_scores(file)
        except ValueError as error:
            told.append(str(error))
            continue
        wanted = TOUCHSTONE_ORGANS if others is None else others.organs
        if absent := [organ for organ in wanted if organ not in organs]:
            told.append(f"{file.name}: missing columns {', '.join(absent)}")
        if not any(read[metric].values()):
            told.append(f"{file.name}: not one score")
        if others is not None:
            told += _against(file.name, metric, read[metric], others)
    if len(read) == len(METRICS):
        told += _same_cells(*(read[metric] for metric in METRICS))
    return told


def _against(where: str, metric: str, scores: Scores, others: Results) -> list[str]:
    told = _case_sets(where, scores, others.cases)
    if metric not in others.metrics:
        return told
    there = (~np.isnan(others.scores[metric])).any(axis=0)  # (case, organ)
    for organ, column in zip(others.organs, there.T, strict=True):
        evaluated = {case for case, yes in zip(others.cases, column, strict=True) if yes}
        ours = {case for case, found in scores.items() if organ in found}
        shared = evaluated & scores.keys()
        if missing := shared - ours:
            told.append(
                f"{where}: {organ}: no score in {len(missing)} of {len(shared)} cases where others "
                f"have one: {_some(missing)} (a failed prediction scores 0)"
            )
        if extra := ours & set(others.cases) - evaluated:
            told.append(
                f"{where}: {organ}: a score in {len(extra)} cases where nobody was evaluated: "
                f"{_some(extra)}"
            )
    return told


def _same_cells(first: Scores, second: Scores) -> list[str]:
    """Both metrics are of the same predictions, so they have the same cells."""
    unlike = {
        case
        for case in first.keys() | second.keys()
        if first.get(case, {}).keys() != second.get(case, {}).keys()
        or (case in first) != (case in second)
    }
    names = " and ".join(f"{metric}.csv" for metric in METRICS)
    return [f"{names} have scores of other organs in {_some(unlike)}"] if unlike else []


# ------------------------------------------------------------------------- predictions


def _masks(case: Path) -> dict[str, Path] | None:
    """Organ to file; None where the folder is no prediction."""
    for name in ("predictions", "segmentations"):
        if (case / name).is_dir():
            return volumes(case / name)
    if any(volume(case, name).is_file() for name in ("combined_labels", "labels")):
        return {}
    return None


def _predictions(
    masks: Mapping[str, Mapping[str, Path]],
    others: Results | None,
    data: Mapping[str, Case] | None,
) -> list[str]:
    told: list[str] = []
    if data is not None:
        told += _case_sets("predictions", masks, data)
    elif others is not None:
        told += _case_sets("predictions", masks, others.cases)
    organs = TOUCHSTONE_ORGANS if others is None else others.organs
    for organ in organs:
        if absent := [case for case, found in masks.items() if organ not in found]:
            told.append(
                f"{organ}: no mask in {len(absent)} of {len(masks)} cases: {_some(absent)} "
                "(an organ that was not found is a mask of zeros)"
            )
    for case, found in sorted(masks.items()):
        own = {organ: found[organ] for organ in organs if organ in found}
        told += _grids(case, own, None if data is None else data.get(case))
    return told


def _grids(case: str, masks: Mapping[str, Path], source: Case | None) -> Sequence[str]:
    """Files that cannot be read, and masks on other grids than the CT or the first mask."""
    told: list[str] = []
    like, name = None, "CT"
    try:
        if source is not None and source.ct.is_file():
            like, _ = read_geometry(source.ct, case=case)
    except VolumeError as error:
        told.append(f"the data set's CT: {error}")
    for organ, file in masks.items():
        try:
            geometry, _ = read_geometry(file, case=case)
            if like is None:
                like, name = geometry, organ
            same_geometry(like, geometry, case=case, names=(name, organ))
        except VolumeError as error:
            told.append(str(error))
    return told
