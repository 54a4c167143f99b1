"""NSD against golden values and all pairs of edge voxels, and every edge of its policies."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.touchstone.slow_surface import blobs, golden_cases, pattern, slow, slow_by_area
from touchstone_jax.metrics import nsd
from touchstone_jax.metrics.ball import ball
from touchstone_jax.metrics.edges import UNROLLED, within
from touchstone_jax.metrics.surfels import surfel_areas, surfel_codes

NAN = float("nan")
SPACING = (0.8, 0.9, 2.5)
SHAPE = (7, 8, 5)


def _same(ours: jax.Array, told: float | str, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(float(ours), float(told), rtol=rtol, atol=1e-6)


# ---------------------------------------------------------------- golden values


def _check_golden(golden: Path, tolerance: str, names: tuple[str, ...] | None = None) -> None:
    for name, told, pred, ref, spacing in golden_cases(golden):
        if names is not None and name[:2] not in names:
            continue
        for convention, value in (
            ("touchstone", told["monai"]["nsd"][tolerance]),
            ("monai", told["monai"]["nsd"][tolerance]),
            ("deepmind", told["google"]["nsd"][tolerance]),
        ):
            ours = nsd(pred, ref, spacing, float(tolerance), convention=convention)
            np.testing.assert_allclose(
                float(ours), float(value), rtol=0, atol=1e-6, err_msg=f"{name} {convention}"
            )


def test_golden_pairs_at_touchstones_tolerance(golden: Path) -> None:
    _check_golden(golden, "1.5")


@pytest.mark.parametrize("tolerance", ["1.0", "2.0", "3.0"])
def test_golden_pairs_of_small_isotropic_volumes(golden: Path, tolerance: str) -> None:
    _check_golden(golden, tolerance, ("06", "09", "10", "12", "14", "19"))


@pytest.mark.slow  # a minute of compiling; test_host does all of them in numpy
@pytest.mark.parametrize("tolerance", ["1.0", "2.0", "3.0"])
def test_golden_pairs(golden: Path, tolerance: str) -> None:
    _check_golden(golden, tolerance)


def test_ties_count_and_just_beyond_does_not(golden: Path) -> None:
    named = {name: (pred, ref, spacing) for name, _, pred, ref, spacing in golden_cases(golden)}
    assert float(nsd(*named["19_tie_1.5mm"], 1.5)) == 1
    assert float(nsd(*named["20_tie_1.5mm_plus_eps"], 1.5)) == np.float32(5 / 6)


# ---------------------------------------------------------------- derivations


@pytest.mark.parametrize(("shape", "tolerance"), [((9, 8), 1.5), (SHAPE, 0.0), (SHAPE, 3.0)])
def test_masks_by_all_pairs(shape: tuple[int, ...], tolerance: float) -> None:
    spacing = SPACING[: len(shape)]
    pred, ref = blobs(shape, 0)
    _same(nsd(pred, ref, spacing, tolerance), slow(pred, ref, spacing, tolerance)["nsd"])
    told = slow_by_area(pred, ref, spacing, tolerance, surfel_areas(spacing))["nsd"]
    _same(nsd(pred, ref, spacing, tolerance, convention="deepmind"), told)


def _labels(k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    ref = rng.integers(0, k, SHAPE)
    return np.where(rng.random(SHAPE) < 0.6, ref, rng.integers(0, k, SHAPE)), ref


@pytest.mark.parametrize(("convention", "k"), [("touchstone", 5), ("deepmind", 5), ("monai", 70)])
def test_label_maps_are_their_classes_one_by_one(convention: str, k: int) -> None:
    pred, ref = _labels()
    ours = nsd(pred, ref, SPACING, 0.95, num_classes=k, convention=convention)
    one_by_one = [nsd(pred == c, ref == c, SPACING, 0.95, convention=convention) for c in range(k)]
    np.testing.assert_allclose(ours, one_by_one, rtol=1e-6)
    assert ours.shape == (k,) and np.isnan(ours[4])
    np.testing.assert_array_equal(
        ours, nsd(pred.astype(np.uint8), ref.astype(np.int16), SPACING, 0.95, num_classes=k,
                  convention=convention)
    )  # fmt: skip


def test_a_tolerance_a_class() -> None:
    pred, ref = _labels()
    each = nsd(pred, ref, SPACING, [0.5, 1.5, 0.5, 1.5], num_classes=4)
    for c, tolerance in enumerate([0.5, 1.5, 0.5, 1.5]):
        assert each[c] == nsd(pred, ref, SPACING, tolerance, num_classes=4)[c]


@pytest.mark.parametrize("tolerance", [0.8, 2.0])
def test_one_offset_at_a_time_and_runs_agree(
    tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = np.random.default_rng(2).random((2, *SHAPE)) < 0.1
    p, r = (
        jnp.asarray(np.where(s, x, 4), jnp.uint8) for s, x in zip(sparse, _labels(), strict=True)
    )
    near = ball(tolerance, SPACING, SHAPE)
    told = []
    for most in (1000, 0):
        monkeypatch.setattr("touchstone_jax.metrics.edges.UNROLLED", most)
        told.append(jax.jit(lambda p, r: within(p, r, near, 4))(p, r))
    np.testing.assert_array_equal(*told)
    assert 0 < told[0].sum() < sparse[0].sum()


@pytest.mark.parametrize(
    ("tolerance", "spacing", "shape"),
    [
        (1.5, (1.5, 1.5, 1.5), (9, 9, 9)),
        (3.0, (0.9, 0.8, 1.1), (3, 30, 30)),
        (9.0, (2.0, 1.0), (4, 4)),
    ],
)
def test_the_ball_by_trying_every_offset(tolerance: float, spacing: tuple, shape: tuple) -> None:
    every = itertools.product(*(range(1 - n, n) for n in shape))
    inside = {
        o
        for o in every
        if np.float32(np.sqrt(sum((a * s) ** 2 for a, s in zip(o, spacing, strict=True))))
        <= np.float32(tolerance)
    }
    ours = ball(tolerance, spacing, shape)
    assert set(ours.offsets()) == inside and ours.size == len(inside)


def test_ties_by_rounding() -> None:
    # sqrt(1.8² + 2.4²) is 3, in float64 a little more; 0.8 from a float32 header likewise.
    assert np.sqrt((2 * 0.9) ** 2 + (3 * 0.8) ** 2) > 3
    for spacing in ((0.9, 0.8), tuple(np.array([0.9, 0.8], np.float32).tolist())):
        assert (2, 3) in ball(3.0, spacing, (9, 9)).offsets()


# ---------------------------------------------------------------- surface elements


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # its own, NumPy 2.5
def test_areas_by_another_marching_cubes() -> None:
    from skimage.measure import marching_cubes, mesh_surface_area

    spacing = (0.8, 1.1, 2.5)
    ours = surfel_areas(spacing)
    for code in range(1, 128):
        volume = np.array([code >> bit & 1 for bit in range(8)], float).reshape(2, 2, 2)
        # With more voxels inside than outside its polygons are not those of the complement.
        volume = 1 - volume if volume.sum() > 4 else volume
        vertices, faces, _, _ = marching_cubes(
            volume, 0.5, spacing=spacing, method="lorensen", allow_degenerate=True
        )
        assert ours[code] == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-6), code
        assert ours[255 - code] == ours[code]
    assert ours[0] == ours[255] == 0


def test_lengths_by_hand() -> None:
    slope = np.hypot(0.4, 1.25)
    # Bits: (0, 0) 1, (0, 1) 2, (1, 0) 4, (1, 1) 8.
    told = {0: 0, 1: slope, 8: slope, 3: 2.5, 5: 0.8, 9: 2 * slope, 6: 2 * slope, 7: slope, 15: 0}
    ours = surfel_areas((0.8, 2.5))
    assert {code: ours[code] for code in told} == pytest.approx(told)
    with pytest.raises(ValueError, match="surface elements exist in 2-D and 3-D"):
        surfel_areas((1.0,))


def test_codes_corner_by_corner() -> None:
    for shape in ((4, 3), (3, 4, 2)):
        mask, _ = blobs(shape, 3)
        codes = surfel_codes(jnp.asarray(mask))
        assert codes.shape == tuple(n + 1 for n in shape)
        assert all(int(codes[c]) == pattern(mask, c) for c in np.ndindex(*codes.shape))


# ---------------------------------------------------------------- properties

masks = hnp.arrays(bool, (4, 5, 3))


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from(["touchstone", "deepmind"]))
def test_properties(pred: np.ndarray, ref: np.ndarray, convention: str) -> None:
    def score(p: np.ndarray, r: np.ndarray, tolerance: float = 1.0, where: int = 0) -> float:
        at = [(where, 2 - where)] * 3
        pair = (np.pad(p, at), np.pad(r, at))
        return float(nsd(*pair, (1.0, 0.7, 2.0), tolerance, convention=convention))

    plain = score(pred, ref)
    if not pred.any() and not ref.any():
        assert np.isnan(plain)
        return
    assert 0 <= plain <= 1
    assert plain == pytest.approx(score(ref, pred), rel=1e-6)
    # Areas are added in another order where the masks lie elsewhere; voxels are counted.
    rel = 1e-6 if convention == "deepmind" else 0
    moved = [score(pred, ref, where=where) for where in (1, 2)]
    assert moved == pytest.approx([plain, plain], rel=rel, abs=0)
    far = score(pred, ref, np.inf)
    assert far == pytest.approx(1 if pred.any() and ref.any() else 0, rel=rel, abs=0)
    assert score(ref | pred, pred | ref) == pytest.approx(1, rel=rel, abs=0)


# ---------------------------------------------------------------- jit, vmap, shards


@pytest.mark.parametrize("convention", ["touchstone", "deepmind"])
def test_jit_and_vmap_and_float64(convention: str, x64: None) -> None:
    pairs = [blobs(SHAPE, seed) for seed in range(2)]
    pred, ref = (np.stack(x) for x in zip(*pairs, strict=True))
    one = lambda p, r: nsd(p, r, SPACING, 1.0, convention=convention)  # noqa: E731
    one_by_one = np.array([one(p, r) for p, r in pairs])
    assert one_by_one.dtype == np.float64
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(pred, ref), one_by_one, rtol=1e-14)


def test_eight_devices_that_share_a_volume() -> None:
    rng = np.random.default_rng(0)
    ref = rng.integers(0, 3, (16, 6, 5)).astype(np.uint8)
    pred = np.where(rng.random(ref.shape) < 0.7, ref, np.uint8(0))
    mesh = Mesh(np.array(jax.devices()), ("space",))
    assert mesh.size == 8
    shards = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("space"))) for x in (pred, ref)]
    for tolerance in (1.0, 4.0):
        assert (ball(tolerance, SPACING, ref.shape).size > UNROLLED) == (tolerance == 4.0)
        score = jax.jit(lambda p, r, t=tolerance: nsd(p, r, SPACING, t, num_classes=3))
        np.testing.assert_array_equal(
            score(*shards), nsd(pred, ref, SPACING, tolerance, num_classes=3)
        )


def test_the_number_of_classes_costs_nothing() -> None:
    pred, ref = _labels()

    def program(k: int) -> str:
        score = jax.jit(lambda p, r: nsd(p, r, SPACING, 1.5, num_classes=k))
        return score.lower(pred, ref).as_text()

    assert program(4).count("stablehlo.compare") == program(40).count("stablehlo.compare")
    assert "while" not in program(40)


def test_programs_are_for_offsets_not_for_spacings() -> None:
    one, other = (ball(1.0, spacing, SHAPE) for spacing in ((0.8, 0.8, 2.5), (0.75, 0.78, 3.0)))
    assert one == other and hash(one) == hash(other)


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("empty", "neither", "only_pred", "only_ref"),
    [
        ("convention", NAN, 0, 0),
        ("nan", NAN, 0, 0),
        ("zero", 0, 0, 0),
        ("one", 1, 0, 0),
        ("nan_without_reference", NAN, NAN, 0),
    ],
)
@pytest.mark.parametrize("convention", ["touchstone", "monai", "deepmind"])
def test_empty_masks(
    convention: str, empty: str, neither: float, only_pred: float, only_ref: float
) -> None:
    none, some = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    pairs = ((none, none), (some, none), (none, some))
    ours = [nsd(*pair, (1, 1), 1.0, convention=convention, empty=empty) for pair in pairs]
    np.testing.assert_array_equal(ours, [neither, only_pred, only_ref])


def test_full_masks_one_class_and_no_voxels() -> None:
    full = np.ones((3, 3), bool)
    for convention in ("touchstone", "deepmind"):
        assert float(nsd(full, full, (1, 1), 1.0, convention=convention)) == 1
        zeros = np.zeros((3, 3), int)
        ours = nsd(zeros, zeros, (1, 1), 1, num_classes=1, convention=convention)
        np.testing.assert_array_equal(ours, [1])
        assert np.isnan(nsd(full[:0], full[:0], (1, 1), 1, convention=convention))


def test_a_label_out_of_range_is_refused_and_belongs_to_no_class_under_jit() -> None:
    ref = np.array([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="pred has label 7; legal: 0..2"):
        nsd(np.full((2, 2), 7), ref, (1, 1), 1, num_classes=3)
    traced = jax.jit(lambda p, r: nsd(p, r, (1, 1), 0.0, num_classes=3))
    for bad in (7, -1):
        told = nsd(np.array([[0, 1], [0, 2]]), ref, (1, 1), 0.0, num_classes=3).at[0].set(1.0)
        np.testing.assert_allclose(traced(np.array([[0, 1], [bad, 2]]), ref), told)


ONES = np.ones((3, 3), bool)


@pytest.mark.parametrize(
    ("given_", "options", "told"),
    [
        ((ONES, ONES[:2], (1, 1), 1), {}, r"pred has shape \(3, 3\), ref \(2, 3\)"),
        ((ONES[0], ONES[0], (1,), 1), {}, r"NSD of masks of shape \(3,\); expected 2-D or 3-D"),
        ((ONES, ONES.astype(int), (1, 1), 1), {}, "ref is int64: give boolean masks"),
        ((ONES, ONES, (1, 1), 1), {"num_classes": 2}, "pred is bool; with num_classes"),
        ((ONES, ONES, (1, 1, 1), 1), {}, r"spacing_mm=\(1.0, 1.0, 1.0\) for masks of shape"),
        ((ONES, ONES, (1, 0), 1), {}, r"spacing_mm=\(1.0, 0.0\); expected positive, finite mm"),
        ((ONES, ONES, (1, NAN), 1), {}, "expected positive, finite mm"),
        ((ONES, ONES, (1, "a"), 1), {}, "spacing_mm=.*; expected numbers in mm"),
        ((ONES, ONES, None, 1), {}, "spacing_mm=None; expected numbers in mm"),
        ((ONES, ONES, (1, 1), -1), {}, r"tolerance_mm=\(-1.0,\); expected 0 or more mm"),
        ((ONES, ONES, (1, 1), NAN), {}, "expected 0 or more mm"),
        ((ONES, ONES, (1, 1), [1, 2]), {}, "tolerance_mm has 2 values; expected 1 or 1"),
        ((ONES, ONES, (1, 1), 1), {"convention": "mona"}, "did you mean 'monai'"),
        ((ONES, ONES, (1, 1), 1), {"empty": "inf"}, "unknown policy for empty masks 'inf'"),
    ],
)
def test_refusals(given_: tuple, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        nsd(*given_, **options)


def test_traced_spacing_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="spacing_mm is traced by jit or vmap"):
        jax.jit(lambda s: nsd(ONES, ONES, s, 1.0))(jnp.ones(2))
    with pytest.raises(ValueError, match="tolerance_mm is traced by jit or vmap"):
        jax.jit(lambda t: nsd(ONES, ONES, (1, 1), t))(jnp.ones(()))
