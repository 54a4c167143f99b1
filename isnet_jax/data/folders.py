"""The user's own pictures: folders of classes with folders of masks, and tables of files."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from isnet_jax.data import pictures
from isnet_jax.data.pictures import check_channels, check_opens, sides
from isnet_jax.data.splits import TRAIN, VAL, Splits
from isnet_jax.images import SUFFIXES

UNCERTAIN = ("ones", "zeros", "drop")


def existing(folder: str | Path, what: str) -> Path:
    """The folder as a path; raises FileNotFoundError that starts with ``what``."""
    path = Path(folder)
    if not str(folder) or not path.is_dir():
        raise FileNotFoundError(f"{what} {str(folder)!r} does not exist or is no folder")
    return path


def below(folder: Path, cell: str | None, where: str) -> Path:
    """The file that a table's cell names; ``where`` (table and line) begins the message.

    Raises:
      ValueError: no path, or one that leads out of the folder.
    """
    text = (cell or "").strip()
    place = folder / text
    # As text: what the folder itself links to is its owner's business.
    leads_out = ".." in place.relative_to(folder).parts if place.is_relative_to(folder) else True
    if not text or leads_out or "\\" in text or "\0" in text:
        raise ValueError(
            f"{where}: path {cell!r}; expected one with '/' and without '..' that stays below the "
            f"folder {str(folder)!r}"
        )
    return place


def with_suffix(stem: Path) -> Path | None:
    """The image file of this path without its ending; None if there is none."""
    found = (stem.with_name(stem.name + end) for s in SUFFIXES for end in (s, s.upper()))
    return next((path for path in found if path.is_file()), None)


def columns(
    paths: Sequence[Path],
    labels: np.ndarray,
    masks: Sequence[Path] | Sequence[Sequence[tuple]] | None,
    size: tuple[int, int],
    channels: int,
    case: str,
) -> dict[str, Any]:
    """The columns of one split, with ``labels`` (n,) or (n, k); every file is opened once."""
    if not paths:
        raise ValueError(f"{case}: no images")
    check_opens(paths, case)
    made: dict[str, Any] = {"image": pictures.pictures(paths, size, channels), "label": labels}
    if masks is not None:
        if isinstance(masks[0], Path):
            files = cast(Sequence[Path], masks)
            check_opens(files, f"{case}: mask")
            made["mask"] = pictures.masks(files, size)
        else:
            made["mask"] = pictures.boxes(cast(Sequence[Sequence[tuple]], masks), size)
    return made


def mask_of(image: Path, root: Path, masks: Path, case: str) -> Path:
    """The mask of ``image`` below ``root``: the same place and name below ``masks``, any ending."""
    place = masks / image.relative_to(root)
    found = with_suffix(place.with_suffix(""))
    if found is None:
        raise FileNotFoundError(
            f"{case}: no mask of {image}: looked for {place.with_suffix('')} with one of "
            f"{', '.join(SUFFIXES)}"
        )
    return found


def divided(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows for training, rows for validation) of ``count``; the latter about ``share`` of them.

    Raises:
      ValueError: a share outside (0, 1), or one that leaves a part empty.
    """
    held = round(count * share) if 0 < share < 1 else 0
    if not 0 < held < count:
        raise ValueError(
            f"val_share={share}: {count} images; expected a share in (0, 1) that leaves images "
            "for training and for validation"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


# ------------------------------------------------------------------------- folders of classes


def image_folder(
    *,
    folder: str,
    masks: str = "",
    size: int | Sequence[int] = 224,
    channels: int = 3,
    classes: Sequence[str] = (),
) -> Splits:
    """SPLIT/CLASS/picture.png, with masks at the same places below another folder.

    "train" and "val" must be there; every other split is a test split (an O.O.D. test set, say),
    and without one "val" is reported. For X-rays: a class a diagnosis, a split a hospital.

    Args:
      folder: holds the splits' folders.
      masks: holds the masks at the same relative paths, white = foreground; "": none.
      size: (height, width) in pixels, or one number; images are squeezed to it.
      channels: 1 or 3.
      classes: names of the class folders in label order; (): those of "train", sorted.

    Raises:
      FileNotFoundError: a folder, a split or a mask is missing.
      ValueError: a class without folder or images, an unknown class, a file that is no image, or
        an illegal option.
    """
    root, pair = existing(folder, "data folder"), sides(size)
    check_channels(channels)
    mask_root = existing(masks, "mask folder") if masks else None
    found = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and p.name[0] != "."}
    for name in (TRAIN, VAL):
        if name not in found:
            raise FileNotFoundError(f"{folder!r} has no folder {name}; found: {sorted(found)}")
    names = tuple(classes) or _class_names(found[TRAIN])
    arrays = {}
    for split, place in found.items():
        case = f"{place.name}"
        paths, labels = _of_classes(place, names, case)
        own = None if mask_root is None else [mask_of(p, root, mask_root, case) for p in paths]
        arrays[split] = columns(paths, labels, own, pair, channels, case)
    test = tuple(name for name in found if name not in (TRAIN, VAL))
    return Splits(arrays, len(names), test or (VAL,))


