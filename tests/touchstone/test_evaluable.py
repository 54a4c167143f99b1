"""Touchstone's size rule against scipy's erosion."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from touchstone_jax.metrics import eroded_voxels, evaluable


def _by_scipy(mask: np.ndarray) -> int:
    return int(ndimage.binary_erosion(mask, np.ones((3,) * mask.ndim)).sum())


@pytest.mark.parametrize("shape", [(12, 11), (8, 9, 10)])
def test_erosion_by_scipy(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, [-(-n // 4) for n in shape]), np.ones((4,) * len(shape)))
    labels = labels[tuple(slice(0, n) for n in shape)].astype(np.uint8)
    told = [_by_scipy(labels == c) for c in range(4)]
    assert max(told) > 0
    ours = eroded_voxels(labels, num_classes=4)
    np.testing.assert_array_equal(ours, told)
    assert int(eroded_voxels(labels == 1)) == told[1]
    batch = jax.jit(jax.vmap(lambda x: evaluable(x, num_classes=4, min_voxels=3)))
    np.testing.assert_array_equal(batch(labels[None])[0], np.array(told) > 3)


def test_more_than_ten_voxels_must_be_left() -> None:
    mask = np.zeros((7, 7, 14), bool)
    for length, told in ((12, False), (13, True)):
        mask[2:5, 2:5, :length] = True
        assert int(eroded_voxels(mask)) == length - 2
        assert bool(evaluable(mask)) is told
    assert not evaluable(np.zeros((7, 7, 14), bool))
    assert int(eroded_voxels(np.ones((7, 7, 14), bool))) == 5 * 5 * 12
    assert int(eroded_voxels(np.ones((0, 7), bool))) == 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="ref is int64: give boolean masks"):
        evaluable(np.ones((3, 3), int))
    with pytest.raises(ValueError, match=r"erosion of masks of shape \(3,\); expected 2-D or 3-D"):
        evaluable(np.ones(3, bool))
    with pytest.raises(ValueError, match="ref has label 5; legal: 0..1"):
        evaluable(np.full((3, 3), 5), num_classes=2)
