"""The organs that the labels of a case hold, one at a time, on the grid of the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from touchstone_jax.findings import Finding, VolumeError, refusal
from touchstone_jax.io import read_geometry, read_labels, read_mask
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.labels import map_labels
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.labels.sides import split_left_right
from touchstone_jax.layouts import discover
from touchstone_jax.layouts.case_files import Case, folders, volumes
from touchstone_jax.verify.label_checks import judge_label_map


class Organs:
    """Masks of one case's organs; a mask file is read when it is asked for.

    Masks may overlap: each is what its own file says, as Touchstone scores them.

    Attributes:
        grid: the stored grid that masks are brought to (canonical axes of it).
        known: organs of the target that there is a file or a label for, in its order.
        labels: uint8 (x, y, z) label map in the numbers of the target, where the case has one.
        reoriented: whether a file read so far was stored in other axes than the grid.
    """

    def __init__(self, case: Case, target: Scheme, like: Geometry | None = None) -> None:
        """Read the label map, or the header of the first mask.

        Args:
            case: its files; ``scheme`` says what they mean.
            target: scheme of the organs wanted.
            like: the grid to come to; None for the case's own.

        Raises:
            VolumeError: no labels, a file that cannot be read, another grid than ``like``, or a
                label that the scheme does not name.
        """
        self._case, self._target, self.reoriented = case, target, False
        paths = label_files(case)
        if case.scheme is None or not paths:
            fix = "look at layout=, labels= and the folders' names"
            raise refusal(case.id, "missing_labels", "the case has no labels", fix)
        self._scheme = case.scheme
        self.grid = like or read_geometry(paths[0], case=case.id)[0]
        self.labels: UInt8[np.ndarray, "x y z"] | None = None
        if case.label_map is not None:
            found, notes = read_labels(case.label_map, case=case.id, like=self.grid)
            self._note(notes)
            for finding in judge_label_map(case.id, found, case.scheme):
                if finding.severity == "error":
                    raise VolumeError(finding)
            self.labels, report = map_labels(found, case.scheme, target, case=case.id)
            self.known = tuple(n for n in target.classes if n not in report.missing)
        else:
            self._files = self._by_organ()
            self.known = tuple(name for name in target.classes if name in self._files)

    def mask(self, organ: str) -> Bool[np.ndarray, "x y z"]:
        """The mask of a known organ, canonical axes of the grid; parts (lung lobes) are merged.

        Raises:
            VolumeError: its file cannot be read, is no mask, or lies on another grid.
        """
        if self.labels is not None:
            return self.labels == self._target.indices[organ]
        whole: Any = None
        for own, path in self._files[organ]:
            part, notes = read_mask(path, case=self._case.id, like=self.grid)
            self._note(notes)
            sides = self._scheme.names_in(self._target, own)
            if len(sides) == 2:
                left, right, _ = split_left_right(part)
                part = (left, right)[sides.index(organ)]
            whole = part if whole is None else whole | part
        return whole

    def _by_organ(self) -> dict[str, list[tuple[str, Path]]]:
        found: dict[str, list[tuple[str, Path]]] = {}
        for own, path in self._case.masks:
            for name in self._scheme.names_in(self._target, own):
                found.setdefault(name, []).append((own, path))
        return found

    def _note(self, notes: Iterable[Finding]) -> None:
        self.reoriented |= any(note.check == "orientation_differs" for note in notes)


def label_files(case: Case) -> tuple[Path, ...]:
    """The files of a case's labels, the CT left out."""
    return case.files[1:]


def as_label_map(case: Case, labels: str) -> Case:
    """A case of one file ("flat"), which would be its CT, as a label map of the scheme ``labels``.

    Any other case is returned as it is.
    """
    return replace(case, label_map=case.ct, scheme=scheme(labels)) if case.scheme is None else case


def discover_predictions(
    folder: str | Path, layout: str, labels: str | None, default: str
) -> list[Case]:
    """The predictions of a folder as cases.

    Args:
        folder: of cases with ``predictions`` (preferred) or ``segmentations`` in them, of cases
            with a label map, or of label maps.
        layout: of `touchstone_jax.layouts`; "auto" knows these.
        labels: scheme of the predictions; None for the layout's.
        default: scheme of label maps that lie alone ("flat"), where ``labels`` is None.

    Raises:
        FileNotFoundError: no such folder, or no case in it.
        ValueError: as `touchstone_jax.layouts.discover`.
    """
    top = Path(folder)
    inside = folders(top) if top.is_dir() else []
    masks = "predictions" if any((p / "predictions").is_dir() for p in inside) else "segmentations"
    maps = any(volumes(path).keys() & {"combined_labels", "labels"} for path in inside)
    if layout == "auto" and maps and not any((path / masks).is_dir() for path in inside):
        layout = "labelmap"
    found = discover(top, layout, labels=labels, segmentations=masks)
    cases = [as_label_map(case, labels or default) for case in found]
    # With a CT alone a case is listed, too; then there is no prediction of it.
    return [case for case in cases if any(path.is_file() for path in label_files(case))]
