"""Cleaning of label maps, against scipy's components and holes."""

import numpy as np
import pytest
from scipy import ndimage

from touchstone_jax.clean import Cleaned, Cleaning, clean, cleanings

INDICES = {"liver": 1, "spleen": 2, "aorta": 4}
MM = (2.0, 2.5, 4.0)  # 0.02 ml a voxel
TOUCHING = np.ones((3, 3, 3))


def _random(seed: int, share: float = 0.35) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 2, 4], (12, 11, 9)) * (rng.random((12, 11, 9)) < share)
    return np.asfortranarray(labels.astype(np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_largest_component(seed: int) -> None:
    labels = _random(seed, 0.12)
    found, changed = clean(labels, MM, INDICES, {"liver": Cleaning(largest=True)})
    pieces, count = ndimage.label(labels == 1, TOUCHING)
    sizes = np.bincount(pieces.ravel())[1:]
    assert count > 3 and (found == 1).sum() == sizes.max()
    assert ndimage.label(found == 1, TOUCHING)[1] == 1
    np.testing.assert_array_equal(np.where(labels == 1, 0, labels), np.where(found == 1, 0, found))
    assert changed == {"liver": Cleaned(int(sizes.sum() - sizes.max()), 0)}


@pytest.mark.parametrize("seed", range(3))
def test_small_components_and_their_size_in_ml(seed: int) -> None:
    labels = _random(seed, 0.12)
    found, changed = clean(labels, MM, INDICES, {"*": Cleaning(min_ml=0.06)})
    for label in INDICES.values():
        pieces, _ = ndimage.label(labels == label, TOUCHING)
        large = np.flatnonzero(np.bincount(pieces.ravel()) >= 3)
        np.testing.assert_array_equal(found == label, np.isin(pieces, large[large > 0]))
    assert sum(c.removed for c in changed.values()) == (labels > 0).sum() - (found > 0).sum()


@pytest.mark.parametrize("seed", range(3))
def test_holes(seed: int) -> None:
    labels = np.where(_random(seed, 0.8) > 0, 1, 0).astype(np.uint8)
    labels[5, 5, 4] = 2  # enclosed or not, another organ stays
    found, changed = clean(labels, MM, INDICES, {"liver": Cleaning(fill_holes=True)})
    holes = ndimage.binary_fill_holes(labels == 1) & (labels == 0)
    assert holes.sum() > 0 and changed == {"liver": Cleaned(0, int(holes.sum()))}
    np.testing.assert_array_equal(found, np.where(holes, 1, labels))


def test_removal_goes_before_filling_and_the_named_organ_before_all() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 1:8] = 1
    labels[4, 4, 4] = 2  # a speck of spleen inside the liver ...
    labels[0, 0, :4] = 2  # ... and the spleen
    labels[0, 8, 0] = 4
    options = {"*": Cleaning(largest=True, fill_holes=True), "aorta": Cleaning(min_ml=1.0)}
    found, changed = clean(labels, MM, INDICES, options)
    assert found[4, 4, 4] == 1 and found[0, 8, 0] == 0 and (found == 2).sum() == 4
    assert changed == {"liver": Cleaned(0, 1), "spleen": Cleaned(1, 0), "aorta": Cleaned(1, 0)}
    assert labels[4, 4, 4] == 2  # the input is left alone


def test_nothing_to_do() -> None:
    labels = _random(0)
    for options in ({}, {"*": Cleaning()}):
        found, changed = clean(labels, MM, INDICES, options)
        np.testing.assert_array_equal(found, labels)
        assert changed == {}
    empty, changed = clean(np.zeros_like(labels), MM, INDICES, {"*": Cleaning(True, 1.0, True)})
    assert not empty.any() and set(changed.values()) == {Cleaned()}
    full = np.full((3, 3, 3), 4, np.uint8)
    same, _ = clean(full, MM, INDICES, {"*": Cleaning(True, 0.1, True)})
    np.testing.assert_array_equal(same, full)


def test_corners_connect_and_size_has_no_rounding() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 1
    found, _ = clean(labels, (1.0, 1.0, 1.0), INDICES, {"liver": Cleaning(True, 0.003)})
    np.testing.assert_array_equal(found, labels)
    found, _ = clean(labels, (1.0, 1.0, 1.0), INDICES, {"liver": Cleaning(min_ml=0.0031)})
    assert not found.any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"liver": {"bigest": True}}, r"clean: liver: .*bigest.*legal options: largest, min_ml"),
        ({"liver": True}, "clean: liver: True"),
        ({"liver": {"largest": 1}}, "clean: liver: largest=1; expected True or False"),
        ({"*": {"min_ml": -1}}, r"clean: \*: min_ml=-1; expected ml"),
        ({"*": {"min_ml": float("nan")}}, "min_ml=nan"),
    ],
)
def test_bad_options(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        cleanings(options)


def test_options_of_a_card() -> None:
    assert cleanings({"liver": {"largest": True, "min_ml": 2}}) == {"liver": Cleaning(True, 2)}
    with pytest.raises(ValueError, match="unknown organ 'heart'; legal: \\*, liver, spleen, aorta"):
        clean(_random(0), MM, INDICES, {"heart": Cleaning()})
    with pytest.raises(ValueError, match="spacing_mm="):
        clean(_random(0), (1.0, 0.0, 1.0), INDICES, {})
