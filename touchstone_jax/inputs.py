"""What `predict` is given: CTs in any layout, or cases that are prepared already."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from touchstone_jax.io.geometry import Geometry
from touchstone_jax.layouts.case_files import folders
from touchstone_jax.prepare import VERSION, prepare_image
from touchstone_jax.prepare.plan import Plan, read_plan
from touchstone_jax.prepare.prepared import open_prepared
from touchstone_jax.verify import examine
from touchstone_jax.verify.fingerprints import OverCases, hash_of, stat_of

Loaded = tuple[Float32[np.ndarray, "x y z"], Geometry]
"""A normalised image on the plan's spacing, and the grid that its CT is stored on."""


class FromCts(OverCases):
    """CTs of a data set; labels that may lie beside them are not looked at."""

    def fingerprint(self, case: str) -> str:
        """Hash of the CT's file."""
        files = self._cases[case]
        return hash_of([self.hash_files(type(files)(files.id, files.ct)), VERSION])

    def load(self, case: str, plan: Plan, allow: Collection[str]) -> Loaded:
        """Judge a CT as `verify` does and prepare it by the plan.

        Raises:
            VolumeError: the first error that is not allowed.
        """
        seen = examine(self._cases[case], None)
        seen.raise_errors(allow)
        assert seen.ct is not None  # else there was an error
        # Through half precision, as prepared cases are stored: the same bits as in training.
        image = prepare_image(seen.ct, plan).astype(np.float16).astype(np.float32)
        return image, seen.ct.geometry


class FromPrepared:
    """The cases of a folder that the job `Prepare` wrote.

    Raises:
        FileNotFoundError: no case in it.
    """

    def __init__(self, data: str | Path) -> None:
        self._folders = {path.name: path for path in prepared_folders(Path(data))}
        if not self._folders:
            raise FileNotFoundError(f"data set {data}: no prepared case")

    def cases(self) -> Sequence[str]:
        """The ids, in order."""
        return list(self._folders)

    def fingerprint(self, case: str) -> str:
        """Hash of meta.json, which names the CT's content and the plan, and of the image's file."""
        folder = self._folders[case]
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        listed = [stat_of(path)[0] for path in sorted((folder / "image").rglob("*"))]
        return hash_of([json.dumps(meta, sort_keys=True), *listed])

    def load(self, case: str, plan: Plan, allow: Collection[str]) -> Loaded:
        """Read a prepared image.

        Raises:
            FileNotFoundError: a file is missing, plan.json beside the cases among them.
            ValueError: it was prepared by another plan than the network's, or is damaged.
        """
        folder = self._folders[case]
        found = open_prepared(folder)
        kept = read_plan(folder.parent / "plan.json")
        # The patch, and what the plan was made of, have no part in the arrays.
        asked = replace(plan, patch=kept.patch, cases=kept.cases)
        if found.meta["plan"] != kept.digest():
            raise ValueError(
                f"{case}: prepared by plan {found.meta['plan']}, {folder.parent / 'plan.json'} is "
                f"{kept.digest()}: prepare it again"
            )
        if asked != kept:
            differ = [k for k, v in kept.to_json().items() if v != asked.to_json()[k]]
            raise ValueError(
                f"{case}: prepared by another plan than the network's (other "
                f"{', '.join(differ)}): prepare it again with plan=, or predict from the CTs"
            )
        try:
            image = found.image.read().result()
        except ValueError as error:
            raise ValueError(f"{case}: image: {str(error).splitlines()[0]}") from error
        return np.asfortranarray(image, dtype=np.float32), found.source


def open_inputs(data: str, layout: str, fingerprints: str) -> FromCts | FromPrepared:
    """The cases of a folder; "prepared" is a layout, too, and "auto" recognises it.

    Raises:
        FileNotFoundError: no such folder, or no case in it.
        ValueError: as `touchstone_jax.layouts.discover`.
    """
    if layout == "prepared" or (layout == "auto" and prepared_folders(Path(data))):
        return FromPrepared(data)
    return FromCts(data, layout, None, fingerprints)


def prepared_folders(folder: Path) -> list[Path]:
    """Folders of prepared cases inside a folder."""
    inside = folders(folder) if folder.is_dir() else []
    return [path for path in inside if (path / "meta.json").is_file()]
