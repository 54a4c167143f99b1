"""The numpy route against golden values, real CT, and the compiled scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from touchstone_jax.metrics import (
    assd,
    crop_to_foreground,
    dice,
    eroded_voxels,
    evaluate_labels,
    evaluate_mask,
    hd95,
    nsd,
)

NAN, INF = float("nan"), float("inf")
SPACING = (0.8, 0.9, 2.5)
SHAPE = (9, 8, 6)


def _labels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three organs of some voxels, predicted with errors; label 4 is only predicted."""
    rng = np.random.default_rng(seed)
    ref = np.zeros(SHAPE, np.uint8)
    ref[1:6, 1:5, 1:5], ref[6:9, 2:7, 0:6], ref[0:4, 5:8, 1:5] = 1, 2, 3
    pred = np.where(rng.random(SHAPE) < 0.85, np.roll(ref, 1, axis=0), np.uint8(0))
    pred[8, 7, 5] = 4
    return pred, ref


# ---------------------------------------------------------------- golden values


@pytest.mark.parametrize("lookups", [500, 0])
def test_golden_pairs(golden: Path, lookups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("touchstone_jax.metrics.host_surface._LOOKUPS", lookups)
    cases = json.loads((golden / "metrics" / "manifest.json").read_text())["cases"]
    assert len(cases) == 16
    for name, told in cases.items():
        with np.load(golden / "metrics" / f"{name}.npz") as arrays:
            pred, ref, spacing = arrays["pred"], arrays["gt"], arrays["spacing"]
        for tolerance, value in told["monai"]["nsd"].items():
            ours = evaluate_labels(pred, ref, spacing, [1], float(tolerance))[1]
            np.testing.assert_allclose(ours.nsd, float(value), rtol=0, atol=1e-6, err_msg=name)
            value = told["google"]["nsd"][tolerance]
            ours = evaluate_mask(
                pred > 0, ref > 0, spacing, float(tolerance), convention="deepmind", distances=True
            )
            np.testing.assert_allclose(ours.nsd, float(value), rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(ours.hd95_mm, float(told["google"]["hd95"]), rtol=1e-5)
        ours = evaluate_mask(pred > 0, ref > 0, spacing, distances=True)
        assert ours.dsc == told["dice_touchstone"], name
        assert ours.pred_voxels == told["voxels_pred"] and ours.ref_voxels == told["voxels_gt"]
        assert ours.both_voxels == told["intersection"]
        np.testing.assert_allclose(ours.assd_mm, float(told["monai"]["assd"]), rtol=1e-5)
        if told["voxels_pred"] and told["voxels_gt"]:
            np.testing.assert_allclose(ours.hd95_mm, told["monai"]["hd95"], rtol=1e-5)


def test_golden_pairs_on_a_real_ct(golden: Path) -> None:
    import nibabel

    cases = json.loads((golden / "metrics" / "real_ct_pairs.json").read_text())["cases"]
    folder = golden.parent / "data" / "real_ct"
    for case, organs in cases.items():
        assert len(organs) == 9
        for organ, told in organs.items():
            pred, ref = (
                np.asarray(nibabel.load(folder / case / kind / f"{organ}.nii.gz").dataobj) > 0
                for kind in ("predictions", "segmentations")
            )
            for tolerance, value in told["nsd"].items():
                ours = evaluate_mask(pred, ref, told["spacing"], float(tolerance))
                assert ours.nsd == pytest.approx(value, abs=1e-6), (case, organ, tolerance)
            assert ours.dsc == told["dice_touchstone"], (case, organ)
            assert (ours.pred_voxels, ours.ref_voxels) == (
                told["pred_voxels"],
                told["ref_voxels"],
            )
            assert ours.eroded_ref_voxels == told["eroded_ref_voxels"]
            assert ours.evaluable == told["evaluated_under_size_rule(eroded>10)"]
    # And the compiled route on the organ with the most surface, cropped.
    told = cases["TS_upper_3mm"]["liver"]
    pred, ref = (
        np.asarray(nibabel.load(folder / "TS_upper_3mm" / kind / "liver.nii.gz").dataobj) > 0
        for kind in ("predictions", "segmentations")
    )
    pred, ref = (x > 0 for x in crop_to_foreground(pred.astype(np.uint8), ref.astype(np.uint8)))
    assert float(nsd(pred, ref, told["spacing"], 1.5)) == pytest.approx(
        told["nsd"]["1.5"], abs=1e-6
    )
    assert int(eroded_voxels(ref)) == told["eroded_ref_voxels"]


# ---------------------------------------------------------------- the two routes


@pytest.mark.parametrize(("order", "convention"), [("C", "touchstone"), ("F", "deepmind")])
def test_equal_to_the_compiled_scores(order: str, convention: str) -> None:
    pred, ref = (np.array(x, order=order) for x in _labels())
    ways = {"convention": convention, "distances": True}
    ours = evaluate_labels(pred, ref, SPACING, range(6), 1.5, **ways)
    options = {"num_classes": 6, "convention": convention}
    told = {
        "dsc": dice(pred, ref, **options),
        "nsd": nsd(pred, ref, SPACING, 1.5, **options),
        "hd95_mm": hd95(pred, ref, SPACING, **options),
        "assd_mm": assd(pred, ref, SPACING, **options),
        "eroded_ref_voxels": eroded_voxels(ref, num_classes=6),
    }
    for c in range(6):
        np.testing.assert_array_equal(ours[c].dsc, told["dsc"][c])
        for name, values in told.items():
            np.testing.assert_allclose(getattr(ours[c], name), values[c], rtol=1e-5, err_msg=name)
        masks = evaluate_mask(pred == c, ref == c, SPACING, **ways)
        assert repr(masks) == repr(ours[c])
    assert ours[4].nsd == 0 and ours[4].hd95_mm == INF and np.isnan(ours[5].nsd)


@pytest.mark.parametrize(
    ("convention", "dsc", "hd95_mm"),
    [
        ("touchstone", [0, 0, 0], [NAN, INF, INF]),
        ("monai", [1, 0, 0], [NAN, NAN, NAN]),
        ("deepmind", [NAN, 0, 0], [INF, INF, INF]),
    ],
)
def test_empty_masks(convention: str, dsc: list[float], hd95_mm: list[float]) -> None:
    none, some = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    ours = [
        evaluate_mask(*pair, (1, 1), 1.0, convention=convention, distances=True)
        for pair in ((none, none), (some, none), (none, some))
    ]
    np.testing.assert_array_equal([s.dsc for s in ours], dsc)
    np.testing.assert_array_equal([s.nsd for s in ours], [NAN, 0, 0])
    np.testing.assert_array_equal([s.hd95_mm for s in ours], hd95_mm)
    np.testing.assert_array_equal([s.assd_mm for s in ours], [NAN, INF, INF])


masks = hnp.arrays(bool, (5, 4, 3))


@settings(max_examples=60, deadline=None)
@given(masks, masks, st.sampled_from([0.0, 1.0, 2.3, INF]), st.booleans())
def test_properties(pred: np.ndarray, ref: np.ndarray, tolerance: float, flat: bool) -> None:
    pred, ref = (x.reshape(10, 6) if flat else x for x in (pred, ref))
    spacing = (1.0, 0.7) if flat else (1.0, 0.7, 2.0)
    ours = evaluate_mask(pred, ref, spacing, tolerance, distances=True)
    swapped = evaluate_mask(ref, pred, spacing, tolerance, distances=True)
    np.testing.assert_allclose(
        [swapped.dsc, swapped.nsd, swapped.hd95_mm, swapped.assd_mm],
        [ours.dsc, ours.nsd, ours.hd95_mm, ours.assd_mm],
        rtol=1e-6,
    )
    moved = [np.pad(x, [(2, 1)] * x.ndim) for x in (pred, ref)]
    assert repr(evaluate_mask(*moved, spacing, tolerance, distances=True)) == repr(ours)
    if not pred.any() and not ref.any():
        assert ours.dsc == 0 and np.isnan(ours.nsd) and np.isnan(ours.assd_mm)
        return
    assert 0 <= ours.nsd <= 1 and 0 <= ours.dsc < 1
    if tolerance == INF:
        assert ours.nsd == (pred.any() and ref.any())
    assert evaluate_mask(ref | pred, ref | pred, spacing, 0.0).nsd == 1


def test_names_tolerances_and_other_labels() -> None:
    pred, ref = _labels()
    named = evaluate_labels(pred, ref, SPACING, {"liver": 2, "spleen": 1}, [1.5, 3.0])
    assert list(named) == ["liver", "spleen"]
    assert named["liver"] == evaluate_labels(pred, ref, SPACING, [2], 1.5)[2]
    assert named["spleen"] == evaluate_labels(pred, ref, SPACING, [1], 3.0)[1]
    assert named["liver"].hd95_mm is None and named["liver"].evaluable is True
    assert json.loads(json.dumps(vars(named["spleen"]))) == vars(named["spleen"])
    wide = evaluate_labels(pred.astype(np.int64) * 100, ref.astype(np.int16) * 100, SPACING, [200])
    assert wide[200] == named["liver"]


def test_cropping_changes_no_organ() -> None:
    pred, ref = _labels()
    small = crop_to_foreground(pred, ref, multiple=4)
    assert small[0].shape == small[1].shape == (12, 8, 8)
    told = nsd(pred, ref, SPACING, 1.5, num_classes=5)
    np.testing.assert_array_equal(nsd(*small, SPACING, 1.5, num_classes=5)[1:], told[1:])
    np.testing.assert_array_equal(
        dice(*small, num_classes=5)[1:], dice(pred, ref, num_classes=5)[1:]
    )
    nothing = np.zeros((5, 5), np.int16)
    assert [x.shape for x in crop_to_foreground(nothing, nothing)] == [(32, 32)] * 2


# ---------------------------------------------------------------- refusals

INTS = np.ones((3, 3), np.int16)


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ((INTS, INTS[:2], (1, 1), [1]), r"pred has shape \(3, 3\), ref \(2, 3\)"),
        ((INTS, INTS * 1.0, (1, 1), [1]), "ref is float64; expected integer labels"),
        ((INTS, INTS > 0, (1, 1), [1]), "ref is bool; expected integer labels"),
        ((-INTS, INTS, (1, 1), [1]), "pred has label -1; expected 0 or more"),
        ((INTS[0], INTS[0], (1,), [1]), r"scores of masks of shape \(3,\)"),
        ((INTS, INTS, (1, 0), [1]), "expected positive, finite mm"),
        ((INTS, INTS, (1, 1), []), r"classes=\[\]; expected labels of 0 or more"),
        ((INTS, INTS, (1, 1), [1, 1]), "each once"),
        ((INTS, INTS, (1, 1), {"a": 1, "b": 1}), "each once"),
        ((INTS, INTS, (1, 1), [-1]), "expected labels of 0 or more"),
        ((INTS, INTS, (1, 1), [1], [1, 2]), "tolerance_mm has 2 values; expected 1 or 1"),
    ],
)
def test_refusals(given_: tuple, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        evaluate_labels(*given_)


def test_a_mask_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="pred is int16; expected a boolean mask"):
        evaluate_mask(INTS, INTS > 0, (1, 1))
