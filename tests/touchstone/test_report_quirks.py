"""Every quirk of the released generator: there under "published", mended under "corrected"."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from touchstone_jax.io import Volume, write
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.report.attenuation import attenuation
from touchstone_jax.report.case import report_case
from touchstone_jax.report.components import lesions_of
from touchstone_jax.report.diameters import diameters, published_diameters
from touchstone_jax.report.encirclement import contact_angle_deg
from touchstone_jax.report.impression import group_impression, impression
from touchstone_jax.report.masks import Masks, lesion_names
from touchstone_jax.report.regions import Region, fitted
from touchstone_jax.report.schema import NEIGHBOURS, ORGANS, VESSELS, Lesion, Report, Staging
from touchstone_jax.report.stage import dilated, published_angles, published_staging, stage
from touchstone_jax.report.write import group_text, write_report

SPACING_MM = (1.5, 1.5, 2.0)
SHAPE = (80, 64, 48)
GEOMETRY = Geometry(SHAPE, np.diag([*SPACING_MM, 1.0]))


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> np.ndarray:
    """Voxels whose centres lie within limits in mm; x to the patient's right, y to the front."""
    out = np.zeros(SHAPE, bool)
    out[
        tuple(slice(*(round(v / s) for v in m)) for m, s in zip((x, y, z), SPACING_MM, strict=True))
    ] = True
    return out


def tube(x: float, y: float, radius: float, z: tuple[float, float] = (2, 94)) -> np.ndarray:
    """A vessel along z."""
    at = [(np.arange(n) + 0.5) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)]
    near = np.hypot(at[0][:, None] - x, at[1][None] - y) <= radius
    return near[:, :, None] & ((at[2] > z[0]) & (at[2] < z[1]))


LIVER = box((81, 117), (12, 78), (60, 90))
MASKS = {
    "spleen": box((3, 21), (9, 30), (60, 84)),
    "liver": LIVER,
    "liver_segment_4": LIVER,
    "liver_lesion": box((90, 102), (30, 39), (66, 80)),
    "colon": box((3, 15), (81, 93), (10, 20)),
    # Two kidneys that touch, and a lesion in both.
    "kidney_left": box((30, 60), (9, 24), (4, 30)),
    "kidney_right": box((60, 90), (9, 24), (4, 30)),
    "kidney_lesion": box((54, 66), (12, 21), (10, 22)),
    "pancreas": box((24, 96), (52.5, 72), (40, 58)),
    "pancreatic_cyst": box((84, 93), (60, 69), (44, 54)),
    # A PDAC that touches the SMA, and one in the tail.
    "pancreatic_pdac": box((51, 69), (52.5, 63), (42, 56)) | box((27, 39), (58.5, 69), (44, 54)),
    "superior_mesenteric_artery": tube(60, 48, 4.5),
    "aorta": tube(60, 34, 7),
    "veins": tube(110, 88, 4, (2, 40)),
    "postcava": tube(80, 32, 7, (32, 58)),
    "celiac_aa": box((57, 63), (36, 60), (80, 86)),
}
HU = np.full(SHAPE, -100.0, np.float32)
for _name, _mask in MASKS.items():
    HU[_mask] = 40 if "lesion" in _name or "pdac" in _name else 100


def masks_of(folder: Path, arrays: dict[str, np.ndarray]) -> Masks:
    folder.mkdir()
    for name, array in arrays.items():
        write(folder / f"{name}.nii.gz", array, GEOMETRY)
    files = {name: folder / f"{name}.nii.gz" for name in arrays}
    return Masks("c", files, GEOMETRY, SHAPE)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Masks:
    return masks_of(tmp_path_factory.mktemp("quirks") / "masks", MASKS)


@pytest.fixture(scope="module")
def corrected(masks: Masks) -> Report:
    return report_case(Volume(HU, GEOMETRY), masks, case="c")


@pytest.fixture(scope="module")
def published(masks: Masks) -> Report:
    return report_case(Volume(HU, GEOMETRY), masks, case="c", rules="published")


def lesions(report: Report, organ: str) -> tuple[Lesion, ...]:
    return report.organ(organ).lesions


def test_the_grid_and_what_it_does_to_volumes_and_hu(corrected, published) -> None:
    true_mm3 = LIVER.sum() * np.prod(SPACING_MM)
    ours, theirs = corrected.organ("liver"), published.organ("liver")
    assert ours.volume_mm3 == true_mm3 and (ours.mean_hu, ours.sd_hu) == (100.0, 0.0)
    ratios = [published.organ(o).volume_mm3 / corrected.organ(o).volume_mm3 for o in ORGANS]
    assert 0.002 < max(abs(ratio - 1) for ratio in ratios) < 0.05
    assert theirs.mean_hu < 99 and theirs.sd_hu > 5  # edges are mixed with the fat around


