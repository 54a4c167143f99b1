"""Exact distances against scipy and golden values; HD95 and ASSD against all pairs of voxels."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import ndimage

from tests.touchstone.slow_surface import (
    blobs,
    directed,
    edge_voxels,
    golden_cases,
    slow,
    slow_by_area,
)
from touchstone_jax.metrics import DIRECTIONS, assd, distance_transform, hd95
from touchstone_jax.metrics.surfels import surfel_areas

NAN, INF = float("nan"), float("inf")
SPACING = (0.8, 0.9, 2.5)
SHAPE = (7, 8, 5)


def _same(ours: jax.Array, told: float | str, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(float(ours), float(told), rtol=rtol, atol=1e-6)


# ---------------------------------------------------------------- the transform


@pytest.mark.parametrize("name", ["edt_a_blobs_iso", "edt_b_blobs_aniso", "edt_c_sparse_bg"])
def test_golden_transform(golden: Path, name: str) -> None:
    with np.load(golden / "metrics" / f"{name}.npz") as told:
        ours = distance_transform(told["mask"] > 0, told["spacing"])
        np.testing.assert_allclose(ours, told["edt"], rtol=1e-6)


@pytest.mark.parametrize("shape", [(9,), (6, 17), (5, 18, 4), (3, 4, 5, 2)])
def test_transform_in_any_rank_and_float64(shape: tuple[int, ...], x64: None) -> None:
    rng = np.random.default_rng(0)
    spacing = tuple(rng.uniform(0.5, 3, len(shape)))
    for share in (0.5, 0.95):
        mask = rng.random(shape) < share
        mask.flat[0] = False
        told = ndimage.distance_transform_edt(mask, sampling=spacing)
        ours = distance_transform(mask, spacing)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, told, rtol=1e-14)


def test_transform_without_background_without_foreground_without_voxels() -> None:
    full = np.ones((3, 4), bool)
    np.testing.assert_array_equal(distance_transform(full, (1, 1)), np.full((3, 4), INF))
    np.testing.assert_array_equal(distance_transform(~full, (1, 1)), np.zeros((3, 4)))
    assert distance_transform(full[:0], (1, 1)).shape == (0, 4)


def test_transform_under_jit_and_vmap() -> None:
    masks = np.random.default_rng(0).random((3, 6, 5)) < 0.8
    told = [ndimage.distance_transform_edt(m, sampling=(2, 0.7)) for m in masks]
    ours = jax.jit(jax.vmap(lambda m: distance_transform(m, (2, 0.7))))(masks)
    np.testing.assert_allclose(ours, told, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "spacing", "told"),
    [
        (np.ones((2, 2)), (1, 1), "mask is float64: give boolean masks"),
        (np.ones((2, 2), bool), (1,), r"spacing_mm=\(1.0,\) for masks of shape \(2, 2\)"),
        (np.ones((2, 2), bool), (1, -1), "expected positive, finite mm"),
        (np.ones((2, 2), bool), (1, INF), "expected positive, finite mm"),
    ],
)
def test_transform_refuses(mask: np.ndarray, spacing: tuple, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        distance_transform(mask, spacing)


# ---------------------------------------------------------------- golden distances


def test_golden_pairs(golden: Path) -> None:
    for name, told, pred, ref, spacing in golden_cases(golden):
        monai, google, masks = told["monai"], told["google"], (pred, ref, spacing)
        of_monai, of_google = {"convention": "monai"}, {"convention": "deepmind"}
        checked = [
            (hd95(*masks, **of_monai), monai["hd95"]),
            (assd(*masks, **of_monai), monai["assd"]),
            (hd95(*masks, **of_google), google["hd95"]),
        ]
        if pred.size < 2**17:  # a program more for the two large ones takes a second
            checked += [
                (assd(*masks, direction="pred_to_ref", **of_google), google["asd_pred_to_gt"]),
                (assd(*masks, direction="ref_to_pred", **of_google), google["asd_gt_to_pred"]),
                (hd95(*masks, percentile=100, **of_monai), monai["hd100"]),
                (hd95(*masks, percentile=100, **of_google), google["hd100"]),
                (assd(*masks, direction="pred_to_ref", **of_monai), monai["asd_pred_to_gt"]),
            ]
        for ours, value in checked:
            np.testing.assert_allclose(
                float(ours), float(value), rtol=1e-5, atol=1e-6, err_msg=f"{name} {value}"
            )


# ---------------------------------------------------------------- derivations


@pytest.mark.parametrize("shape", [(8, 8), SHAPE])
def test_masks_by_all_pairs(shape: tuple[int, ...]) -> None:
    spacing = SPACING[: len(shape)]
    pred, ref = blobs(shape, 0)
    told = slow(pred, ref, spacing, 1.0)
    _same(hd95(pred, ref, spacing), told["hd95"])
    _same(hd95(pred, ref, spacing, percentile=100), told["hd100"])
    _same(assd(pred, ref, spacing), told["assd"])
    told = slow_by_area(pred, ref, spacing, 1.0, surfel_areas(spacing))
    _same(hd95(pred, ref, spacing, convention="deepmind"), told["hd95"])
    _same(assd(pred, ref, spacing, convention="deepmind"), told["assd"])


@pytest.mark.parametrize("percentile", [0, 33.3, 50, 99.99])
def test_percentiles_as_numpy_has_them(percentile: float) -> None:
    pred, ref = blobs(SHAPE, 0)
    pred[0, 0] = True  # far from the reference: no distance of 0 percent is 0
    ref[-1] = True
    p, r = edge_voxels(pred), edge_voxels(ref)
    ways = [directed(p, r, SPACING), directed(r, p, SPACING)]
    told = max(np.percentile(d, percentile) for d in ways)
    _same(hd95(pred, ref, SPACING, percentile=percentile), told)
    told = slow_by_area(pred, ref, SPACING, 1.0, surfel_areas(SPACING), percentile)["hd95"]
    _same(hd95(pred, ref, SPACING, percentile=percentile, convention="deepmind"), told)


@pytest.mark.parametrize("convention", ["touchstone", "deepmind"])
def test_label_maps_are_their_classes_one_by_one(convention: str) -> None:
    rng = np.random.default_rng(1)
    ref = rng.integers(0, 3, SHAPE)
    pred = np.where(rng.random(SHAPE) < 0.6, ref, 0)
    for score in (hd95, assd):
        ours = score(pred, ref, SPACING, num_classes=4, convention=convention)
        masks = [(pred == c, ref == c) for c in range(4)]
        one_by_one = [score(*pair, SPACING, convention=convention) for pair in masks]
        np.testing.assert_allclose(ours, one_by_one, rtol=1e-6)
        assert ours.shape == (4,)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, (4, 5, 3)), hnp.arrays(bool, (4, 5, 3)), st.sampled_from([hd95, assd]))
def test_properties(pred: np.ndarray, ref: np.ndarray, score) -> None:
    def value(p: np.ndarray, r: np.ndarray, mm: float = 1.0, where: int = 0) -> float:
        at = [(where, 2 - where)] * 3
        return float(score(np.pad(p, at), np.pad(r, at), (mm, 0.7 * mm, 2 * mm)))

    plain = value(pred, ref)
    if not pred.any() or not ref.any():
        assert np.isnan(plain) if pred.any() == ref.any() else plain == INF
        return
    assert 0 <= plain <= np.linalg.norm([4, 5 * 0.7, 6])
    assert plain == pytest.approx(value(ref, pred), rel=1e-6)
    assert plain == value(pred, ref, where=1) == value(pred, ref, where=2)
    assert value(pred, ref, mm=3.0) == pytest.approx(3 * plain, rel=1e-6)
    assert value(pred, pred) == 0


# ---------------------------------------------------------------- jit, vmap, shards


def test_jit_and_vmap_and_eight_devices() -> None:
    pairs = [blobs((16, 6, 5), seed) for seed in range(2)]
    pred, ref = (np.stack(x) for x in zip(*pairs, strict=True))
    mesh = Mesh(np.array(jax.devices()), ("space",))
    assert mesh.size == 8
    one_by_one = [slow(p, r, SPACING, 1.0)["hd95"] for p, r in pairs]
    batched = jax.jit(jax.vmap(lambda p, r: hd95(p, r, SPACING)))
    np.testing.assert_allclose(batched(pred, ref), one_by_one, rtol=1e-6)
    split = NamedSharding(mesh, PartitionSpec(None, "space"))
    shards = [jax.device_put(x, split) for x in (pred, ref)]
    np.testing.assert_allclose(batched(*shards), one_by_one, rtol=1e-6)


def test_the_spacing_is_no_part_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    pred, ref = blobs(SHAPE, 0)
    one = hd95(pred, ref, SPACING)
    with jax.log_compiles(True):
        other = hd95(pred, ref, (1.0, 1.1, 3.0))
        assert "Compiling" not in caplog.text
        hd95(pred[1:], ref[1:], SPACING)
    assert "Compiling" in caplog.text and one < other


# ---------------------------------------------------------------- empty masks, refusals


@pytest.mark.parametrize(
    ("options", "neither", "only_pred", "only_ref"),
    [
        ({}, NAN, INF, INF),
        ({"convention": "monai"}, NAN, NAN, NAN),
        ({"convention": "monai", "percentile": 100}, NAN, INF, INF),
        ({"convention": "deepmind"}, INF, INF, INF),
        ({"empty": "nan"}, NAN, NAN, NAN),
        ({"empty": "zero_or_inf"}, 0, INF, INF),
        ({"empty": "diagonal"}, 0, 40, 40),
        ({"empty": "nan_without_reference"}, NAN, NAN, INF),
    ],
)
def test_empty_masks(options: dict, neither: float, only_pred: float, only_ref: float) -> None:
    none, some = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    pairs = ((none, none), (some, none), (none, some))
    ours = [hd95(*pair, (3, 4), **options) for pair in pairs]
    np.testing.assert_array_equal(ours, [neither, only_pred, only_ref])
    if "percentile" not in options and options.get("convention") is None:
        ours = [assd(*pair, (3, 4), **options) for pair in pairs]
        np.testing.assert_array_equal(ours, [neither, only_pred, only_ref])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_average_from_or_to_an_empty_mask(direction: str) -> None:
    none, some = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    pairs = ((none, none), (some, none), (none, some))
    for convention in ("monai", "deepmind"):
        options = {"direction": direction, "convention": convention}
        ours = [float(assd(*pair, (1, 1), **options)) for pair in pairs]
        told = [NAN, INF, INF]
        if convention == "deepmind" and direction != "both":
            told[1 if direction == "ref_to_pred" else 2] = NAN
        np.testing.assert_array_equal(ours, told)


def test_full_masks_and_no_voxels() -> None:
    full = np.ones((8, 8), bool)
    for score in (hd95, assd):
        assert float(score(full, full, (1, 1))) == 0
        assert np.isnan(score(full[:0], full[:0], (1, 1)))


ONES = np.ones((3, 3), bool)


@pytest.mark.parametrize(
    ("score", "given_", "options", "told"),
    [
        (hd95, (ONES, ONES[:2], (1, 1)), {}, r"pred has shape \(3, 3\), ref \(2, 3\)"),
        (assd, (ONES[0], ONES[0], (1,)), {}, r"surface distance of masks of shape \(3,\)"),
        (hd95, (ONES, ONES, (1, 1)), {"percentile": 101}, "percentile=101; must lie in 0..100"),
        (hd95, (ONES, ONES, (1, 1)), {"percentile": NAN}, "percentile=nan; must lie"),
        (hd95, (ONES, ONES, (1, 1)), {"empty": "zero_or"}, "did you mean 'zero_or_inf'"),
        (assd, (ONES, ONES, (1, 1)), {"convention": "google"}, "unknown convention 'google'"),
        (assd, (ONES, ONES, (1, 1)), {"direction": "pred"}, "unknown direction 'pred'"),
        (assd, (ONES, ONES, (1,)), {}, r"spacing_mm=\(1.0,\) for masks of shape"),
    ],
)
def test_refusals(score, given_: tuple, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        score(*given_, **options)
