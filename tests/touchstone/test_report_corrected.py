"""Reports by the corrected rules, on phantoms whose truth is known by formula."""

from pathlib import Path

import numpy as np
import pytest

from touchstone_jax.report.diameters import diameters
from touchstone_jax.report.encirclement import contact_angle_deg
from touchstone_jax.report.locate import locate
from touchstone_jax.report.regions import Region, fitted, union
from touchstone_jax.report.resectability import RESECTABLE, RESECTABLE_WITH_VEIN, resectability
from touchstone_jax.report.schema import NEIGHBOURS, Lesion, Organ, Report, Staging
from touchstone_jax.report.sizes import enlargement, size_words
from touchstone_jax.report.tstage import t_stage
from touchstone_jax.report.write import organ_text, write_report

SPACING_MM = (0.8, 0.8, 1.5)


def grid_mm(size_mm: tuple[float, float, float], spacing_mm=SPACING_MM) -> np.ndarray:
    """Positions of the voxel centres in mm around the middle, (x, y, z, 3)."""
    axes = [
        (np.arange(round(m / s)) - (round(m / s) - 1) / 2) * s
        for m, s in zip(size_mm, spacing_mm, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def region(mask: np.ndarray) -> Region:
    return fitted(mask, (0, 0, 0), mask.shape)


@pytest.mark.parametrize("turn_deg", [0, 25, 60])
@pytest.mark.parametrize("semi_mm", [(20, 12, 15), (9, 6, 10), (5, 5, 5)])
def test_an_ellipsoid_has_its_volume_and_diameters(turn_deg: float, semi_mm) -> None:
    at = grid_mm((48, 48, 36)) - np.array([0.17, -0.23, 0.31])
    turn = np.radians(turn_deg)
    x = at[..., 0] * np.cos(turn) + at[..., 1] * np.sin(turn)
    y = at[..., 1] * np.cos(turn) - at[..., 0] * np.sin(turn)
    inside = (x / semi_mm[0]) ** 2 + (y / semi_mm[1]) ** 2 + (at[..., 2] / semi_mm[2]) ** 2 <= 1
    got = diameters(region(inside), SPACING_MM)
    volume_mm3 = inside.sum() * np.prod(SPACING_MM)
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * np.prod(semi_mm), rel=0.02)
    assert got.longest_mm == pytest.approx(2 * max(semi_mm[:2]), abs=1)
    assert got.perpendicular_mm == pytest.approx(2 * min(semi_mm[:2]), abs=1)
    # The ends lie that far apart, at right angles.
    ends, across = (
        np.diff(np.array(p) * SPACING_MM[:2], axis=0)[0] for p in (got.ends, got.across)
    )
    assert np.linalg.norm(ends) == pytest.approx(got.longest_mm)
    assert np.linalg.norm(across) == pytest.approx(got.perpendicular_mm)
    assert abs(ends @ across) < 1e-6 * got.longest_mm * got.perpendicular_mm + 1e-9


def test_all_pieces_of_a_slice_are_measured() -> None:
    """The released generator takes the piece with the smallest x alone: 5 mm here."""
    mask = np.zeros((40, 20, 3), bool)
    mask[2:7, 8:13, 1] = mask[30:35, 8:13, 1] = True
    mask[4:32, 10, 2] = True  # in another slice they are joined, so it is one component
    got = diameters(region(mask), (1, 1, 1))
    slow = _farthest(mask[:, :, 1])
    assert got.slice_index == 1 and got.longest_mm == pytest.approx(slow)


def _farthest(mask: np.ndarray) -> float:
    """Farthest two of the middles of all pixel edges on the outline, pair by pair."""
    points = []
    for i, j in np.argwhere(mask):
        for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            a, b = i + di, j + dj
            outside = not (0 <= a < mask.shape[0] and 0 <= b < mask.shape[1]) or not mask[a, b]
            points += [(i + di / 2, j + dj / 2)] if outside else []
    return max(float(np.hypot(a[0] - b[0], a[1] - b[1])) for a in points for b in points)


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (1, 1, 0.3)])
@pytest.mark.parametrize("angle_deg", [60, 135, 270])
def test_the_angle_around_a_vessel_in_any_direction(angle_deg: float, axis) -> None:
    spacing = (0.8, 0.8, 1.0)
    at = grid_mm((46, 46, 46), spacing)
    along = np.asarray(axis, float) / np.linalg.norm(axis)
    first = np.cross(along, np.eye(3)[np.abs(along).argmin()])
    first /= np.linalg.norm(first)
    p, q = at @ first, at @ np.cross(along, first)
    radius, turn = np.hypot(p, q), np.degrees(np.arctan2(q, p) + 0.7) % 360
    vessel = region(radius <= 5)
    tumor = (radius > 5) & (radius <= 12) & (np.abs(at @ along) <= 9) & (turn <= angle_deg)
    assert contact_angle_deg(vessel, region(tumor), spacing) == pytest.approx(angle_deg, abs=10)
    ring = (radius > 5) & (radius <= 12) & (np.abs(at @ along) <= 9)
    if angle_deg == 270:
        assert contact_angle_deg(vessel, region(ring), spacing) == 360
        far = region((radius > 10) & (radius <= 14) & (np.abs(at @ along) <= 9))
        assert contact_angle_deg(vessel, far, spacing) == 0
        assert contact_angle_deg(vessel, region(np.zeros_like(ring)), spacing) == 0


