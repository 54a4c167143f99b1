"""Read results: Touchstone's folder of CSV files, or one tidy table.

| format | files | columns |
| --- | --- | --- |
| Touchstone's | <algorithm>/dsc.csv, <algorithm>/nsd.csv | name, one for each organ |
| tidy | one .csv | metric, algorithm, case, organ, score |

An empty cell or "nan" is an organ that was not evaluated. Every error names the file, the case and
the column.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from touchstone_jax.benchmark.names import ALGORITHMS, METRICS, ORGANS, TOUCHSTONE_ORGANS
from touchstone_jax.benchmark.results import Results, refuse_incomparable
from touchstone_jax.legal import unknown

TIDY = ("metric", "algorithm", "case", "organ", "score")

# algorithm, case, organ -> score; a case listed without a score has an empty inner mapping.
Table = dict[str, dict[str, dict[str, float]]]


def read_results(path: str | Path) -> Results:
    """The results in a folder (Touchstone's format) or a .csv file (tidy).

    A folder that holds nothing but one folder of results may be given in its place.

    Raises:
        FileNotFoundError: no such path, no results in it, or an algorithm without one of the
            metrics that others have.
        ValueError: a missing column, an unknown metric or organ, a case twice, a score that is no
            number in 0..1, an algorithm without a score, or two that share no evaluated case.
    """
    path = Path(path)
    if path.is_file():
        tables = _read_tidy(path)
    elif path.is_dir():
        tables = _read_folder(_folder_of_algorithms(path))
    else:
        raise FileNotFoundError(f"results {path}: no such file or folder")
    results = _arrays(tables)
    for metric in results.metrics:
        refuse_incomparable(results, metric)
    return results


# ------------------------------------------------------------------------- Touchstone's format


def _algorithm_folders(folder: Path) -> list[Path]:
    return sorted(
        inner
        for inner in folder.iterdir()
        if inner.is_dir() and any((inner / f"{metric}.csv").is_file() for metric in METRICS)
    )


def _folder_of_algorithms(folder: Path) -> Path:
    if _algorithm_folders(folder):
        return folder
    below = [f for f in sorted(folder.iterdir()) if f.is_dir() and _algorithm_folders(f)]
    if len(below) == 1:
        return below[0]
    hint = f"; did you mean one of {', '.join(str(f) for f in below)}?" if below else ""
    raise FileNotFoundError(f"results {folder}: no <algorithm>/dsc.csv or nsd.csv in it{hint}")


def _read_folder(folder: Path) -> dict[str, Table]:
    algorithms = _algorithm_folders(folder)
    metrics = [m for m in METRICS if any((a / f"{m}.csv").is_file() for a in algorithms)]
    tables: dict[str, Table] = {metric: {} for metric in metrics}
    organs: dict[str, Path] = {}
    headers: dict[Path, tuple[str, ...]] = {}
    for algorithm in algorithms:
        name = ALGORITHMS.get(algorithm.name, algorithm.name)
        for metric in metrics:
            file = algorithm / f"{metric}.csv"
            if name in tables[metric]:
                raise ValueError(f"{file}: a second folder for the algorithm {name!r}")
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing; other algorithms have {metric}.csv")
            headers[file], tables[metric][name] = read_scores(file)
            organs |= dict.fromkeys(headers[file], file)
    for file, header in headers.items():
        if absent := [organ for organ in organs if organ not in header]:
            raise ValueError(f"{file}: missing column {absent[0]!r}, which {organs[absent[0]]} has")
    return tables


def read_scores(file: Path) -> tuple[tuple[str, ...], dict[str, dict[str, float]]]:
    """(organs, case to organ to score) of one of Touchstone's files; no entry for an empty cell.

    Raises:
        ValueError: no column "name", an unknown organ, a column or a case twice, a row of another
            length, or a score that is no number in 0..1.
    """
    rows = csv_rows(file)
    _, header = next(rows, (0, []))
    if "name" not in header:
        raise ValueError(f"{file}: missing column 'name' (the cases); columns: {', '.join(header)}")
    column = header.index("name")
    organs = tuple(name for name in header if name != "name")
    for organ in organs:
        if organ not in ORGANS:
            raise ValueError(f"{file}: {unknown('organ', organ, ORGANS)}")
    if len(set(header)) < len(header) or not organs:
        raise ValueError(f"{file}: columns {', '.join(header)}; expected name and organs, once")
    found: dict[str, dict[str, float]] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{file}:{line}: {len(row)} cells; expected {len(header)}")
        case = row[column].strip()
        if not case or case in found:
            raise ValueError(f"{file}:{line}: {f'case {case!r} twice' if case else 'no case name'}")
        found[case] = {}
        for organ, text in zip(header, row, strict=True):
            if organ != "name" and (score := _score(text, f"{file}: {case}: {organ}")) is not None:
                found[case][organ] = score
    return organs, found


def csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a CSV file without its empty lines.

    Raises:
        ValueError: it is not in UTF-8, or quotes do not fit.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, [cell.strip() for cell in row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: no CSV file in UTF-8 ({error})") from error


def _score(text: str, where: str) -> float | None:
    """The score in a cell; None if the organ was not evaluated."""
    if not text or text.lower() == "nan":
        return None
    try:
        score = float(text if "_" not in text else "")  # Python takes 0_9 for a number
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no number") from None
    if not 0 <= score <= 1 or math.isnan(score):
        percent = " (percent? divide by 100)" if 1 < score <= 100 else ""
        raise ValueError(f"{where}: {text}; expected a score in 0..1{percent}")
    return score


# ------------------------------------------------------------------------- tidy


def _read_tidy(file: Path) -> dict[str, Table]:
    rows = csv_rows(file)
    _, header = next(rows, (0, []))
    if absent := [name for name in TIDY if name not in header]:
        raise ValueError(f"{file}: missing column {absent[0]!r}; expected {', '.join(TIDY)}")
    if len(set(header)) < len(header):
        raise ValueError(f"{file}: columns {', '.join(header)}; expected each once")
    places = [header.index(name) for name in TIDY]
    tables: dict[str, Table] = {}
    seen: set[tuple[str, ...]] = set()
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{file}:{line}: {len(row)} cells; expected {len(header)}")
        metric, algorithm, case, organ, text = (row[place] for place in places)
        where = f"{file}:{line}"
        for what, name, legal in (("metric", metric, METRICS), ("organ", organ, ORGANS)):
            if name not in legal:
                raise ValueError(f"{where}: {unknown(what, name, legal)}")
        if (metric, algorithm, case, organ) in seen or not algorithm or not case:
            raise ValueError(f"{where}: {metric}, {algorithm!r}, {case!r}, {organ}: twice or empty")
        seen.add((metric, algorithm, case, organ))
        found = tables.setdefault(metric, {}).setdefault(algorithm, {}).setdefault(case, {})
        if (score := _score(text, f"{where}: {case}: {organ}")) is not None:
            found[organ] = score
    if not tables:
        raise ValueError(f"{file}: no row below the header")
    return tables


# ------------------------------------------------------------------------- arrays


def _arrays(tables: dict[str, Table]) -> Results:
    metrics = tuple(metric for metric in METRICS if metric in tables)
    found = {a for table in tables.values() for a in table}
    algorithms = (*(a for a in ALGORITHMS.values() if a in found),
                  *sorted(found - set(ALGORITHMS.values())))  # fmt: skip
    for metric in metrics:
        if absent := [a for a in algorithms if a not in tables[metric]]:
            raise ValueError(f"{absent[0]!r} has no rows of {metric}, others have")
    every = [cases for table in tables.values() for cases in table.values()]
    cases = tuple(sorted({case for some in every for case in some}))
    scored = {organ for some in every for organs in some.values() for organ in organs}
    organs = tuple(organ for organ in ORGANS if organ in scored)
    if not organs:
        raise ValueError("the results hold no score: every cell is empty")
    scores, listed = {}, {}
    for metric in metrics:
        scores[metric] = np.full((len(algorithms), len(cases), len(organs)), np.nan)
        listed[metric] = np.zeros((len(algorithms), len(cases)), bool)
        for i, algorithm in enumerate(algorithms):
            _fill(tables[metric][algorithm], cases, organs, scores[metric][i], listed[metric][i])
    return Results(metrics, algorithms, cases, organs, scores, listed)


def _fill(rows, cases: Sequence[str], organs: Sequence[str], scores, listed) -> None:
    for j, case in enumerate(cases):
        if case in rows:
            listed[j] = True
            scores[j] = [rows[case].get(organ, math.nan) for organ in organs]


def missing_organs(results: Results) -> tuple[str, ...]:
    """Those of Touchstone's nine that no result has a score of."""
    return tuple(organ for organ in TOUCHSTONE_ORGANS if organ not in results.organs)
