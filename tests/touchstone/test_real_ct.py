"""A real abdominal CT (3 mm) through reading, verifying and preparing."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.touchstone.cases import stored_as
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layouts import discover
from touchstone_jax.prepare import prepare_case, to_source_grid
from touchstone_jax.prepare.planning import make_plan
from touchstone_jax.prepare.prepared import open_prepared
from touchstone_jax.verify import examine, verify


@pytest.fixture
def real_ct(golden: Path) -> Path:
    return golden.parent / "data" / "real_ct"


def test_there_is_no_finding_but_the_copy(real_ct: Path) -> None:
    cases = discover(real_ct)
    assert [case.id for case in cases] == ["TS_full_3mm", "TS_upper_3mm", "TS_upper_3mm_b"]
    findings = list(verify(cases))
    assert [(f.case, f.check) for f in findings] == [("TS_upper_3mm_b", "duplicate")]
    for case in cases[:2]:
        combined = nibabel.load(case.ct.parent / "combined_labels.nii.gz")
        np.testing.assert_array_equal(examine(case).labels, np.asarray(combined.dataobj))


def test_predictions_read_like_segmentations_have_the_published_scores(
    real_ct: Path, golden: Path
) -> None:
    told = json.loads((golden / "metrics" / "real_ct_pairs.json").read_text())["cases"]
    references = {case.id: case for case in discover(real_ct)}
    predicted = discover(real_ct, "abdomenatlas", segmentations="predictions")
    predictions = {case.id: case for case in predicted if case.masks}
    assert predictions.keys() == told.keys()
    indices = scheme("abdomenatlas_1.0").indices
    for case, organs in told.items():
        p, r = (examine(found[case]).labels for found in (predictions, references))
        assert organs.keys() == indices.keys()
        for organ, values in organs.items():
            a, b = p == indices[organ], r == indices[organ]
            dsc = 2 * (a & b).sum() / (a.sum() + b.sum() + 1)
            assert dsc == pytest.approx(values["dice_touchstone"], abs=1e-6)


def test_other_stored_axes_change_no_bit_of_the_prepared_arrays(
    real_ct: Path, tmp_path: Path
) -> None:
    shutil.copytree(real_ct / "TS_upper_3mm", tmp_path / "data" / "c")
    (case,) = discover(tmp_path / "data")
    plan = make_plan([case], spacing_mm=(4, 4, 4))
    made = {}
    for orientation in ("RAS", "LPS", "PIL"):
        for path in case.files:
            stored_as(path, orientation)
        folder = tmp_path / orientation
        folder.mkdir()
        prepare_case(case, plan, folder)
        made[orientation] = open_prepared(folder)
        labels = to_source_grid(
            made[orientation].labels.read().result(), made[orientation].source, plan
        )
        truth = examine(case).labels
        assert (
            2 * ((labels == 5) & (truth == 5)).sum() / ((labels == 5).sum() + (truth == 5).sum())
            > 0.95
        )
    for name in ("image", "labels"):
        arrays = [getattr(one, name).read().result() for one in made.values()]
        assert all((array == arrays[0]).all() for array in arrays[1:])
