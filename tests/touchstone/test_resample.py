"""Resampling against SciPy's zoom, an explicit voxel-by-voxel vote, and functions known exactly."""

import numpy as np
import pytest
from scipy import ndimage

from touchstone_jax.prepare.resample import resample_image, resample_labels
from touchstone_jax.prepare.spline import resample_axis

SHAPES = [(17, 9, 30), (20, 5, 11), (4, 18, 1), (13, 9, 11)]


def _zoom(array: np.ndarray, shape, order: int) -> np.ndarray:
    factors = [n / old for n, old in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(13, 9, 11))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_images_as_scipy_interpolates_them(noise, shape, order: int) -> None:
    ours = resample_image(noise, shape, order=order, antialias=False)
    assert ours.dtype == np.float32 and ours.shape == shape
    np.testing.assert_allclose(ours, _zoom(noise, shape, order), atol=1e-6)


def test_one_order_an_axis(noise) -> None:
    ours = resample_image(noise, (20, 14, 5), order=(3, 3, 0), antialias=False)
    theirs = _zoom(_zoom(noise, (20, 14, 11), 3), (20, 14, 5), 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_linear_ramp_stays_where_it_lies_in_the_patient() -> None:
    # Positions in mm from the edge of the box, which both grids share.
    old, new = (np.arange(n) * 30 / n + 15 / n for n in (40, 100))
    ramp = np.broadcast_to(old[:, None, None], (40, 3, 3))
    got = resample_image(ramp, (100, 3, 3), order=3)[:, 1, 1]
    inside = (new > 8) & (new < 22)  # ten voxels away from the border, which is repeated
    np.testing.assert_allclose(got[inside], new[inside], atol=1e-5)


def test_antialiasing_removes_what_the_coarse_grid_cannot_hold() -> None:
    stripes = np.where(np.arange(64) % 2, 100.0, -100.0).reshape(64, 1, 1)
    coarse = (15, 1, 1)
    assert np.abs(resample_image(stripes, coarse)[1:-1]).max() < 0.01
    assert np.abs(resample_image(stripes, coarse, antialias=False)[1:-1]).max() > 50
    # Nothing is smoothed where the axis grows or the order is 0.
    for options in ({"order": 0}, {"order": 3}):
        shape = coarse if options["order"] == 0 else (100, 1, 1)
        plain = resample_image(stripes, shape, antialias=False, **options)
        np.testing.assert_array_equal(resample_image(stripes, shape, **options), plain)


def test_slabs_do_not_show(noise, monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise.astype(np.float32)
    whole = [resample_axis(array, axis, 17, 3, True) for axis in range(3)]
    monkeypatch.setattr("touchstone_jax.prepare.spline._SLAB_BYTES", 1)
    for axis in range(3):
        np.testing.assert_array_equal(resample_axis(array, axis, 17, 3, True), whole[axis])


# ---------------------------------------------------------------- labels


def _vote(labels: np.ndarray, shape, order: int) -> np.ndarray:
    """All classes' shares at once; an organ goes before the background, low before high."""
    shares = np.stack([_zoom((labels == k).astype(float), shape, order) for k in range(6)])
    shares = np.round(shares, 6)
    organ = shares[1:].argmax(axis=0) + 1
    return np.where(shares[0] > shares[1:].max(axis=0), 0, organ)


@pytest.mark.parametrize("shape", [(11, 5, 9), (16, 16, 16), (4, 4, 4), (1, 8, 20)])
@pytest.mark.parametrize("order", [0, 1])
def test_labels_by_the_largest_share(shape, order: int) -> None:
    labels = np.random.default_rng(1).integers(0, 6, (8, 8, 8)).astype(np.uint8)
    labels[labels == 4] = 0  # a class that does not occur
    ours = resample_labels(labels, shape, order=order)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, _vote(labels, shape, order))


def test_labels_come_back_from_a_finer_grid() -> None:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[2:7, 3:8, 1:6], labels[7:10, 3:8, 1:6], labels[4, 4, 7] = 1, 2, 250
    back = resample_labels(resample_labels(labels, (36, 30, 24)), labels.shape)
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("value", [0, 7])
def test_one_class_stays_one_class(value: int) -> None:
    labels = np.full((5, 6, 7), value, np.uint8)
    for shape in ((3, 9, 7), (1, 1, 1), (5, 6, 7)):
        out = resample_labels(labels, shape)
        assert out.shape == shape and (out == value).all()


def test_a_slice_stepped_over_by_nearest_is_gone() -> None:
    labels = np.zeros((4, 4, 9), np.uint8)
    labels[:, :, 1] = 3
    assert not resample_labels(labels, (4, 4, 2), order=(1, 1, 0)).any()
    # The result is a copy even when nothing is to be done.
    same = resample_labels(labels, labels.shape)
    assert same is not labels and (same == labels).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: resample_image(a, (3, 3)), "expected three axes"),
        (lambda a: resample_image(a, (3, 3, 0)), "at least one voxel an axis"),
        (lambda a: resample_image(a, (3, 3, 3), order=2), "order=2; legal values: 0, 1, 3"),
        (lambda a: resample_labels(a.astype(np.uint8), (3, 3, 3), order=3), "order 1 or 0"),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(np.zeros((4, 4, 4)))
