"""Label schemes against the published indices of each data set."""

import numpy as np
import pytest

from touchstone_jax.labels import map_labels
from touchstone_jax.labels.schemes import SCHEMES, from_indices, scheme

NINE = [
    *("aorta", "gall_bladder", "kidney_left", "kidney_right", "liver", "pancreas"),
    *("postcava", "spleen", "stomach"),
]

# Rows: AbdomenAtlas name, index in TotalSegmentator v2, DAP Atlas, JHH, AMOS, BTCV, FLARE'22.
PUBLISHED = [
    ("spleen", 1, 26, 18, 1, 1, 3),
    ("kidney_right", 2, 16, 11, 2, 2, 2),
    ("kidney_left", 3, 15, 10, 3, 3, 13),
    ("gall_bladder", 4, 12, 8, 4, 4, 9),
    ("liver", 5, 13, 12, 6, 6, 1),
    ("stomach", 6, 7, 19, 7, 7, 11),
    ("aorta", 52, 114, 1, 8, 8, 5),
    ("postcava", 63, 117, 9, 9, 9, 6),
    ("pancreas", 7, 14, 13, 10, 11, 4),
]
SOURCES = ("totalsegmentator_v2", "dap_atlas", "jhh", "amos", "btcv", "flare22")


@pytest.mark.parametrize("source", SOURCES)
def test_published_indices_reach_the_nine_classes(source: str) -> None:
    column = 1 + SOURCES.index(source)
    indices = np.array([row[column] for row in PUBLISHED]).reshape(9, 1, 1)
    mapped, report = map_labels(indices, source, "abdomenatlas_1.0")
    names = [NINE[i - 1] for i in mapped.ravel()]
    assert names == [row[0] for row in PUBLISHED]
    assert report.missing == () and set(report.voxels.values()) == {1}


def test_schemes_have_the_published_sizes_and_order() -> None:
    assert list(scheme("abdomenatlas_1.0").classes) == NINE
    assert scheme("abdomenatlas_1.1").classes[:9] == scheme("abdomenatlas_1.0").classes
    assert len(scheme("abdomenatlas_1.1").classes) == 25
    total = scheme("totalsegmentator_v2")
    assert total.num_classes == 118 and len(set(total.classes)) == 117
    spots = {1: "spleen", 25: "sacrum", 50: "vertebrae_C1", 51: "heart", 75: "femur_left"}
    spots |= {
        89: "iliopsoas_right",
        92: "rib_left_1",
        115: "rib_right_12",
        117: "costal_cartilages",
    }
    assert {i: total.classes[i - 1] for i in spots} == spots
    for entry in SCHEMES.values():
        assert (
            len(set(entry.indices.values())) == len(entry.indices)
            and min(entry.indices.values()) >= 1
        )


def test_what_a_source_lacks_is_told() -> None:
    target = scheme("abdomenatlas_1.1")
    missing = scheme("totalsegmentator_v2").missing_from(target)
    assert missing == ("celiac_trunk", "hepatic_vessel", "rectum")
    assert "stomach" in scheme("abdomenct_1k").missing_from(target)
    assert "kidney_left" not in scheme("abdomenct_1k").missing_from(target)
    assert scheme("word").missing_from(scheme("abdomenatlas_1.0")) == ("aorta", "postcava")
    with pytest.raises(ValueError, match="did you mean 'totalsegmentator_v2'"):
        scheme("totalsegmentator")


def test_a_scheme_of_ones_own() -> None:
    own = from_indices("Dataset7", {"background": 0, "gallbladder": 2, "kidney": 1, "lesion": 3})
    assert own.classes == ("kidney", "gallbladder", "lesion")
    assert own.names_in(scheme("abdomenatlas_1.0"), "gallbladder") == ("gall_bladder",)
    assert own.names_in(scheme("abdomenatlas_1.0"), "kidney") == ("kidney_left", "kidney_right")
    assert own.names_in(own, "kidney") == ("kidney",)
    for bad, words in (
        ({"a": 1, "b": 1}, "'a' and 'b' share the label 1"),
        ({"a": 0}, "label 0; expected"),
        ({"a": "1"}, "label '1'; expected"),
        ({"a": True}, "label True; expected"),
        ({"background": 0}, "no class"),
    ):
        with pytest.raises(ValueError, match=words):
            from_indices("d", bad)
