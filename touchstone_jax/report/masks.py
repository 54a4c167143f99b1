"""The masks of a case by name: read when asked for, kept as boxes, what is wrong kept as findings.

Names are AbdomenAtlas 3.0's. Several names may mean one thing; the first that is there is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from touchstone_jax.findings import Finding, VolumeError
from touchstone_jax.io import read_mask
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.report.regions import Region, fitted

NAMES: Mapping[str, tuple[str, ...]] = {
    "SMA": ("superior_mesenteric_artery",),
    "aorta": ("aorta",),
    "celiac": ("celiac_aa", "celiac_trunk"),
    "portal vein and SMV": ("veins", "portal_vein_and_splenic_vein"),
    "IVC": ("postcava", "inferior_vena_cava"),
    "left adrenal gland": ("adrenal_gland_left",),
    "left kidney": ("kidney_left",),
    "right kidney": ("kidney_right",),
    "bile duct": ("common_bile_duct",),
    "intestine": ("intestine", "small_bowel"),
}
"""Names of files for structures that are called otherwise in the text."""

PREFIXES = {
    "liver": ("liver", "hepatic"),
    "pancreas": ("pancreas", "pancreatic"),
    "kidney": ("kidney", "renal"),
    "colon": ("colon",),
}
SUFFIXES = {
    "PDAC": "pdac",
    "PNET": "pnet",
    "malignant tumor": "tumor",
    "cyst": "cyst",
    "lesion": "lesion",
}

_LIKE_LESIONS = re.compile(r"lesion|tumou?r|cyst|pdac|pnet|mass|metasta|nodule|cancer|carcinoma")


def lesion_names(organ: str, kind: str, *, published: bool = False) -> tuple[str, ...]:
    """Names under which a lesion mask of that organ and kind may lie; none if there is no such.

    The released generator takes no pancreatic tumors and cysts, colon lesions of unknown kind
    alone, and of "pancreas_pdac" and "pancreatic_pdac" the last (spec/report.md 1.1).
    """
    if organ not in PREFIXES or (kind in ("PDAC", "PNET") and organ != "pancreas"):
        return ()
    names = tuple(f"{prefix}_{SUFFIXES[kind]}" for prefix in PREFIXES[organ])
    if not published:
        return names
    if (organ == "pancreas" and kind in ("malignant tumor", "cyst")) or (
        organ == "colon" and kind != "lesion"
    ):
        return ()
    return names[::-1] if kind in ("PDAC", "PNET") else names


class Masks:
    """Masks of one case.

    Args:
        case: its id.
        files: name of a structure to the file of its mask.
        like: the stored grid of the CT, which every mask must share.
        shape: of the CT along the canonical axes.

    Attributes:
        findings: errors and warnings so far.
    """

    def __init__(
        self, case: str, files: Mapping[str, Path], like: Geometry, shape: tuple[int, int, int]
    ) -> None:
        self.findings: list[Finding] = []
        self._case, self._files, self._like, self._shape = case, dict(files), like, shape
        self._read: dict[str, Region | None] = {}

    def has(self, *names: str) -> bool:
        """Whether there is a file for one of the names, usable or not."""
        return any(name in self._files for name in names)

    def get(self, *names: str) -> Region | None:
        """The region of the first name that has a file; None without one, or if it is unusable.

        What makes a file unusable is added to ``findings`` once.
        """
        name = next((n for n in names if n in self._files), None)
        if name is None:
            return None
        if name not in self._read:
            self._read[name] = self._region(name)
        return self._read[name]

    def called(self, structure: str) -> Region | None:
        """The region of a structure as the text calls it, such as "SMA" or "left kidney"."""
        return self.get(*NAMES.get(structure, (structure,)))

    def not_read(self) -> Iterator[Finding]:
        """A warning for each file that bears the name of a lesion and that nobody asked for."""
        for name, path in self._files.items():
            if name not in self._read and _LIKE_LESIONS.search(name.lower()):
                told = f"{path.name} is not read: no lesion mask is called so, or another is it"
                fix = "rename it, such as liver_lesion; of two names of one thing one is read"
                yield Finding(self._case, "unknown_mask", "warning", told, fix)

    def _region(self, name: str) -> Region | None:
        try:
            mask, notes = read_mask(self._files[name], case=self._case, like=self._like)
        except VolumeError as error:
            self.findings.append(error.finding)
            return None
        self.findings += notes
        return fitted(mask, (0, 0, 0), self._shape)
