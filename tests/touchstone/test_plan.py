"""Plans: rules worked by hand, statistics against a plain computation, and the file they go to."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.touchstone.cases import dataset, rewrite
from touchstone_jax.io import read_ct
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.prepare.intensities import ForegroundHistogram
from touchstone_jax.prepare.plan import Plan, read_plan, write_plan
from touchstone_jax.prepare.planning import make_plan
from touchstone_jax.prepare.planning_rules import coarse_axis, patch_size, target_spacing
from touchstone_jax.verify import examine

PLAN = Plan("abdomenatlas_1.0", (1.5, 1.5, 2.0), (-160.0, 240.0), 50.0, 80.0, (64, 64, 48))


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return dataset(tmp_path_factory.mktemp("plan"), n=4)


# ---------------------------------------------------------------- rules


def test_spacing_is_the_median_unless_one_axis_is_coarse() -> None:
    spacings = np.array([[0.7, 0.7, 1.0], [0.8, 0.8, 2.0], [0.9, 0.9, 5.0]])
    shapes = np.array([[512, 512, 400], [512, 512, 200], [512, 512, 90]])
    assert target_spacing(spacings, shapes) == (0.8, 0.8, 2.0)
    # Coarse in spacing (5 > 3 x 0.8) and size (90 x 3 < 512): the 10th percentile of 4, 5, 5.
    spacings[:, 2] = (4, 5, 5)
    assert target_spacing(spacings, shapes) == (0.8, 0.8, 5.0)
    shapes[:, 2] = 90
    assert target_spacing(spacings, shapes) == (0.8, 0.8, 4.2)
    # Never finer than the other axes.
    spacings[:, 2] = (0.1, 5, 5)
    assert target_spacing(spacings, shapes) == (0.8, 0.8, 1.08)
    spacings[:, 2] = (0.1, 0.1, 5)
    assert target_spacing(spacings, shapes) == (0.8, 0.8, 0.1)


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((1, 1, 3), None), ((1, 1, 3.1), 2), ((5, 1, 1), 0), ((5, 5, 1), None), ((2, 2, 2), None)],
)
def test_the_coarse_axis(spacing_mm, axis: int | None) -> None:
    assert coarse_axis(spacing_mm) == axis


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "patch"),
    [
        ((500, 500, 500), (1, 1, 1), (128, 128, 128)),
        ((500, 500, 500), (0.8, 0.8, 1.6), (160, 160, 80)),
        ((500, 500, 40), (1, 1, 1), (208, 208, 48)),  # z full: 128^3 / 48 shared by x and y
        ((60, 50, 40), (3, 3, 3), (64, 64, 48)),
        ((5, 5, 5), (3, 3, 3), (16, 16, 16)),
    ],
)
def test_the_patch_is_a_cube_in_mm_within_the_volume(shape, spacing_mm, patch) -> None:
    assert patch_size(shape, spacing_mm, 128**3, 16) == patch


# ---------------------------------------------------------------- statistics


def test_statistics_weigh_cases_alike_in_any_order() -> None:
    rng = np.random.default_rng(0)
    cts = [rng.normal(mean, 40, (20, 20, n)).round() for mean, n in ((50, 5), (120, 50))]
    values = [np.tile(ct.ravel(), 10 if ct.shape[2] == 5 else 1) for ct in cts]
    pooled = np.concatenate(values)
    found = []
    for order in ((0, 1), (1, 0)):
        histogram = ForegroundHistogram()
        for i in order:
            histogram.add(cts[i].astype(np.float32), np.ones(cts[i].shape, bool))
        histogram.add(cts[0].astype(np.float32), np.zeros(cts[0].shape, bool))
        found.append(histogram.statistics())
    assert found[0] == found[1] and histogram.cases == 2
    clip, mean, std = found[0]
    np.testing.assert_allclose((mean, std), (pooled.mean(), pooled.std()), rtol=1e-6)
    np.testing.assert_allclose(clip, np.percentile(pooled, (0.5, 99.5)), atol=1)


def test_statistics_of_nothing_or_of_one_value_are_refused() -> None:
    histogram = ForegroundHistogram()
    with pytest.raises(ValueError, match="no case has a voxel"):
        histogram.statistics()
    histogram.add(np.full((3, 3, 3), 40, np.float32), np.ones((3, 3, 3), bool))
    with pytest.raises(ValueError, match="one value, 40 HU"):
        histogram.statistics()


# ---------------------------------------------------------------- of a data set


def test_a_plan_of_phantoms(cases: list[Case]) -> None:
    plan = make_plan(cases, patch_voxels=24**3, multiple=8)
    grids = [read_ct(case.ct, case=case.id).spacing_mm for case in cases]
    np.testing.assert_allclose(plan.spacing_mm, np.median(grids, axis=0), rtol=1e-5)
    seen = [examine(case) for case in cases]
    values = [s.ct.array[s.labels > 0] for s in seen]
    assert plan.mean_hu == pytest.approx(np.mean([v.mean(dtype=float) for v in values]), abs=1e-4)
    assert -50 < plan.clip_hu[0] < 30 and 180 < plan.clip_hu[1] < 280
    assert plan.cases == (4, 4) and all(n % 8 == 0 for n in plan.patch)
    assert make_plan(cases, patch_voxels=24**3, multiple=8, workers=3) == plan
    assert "plan of 4 cases: abdomenatlas_1.0, spacing" in str(plan)
    assert plan.digest() != make_plan(cases, patch_voxels=24**3, multiple=4).digest()


def test_a_part_of_the_cases_and_a_given_spacing(cases: list[Case]) -> None:
    plan = make_plan(cases, intensity_cases=2, spacing_mm=(4, 4, 4))
    assert plan.cases == (4, 2) and plan.spacing_mm == (4.0, 4.0, 4.0)
    first_and_last = make_plan([cases[0], cases[3]], spacing_mm=(4, 4, 4))
    assert plan.mean_hu == first_and_last.mean_hu


def test_bad_cases_are_passed_over_and_nothing_but_bad_ones_is_an_error(tmp_path: Path) -> None:
    cases = dataset(tmp_path, n=3)
    good = make_plan(cases[2:])
    cases[0].ct.write_bytes(b"")
    # Two values besides 0: no mask.
    rewrite(cases[1].files[5], lambda v: v + np.arange(v.shape[0], dtype=v.dtype)[:, None, None])
    plan = make_plan(cases)
    assert plan.cases == (2, 1) and plan.mean_hu == good.mean_hu
    with pytest.raises(
        ValueError, match=r"1 of 1 cases cannot .*; the first: .*liver\.nii\.gz has"
    ):
        make_plan(cases[1:2])
    with pytest.raises(ValueError, match="none of 1 cases has a readable CT header"):
        make_plan(cases[:1])
    with pytest.raises(ValueError, match="multiple=0"):
        make_plan(cases, multiple=0)
    with pytest.raises(ValueError, match="unknown label scheme"):
        make_plan(cases, labels="nine")


# ---------------------------------------------------------------- the file


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    assert read_plan(tmp_path / "plan.json") == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"std_hu": 0}, "std_hu=0"),
        ({"std_hu": 0.3}, "std_hu=0.3"),
        ({"clip_hu": [10, 10]}, "clip_hu"),
        ({"spacing_mm": [1, 1]}, "spacing_mm"),
        ({"mean_hu": float("nan")}, "mean_hu"),
        ({"patch": [0, 1, 1]}, "patch"),
        ({"labels": "nine"}, "unknown label scheme 'nine'"),
        ({"colour": 1}, "expected the keys"),
        ({"mean_hu": "x"}, "plan.json: "),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN.to_json(), **change}))
    with pytest.raises(ValueError, match=words) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="plan.json: not JSON"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="expected the keys .* got list"):
        Plan.from_json([])
    with pytest.raises(ValueError, match="std_hu=-1"):
        dataclasses.replace(PLAN, std_hu=-1)
