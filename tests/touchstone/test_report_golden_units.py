"""Reports: every sub-rule against vectors made by the released generator."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from touchstone_jax.report.attenuation import attenuation
from touchstone_jax.report.celiac import split_celiac
from touchstone_jax.report.components import lesions_of
from touchstone_jax.report.diameters import published_diameters
from touchstone_jax.report.evaluate import evaluate
from touchstone_jax.report.extract import parse_answer, parse_malignancy, parse_size_mm
from touchstone_jax.report.grid import report_grid
from touchstone_jax.report.impression import group_impression
from touchstone_jax.report.locate import locate
from touchstone_jax.report.metadata import COLUMNS
from touchstone_jax.report.published_contact import outer_ring, published_angle_deg
from touchstone_jax.report.regions import fitted
from touchstone_jax.report.resectability import published_resectability
from touchstone_jax.report.schema import NEIGHBOURS, VESSELS, Lesion, Organ, Staging
from touchstone_jax.report.schema import Report as Measured
from touchstone_jax.report.tstage import published_t_stage
from touchstone_jax.report.write import group_text, organ_text, vessel_lines, write_report


def words(text: str) -> str:
    """With every run of blanks and line ends made one blank."""
    return " ".join(text.split())


def unit(golden: Path, name: str) -> Any:
    return json.loads((golden / "report" / "unit" / name).read_text(encoding="utf-8"))


def test_the_1_mm_grid_samples_as_released(golden: Path) -> None:
    arrays = np.load(golden / "report/unit/resample.npz", allow_pickle=False)
    for i, case in enumerate(unit(golden, "resample.json")):
        grid = report_grid(case["shape"], case["spacing"])
        assert list(grid.shape) == case["out_shape"]
        out = grid.hu(arrays[f"ct{i}"], (0, 0, 0), grid.shape)
        np.testing.assert_allclose(out, arrays[f"ct{i}_out"], rtol=0, atol=1e-10)
        box = ((1, 0, 2), (grid.shape[0] - 1, 3, grid.shape[2]))
        part = grid.hu(arrays[f"ct{i}"], *box)
        np.testing.assert_allclose(part, out[1 : grid.shape[0] - 1, :3, 2:], rtol=0, atol=1e-10)
        labels = arrays[f"lab{i}"]
        for label in np.unique(labels)[1:]:
            region = grid.region(fitted(labels == label, (0, 0, 0), labels.shape))
            got = region.window((0, 0, 0), grid.shape)
            np.testing.assert_array_equal(got, arrays[f"lab{i}_out"] == label)


def test_diameters_of_23_shapes(golden: Path) -> None:
    for name, case in unit(golden, "diameters_2d.json").items():
        mask = np.array([[c == "1" for c in row] for row in case["mask_rows"]])[:, :, None]
        got = published_diameters(fitted(mask, (0, 0, 0), mask.shape))
        assert got.longest_mm == pytest.approx(case["longest"], abs=1e-9), name
        assert [list(end) for end in got.ends] == [case["p1"], case["p2"]], name
        assert [int(got.longest_mm), int(got.perpendicular_mm)] == case["reported"], name


@pytest.mark.parametrize(
    ("key", "smallest", "erosion"),
    [
        ("th0_erode0", 0, False),
        ("th10_erode3", 10, True),
        ("th50_erode3", 50, True),
        ("th0_erode3", 0, True),
    ],
)
def test_components(key: str, smallest: float, erosion: bool, golden: Path) -> None:
    arrays = np.load(golden / "report/unit/components_in.npz", allow_pickle=False)
    mask, ct, segments = arrays["mask"] > 0, arrays["ct"], arrays["segments"]
    parts = {k: fitted(segments == k, (0, 0, 0), mask.shape) for k in (1, 2, 3)}
    whole = fitted(mask, (0, 0, 0), mask.shape)
    found = lesions_of(whole, (1, 1, 1), min_component_mm3=smallest, erosion=erosion)
    expected = list(unit(golden, "components.json")[key].values())
    assert len(found) == len(expected)
    for region, want in zip(found, expected, strict=True):
        size = published_diameters(region)
        box = tuple(slice(a, b) for a, b in zip(region.start, region.stop, strict=True))
        hu = ct[box][region.mask]
        assert region.voxels == want["volume"]
        assert int(size.longest_mm) == want["longest_diameter"]
        assert int(size.perpendicular_mm) == want["perpendicular_diameter"]
        assert [np.round(hu.mean(), 1), np.round(hu.std(), 1)] == [want["mean_hu"], want["std_hu"]]
        assert list(locate(region, parts)) == want["tumor_segment"]


def test_161_organ_texts(golden: Path) -> None:
    cases = unit(golden, "organ_text.json")
    assert len(cases) == 161
    for case in cases:
        volumes = case["volume_mm3(right,left for kidney)"]
        sides = (
            dict(zip(("right", "left"), volumes, strict=True)) if case["organ"] == "kidney" else {}
        )
        organ = Organ(case["organ"], case["total"], sides, case["hu"], case["hu_sd"])
        got = organ_text(organ, case["phase"], case["spleen_hu"], published=True)
        assert words(got) == words(case["text"]), case


def _staging(block: str, located: bool) -> Staging | None:
    """The staging that the generator was given when it wrote this block."""
    found = re.search(r"T stage\): (\w+)\.", block)
    if found is None:
        return None
    near = re.search(r"adjacent organs: (.*?)\.", block)
    said = re.search(r"resectability:\s+(.*?)\.\n", block)
    names = [] if near is None or near[1] == "No" else near[1].split(", ")
    contacts = dict.fromkeys(names, True)
    return Staging({"SMA": 0}, contacts, found[1], said and said[1], summarised=located)


def _location(organ: str, labels: list[int] | None) -> tuple[int, ...]:
    """Of several kidneys "published" keeps the first; it does so while measuring."""
    return tuple(labels or ())[: 1 if organ == "kidney" else None]


def test_168_lesion_texts(golden: Path) -> None:
    cases = unit(golden, "lesion_text.json")
    assert len(cases) == 168
    for case in cases:
        blocks = re.split(r"lesion \d+:", case["text"].split("IMPRESSION")[0])[1:]
        hu = (case["organ_hu"], case["organ_hu_std"])
        lesions = [
            Lesion(
                case["lesion_type"],
                number,
                given["volume"],
                given["mean_hu"],
                given["std_hu"],
                given["longest_diameter"],
                given["perpendicular_diameter"],
                int(given["slice"]),
                attenuation=attenuation(given["mean_hu"], *hu),
                location=_location(case["organ"], given["tumor_segment"]),
                staging=_staging(block, bool(given["tumor_segment"])),
            )
            for number, (given, block) in enumerate(zip(case["lesions"], blocks, strict=False), 1)
        ]
        if not lesions:
            assert not case["text"].strip()
            continue
        organ, kind = case["organ"], case["lesion_type"]
        got = group_text(organ, kind, lesions, published=True)
        # The vectors stub out the staging's own lines, among them a PNET's contacts.
        got = re.sub(r"(contact: SMA\. \n)Contact with adjacent organs: .*\n", r"\1", got)
        got += "\nIMPRESSION: " + group_impression(organ, kind, lesions, published=True)
        assert words(got) == words(case["text"]), (organ, kind, case["scenario"])


def test_assembly_of_sections(golden: Path) -> None:
    spleen = {"all_normal": 200e3, "lesions": 200e3}
    for case in unit(golden, "assembly.json"):
        large = case["name"] == "enlarged_everything"
        liver = Lesion(
            "lesion", 1, 10900, 58.7, 29.7, 31, 27, 387, attenuation="hypo", location=(7, 8)
        )
        colon = Lesion("lesion", 1, 900, 58.7, 29.7, 11, 7, 37, attenuation="hyper")
        lesions = case["name"] in ("lesions", "massive_spleen_then_lesions")
        text = case["report"]
        kidneys = [
            float(x) * 1000 for x in re.findall(r"(?:right|left) kidney volume: ([\d.]+)", text)
        ]
        sides = dict(zip(("right", "left"), kidneys, strict=True))
        total = float(re.search(r"total kidney volume: ([\d.]+)", text)[1]) * 1000
        # The stub calls a liver of 1.2 l enlarged and a pancreas of 84.6 ml normal: sizes are
        # judged from volumes that fit its words.
        organs = (
            Organ("spleen", spleen.get(case["name"], 480e3), {}, 113.6, 3.2),
            Organ(
                "liver", 3.1e6 if large else 1249900, {}, 131.4, 23.2, (liver,) if lesions else ()
            ),
            Organ("pancreas", 84600 if "Pancreas is" in text else 81.3e3, {}, 105.7, 33.1),
            Organ("kidney", total, sides, 172.9, 57.4),
            Organ("colon", None, {}, 2.0, 1.0, (colon,) if "Colon lesions" in text else ()),
        )
        made = Measured("c", "published", case["phase"], (1, 1, 1), (9, 9, 9), organs)
        got = words(write_report(made)).replace("3100.0", "1249.9").replace("81.3 cm", "84.6 cm")
        if case["phase"] == "Plain":  # the stub has no words of fat
            got = re.sub(
                r"Normal attenuation \(Mean HU value: (.*?)\)\.", r"Mean HU value: \1.", got
            )
            got = re.sub(
                r"Normal attenuation, mean (HU value: .*?), panc.*?: [\d.]+\.", r"Mean \1.", got
            )
        assert got == words(text), (case["name"], case["phase"])


def test_the_truth_table_of_resectability(golden: Path) -> None:
    table = unit(golden, "resectability.json")
    assert len(table["rows"]) == 576
    for *values, told, head in table["rows"]:
        angles = dict(zip(table["columns"][:5], values, strict=True))
        for at_head, want in ((False, told), (True, head)):
            got = published_resectability(angles, head=at_head)
            assert ("" if got is None else got) + "." == want.strip(), (angles, at_head)


def test_stages_by_size_and_by_contact(golden: Path) -> None:
    free, apart = dict.fromkeys(VESSELS, 0), dict.fromkeys(NEIGHBOURS, False)
    for case in unit(golden, "stage_by_size.json"):
        got = published_t_stage(case["size_cm"], free, apart, pnet=case["pnet"])
        assert got == case.get("stage"), case  # it fails on a PNET of 2.0 cm: no stage
        if got:
            told = vessel_lines(Staging(free, apart, got), "PNET" if case["pnet"] else "PDAC")
            assert words(" ".join(told)) == words(case["text"])
    for name, case in unit(golden, "stage/stage_vectors.json").items():
        angles = {v: case["interaction"][v] for v in VESSELS}
        contacts = {n: case["interaction"][n] for n in NEIGHBOURS}
        stage = published_t_stage(case["size_cm"], angles, contacts, pnet=case["pnet"])
        assert stage == case["stage"], name
        told = vessel_lines(Staging(angles, contacts, stage), "PNET" if case["pnet"] else "PDAC")
        assert words(" ".join(told)) == words(case["text"]), name
        said = published_resectability(angles)
        assert ("" if said is None else said) + "." == case["resectability_as_run"].strip(), name


def test_the_celiac_artery_is_divided_as_released_but_for_the_sides(golden: Path) -> None:
    folder = golden / "report/unit/stage"
    for name in ("celiac_trunk_encased", "oblique_portal"):
        arrays = np.load(folder / f"stage_{name}.npz", allow_pickle=False)
        want = np.load(folder / f"celiac_split_{name}.npz", allow_pickle=False)
        # The balls reach no further than 18 mm from the celiac artery.
        box = (slice(0, 90), slice(8, 78), slice(42, 80))
        celiac, aorta = arrays["celiac_aa"][box] > 0, arrays["aorta"][box] > 0
        assert celiac.sum() == (arrays["celiac_aa"] > 0).sum()
        got = split_celiac(celiac, aorta, exchanged=True)
        mended = split_celiac(celiac, aorta)
        assert got is not None and mended is not None
        for part, twin in (("CA", "CA"), ("CHA", "SA"), ("SA", "CHA")):
            np.testing.assert_array_equal(got[part], want[part][box] > 0)
            np.testing.assert_array_equal(mended[twin], got[part])
        assert np.argwhere(mended["CHA"])[:, 0].mean() > np.argwhere(mended["CA"])[:, 0].mean()


def test_the_ring_around_a_vessel(golden: Path) -> None:
    for name, want in unit(golden, "outer_ring.json").items():
        want = np.array(want)
        vessel = np.zeros(want.shape, bool)
        if name == "disc":
            at = np.arange(15) - 7
            # The ring is more than 1 and at most 2 pixels from the disc of radius 3 in its middle.
            vessel = np.hypot(*np.meshgrid(at, at)) <= 3
        np.testing.assert_array_equal(outer_ring(vessel), want > 0)


@pytest.mark.parametrize(
    ("lean", "bend", "radius", "half", "centre", "size", "want"),
    [
        (-0.8, -0.8, 3, 28, (6, 0, 0), 9, 127),  # axis towards -x: 123 where it is not turned over
        (0.5, -0.8, 3, 28, (-5, 4, -4), 9, 188),  # 205 in a box one slice larger
        (-0.4, 0.8, 3, 28, (-5, 4, -4), 9, 116),
        (0.6, 0, 4.2, 4, (0, 5, 5), 6, None),  # its last windows stop before the last slice
    ],
)
def test_angles_of_leaning_and_bent_tubes(lean, bend, radius, half, centre, size, want) -> None:
    """Figures that the released generator gives for these very masks; None where it fails."""
    n = 56
    x, y, z = np.indices((n, n, n)) - n // 2
    tube = np.hypot(x - lean * z - bend * z * z / n, y + 0.3 * lean * z) <= radius
    far = abs(x - centre[0]) + abs(y - centre[1]) + abs(z - centre[2])
    masks = (tube & (abs(z) <= half), far <= size)
    vessel, tumor = (fitted(mask, (0, 0, 0), mask.shape) for mask in masks)
    assert published_angle_deg(vessel, tumor, whole=False) == want


def test_answers_of_language_models(golden: Path) -> None:
    for case in unit(golden, "label_parse_and_metrics.json")["parse"]:
        if case["step"] == "tumor detection":
            got = parse_answer(case["answer"])
            want = [case["parsed"][f"{organ.capitalize()} Tumor"] for organ in got]
            assert [str(v) for v in got.values()] == [str(float(w)) for w in want], case
        if case["step"] == "malignancy detection":
            got = parse_malignancy(case["answer"], case["organ"])
            assert str(got) == str(float(next(iter(case["parsed"].values())))), case
        if case["step"] == "malignant size":
            got = parse_size_mm(case["answer"], case["organ"])
            assert str(got) == str(float(next(iter(case["parsed"].values())))), case


def test_scores_of_labels(golden: Path) -> None:
    stored = unit(golden, "label_parse_and_metrics.json")["metrics"]
    organs = ["Liver Tumor", "Kidney Tumor", "Pancreas Tumor"]

    def labels(table: dict[str, list]) -> dict[str, dict[str, float]]:
        rows = zip(table["Anon Acc #"], *(table[o] for o in organs), strict=True)
        return {row[0]: {o: float(v) for o, v in zip(organs, row[1:], strict=True)} for row in rows}

    got = evaluate(
        labels(stored["ground_truth"]), labels(stored["prediction"]), drop_incomplete=True
    )
    printed = iter(stored["printed"])
    for organ in organs:
        assert next(printed) == f"Metrics for {organ}:"
        score = got[organ]
        values = (score.tp, score.fp, score.tn, score.fn)
        values += (score.sensitivity, score.specificity, score.ppv, score.f1)
        for value in values:
            assert value == pytest.approx(float(next(printed).split(": ")[1]), abs=1e-12)
    assert math.isnan(evaluate({"a": {"x": 0.0}}, {"a": {"x": 0.0}})["x"].sensitivity)


def test_the_table_has_every_column_of_the_released_one(golden: Path) -> None:
    with (golden / "report/reports_and_metadata.csv").open(encoding="utf-8", newline="") as file:
        released = next(csv.reader(file))
    ours = [name for name in COLUMNS if "PNET" not in name]
    assert set(ours) == set(released) and len(ours) == len(released) == 79