def test_t_stages_follow_the_manual() -> None:
    free, apart = dict.fromkeys(("SMA", "CA", "CHA"), 0), dict.fromkeys(NEIGHBOURS, False)
    sizes = {0.5: "T1a", 0.51: "T1b", 1: "T1b", 2: "T1c", 2.01: "T2", 4: "T2", 4.01: "T3"}
    for size, stage in sizes.items():
        assert t_stage(size, free, apart, pnet=False) == (stage, ())
    for size, stage in {1.99: "T1", 2.0: "T2", 4: "T2", 4.01: "T3"}.items():
        assert t_stage(size, free, apart, pnet=True) == (stage, ())
    for artery in free:
        assert t_stage(1, {**free, artery: 180}, apart, pnet=False) == ("T4", ())
        assert t_stage(1, {**free, artery: 179}, apart, pnet=False) == ("T1b", ())
        assert t_stage(3, {**free, artery: None}, apart, pnet=False) == ("T2", (artery,))
    assert t_stage(1, free, {**apart, "stomach": True}, pnet=True)[0] == "T4"
    assert t_stage(1, free, {**apart, "stomach": True}, pnet=False)[0] == "T1b"
    assert t_stage(1, free, {**apart, "bile duct": True}, pnet=True)[0] == "T3"
    assert t_stage(1, free, {**apart, "duodenum": None}, pnet=True) == ("T1", ("duodenum",))


def test_resectability_speaks_of_every_contact() -> None:
    none = dict.fromkeys(("SMA", "CA", "CHA", "portal vein and SMV", "IVC"), 0)
    assert resectability(none, head=True) == RESECTABLE
    vein = {**none, "portal vein and SMV": 150}
    assert resectability(vein, head=False) == RESECTABLE_WITH_VEIN
    told = resectability({**none, "portal vein and SMV": 200}, head=False)
    assert told == "borderline resectable (portal vein and SMV encasement)"
    assert resectability({**none, "CHA": 180}, head=False) == "borderline resectable (CHA abutment)"
    assert resectability({**none, "SMA": 181}, head=False) == "unresectable (SMA encasement)"
    celiac = {**none, "CA": 90}
    assert resectability(celiac, head=False) == "borderline resectable (CA abutment)"
    assert resectability(celiac, head=True) == "unresectable (CA abutment)"
    assert resectability({**none, "IVC": 50}, head=True) == "borderline resectable (IVC abutment)"


def test_one_large_kidney_is_one() -> None:
    sides = {"right": 100e3, "left": 250e3}
    organ = Organ("kidney", 350e3, sides, 170.0, 3.0)
    assert size_words(organ) == "Left kidney is enlarged"
    assert enlargement(size_words(organ)) == "Enlarged left kidney."
    assert size_words(organ, published=True) == "Bilateral kidneys are enlarged"


def test_fat_is_judged_where_the_scan_cuts_the_organ_and_beside_a_fatty_spleen() -> None:
    organ = Organ("liver", None, {}, 35.0, 9.0, assessed=("lesion",), cut=True)
    text = organ_text(organ, "Plain", 50.0)
    assert "Fatty infiltration" in text and "the scan ends within the organ" in text
    assert "Normal attenuation" in organ_text(organ, "Plain", 50.0, published=True)
    pancreas = Organ("pancreas", 60e3, {}, 20.0, 9.0, assessed=("lesion",))
    assert "Fatty" not in organ_text(pancreas, "Plain", -5.0)


def test_overlaps_of_sub_segments() -> None:
    mask = np.zeros((10, 4, 4), bool)
    mask[2:8, 1:3, 1:3] = True
    lesion = region(mask)
    left, right = mask.copy(), mask.copy()
    left[5:], right[:5] = False, False
    parts = {2: region(left), 5: region(right)}
    assert locate(lesion, parts, "first") == locate(lesion, parts, "last") == (2, 5)
    assert locate(lesion, {**parts, 6: region(left)}, "sum") == (5, 8)
    assert locate(lesion, {}, "last") == ()
    assert union([region(left), region(right)]).voxels == lesion.voxels
    with pytest.raises(ValueError, match="overlap='all'; legal values: first"):
        locate(lesion, parts, "all")


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    angles = dict.fromkeys(("SMA", "aorta", "portal vein and SMV", "IVC", "CA", "CHA", "SA"))
    staging = Staging(angles, {}, None, None, ("SMA (no usable mask)",))
    tumor = Lesion("lesion", 1, 900.0, 40.0, 5.0, 13.2, 9.1, 4, staging=staging, outside=True)
    organs = (
        Organ("spleen", unknown=("no usable mask of the spleen",)),
        Organ("liver", 9e5, {}, 100.0, 5.0, (), ("lesion",)),
        Organ("pancreas", None, {}, None, None, (tumor,), ("lesion",)),
        Organ("kidney", None, {"right": None, "left": None}),
        Organ("colon"),
    )
    text = write_report(Report("c", "corrected", None, (1, 1, 1), (9, 9, 9), organs))
    for said in (
        "Size not assessed: no usable mask of the spleen.",
        "Location: outside the organ's mask.",
        "Enhancement relative to pancreas: not assessed (HU value is 40.0+/-5.0).",
        "Not assessed: SMA (no usable mask).",
        "Lesions not assessed: no lesion mask.",
        "Not assessed for lesions: kidneys.",
    ):
        assert said in text, said
    assert "Tumor Stage" not in text and "does not contact" not in text