def _class_names(place: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in place.iterdir() if p.is_dir() and p.name[0] != "."))
    if len(names) < 2:
        raise ValueError(f"{place}: class folders {list(names)}; expected at least two")
    return names


def _of_classes(place: Path, names: Sequence[str], case: str) -> tuple[list[Path], np.ndarray]:
    strangers = {p.name for p in place.iterdir() if p.is_dir() and p.name[0] != "."} - set(names)
    if strangers:
        raise ValueError(f"{case}: unknown classes {sorted(strangers)}; legal: {list(names)}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        inside = (place / name).iterdir() if (place / name).is_dir() else ()
        own = sorted(p for p in inside if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        paths += own
        labels += [label] * len(own)
    if case == TRAIN:
        for label, name in enumerate(names):
            if label not in labels:
                raise ValueError(f"{case}: class {name!r} has no image in {place / name}")
    return paths, np.asarray(labels, np.int32)


# ------------------------------------------------------------------------- a table of files


def read_table(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, column -> cell) of the rows of a CSV file with a header, in UTF-8.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no CSV file, a needed column is missing or there twice, a row of another length,
        or no row; names the file, the line and the columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}")
    try:
        # With utf-8-sig: the mark that spreadsheets write is no part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names, rows = list(reader.fieldnames or ()), []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num}: expected {len(names)} cells")
                rows.append((reader.line_num, row))
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"{path.name}: no CSV file in UTF-8 ({error})") from error
    for name in needed:
        if names.count(name) != 1:
            how = "several columns" if name in names else "no column"
            raise ValueError(f"{path.name}: {how} {name!r}; found: {names}")
    if not rows:
        raise ValueError(f"{path.name}: no rows")
    return rows


def csv_labels(
    *,
    tables: Mapping[str, str],
    labels: Sequence[str],
    folder: str = "",
    path_column: str = "Path",
    masks: str = "",
    uncertain: str = "ones",
    size: int | Sequence[int] = 224,
    channels: int = 3,
) -> Splits:
    """CheXpert-style tables: a row a picture, a column a finding of 1, 0, -1 (uncertain) or blank.

    Labels are (n, k) of 0 and 1 (multi-label); blank counts as 0.

    Args:
      tables: split -> CSV file; "train" and "val" among them, every other one a test split.
      labels: the findings' columns, in label order.
      folder: what paths in the tables are relative to, and below which they stay.
      path_column: column of the files' paths.
      masks: folder of masks at the same relative paths, see `image_folder`; "": none.
      uncertain: what -1 becomes: "ones", "zeros", or "drop" leaves out a row that has one.
      size: see `image_folder`.
      channels: see `image_folder`.

    Raises:
      FileNotFoundError: a table, an image or a mask is missing.
      ValueError: a column that is missing, a value that is none of the above or a path that leads
        out of the folder (with its row), or an illegal option.
    """
    pair, root = sides(size), Path(folder)
    check_channels(channels)
    if uncertain not in UNCERTAIN:
        raise ValueError(f"uncertain={uncertain!r}; legal: {', '.join(UNCERTAIN)}")
    if not labels:
        raise ValueError("labels=(): name at least one column")
    mask_root = existing(masks, "mask folder") if masks else None
    for name in (TRAIN, VAL):
        if name not in tables:
            raise ValueError(f"tables has no {name!r}; found: {sorted(tables)}")
    arrays = {}
    for split, place in tables.items():
        path = Path(place)
        rows = read_table(path, (path_column, *labels))
        paths, values = [], []
        for number, row in rows:
            found = [_finding(row[name], name, path, number, uncertain) for name in labels]
            if not any(math.isnan(value) for value in found):
                paths.append(below(root, row[path_column], f"{path.name}: line {number}"))
                values.append(found)
        own = None
        if mask_root is not None:
            own = [mask_of(p, root, mask_root, path.name) for p in paths]
        arrays[split] = columns(
            paths, np.asarray(values, np.float32), own, pair, channels, path.name
        )
    test = tuple(name for name in tables if name not in (TRAIN, VAL))
    return Splits(arrays, len(labels), test or (VAL,))


def _finding(text: str, column: str, path: Path, number: int, uncertain: str) -> float:
    """0, 1, or NaN where the row is to be dropped."""
    try:
        value = float(text.strip() or 0)
    except (ValueError, AttributeError):
        value = math.inf
    if value == -1:
        return {"ones": 1.0, "zeros": 0.0, "drop": math.nan}[uncertain]
    if value not in (0, 1):
        raise ValueError(
            f"{path.name}: line {number}: {column} = {text!r}; legal: 1, 0, -1 (uncertain), blank"
        )
    return value
