"""Prepared cases: what the arrays are, that axes do not matter, and the way back to the CT."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from tests.touchstone.cases import SHAPE, dataset, rewrite, stored_as
from touchstone_jax.findings import VolumeError, read_findings
from touchstone_jax.io import read_ct, write
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.prepare import (
    prepare_case,
    prepare_image,
    sample_foreground,
    target_shape,
    to_source_grid,
)
from touchstone_jax.prepare.plan import Plan
from touchstone_jax.prepare.prepared import open_prepared, write_prepared
from touchstone_jax.verify import examine

PLAN = Plan("abdomenatlas_1.0", (5.0, 5.0, 5.0), (-20.0, 230.0), 110.0, 60.0, (16, 16, 16))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return dataset(tmp_path / "data", orientations=("RAS",))[0]


def _prepare(case: Case, folder: Path, plan: Plan = PLAN, **options):
    folder.mkdir(parents=True)
    row = prepare_case(case, plan, folder, **options)
    return row, open_prepared(folder)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_arrays_are_those_of_the_formula(case: Case, tmp_path: Path) -> None:
    row, made = _prepare(case, tmp_path / case.id)
    ct = read_ct(case.ct, case=case.id)
    shape = tuple(round(n * s / 5) for n, s in zip(SHAPE, ct.spacing_mm, strict=True))
    assert made.shape == made.image.shape == made.labels.shape == shape and made.case == case.id
    image = made.image.read().result()
    assert image.dtype == np.float16
    # Order of a plain recipe: clip, normalise, smooth what shrinks, spline.
    plain = (np.clip(ct.array.astype(float), -20, 230) - 110) / 60
    factors = [n / old for n, old in zip(shape, SHAPE, strict=True)]
    for axis, factor in enumerate(factors):
        if factor < 1:
            plain = ndimage.gaussian_filter1d(plain, (1 / factor - 1) / 2, axis, mode="nearest")
    plain = ndimage.zoom(plain, factors, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(image, plain, atol=2e-3)
    np.testing.assert_allclose(
        made.spacing_mm, np.array(SHAPE) * ct.spacing_mm / np.array(shape), rtol=1e-12
    )
    labels = made.labels.read().result()
    assert set(np.unique(labels)) == set(range(10)) and labels.dtype == np.uint8
    counts = np.bincount(labels.ravel(), minlength=10)
    assert list(made.meta["voxels"].values()) == counts[1:].tolist()
    assert row["foreground_voxels"] == counts[1:].sum() and row["plan"] == PLAN.digest()
    assert read_findings(tmp_path / case.id / "findings.jsonl") == [] and row["findings"] == 0
    volume = [labels_mm3(labels == k, made.spacing_mm) for k in range(1, 10)]
    before = [labels_mm3(examine(case).labels == k, ct.spacing_mm) for k in range(1, 10)]
    np.testing.assert_allclose(volume[4], before[4], rtol=0.1)  # the liver keeps its size


def labels_mm3(mask: np.ndarray, spacing_mm) -> float:
    return float(mask.sum() * np.prod(spacing_mm))


@pytest.mark.parametrize("orientation", ["LPS", "ASR", "IRP"])
def test_the_stored_axes_change_no_bit_of_the_arrays(
    case: Case, tmp_path: Path, orientation: str
) -> None:
    _prepare(case, tmp_path / "plain")
    stored_as(case.ct, orientation)
    for _, path in case.masks[::2]:
        stored_as(path, orientation)
    _prepare(case, tmp_path / "turned")
    plain, turned = _bytes(tmp_path / "plain"), _bytes(tmp_path / "turned")
    assert plain.keys() == turned.keys()
    differ = {name for name in plain if plain[name] != turned[name]}
    assert differ == {"meta.json", "findings.jsonl"}  # the way back, and that axes differ
    assert json.loads(plain["meta.json"])["digest"] == json.loads(turned["meta.json"])["digest"]


def test_preparing_again_gives_the_same_bytes(case: Case, tmp_path: Path) -> None:
    _prepare(case, tmp_path / "a", samples=7)
    _prepare(case, tmp_path / "b", samples=7)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_a_coarse_axis_is_taken_slice_by_slice(tmp_path: Path) -> None:
    (case,) = dataset(tmp_path / "data", spacing_mm=(2, 2, 9), orientations=("RAS",))
    ct = read_ct(case.ct, case=case.id)
    plan = Plan(PLAN.labels, (2.5, 2.5, 3.0), PLAN.clip_hu, 110.0, 60.0, (16, 16, 16))
    image = prepare_image(ct, plan)
    slices = {image[:, :, k].tobytes() for k in range(image.shape[2])}
    assert image.shape[2] > 50 and len(slices) == SHAPE[2]


@pytest.mark.parametrize("orientation", ["RAS", "ASR"])
def test_labels_go_back_to_the_file_grid(case: Case, tmp_path: Path, orientation: str) -> None:
    for path in case.files:
        stored_as(path, orientation)
    fine = Plan(PLAN.labels, (2.0, 2.0, 2.0), PLAN.clip_hu, 110.0, 60.0, (16, 16, 16))
    _, made = _prepare(case, tmp_path / "fine", fine)
    back = to_source_grid(made.labels.read().result(), made.source, fine)
    np.testing.assert_array_equal(back, examine(case).labels)
    write(tmp_path / "back.nii.gz", back == 5, made.source)
    theirs, ours = (nibabel.load(p) for p in (dict(case.masks)["liver"], tmp_path / "back.nii.gz"))
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    assert theirs.affine.tobytes() == ours.affine.tobytes()
    with pytest.raises(ValueError, match="labels have shape .* the plan makes"):
        to_source_grid(back[1:], made.source, fine)


def test_a_volume_far_smaller_than_a_voxel_of_the_plan_keeps_one(case: Case) -> None:
    ct = read_ct(case.ct, case=case.id)
    assert target_shape((1, 2, 400), (0.5, 0.5, 5.0), PLAN) == (1, 1, 400)
    huge = Plan(PLAN.labels, (500.0, 500.0, 500.0), PLAN.clip_hu, 110.0, 60.0, (1, 1, 1))
    assert np.isfinite(prepare_image(ct, huge)).all()


def test_bad_cases_are_refused_before_anything_is_written(case: Case, tmp_path: Path) -> None:
    rewrite(case.ct, lambda v: v + 1024)
    (tmp_path / "out").mkdir()
    with pytest.raises(VolumeError, match=f"^{case.id}: .*not Hounsfield units"):
        prepare_case(case, PLAN, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_case_without_organs_is_prepared(case: Case, tmp_path: Path) -> None:
    for _, path in case.masks:
        rewrite(path, lambda v: v * 0)
    row, made = _prepare(case, tmp_path / "out")
    assert row["foreground_voxels"] == 0 and row["findings"] == 1
    assert made.foreground.shape == (0, 4) and made.voxels_of(3).shape == (0, 3)


# ---------------------------------------------------------------- foreground samples


def test_samples_lie_in_their_organ_and_depend_on_the_case_alone() -> None:
    labels = np.random.default_rng(0).choice([0, 2, 9], size=(9, 10, 11), p=[0.5, 0.4, 0.1])
    labels = labels.astype(np.uint8)
    labels[0, 0, 0] = 4
    rows = sample_foreground(labels, "a", 50)
    assert rows.dtype == np.int16 and rows.shape == (101, 4)
    for label, x, y, z in rows:
        assert labels[x, y, z] == label
    assert len({tuple(row) for row in rows.tolist()}) == 101
    np.testing.assert_array_equal(rows, sample_foreground(labels, "a", 50))
    assert (rows[:50] != sample_foreground(labels, "b", 50)[:50]).any()
    every = sample_foreground(labels, "a", 10**6)
    assert len(every) == np.count_nonzero(labels)


# ---------------------------------------------------------------- the format


def test_a_damaged_or_missing_part_is_told(case: Case, tmp_path: Path) -> None:
    _prepare(case, tmp_path / "c")
    chunk = tmp_path / "c" / "image" / "c" / "0" / "0" / "0"
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    chunk.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="Digest mismatch"):
        open_prepared(tmp_path / "c").image.read().result()
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    for change, words in (
        ({"format": 99}, "c: format 99, expected 1: prepare it again"),
        ({"shape": [1, 2, 3]}, r"meta.json says \(1, 2, 3\)"),
    ):
        (tmp_path / "c" / "meta.json").write_text(json.dumps({**meta, **change}))
        with pytest.raises(ValueError, match=words):
            open_prepared(tmp_path / "c")
    (tmp_path / "c" / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="meta.json cannot be read"):
        open_prepared(tmp_path / "c")
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta))
    kept = chunk.rename(tmp_path / "kept")  # zarr would read zeros
    with pytest.raises(
        FileNotFoundError, match="^c: .*image/c/0/0/0 is missing; delete the case's"
    ):
        open_prepared(tmp_path / "c")
    kept.rename(chunk)
    (tmp_path / "c" / "foreground.npy").write_bytes(b"abc")
    with pytest.raises(ValueError, match="^c: .*foreground.npy cannot be read; delete the case's"):
        open_prepared(tmp_path / "c")
    (tmp_path / "c" / "labels" / "zarr.json").unlink()
    with pytest.raises(FileNotFoundError, match="^c: .*zarr.json is missing"):
        open_prepared(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="^d: no prepared case"):
        open_prepared(tmp_path / "d")


def test_a_patch_is_read_from_its_chunks(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(70, 33, 40)).astype(np.float16)
    labels = (image > 1).astype(np.uint8)
    empty = np.zeros((0, 4), np.int16)
    geometry = Geometry((70, 33, 40), np.eye(4)).to_json()
    meta = {"shape": [70, 33, 40], "spacing_mm": [1, 1, 1], "geometry": geometry}
    write_prepared(tmp_path, image, labels, empty, meta)
    made = open_prepared(tmp_path)
    box = (slice(25, 69), slice(0, 33), slice(31, 40))
    np.testing.assert_array_equal(made.image[box].read().result(), image[box])
    np.testing.assert_array_equal(made.labels[box].read().result(), labels[box])
    assert made.source.shape == (70, 33, 40)
    with pytest.raises(ValueError, match="expected float16 and uint8 of one shape"):
        write_prepared(tmp_path, image, labels[1:], empty, meta)
