"""Masks and label maps brought into one scheme: overlaps, merged lobes, split pairs."""

import itertools

import numpy as np
import pytest

from touchstone_jax.findings import VolumeError
from touchstone_jax.labels import combine_masks, map_labels
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.labels.sides import split_left_right

NINE = [
    *("aorta", "gall_bladder", "kidney_left", "kidney_right", "liver", "pancreas"),
    *("postcava", "spleen", "stomach"),
]

# ---------------------------------------------------------------- masks


def _masks() -> dict[str, np.ndarray]:
    masks = {name: np.zeros((6, 4, 4), bool) for name in ("liver", "gall_bladder", "spleen")}
    masks["liver"][:4] = True
    masks["gall_bladder"][3:5, :2] = True
    masks["spleen"][4:] = True
    return masks


def _slow(masks: dict[str, np.ndarray], rank) -> np.ndarray:
    """Voxel by voxel: of the classes that claim it, the one that ``rank`` puts first."""
    labels = np.zeros((6, 4, 4), np.uint8)
    for voxel in np.ndindex(6, 4, 4):
        claims = [name for name, mask in masks.items() if mask[voxel]]
        if claims:
            labels[voxel] = 1 + NINE.index(min(claims, key=rank))
    return labels


@pytest.mark.parametrize("order", list(itertools.permutations(("liver", "gall_bladder", "spleen"))))
@pytest.mark.parametrize("overlap", ["smallest", "first", "last"])
def test_overlaps_by_every_policy_in_every_order(order, overlap: str) -> None:
    masks = _masks()
    rank = {
        "smallest": lambda name: (masks[name].sum(), NINE.index(name)),
        "first": NINE.index,
        "last": lambda name: -NINE.index(name),
    }[overlap]
    labels, report = combine_masks(
        ((name, masks[name]) for name in order),
        "abdomenatlas_1.1",
        "abdomenatlas_1.0",
        shape=(6, 4, 4),
        overlap=overlap,
    )
    np.testing.assert_array_equal(labels, _slow(masks, rank))
    assert labels.dtype == np.uint8
    assert report.overlaps == {"gall_bladder & liver": 8, "gall_bladder & spleen": 8}
    assert report.voxels["liver"] == 64 and "aorta" not in report.voxels


def test_overlaps_can_be_refused_and_mistakes_are_told() -> None:
    def combine(masks, **options):
        both = ("abdomenatlas_1.0", "abdomenatlas_1.0")
        return combine_masks(masks, *both, **{"shape": (6, 4, 4), "case": "c7", **options})

    with pytest.raises(VolumeError, match="c7: gall_bladder & liver share 8 voxels"):
        combine(_masks().items(), overlap="refuse")
    with pytest.raises(ValueError, match="overlap='biggest'; legal values: smallest, first"):
        combine(_masks().items(), overlap="biggest")
    with pytest.raises(ValueError, match=r"c7: mask 'liver' has shape \(6, 4, 4\); expected"):
        combine(_masks().items(), shape=(5, 4, 4))


def test_lobes_merge_without_counting_as_an_overlap_and_others_are_left_out() -> None:
    upper, lower = np.zeros((2, 4, 4, 4), bool)
    upper[:2], lower[1:3] = True, True
    masks = [("lung_upper_lobe_left", upper), ("lung_lower_lobe_left", lower), ("brain", upper)]
    labels, report = combine_masks(
        masks, "totalsegmentator_v2", "abdomenatlas_1.1", shape=(4, 4, 4)
    )
    lung = scheme("abdomenatlas_1.1").indices["lung_left"]
    np.testing.assert_array_equal(labels == lung, upper | lower)
    assert report.overlaps == {} and report.voxels["lung_left"] == 48
    assert report.ignored == ("brain",)


# ---------------------------------------------------------------- pairs


def _kidneys() -> np.ndarray:
    mask = np.zeros((12, 5, 5), bool)
    mask[1:4, 1:4, 1:4] = True  # smaller x: the patient's left
    mask[7:11, 1:4, 1:4] = True
    mask[4, 4, 4] = True  # touches the left one by a corner: 26-connected
    mask[5, 0, 0] = True  # a stray voxel
    return mask


def test_a_pair_is_split_by_its_largest_parts() -> None:
    left, right, dropped = split_left_right(_kidneys())
    assert (left.sum(), right.sum(), dropped) == (28, 36, 1)
    assert left[4, 4, 4] and not left[5, 0, 0] and left[:5].sum() == 28 and right[7:].sum() == 36
    # Mirrored, the other way round.
    left, right, _ = split_left_right(_kidneys()[::-1])
    assert (left.sum(), right.sum()) == (36, 28)


def test_a_single_kidney_takes_the_side_of_the_centre_and_nothing_gives_nothing() -> None:
    mask = _kidneys()
    mask[:6] = False
    left, right, dropped = split_left_right(mask)
    assert (left.sum(), right.sum(), dropped) == (0, 36, 0)
    left, right, dropped = split_left_right(mask[::-1])
    assert (left.sum(), right.sum(), dropped) == (36, 0, 0)
    assert [int(np.sum(part)) for part in split_left_right(np.zeros((3, 3, 3), bool))] == [0, 0, 0]


def test_pairs_in_a_label_map_and_in_masks() -> None:
    labels = np.where(_kidneys(), 2, 0)
    labels[0, 0, 0] = 1
    mapped, report = map_labels(labels, "abdomenct_1k", "abdomenatlas_1.0")
    left, right, _ = split_left_right(_kidneys())
    assert mapped[0, 0, 0] == 5 and report.dropped == {"kidney": 1}
    np.testing.assert_array_equal(mapped == 3, left)
    np.testing.assert_array_equal(mapped == 4, right)
    assert report.voxels["kidney_left"] == 28 and "aorta" in report.missing
    combined, report = combine_masks(
        [("kidney", _kidneys())], "abdomenct_1k", "abdomenatlas_1.0", shape=(12, 5, 5)
    )
    np.testing.assert_array_equal(combined, np.where(mapped == 5, 0, mapped))
    assert report.dropped == {"kidney": 1}


def test_labels_without_a_name_are_background() -> None:
    labels = np.array([[[0, 13, 142, 500]]], np.uint16)
    mapped, report = map_labels(labels, "dap_atlas", "abdomenatlas_1.0")
    np.testing.assert_array_equal(mapped, [[[0, 5, 0, 0]]])
    assert report.voxels["liver"] == 1
