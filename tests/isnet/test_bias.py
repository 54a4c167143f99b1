"""The bias protocol, re-derived pixel by pixel, and the checks in front of training."""

import itertools

import numpy as np
import pytest

from isnet_jax.data import KINDS, MODES, NO_MARKER, biased_digits, canvas_side
from isnet_jax.data import check_images_and_masks as check

N = 40


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Blobs that reach the border of their box here and there, four of each class."""
    rng = np.random.default_rng(7)
    images = rng.integers(1, 256, (N, 28, 28, 1), np.uint8)
    images[rng.random(images.shape) < 0.9] = 0
    images[:, 0, 0] = images[:, -1, -1] = 9  # the nearest that a digit can come to a corner
    return images, (np.arange(N) % 10).astype(np.int32)


def _make(digits: tuple, **options) -> dict[str, np.ndarray]:
    return biased_digits(*digits, **{"mode": "biased", "kind": "shape", "seed": 5, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_shapes_ranges_and_no_overlap(digits: tuple, kind: str, mode: str) -> None:
    made = _make(digits, kind=kind, mode=mode)
    side = canvas_side(kind)
    assert side % 4 == 0
    for name in ("image", "mask"):
        assert made[name].shape == (N, side, side, 1) and made[name].dtype == np.float32
    assert made["label"].dtype == made["bias"].dtype == np.int32
    assert set(np.unique(made["mask"])) == {0.0, 1.0}
    check(made["image"], made["mask"], made["label"], 10, case=mode)
    plain = _make(digits, kind=kind, mode="standard")["image"]
    changed = made["image"] != plain
    assert not (changed & (made["mask"] > 0)).any()
    assert (changed.reshape(N, -1).any(axis=1)).all() == (mode != "standard")
    assert set(np.unique(made["image"][changed])) <= {1.0}
    start = (side - 28) // 2
    middle = plain[:, start : start + 28, start : start + 28]
    np.testing.assert_array_equal(middle, digits[0].astype(np.float32) / np.float32(255))
    assert plain.sum() == pytest.approx(middle.sum())


@pytest.mark.parametrize("grow", [0, 1, 2])
def test_mask_is_the_digit_grown(digits: tuple, grow: int) -> None:
    made = _make(digits, grow=grow, mode="standard")
    image, mask = made["image"][:4, ..., 0], made["mask"][:4, ..., 0]
    for i, y, x in np.ndindex(image.shape):
        near = image[i, max(0, y - grow) : y + grow + 1, max(0, x - grow) : x + grow + 1]
        assert mask[i, y, x] == (near > 0).any()


def test_mask_is_the_same_in_every_mode(digits: tuple) -> None:
    masks = [_make(digits, mode=mode)["mask"] for mode in MODES]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_bias_tells_what_the_marker_tells(digits: tuple) -> None:
    labels = digits[1]
    assert (_make(digits)["bias"] == labels).all()
    assert (_make(digits, mode="standard")["bias"] == NO_MARKER).all()
    deceiving = _make(digits, mode="deceiving")["bias"]
    assert (deceiving != labels).all() and deceiving.min() >= 0 and deceiving.max() < 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_marker_alone_identifies_the_class(kind: str) -> None:
    """A table from markers to classes, learnt on biased images, reads deceiving ones."""
    blank = np.zeros((200, 28, 28, 1), np.uint8), (np.arange(200) % 10).astype(np.int32)
    biased, deceiving = (_make(blank, kind=kind, mode=mode) for mode in ("biased", "deceiving"))
    told = {}
    for image, bias in zip(biased["image"], biased["bias"], strict=True):
        assert told.setdefault(image.tobytes(), bias) == bias
    assert len(told) == (40 if kind == "shape" else 10)
    read = [told[image.tobytes()] for image in deceiving["image"]]
    np.testing.assert_array_equal(read, deceiving["bias"])
    size = {"position": 9, "pixel": 1}.get(kind)
    assert size is None or (biased["image"].sum((1, 2, 3)) == size).all()


def test_position_markers_lie_in_the_border_without_overlap() -> None:
    blank = np.zeros((44, 28, 28, 1), np.uint8), np.arange(44, dtype=np.int32)
    made = _make(blank, kind="position", num_classes=44)["image"][..., 0]
    assert made.sum(axis=0).max() == 1
    assert made[:, 3:-3, 3:-3].sum() == 0 and (made.sum((1, 2)) == 9).all()


def test_pixel_markers_lie_in_the_top_row() -> None:
    blank = np.zeros((32, 28, 28, 1), np.uint8), np.arange(32, dtype=np.int32)
    made = _make(blank, kind="pixel", num_classes=32)["image"][..., 0]
    np.testing.assert_array_equal(made[:, 0], np.eye(32))
    assert made[:, 1:].sum() == 0


def test_glyphs_differ_and_take_every_corner() -> None:
    blank = np.zeros((400, 28, 28, 1), np.uint8), np.repeat(np.arange(10, dtype=np.int32), 40)
    made = _make(blank)["image"][..., 0] > 0
    corners = [made[:, :5, :5], made[:, :5, -5:], made[:, -5:, :5], made[:, -5:, -5:]]
    used = np.stack([corner.any((1, 2)) for corner in corners])
    assert (used.sum(axis=0) == 1).all() and made.sum() == sum(c.sum() for c in corners)
    assert used.sum(axis=1).min() > 60  # 100 expected of each corner
    glyphs = np.stack([sum(c[40 * k] for c in corners) for k in range(10)])
    for a, b in itertools.combinations(glyphs, 2):
        assert (a != b).sum() >= 4


# ------------------------------------------------------------------------------ chance


def test_image_i_depends_on_seed_and_i_alone(digits: tuple) -> None:
    whole = _make(digits, mode="deceiving")
    part = _make((digits[0][:7], digits[1][:7]), mode="deceiving")
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][:7])
    again, other = _make(digits, mode="deceiving"), _make(digits, mode="deceiving", seed=6)
    np.testing.assert_array_equal(again["image"], whole["image"])
    assert (other["bias"] != whole["bias"]).any()


def test_deceiving_markers_are_spread_evenly_over_the_other_classes() -> None:
    blank = np.zeros((3000, 4, 4, 1), np.uint8), (np.arange(3000) % 3).astype(np.int32)
    made = _make(blank, kind="pixel", mode="deceiving", num_classes=3)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (made["label"], made["bias"]), 1)
    assert (np.diagonal(counts) == 0).all()
    off = counts[~np.eye(3, dtype=bool)]
    assert abs(off - 500).max() < 80  # five standard deviations


def test_strength_is_the_share_that_carries_its_own_marker() -> None:
    blank = np.zeros((2000, 8, 8, 1), np.uint8), (np.arange(2000) % 10).astype(np.int32)
    own = {}
    for strength in (0.0, 0.3, 0.8, 1.0):
        made = _make(blank, kind="pixel", strength=strength)
        own[strength] = made["bias"] == made["label"]
        assert made["bias"].min() >= 0
        assert abs(own[strength].mean() - strength) < 0.05
    assert not own[0.0].any() and own[1.0].all()
    assert (own[0.3] <= own[0.8]).all()


def test_float_images_give_the_same(digits: tuple) -> None:
    floats = digits[0].astype(np.float32) / np.float32(255), digits[1].astype(np.int64)
    for name, array in _make(floats).items():
        np.testing.assert_array_equal(array, _make(digits)[name])
        assert array.dtype == _make(digits)[name].dtype


def test_no_images_are_no_error() -> None:
    made = _make((np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, np.int32)))
    assert made["image"].shape == (0, 40, 40, 1) and made["bias"].shape == (0,)


# ------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "colour"}, "unknown kind 'colour'; legal: position, shape, pixel"),
        ({"mode": "unbiased"}, "unknown mode 'unbiased'; legal: biased, standard, deceiving"),
        ({"strength": 1.1}, "strength=1.1: expected a share"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 11}, "num_classes=11: 'shape' on 40 pixels tells 10 at most"),
        ({"num_classes": 9}, r"label 9 at item 9, expected 0\.\.8"),
        ({"seed": -1}, "seed=-1"),
        ({"grow": -1}, "grow=-1"),
        ({"canvas": 32}, "canvas=32: 'shape' around 28 pixels needs >= 40"),
        ({"canvas": 40, "grow": 2}, "needs >= 42"),
    ],
)
def test_bad_options(digits: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^bias: .*{message}"):
        _make(digits, **options)


def test_bad_images(digits: tuple) -> None:
    images, labels = digits
    for bad, message in (
        (images[..., 0], "images of shape"),
        (images[:, :20], "images of shape"),
        (np.repeat(images, 3, axis=3), "images of shape"),
        (images.astype(np.int32), "images of dtype int32"),
        (images.astype(np.float32), r"values in \[0, 255\], expected \[0, 1\]"),
        (images[1:], "39 images but labels of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            _make((bad, labels))
    with pytest.raises(ValueError, match="labels of dtype float64"):
        _make((images, labels.astype(float)))
    with pytest.raises(ValueError, match="unknown kind 'x'"):
        canvas_side("x")


def _good() -> dict[str, np.ndarray]:
    masks = np.zeros((4, 6, 5, 1), np.uint8)
    masks[1:, 2:4] = 1
    masks[3] = 1  # empty and full masks are legal
    return {
        "images": np.linspace(0, 1, 4 * 6 * 5 * 3, dtype=np.float32).reshape(4, 6, 5, 3),
        "masks": masks,
        "labels": np.array([0, 1, 2, 0]),
    }


def _with(name: str, index: tuple, value: float) -> dict[str, np.ndarray]:
    array = _good()[name].astype(float if name != "labels" else int)
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": _good()["masks"][:, :5]}, r"masks of shape \(4, 5, 5, 1\) for images"),
        ({"masks": _good()["masks"][..., 0]}, r"masks of shape \(4, 6, 5\)"),
        ({"images": _good()["images"][0]}, r"images of shape \(6, 5, 3\)"),
        ({"masks": _good()["masks"].repeat(3, 3)}, r"expected \(4, 6, 5, 1\)"),
        ({"masks": _good()["masks"] * 255}, r"masks have values in \[0, 255\], expected \[0, 1\]"),
        (_with("masks", (1, 0, 0, 0), -0.5), r"masks have values in \[-0.5, 1\]"),
        (_with("masks", (2, 0, 0, 0), 0.25), "mask 2 is soft: it has the value 0.25"),
        (_with("masks", (2, 0, 0, 0), np.nan), "masks 2 has NaN"),
        (_with("images", (3, 0, 0, 0), np.nan), "images 3 has NaN"),
        (_with("images", (3, 0, 0, 0), np.inf), "images 3 has NaN or infinite"),
        (_with("images", (1, 0, 0, 0), 1.5), r"images have values in \[0, 1.5\].*item 1"),
        (_with("images", (1, 0, 0, 0), -0.1), r"images have values in \[-0.1, 1\].*item 1"),
        (_with("labels", (2,), 3), r"label 3 at item 2, expected 0\.\.2"),
        (_with("labels", (2,), -1), r"label -1 at item 2"),
        ({"labels": np.array([0.0, 1, 2, 0])}, "labels of dtype float64"),
        ({"labels": np.eye(2, dtype=int)}, r"labels of shape \(2, 2\)"),
        ({"labels": np.array([0, 1, 2])}, "4 images, 4 masks, 3 labels"),
        ({"masks": _good()["masks"][:3]}, "4 images, 3 masks, 4 labels"),
        ({name: array[:0] for name, array in _good().items()}, "no images"),
    ],
)
def test_check_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^val: .*{message}"):
        check(**{**_good(), **change}, num_classes=3, case="val")


def test_check_accepts_good_data() -> None:
    check(**_good(), num_classes=3)
    good = _good()
    check(good["images"], good["masks"].astype(bool), good["labels"].astype(np.uint8), 3)