def test_the_organ_s_own_hu_is_iso() -> None:
    assert attenuation(100.0, 100.0, 0.0) == "iso"
    assert attenuation(100.0, 100.0, 0.0, published=True) == "hyper"
    for published in (False, True):
        got = [attenuation(hu, 100.0, 8.0, published=published) for hu in (99.2, 99.3, 100.8)]
        assert got == ["hypo", "iso", "hyper"]


def test_the_first_segment_file_is_segment_1(corrected, published) -> None:
    assert lesions(corrected, "liver")[0].location == (4,)
    assert lesions(published, "liver")[0].location == (1,)


def test_a_lesion_in_both_kidneys(corrected, published) -> None:
    assert lesions(corrected, "kidney")[0].location == (1, 2)
    assert lesions(published, "kidney")[0].location == (1,)


def test_masks_that_published_does_not_read(corrected, published) -> None:
    assert [x.kind for x in lesions(corrected, "pancreas")] == ["PDAC", "PDAC", "cyst"]
    assert [x.kind for x in lesions(published, "pancreas")] == ["PDAC", "PDAC"]
    for kind in ("malignant tumor", "cyst"):
        assert lesion_names("colon", kind) and not lesion_names("colon", kind, published=True)
    assert lesion_names("pancreas", "PDAC") == ("pancreas_pdac", "pancreatic_pdac")
    assert lesion_names("pancreas", "PDAC", published=True)[0] == "pancreatic_pdac"


def test_parts_of_the_pancreas_are_computed(corrected, published) -> None:
    assert corrected.segmented and not published.segmented
    near, far = lesions(corrected, "pancreas")[:2]
    assert 2 in near.location or 1 in near.location
    assert far.location == (3,)
    assert lesions(published, "pancreas")[0].location == ()


def test_a_pdac_without_a_mask_of_pnets(corrected, published) -> None:
    assert all(x.staging is None for x in lesions(published, "pancreas"))
    near, far, cyst = lesions(corrected, "pancreas")
    assert near.staging.t_stage and far.staging.t_stage and cyst.staging is None


def test_each_lesion_has_its_own_contacts(corrected: Report, tmp_path: Path) -> None:
    near, far, _ = (x.staging for x in lesions(corrected, "pancreas"))
    assert 60 < near.angles_deg["SMA"] < 180 and not any(far.angles_deg.values())
    assert near.resectability.startswith("borderline resectable (SMA abutment")
    assert far.resectability.startswith("resectable")
    with_pnet = masks_of(tmp_path / "m", {**MASKS, "pancreatic_pnet": np.zeros(SHAPE, bool)})
    theirs = report_case(Volume(HU, GEOMETRY), with_pnet, case="c", rules="published")
    near, far = (x.staging for x in lesions(theirs, "pancreas"))
    assert near.angles_deg == far.angles_deg and far.angles_deg["SMA"] > 0
    # Its place is not known, so the findings have a stage and the impression has none.
    text = write_report(theirs)
    assert "Tumor Stage (T stage): T" in text and "Clinical stage" not in text


def test_contact_ends_at_a_gap() -> None:
    vessel = fitted(tube(60, 48, 4.5), (0, 0, 0), SHAPE)
    for gap_mm, touches in ((0, True), (1.5, True), (4.5, False)):
        tumor = box((51, 69), (52.5 + gap_mm, 66), (42, 56))
        angle = contact_angle_deg(vessel, fitted(tumor, (0, 0, 0), SHAPE), SPACING_MM)
        assert (angle > 0) is touches, gap_mm


def test_the_t_stage_has_the_size_as_measured(corrected: Report, masks: Masks) -> None:
    far = lesions(corrected, "pancreas")[1]
    region = fitted(box((27, 39), (58.5, 69), (44, 54)), (0, 0, 0), SHAPE)
    (got,) = stage([replace(far, longest_mm=20.4)], [region], masks, SPACING_MM)
    assert got.t_stage == "T2"
    free = dict.fromkeys(VESSELS, 0)
    apart = dict.fromkeys(NEIGHBOURS, False)
    cut = replace(far, longest_mm=20.0)  # 20.4 mm as "published" cuts it
    assert published_staging(cut, free, apart).t_stage == "T1c"
    assert published_staging(replace(cut, kind="PNET"), free, apart) is None


def test_a_place_that_is_not_known(corrected: Report, masks: Masks) -> None:
    near = replace(lesions(corrected, "pancreas")[0], location=())
    region = fitted(box((51, 69), (52.5, 63), (42, 56)), (0, 0, 0), SHAPE)
    (got,) = stage([near], [region], masks, SPACING_MM)
    assert got.t_stage and got.resectability is None
    assert "resectability (the part of the pancreas is not known)" in got.unknown
    touched = {**dict.fromkeys(VESSELS, 0), "SMA": 90}
    theirs = published_staging(near, touched, dict.fromkeys(NEIGHBOURS, False))
    assert not theirs.summarised


