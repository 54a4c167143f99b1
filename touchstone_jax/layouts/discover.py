"""Where the files of a CT data set lie: from a folder to an ordered list of cases.

| layout | CT | labels |
| --- | --- | --- |
| abdomenatlas | <case>/ct.nii.gz | <case>/segmentations/<organ>.nii.gz |
| totalsegmentator | <case>/ct.nii.gz | <case>/segmentations/<one of 117 names>.nii.gz |
| labelmap | <case>/ct.nii.gz | <case>/combined_labels.nii.gz or <case>/labels.nii.gz |
| nnunet | imagesTr/<case>_0000.nii.gz | labelsTr/<case>.nii.gz, names in dataset.json |
| dap | CT/<case>.nii.gz | label/<case>.nii.gz |
| jhh | img/<case>.nii.gz | label/<case>.nii.gz |
| flat | <case>.nii.gz or <case>_0000.nii.gz | none: for prediction |

A case is listed as soon as one of its files is there; that another is missing is a finding of
`verify` and an error of the case, not of the data set (AbdomenAtlas 1.1 ships labels of 4,067
cases without their CTs).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import from_indices, scheme
from touchstone_jax.layouts.case_files import Case, folders, volume, volumes

_LABEL_MAPS = ("combined_labels", "labels")
_MARKS_OF_TOTALSEGMENTATOR = {"gallbladder", "inferior_vena_cava", "urinary_bladder"}


def discover(
    folder: str | Path,
    layout: str = "auto",
    *,
    labels: str | Scheme | None = None,
    segmentations: str = "segmentations",
) -> list[Case]:
    """The cases of a data set, in the order of their ids.

    Args:
        folder: top folder of the data set.
        layout: a name of the module's table, or "auto".
        labels: scheme of the labels; None for what the layout says (AbdomenAtlas 1.1, which
            includes 1.0, for ``abdomenatlas`` and ``labelmap``).
        segmentations: folder of the masks inside a case; "predictions" reads a prediction.

    Raises:
        FileNotFoundError: no such folder, or no case in it.
        ValueError: unknown layout or scheme; files that look like none or like several layouts;
            an id twice; an unusable dataset.json.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data set {folder}: no such folder")
    if layout == "auto":
        layout = _recognise(folder, segmentations)
    if layout not in _FINDERS:
        raise ValueError(f"layout={layout!r}; legal values: auto, {', '.join(_FINDERS)}")
    told = None if labels is None else scheme(labels)
    cases = sorted(_FINDERS[layout](folder, told, segmentations), key=lambda case: case.id)
    if not cases:
        raise FileNotFoundError(f"data set {folder}: no case in the layout {layout!r}")
    _unique(folder, cases)
    return cases


def _recognise(folder: Path, segmentations: str) -> str:
    """The one layout whose marks the folder bears."""
    if (folder / "imagesTr").is_dir() or (folder / "dataset.json").is_file():
        return "nnunet"
    if (folder / "label").is_dir():
        found = [
            name for name, images in (("dap", "CT"), ("jhh", "img")) if (folder / images).is_dir()
        ]
        if len(found) == 1:
            return found[0]
    names: set[str] = set()
    any_masks = any_ct = False
    for case in folders(folder):
        masks = volumes(case / segmentations)
        any_masks |= bool(masks)
        any_ct |= volume(case, "ct").is_file()
        names |= masks.keys()
    if any_masks:
        return "totalsegmentator" if names & _MARKS_OF_TOTALSEGMENTATOR else "abdomenatlas"
    if any_ct:
        return "labelmap"
    files = volumes(folder)
    if "ct" in files and ((folder / segmentations).is_dir() or files.keys() & set(_LABEL_MAPS)):
        raise ValueError(f"data set {folder}: this is one case; give the folder that holds it")
    if files:
        return "flat"
    raise ValueError(
        f"data set {folder}: no known layout; expected <case>/ct.nii.gz, imagesTr/, CT/ and "
        "label/, img/ and label/, or *.nii.gz"
    )


def _per_organ(default: str) -> Callable[[Path, Scheme | None, str], Iterable[Case]]:
    def find(folder: Path, told: Scheme | None, segmentations: str) -> Iterable[Case]:
        for case in folders(folder):
            masks = tuple(sorted(volumes(case / segmentations).items()))
            ct = volume(case, "ct")
            if masks or ct.is_file():
                yield Case(case.name, ct, masks, None, told or scheme(default))

    return find


def _label_map(folder: Path, told: Scheme | None, segmentations: str) -> Iterable[Case]:
    for case in folders(folder):
        ct = volume(case, "ct")
        maps = [path for name in _LABEL_MAPS if (path := volume(case, name)).is_file()]
        if ct.is_file() or maps:
            label_map = maps[0] if maps else None
            yield Case(case.name, ct, (), label_map, told or scheme("abdomenatlas_1.1"))


def _nnunet(folder: Path, told: Scheme | None, segmentations: str) -> Iterable[Case]:
    described = told or _from_dataset_json(folder / "dataset.json")
    images = volumes(folder / "imagesTr")
    if any(name.endswith("_0001") for name in images):
        raise ValueError(f"data set {folder}: several channels (…_0001); expected one CT a case")
    labels = volumes(folder / "labelsTr")
    names = {name.removesuffix("_0000") for name in images if name.endswith("_0000")}
    for name in names | labels.keys():
        ct = images.get(f"{name}_0000", folder / "imagesTr" / f"{name}_0000.nii.gz")
        label_map = labels.get(name, folder / "labelsTr" / f"{name}.nii.gz")
        yield Case(name, ct, (), label_map, described)


def _side_by_side(
    images: str, default: str
) -> Callable[[Path, Scheme | None, str], Iterable[Case]]:
    def find(folder: Path, told: Scheme | None, segmentations: str) -> Iterable[Case]:
        cts, labels = volumes(folder / images), volumes(folder / "label")
        for name in cts.keys() | labels.keys():
            ct = cts.get(name, folder / images / f"{name}.nii.gz")
            label_map = labels.get(name, folder / "label" / f"{name}.nii.gz")
            yield Case(name, ct, (), label_map, told or scheme(default))

    return find


def _flat(folder: Path, told: Scheme | None, segmentations: str) -> Iterable[Case]:
    for name, path in volumes(folder).items():
        yield Case(name.removesuffix("_0000"), path)


_FINDERS: dict[str, Callable[[Path, Scheme | None, str], Iterable[Case]]] = {
    "abdomenatlas": _per_organ("abdomenatlas_1.1"),
    "totalsegmentator": _per_organ("totalsegmentator_v2"),
    "labelmap": _label_map,
    "nnunet": _nnunet,
    "dap": _side_by_side("CT", "dap_atlas"),
    "jhh": _side_by_side("img", "jhh"),
    "flat": _flat,
}

LAYOUTS = tuple(_FINDERS)
"""Names of the layouts."""


def _from_dataset_json(path: Path) -> Scheme:
    """The scheme in nnU-Net's dataset.json: name to label (v2), or label to name (v1)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it says which label is which organ")
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        if all(str(key).isdigit() for key in labels):
            labels = {name: int(key) for key, name in labels.items()}
        return from_indices(path.parent.name, labels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: no usable "labels": {error!r}') from error


def _unique(folder: Path, cases: list[Case]) -> None:
    seen: dict[str, str] = {}
    for case in cases:
        # Results are written to folders named by the id, also on disks that ignore case.
        key = case.id.casefold()
        if key in seen:
            raise ValueError(
                f"data set {folder}: ids {seen[key]!r} and {case.id!r} differ at most in case"
            )
        seen[key] = case.id
