"""What holds for every label volume: scores, cleaning, and the numbers of other schemes."""

import itertools

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from touchstone_jax.clean import Cleaning, clean
from touchstone_jax.components import components
from touchstone_jax.labels import combine_masks, map_labels
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.metrics import dice, iou, joint_histogram, nsd
from touchstone_jax.metrics.host import evaluate_labels

SHAPE, CLASSES = (5, 4, 6), 4
INDICES = {"liver": 1, "spleen": 2, "aorta": 3}
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, CLASSES - 1))
SPACING = st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3)
NINE = scheme("abdomenatlas_1.0")


@given(LABELS, LABELS, st.sampled_from(list(itertools.permutations(range(CLASSES)))))
def test_overlap(pred: np.ndarray, ref: np.ndarray, order: tuple[int, ...]) -> None:
    scores = {c: np.asarray(dice(pred, ref, num_classes=CLASSES, convention=c))
              for c in ("touchstone", "monai")}  # fmt: skip
    share = np.asarray(iou(pred, ref, num_classes=CLASSES, convention="monai"))
    assert (scores["touchstone"] < 1).all()
    for found in (*scores.values(), share):
        assert (found >= 0).all() and (found <= 1).all()
    np.testing.assert_allclose(scores["monai"], 2 * share / (1 + share), rtol=1e-6)
    np.testing.assert_array_equal(dice(ref, pred, num_classes=CLASSES), scores["touchstone"])
    # The names of the classes are no matter, nor where the voxels lie.
    other = np.array(order, np.uint8)
    moved = [np.roll(other[x], (1, 2, 3), (0, 1, 2)) for x in (pred, ref)]
    found = np.asarray(dice(*moved, num_classes=CLASSES))
    np.testing.assert_array_equal(found[list(order)], scores["touchstone"])
    joint = np.asarray(joint_histogram(pred, ref, CLASSES))
    assert joint.sum() == pred.size
    same = np.asarray(dice(pred, pred, num_classes=CLASSES, convention="monai"))
    np.testing.assert_array_equal(same, 1)


@given(LABELS, LABELS)
def test_surfaces_of_label_maps(pred: np.ndarray, ref: np.ndarray) -> None:
    def score(p: np.ndarray, r: np.ndarray, mm: float) -> np.ndarray:
        return np.asarray(nsd(p, r, (1.0, 1.5, 2.0), mm, num_classes=CLASSES))

    near, far = score(pred, ref, 1.0), score(pred, ref, 2.0)
    known = ~np.isnan(near)
    assert (near[known] >= 0).all() and (far[known] <= 1).all()
    assert (near[known] <= far[known] + 1e-6).all()
    np.testing.assert_allclose(score(ref, pred, 1.0), near, rtol=1e-5, atol=1e-6)
    identical = score(ref, ref, 1.0)
    there = np.bincount(ref.ravel(), minlength=CLASSES)[1:] > 0
    assert (identical[-len(there) :][there] == 1).all()


@given(LABELS, LABELS, SPACING)
def test_scores_of_names(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> None:
    found = evaluate_labels(pred, ref, spacing, INDICES, 1e6)
    for organ, label in INDICES.items():
        both = (pred == label).any() and (ref == label).any()
        if both:
            assert found[organ].nsd == 1  # the other surface is never that far
        assert 0 <= found[organ].dsc < 1


# ---------------------------------------------------------------- components


@given(
    hnp.arrays(bool, st.tuples(*[st.sampled_from([1, 1, 2, 5])] * 3)),
    st.sampled_from(list(itertools.permutations(range(3)))),
)
@example(np.array([True, False, True]).reshape(1, 1, 3), (0, 1, 2))
def test_components(mask: np.ndarray, axes: tuple[int, ...]) -> None:
    mask = mask.transpose(axes)
    found, count = components(mask)
    expected, number = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == number and found.shape == mask.shape
    np.testing.assert_array_equal(found > 0, mask)
    assert len(np.unique(found.astype(np.int64) * 1000 + expected)) == count + (not mask.all())


def test_specks_on_a_line_are_cleaned() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 1, :4:3] = 1
    found, changed = clean(labels, (1.0, 1.0, 1.0), INDICES, {"liver": Cleaning(largest=True)})
    assert found.sum() == 1 and changed["liver"].removed == 1


# ---------------------------------------------------------------- cleaning


OPTIONS = st.dictionaries(
    st.sampled_from([*INDICES, "*"]),
    st.builds(
        Cleaning,
        largest=st.booleans(),
        min_ml=st.sampled_from([0.0, 0.003, 0.01, 999.0]),
        fill_holes=st.booleans(),
    ),
)


@given(LABELS, SPACING, OPTIONS, st.booleans())
def test_cleaning(
    labels: np.ndarray, spacing: tuple[float, ...], options: dict[str, Cleaning], fortran: bool
) -> None:
    labels = np.asfortranarray(labels) if fortran else labels
    before = labels.copy()
    found, changed = clean(labels, spacing, INDICES, options)
    np.testing.assert_array_equal(labels, before)
    # No voxel goes from one organ to another unless it was background in between.
    moved = (labels > 0) & (found > 0) & (labels != found)
    assert sum(c.filled for c in changed.values()) >= moved.sum()
    for organ, label in INDICES.items():
        change = changed.get(organ)
        count = [(x == label).sum() for x in (labels, found)]
        if change is None:
            assert count[0] == count[1]
        else:
            assert count[1] == count[0] - change.removed + change.filled
    again, nothing = clean(found, spacing, INDICES, options)
    np.testing.assert_array_equal(again, found)
    assert all((c.removed, c.filled) == (0, 0) for c in nothing.values())


# ---------------------------------------------------------------- schemes


@given(hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 9)))
def test_numbers_of_other_schemes_and_back(labels: np.ndarray) -> None:
    for other in ("abdomenatlas_1.0", "abdomenatlas_1.1"):
        there, _ = map_labels(labels, "abdomenatlas_1.0", other)
        back, _ = map_labels(there, other, "abdomenatlas_1.0")
        np.testing.assert_array_equal(back, labels)
    masks = [(name, labels == index) for name, index in NINE.indices.items()]
    for order in (masks, masks[::-1]):
        found, report = combine_masks(order, NINE, NINE, shape=SHAPE)
        np.testing.assert_array_equal(found, labels)
        assert not report.overlaps
