"""DSC and IoU against golden values, counting voxel by voxel, and every edge of the policies."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from touchstone_jax.metrics import dice, iou, joint_histogram

NAN = float("nan")


def _masks(shape: tuple[int, ...] = (4, 5, 6), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.4, rng.random(shape) < 0.6


def _labels(shape: tuple[int, ...] = (4, 5, 6), k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    ref = rng.integers(0, k, shape)
    return np.where(rng.random(shape) < 0.6, ref, rng.integers(0, k, shape)), ref


def _by_hand(pred: np.ndarray, ref: np.ndarray) -> tuple[int, int, int]:
    both = predicted = referred = 0
    for p, r in zip(pred.ravel().tolist(), ref.ravel().tolist(), strict=True):
        both, predicted, referred = both + (p and r), predicted + p, referred + r
    return both, predicted, referred


# ---------------------------------------------------------------- golden values


def test_golden_pairs_exactly(golden: Path) -> None:
    cases = json.loads((golden / "metrics" / "manifest.json").read_text())["cases"]
    assert len(cases) == 16
    for name, told in cases.items():
        with np.load(golden / "metrics" / f"{name}.npz") as arrays:
            # Background up to one length, so that one program serves all cases.
            pred, ref = (
                np.pad(m.ravel(), (0, 2**18 - m.size)) for m in (arrays["pred"], arrays["gt"])
            )
        for convention, value in (
            ("touchstone", told["dice_touchstone"]),
            ("deepmind", told["dice"]),
            ("monai", told["monai"]["dice"]),
        ):
            value = np.float32(value)
            ours = dice(pred > 0, ref > 0, convention=convention)
            np.testing.assert_array_equal(ours, value, err_msg=f"{name} {convention}")
            ours = dice(pred, ref, num_classes=2, convention=convention)[1]
            np.testing.assert_array_equal(ours, value, err_msg=f"{name} {convention} labels")
        union = told["voxels_gt"] + told["voxels_pred"] - told["intersection"]
        if union:
            share = np.float32(told["intersection"] / union)
            np.testing.assert_array_equal(iou(pred > 0, ref > 0), share, err_msg=name)


def _nifti(path: Path) -> np.ndarray:
    """Flat voxels > 0 of a NIfTI-1 mask; the order is no matter here."""
    raw = gzip.decompress(path.read_bytes())
    count = int(np.prod(struct.unpack_from("<4h", raw, 40)[1:]))
    dtype = {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4", 64: "<f8"}[
        struct.unpack_from("<h", raw, 70)[0]
    ]
    start = int(struct.unpack_from("<f", raw, 108)[0])
    return np.frombuffer(raw, dtype, count, start) > 0


def test_golden_pairs_on_a_real_ct(golden: Path) -> None:
    cases = json.loads((golden / "metrics" / "real_ct_pairs.json").read_text())["cases"]
    for case, organs in cases.items():
        folder = golden.parent / "data" / "real_ct" / case
        for organ, told in organs.items():
            pred = _nifti(folder / "predictions" / f"{organ}.nii.gz")
            ref = _nifti(folder / "segmentations" / f"{organ}.nii.gz")
            assert (pred.sum(), ref.sum()) == (told["pred_voxels"], told["ref_voxels"])
            assert float(dice(pred, ref)) == told["dice_touchstone"], (case, organ)


# ---------------------------------------------------------------- derivations


@pytest.mark.parametrize("shape", [(7,), (5, 6), (4, 5, 6)])
def test_masks_by_counting(shape: tuple[int, ...]) -> None:
    pred, ref = _masks(shape)
    both, predicted, referred = _by_hand(pred, ref)
    for convention, quirk in (("touchstone", 1), ("monai", 0), ("deepmind", 0)):
        ours = dice(pred, ref, convention=convention)
        assert ours.shape == () and ours.dtype == jnp.float32
        assert float(ours) == np.float32(2 * both / (predicted + referred + quirk))
        share = iou(pred, ref, convention=convention)
        assert float(share) == np.float32(both / (predicted + referred - both))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_label_maps_are_their_classes_one_by_one(dtype: type) -> None:
    pred, ref = (a.astype(dtype) for a in _labels())
    for score in (dice, iou):
        ours = score(pred, ref, num_classes=5)
        one_by_one = [score(pred == c, ref == c) for c in range(5)]
        assert ours.shape == (5,)
        np.testing.assert_array_equal(ours, one_by_one)
    joint = joint_histogram(pred, ref, 4)
    slow = [[int(((pred == i) & (ref == j)).sum()) for j in range(4)] for i in range(4)]
    np.testing.assert_array_equal(joint, slow)


def test_labels_beyond_the_type_of_the_map() -> None:
    pred, ref = (a.astype(np.uint8) + np.uint8(250) for a in _labels())
    np.testing.assert_array_equal(
        dice(pred, ref, num_classes=300), dice(pred.astype(int), ref.astype(int), num_classes=300)
    )
    assert float(dice(pred, ref, num_classes=300)[251]) > 0


def test_one_histogram_of_the_volume() -> None:
    pred, ref = _labels()
    program = jax.jit(lambda p, r: dice(p, r, num_classes=30)).lower(pred, ref).as_text()
    assert program.count('"stablehlo.scatter"(') == 1


def test_properties() -> None:
    pred, ref = _masks()
    for score in (dice, iou):
        assert float(score(pred, ref)) == float(score(ref, pred))
        moved = score(np.roll(pred, 1, 0), np.roll(ref, 1, 0))
        assert float(moved) == float(score(pred, ref))
        assert float(score(ref, ref, convention="monai")) == 1
    plain, share = float(dice(pred, ref, convention="monai")), float(iou(pred, ref))
    assert plain == pytest.approx(2 * share / (1 + share), rel=1e-6)


def test_jit_and_vmap_and_float64(x64: None) -> None:
    pred, ref = _labels((2, 3, 4, 5))
    one_by_one = jnp.stack([dice(p, r, num_classes=4) for p, r in zip(pred, ref, strict=True)])
    assert one_by_one.dtype == jnp.float64
    batched = jax.vmap(lambda p, r: dice(p, r, num_classes=4))
    np.testing.assert_array_equal(batched(pred, ref), one_by_one)
    np.testing.assert_array_equal(jax.jit(batched)(pred, ref), one_by_one)
    masks = jax.jit(jax.vmap(iou))(pred > 1, ref > 1)
    np.testing.assert_array_equal(
        masks, [iou(p > 1, r > 1) for p, r in zip(pred, ref, strict=True)]
    )


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("convention", "empty", "neither", "only_pred", "only_ref"),
    [
        ("touchstone", "convention", 0, 0, 0),
        ("monai", "convention", 1, 0, 0),
        ("deepmind", "convention", NAN, 0, 0),
        ("monai", "zero", 0, 0, 0),
        ("touchstone", "one", 1, 0, 0),
        ("monai", "nan", NAN, 0, 0),
        ("monai", "nan_without_reference", NAN, NAN, 0),
    ],
)
def test_empty_masks(
    convention: str, empty: str, neither: float, only_pred: float, only_ref: float
) -> None:
    none, some = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    for score in (dice, iou):
        pairs = ((none, none), (some, none), (none, some))
        ours = [score(*pair, convention=convention, empty=empty) for pair in pairs]
        np.testing.assert_array_equal(ours, [neither, only_pred, only_ref])
    labels = np.array([[0, 1], [1, 0]])
    ours = dice(labels, labels, num_classes=3, convention=convention, empty=empty)
    np.testing.assert_array_equal(ours[2], neither)


def test_full_masks_one_class_and_no_voxels() -> None:
    full = np.ones((3, 4), bool)
    assert float(dice(full, full)) == np.float32(24 / 25)
    assert float(iou(full, full)) == 1
    zeros = np.zeros((3, 4), int)
    np.testing.assert_array_equal(iou(zeros, zeros, num_classes=1), [1])
    np.testing.assert_array_equal(dice(zeros[:0], zeros[:0], num_classes=2), [0, 0])


def test_a_label_out_of_range_is_refused_and_counts_nowhere_under_jit() -> None:
    pred, ref = np.array([0, 1, 2, 5]), np.array([0, 1, 1, 0])
    for bad, told in ((5, "pred has label 5; legal: 0..2"), (-1, "pred has label -1")):
        for array in (np.array, jnp.array):
            with pytest.raises(ValueError, match=told):
                dice(array([0, 1, 2, bad]), array(ref), num_classes=3)
    with pytest.raises(ValueError, match="ref has label 4294967296"):
        dice(ref, np.array([0, 1, 1, 2**32]), num_classes=3)
    counted = jax.jit(lambda p, r: joint_histogram(p, r, 3))(pred, ref)
    np.testing.assert_array_equal(counted, [[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    negative = jax.jit(lambda p, r: joint_histogram(p, r, 3))(-pred, ref)
    np.testing.assert_array_equal(negative, [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("pred", "ref", "options", "told"),
    [
        (np.ones(3, bool), np.ones(4, bool), {}, r"pred has shape \(3,\), ref \(4,\)"),
        (np.ones(3, np.uint8), np.ones(3, bool), {}, "pred is uint8: give boolean masks"),
        (np.ones(3, bool), np.full(3, NAN), {}, "ref is float64: give boolean masks"),
        (np.ones(3, bool), np.ones(3, int), {"num_classes": 2}, "pred is bool; with num_classes"),
        (np.ones(3, int), np.ones(3), {"num_classes": 2}, "ref is float64; with num_classes"),
        (np.ones(3, int), np.ones(3, int), {"num_classes": 0}, "num_classes=0; must lie in 1.."),
        (np.ones(3, bool), np.ones(3, bool), {"convention": "mona"}, "did you mean 'monai'"),
        (np.ones(3, bool), np.ones(3, bool), {"empty": "ignore"}, "unknown policy for empty"),
    ],
)
def test_refusals(pred: np.ndarray, ref: np.ndarray, options: dict, told: str) -> None:
    for score in (dice, iou):
        with pytest.raises(ValueError, match=told):
            score(pred, ref, **options)


def test_the_import_brings_jax_and_numpy_only() -> None:
    code = (
        "import sys, touchstone_jax; heavy = ('flax', 'optax', 'grain', 'orbax', 'jaxtyping'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
