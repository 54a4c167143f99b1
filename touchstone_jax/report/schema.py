"""What a report is made of: measurements as data, before any of it becomes text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ORGANS = ("spleen", "liver", "pancreas", "kidney", "colon")
"""The sections of a report, in order."""

KINDS = ("PDAC", "PNET", "malignant tumor", "cyst", "lesion")
"""Kinds of lesions, in the order of the text; a plain "lesion" is of unknown kind."""

VESSELS = ("SMA", "aorta", "portal vein and SMV", "IVC", "CA", "CHA", "SA")
"""Vessels of staging: superior mesenteric artery, aorta, portal and superior mesenteric vein,
inferior vena cava, celiac artery, common hepatic artery, splenic artery."""

NEIGHBOURS = (
    *("left adrenal gland", "spleen", "colon", "left kidney"),
    *("stomach", "duodenum", "bile duct", "intestine"),
)
"""Organs whose contact with a pancreatic tumor is told."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "liver": tuple(map(str, range(1, 9))),
    "pancreas": ("head", "body", "tail"),
    "kidney": ("left kidney", "right kidney"),
}
"""Names of an organ's sub-segments; a location lists their numbers, from 1."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Staging:
    """How a pancreatic tumor stands to vessels and organs.

    Attributes:
        angles_deg: vessel of `VESSELS` to the angle of its circumference that touches the tumor,
            0..360 degrees; None for a vessel that has no usable mask.
        contacts: organ of `NEIGHBOURS` to whether it touches; None as above.
        t_stage: "T1a" to "T4"; None if it cannot be told.
        resectability: what the text says of it, without a full stop; None if nothing is said.
        unknown: why something is None, one reason each.
        summarised: whether stage and resectability go into the impression.
    """

    angles_deg: Mapping[str, int | None]
    contacts: Mapping[str, bool | None]
    t_stage: str | None
    resectability: str | None = None
    unknown: tuple[str, ...] = ()
    summarised: bool = True


@dataclass(frozen=True)
class Lesion:
    """One lesion. Voxels are counted along the canonical axes of the CT (see `touchstone_jax.io`).

    Attributes:
        kind: of `KINDS`; it comes from the mask's name alone.
        number: from 1 within its organ and kind, the largest volume first.
        volume_mm3: in mm³.
        mean_hu, sd_hu: over its voxels, population standard deviation, in HU.
        longest_mm, perpendicular_mm: the two axial diameters as reported, in mm.
        slice_index: axial slice of the diameters, from 0 at the feet.
        ends, across: the diameters' end points (x, y) in that slice, in voxels of the CT.
        start, stop: its box in voxels of the CT.
        attenuation: "hypo", "iso" or "hyper" against the organ; None without the organ.
        location: numbers in `PARTS` of the organ; empty if unknown.
        staging: of a pancreatic tumor.
        cut: the scan ends within it, so every size is a least size.
        outside: no voxel of it lies in the organ.
    """

    kind: str
    number: int
    volume_mm3: float
    mean_hu: float
    sd_hu: float
    longest_mm: float
    perpendicular_mm: float
    slice_index: int
    ends: tuple[Point, Point] = ((0.0, 0.0), (0.0, 0.0))
    across: tuple[Point, Point] = ((0.0, 0.0), (0.0, 0.0))
    start: tuple[int, int, int] = (0, 0, 0)
    stop: tuple[int, int, int] = (0, 0, 0)
    attenuation: str | None = None
    location: tuple[int, ...] = ()
    staging: Staging | None = None
    cut: bool = False
    outside: bool = False

    @property
    def size_cm(self) -> float:
        """The longest diameter as printed, in cm."""
        return tenth(self.longest_mm / 10)


@dataclass(frozen=True)
class Organ:
    """One section of the report.

    Attributes:
        name: of `ORGANS`.
        volume_mm3: None if it has no usable mask or the scan cuts it.
        parts_mm3: "right" and "left" kidney; None as above.
        mean_hu, sd_hu: outside all lesions, rounded to 0.1 HU; None without voxels.
        lesions: in the order of the text.
        assessed: the masks of lesions that were there; empty if nobody looked for lesions.
        cut: the scan ends within it.
        unknown: why something is not known, one reason each.
    """

    name: str
    volume_mm3: float | None = None
    parts_mm3: Mapping[str, float | None] = field(default_factory=dict)
    mean_hu: float | None = None
    sd_hu: float | None = None
    lesions: tuple[Lesion, ...] = ()
    assessed: tuple[str, ...] = ()
    cut: bool = False
    unknown: tuple[str, ...] = ()

    def kinds(self) -> dict[str, list[Lesion]]:
        """The lesions by kind, in the order of the text; kinds without one are left out."""
        found = {kind: [x for x in self.lesions if x.kind == kind] for kind in KINDS}
        return {kind: lesions for kind, lesions in found.items() if lesions}


@dataclass(frozen=True)
class Report:
    """All that is known of a case.

    Attributes:
        case: id.
        rules: "corrected" or "published".
        phase: of the contrast agent, "Plain" for none; None if unknown.
        spacing_mm, shape: of the CT along the canonical axes.
        organs: in the order of `ORGANS`.
        segmented: whether the pancreatic sub-segments were computed from the SMA.
    """

    case: str
    rules: str
    phase: str | None
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    organs: tuple[Organ, ...]
    segmented: bool = False

    def organ(self, name: str) -> Organ:
        """The section of that name.

        Raises:
            KeyError: there is none.
        """
        for organ in self.organs:
            if organ.name == name:
                return organ
        raise KeyError(f"no section {name!r}; legal: {', '.join(o.name for o in self.organs)}")

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and words."""
        return asdict(self)


def tenth(value: float, decimals: int = 1) -> float:
    """Rounded to 0.1 (or as many decimals), halves to even as NumPy does it; never -0.0."""
    import numpy as np

    return float(np.round(float(value), decimals)) + 0.0


def location_name(organ: str, location: tuple[int, ...]) -> str:
    """A location in words, such as "hepatic segment 5/7", "head/body", "left kidney"; "" if none.

    Raises:
        IndexError: a number that the organ does not have.
    """
    if not location or organ not in PARTS:
        return ""
    if organ == "liver":  # of segments that overlap, "published" adds the numbers: any may come
        return f"hepatic segment {'/'.join(map(str, location))}"
    return "/".join(PARTS[organ][k - 1] for k in location)
