"""Datasets by name: the user's own npz files, and what is said of bad ones."""

import numpy as np
import pytest

from isnet_jax import data


def arrays(n=6, side=8, **changes):
    rng = np.random.default_rng(0)
    made = {
        "image": rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        "mask": rng.random((n, side, side)) > 0.5,
        "label": np.arange(n) % 3,
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


@pytest.fixture
def folder(tmp_path):
    for name in ("train", "val", "elsewhere"):
        np.savez(tmp_path / f"{name}.npz", **arrays())
    return tmp_path


def test_a_folder_of_arrays_becomes_splits(folder):
    splits = data.load("npz_folder", folder=str(folder), num_classes=3)
    assert splits.test == ("elsewhere",) and splits.num_classes == 3
    part = splits.arrays["train"]
    np.testing.assert_allclose(part["image"], arrays()["image"] / np.float32(255))
    assert part["mask"].shape == (6, 8, 8, 1) and set(np.unique(part["mask"])) == {0, 1}
    assert part["image"].dtype == np.float32 and part["label"].dtype == np.int32


KEPT = {
    "attention": np.ones((6, 8, 8)),
    "teacher_value": np.zeros((6, 3)),
    "teacher_class": np.arange(6) % 3,
    "teacher_epsilon": np.full(6, 0.1),
}


def test_attention_and_a_teacher_s_targets_lie_beside_the_images(folder):
    for name in ("train", "val"):
        np.savez(folder / f"{name}.npz", **arrays(**KEPT))
    part = data.load("npz_folder", folder=str(folder), num_classes=3).arrays["val"]
    assert part["attention"].shape == (6, 8, 8, 1) and part["attention"].dtype == np.float32
    assert part["teacher_value"].dtype == part["teacher_epsilon"].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": np.full((6, 8, 8), 255.0)}, r"^train.npz: attention.*expected \[0, 1\]"),
        ({"attention": np.full((6, 8, 8), np.nan)}, "^train.npz: attention 0 has NaN"),
        ({"attention": np.ones((6, 4, 4))}, r"^train.npz: attention of shape \(6, 4, 4, 1\)"),
        ({"attention": np.ones((5, 8, 8))}, r"'attention' \(5, 8, 8\) for 6 labels"),
        ({"privileged": np.ones((6, 8, 8, 1))}, r"privileged of shape.*\(6, 8, 8, 3\)"),
        ({"teacher_class": np.full(6, 3)}, "teacher_class: label 3 at item 0, expected 0..2"),
        ({"teacher_class": np.zeros((6, 1), int)}, r"teacher_class of shape \(6, 1\)"),
        ({"teacher_value": np.full((6, 3), np.nan)}, "teacher_value has NaN"),
        ({"teacher_epsilon": np.zeros(6)}, "teacher_epsilon has values <= 0"),
        ({"teacher_epsilon": None}, r"only \['teacher_value', 'teacher_class'\]"),
        ({}, "'attention' is in one alone"),
    ],
)
def test_what_lies_beside_the_images_must_fit(folder, changes, message):
    np.savez(folder / "train.npz", **arrays(**(KEPT | changes)))
    with pytest.raises(ValueError, match=message):
        data.load("npz_folder", folder=str(folder), num_classes=3)


def test_without_a_test_file_the_validation_is_reported(folder):
    (folder / "elsewhere.npz").unlink()
    assert data.load("npz_folder", folder=str(folder), num_classes=3).test == ("val",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"mask": np.zeros((6, 9, 8))},
            r"^train.npz: masks of shape \(6, 9, 8, 1\).*\(6, 8, 8, 1\)",
        ),
        ({"mask": np.full((6, 8, 8), 2.0)}, r"^train.npz: mask.*\[0, 1\]"),
        ({"mask": np.full((6, 8, 8), 0.5)}, r"^train.npz: mask 0 is soft.*0.5"),
        ({"mask": None}, "^train.npz: no array 'mask'; found"),
        ({"label": np.arange(6)}, r"^train.npz: label 3 at item 3, expected 0\.\.2"),
        ({"label": np.zeros(5, int)}, "^train.npz: 6 images, 6 masks, 5 labels"),
        ({"label": np.zeros(6)}, "^train.npz: labels of dtype float64"),
        ({"image": np.full((6, 8, 8, 1), np.nan)}, "^train.npz: images"),
        ({"image": np.full((6, 8, 8, 1), 7.0)}, r"^train.npz: images.*\[0, 1\]"),
        ({"image": np.zeros((6, 8, 8), np.float32)}, "^train.npz: images of shape"),
        ({"image": np.array([{}] * 6)}, "^train.npz: not a readable npz file"),
    ],
)
def test_arrays_that_do_not_fit_are_named(folder, changes, said):
    np.savez(folder / "train.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=said):
        data.load("npz_folder", folder=str(folder), num_classes=3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no zip at all"])
def test_a_damaged_file_is_named(folder, content):
    (folder / "val.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"^val.npz: not a readable npz file"):
        data.load("npz_folder", folder=str(folder), num_classes=3)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="'/nowhere' does not exist"):
        data.load("npz_folder", folder="/nowhere", num_classes=3)
    (folder / "val.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no val.npz; found: \['elsewhere', 'train'\]"):
        data.load("npz_folder", folder=str(folder), num_classes=3)
    with pytest.raises(ValueError, match="unknown dataset 'mnst_bias'; did you mean 'mnist_bias'"):
        data.load("mnst_bias")
    with pytest.raises(ValueError, match="unknown option of dataset 'npz_folder' 'foldr'.*folder"):
        data.load("npz_folder", foldr="x", num_classes=3)
    with pytest.raises(ValueError, match="needs the option 'num_classes'"):
        data.load("npz_folder", folder="x")


def test_splits_must_have_one_image_shape(folder):
    np.savez(folder / "elsewhere.npz", **arrays(side=9))
    with pytest.raises(ValueError, match=r"^elsewhere.npz: images of shape \(9, 9, 3\), but train"):
        data.load("npz_folder", folder=str(folder), num_classes=3)
    np.savez(folder / "train.npz", **arrays(image=np.zeros((6, 8, 8, 3), complex)))
    with pytest.raises(ValueError, match="^train.npz: array 'image' has dtype complex128"):
        data.load("npz_folder", folder=str(folder), num_classes=3)