def test_specks_are_judged_in_mm() -> None:
    def kept(size: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> int:
        mask = np.zeros((20, 20, 8), bool)
        mask[5 : 5 + size[0], 5 : 5 + size[1], 3 : 3 + size[2]] = True
        return len(lesions_of(fitted(mask, (0, 0, 0), mask.shape), spacing_mm))

    assert kept((1, 1, 1), (4, 4, 5)) == 1  # one voxel holds a cube of 3 mm
    assert kept((3, 3, 1), (0.7, 0.7, 5)) == 0 and kept((5, 5, 1), (0.7, 0.7, 5)) == 1
    assert kept((2, 8, 8), (1, 1, 1)) == 0 and kept((3, 3, 3), (1, 1, 1)) == 1


def test_a_line_has_a_width() -> None:
    mask = np.zeros((20, 20, 3), bool)
    mask[5:12, 9, 1] = True
    line = Region(mask[5:12, 9:10, 1:2], (5, 9, 1), mask.shape)
    assert published_diameters(line).perpendicular_mm == 0
    got = diameters(line, (1, 1, 1))
    assert got.longest_mm == pytest.approx(7, abs=0.2) and 0.9 < got.perpendicular_mm < 1.5


def test_words_of_the_impression() -> None:
    large = Lesion("PDAC", 1, 9e4, 30.0, 5.0, 55.0, 50.0, 4, attenuation="hypo", location=(2,))
    small = replace(large, kind="lesion", longest_mm=20.0, attenuation="iso")
    for rules, size, article in ((True, "5.0, cm)", "A iso"), (False, "5.0 cm)", "An iso")):
        assert size in group_impression("pancreas", "PDAC", [large], published=rules)
        text = group_impression("pancreas", "lesion", [small], published=rules)
        assert text.startswith(f"{article}attenuating")


def test_a_lesion_that_the_scan_cuts() -> None:
    cut = Lesion("cyst", 1, 9e3, 30.0, 5.0, 25.0, 20.0, 4, attenuation="hypo", cut=True)
    assert "The scan ends within the lesion." in group_text("liver", "cyst", [cut])
    assert "scan ends" not in group_text("liver", "cyst", [cut], published=True)


def test_no_tumor_is_said_where_somebody_looked(corrected, published) -> None:
    def emptied(report: Report) -> str:
        bare = [
            replace(o, lesions=(), assessed=o.assessed[: o.name == "liver"]) for o in report.organs
        ]
        return impression(replace(report, organs=tuple(bare)))

    assert emptied(published) == "No tumor observed in the liver, pancreas or kidneys."
    assert emptied(corrected).splitlines() == [
        "No tumor observed in the liver.",
        "Not assessed for lesions: pancreas, kidneys.",
    ]


def test_a_vessel_that_runs_across_is_not_missed() -> None:
    """Contact with a horizontal branch; the released generator follows vessels along z alone."""
    at = np.arange(60) + 0.5
    branch = np.hypot(at[None, :, None] - 30, at[None, None] - 30) <= 4
    branch = np.repeat(branch, 60, axis=0)
    branch[:4] = branch[-4:] = False
    tumor = np.zeros((60, 60, 60), bool)
    tumor[22:38, 30:46, 22:38] = ~branch[22:38, 30:46, 22:38]
    vessel, mass = (fitted(m, (0, 0, 0), m.shape) for m in (branch, tumor))
    ours = contact_angle_deg(vessel, mass, (1, 1, 1))
    empty = fitted(np.zeros_like(tumor), (0, 0, 0), tumor.shape)
    others = ("aorta", "portal vein and SMV", "IVC", "celiac")
    named = {**dict.fromkeys(others, empty), "SMA": vessel}
    theirs = published_angles(mass, named)
    assert dilated(mass, 4).overlaps(vessel) and ours == pytest.approx(200, abs=20)
    assert theirs is None or theirs["SMA"] < ours / 2


def test_staging_that_is_unknown_has_no_contacts() -> None:
    blank = Staging(dict.fromkeys(VESSELS, 0), dict.fromkeys(NEIGHBOURS), "T1a")
    tumor = Lesion("PDAC", 1, 90.0, 30.0, 5.0, 5.0, 5.0, 4, staging=blank)
    assert "organs: not assessed." in group_text("pancreas", "PDAC", [tumor])
    assert "organs: No. " in group_text("pancreas", "PDAC", [tumor], published=True)
