"""Pictures of CTs: orientation, colours, sizes."""

import numpy as np
import pytest

from touchstone_jax import draw

NAMES = {"liver": 1, "spleen": 2}


def volume():
    hu = np.full((20, 16, 12), -1000.0, np.float32)
    labels = np.zeros(hu.shape, np.uint8)
    labels[15:19, 10:14, 8:11] = 1  # the patient's right, front, high
    return hu, labels


def test_grey_is_the_window():
    found = draw.grey(np.array([-1000.0, -160.0, 40.0, 240.0, 3000.0, np.nan, np.inf, -np.inf]))
    assert found.tolist() == [0, 0, 128, 255, 255, 0, 255, 0]


def test_right_front_and_head_are_where_radiologists_look_for_them():
    hu, labels = volume()
    sheet = np.asarray(draw.draw_labels(hu, labels, (2.0, 2.0, 4.0), NAMES)).astype(int)
    colour = draw.colours(3)[1]
    coloured = np.argwhere((sheet == colour).all(-1))
    wide = draw.AXIAL_SIDE
    lower = coloured[coloured[:, 0] < sheet.shape[0] - 16]  # without the legend
    axial = lower[lower[:, 1] < wide]
    assert axial[:, 1].max() < wide * 0.3  # x = 15..18 of 20, on the left
    tall = (sheet.shape[0] - 16 - 2 * 8) // 2
    height = round(32 * 320 / 40)
    top = tall + 8 + (tall - height) // 2
    assert axial[:, 0].max() - top < 0.4 * height  # y = 10..13 of 16, at the top
    coronal = lower[(lower[:, 1] >= wide + 8) & (lower[:, 1] < 2 * wide + 8)]
    assert coronal[:, 1].max() - wide - 8 < wide * 0.3
    assert coronal[:, 0].max() - tall - 8 < 0.4 * tall  # z = 8..10 of 12
    sagittal = lower[lower[:, 1] >= 2 * wide + 16]
    assert sagittal[:, 1].max() - 2 * wide - 16 < 0.45 * height
    assert tall == round(48 * 320 / 40)  # square in mm: the highest panel is 12 slices of 4 mm


def test_nothing_labelled_and_unequal_shapes():
    hu, labels = volume()
    sheet = draw.draw_labels(hu, 0 * labels, (1.0, 1.0, 1.0), NAMES)
    assert not np.asarray(sheet).any()
    with pytest.raises(ValueError, match=r"\(20, 16, 11\).*same shape"):
        draw.draw_labels(hu, labels[..., 1:], (1.0, 1.0, 1.0), NAMES)


def test_a_ct_of_a_few_columns_makes_no_huge_picture():
    hu = np.zeros((4, 64, 50), np.float32)
    labels = np.zeros(hu.shape, np.uint8)
    sheet = np.asarray(draw.draw_labels(hu, labels, (1.0, 8.0, 8.0), NAMES))
    assert sheet.shape[0] == 2 * draw.LONGEST_SIDE + 2 * 8 and sheet.shape[1] > 1000


def test_many_labels_have_many_colours():
    assert len({tuple(c) for c in draw.colours(30)[1:]}) == 29
