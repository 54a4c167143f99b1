"""Datasets by name: every split as arrays, checked before anything is computed.

A dataset function takes a config's keyword arguments and returns `Splits`.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.data.bias import check_images_and_masks, check_labels, check_unit
from isnet_jax.data.digits import DIGITS
from isnet_jax.data.folders import csv_labels, image_folder
from isnet_jax.data.marked import with_bias
from isnet_jax.data.photos import celeba, stanford_dogs
from isnet_jax.data.splits import TRAIN, VAL, Splits
from isnet_jax.legal import call

ARRAYS = ("image", "mask", "label")
# Of "train" and "val": see `Splits`, `isnet_jax.methods.attended` and `isnet_jax.distill`.
TARGETS = ("teacher_value", "teacher_class", "teacher_epsilon")
FURTHER = ("privileged", "attention", *TARGETS)

# RuntimeError: encrypted. MemoryError: a header promises more than the machine has.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, MemoryError)


def npz_folder(*, folder: str, num_classes: int) -> Splits:
    """Your own images and masks: train.npz, val.npz and any other *.npz, each a test split.

    Without another file, "val" is what the end reports.

    Every file holds "image" (n, h, w, c), uint8 or float in [0, 1], "mask" (n, h, w) or
    (n, h, w, 1) in {0, 1} (1 = foreground) and "label" (n,). Train and val may also, both of them,
    hold "privileged" (as image), "attention" (as mask, in [0, 1]) and a teacher's targets as
    `isnet_jax.distill.teacher_targets` makes them. Nothing is unpickled.

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
        _check_further(part, num_classes, files[name].name)
    for name in FURTHER:
        if (name in arrays[TRAIN]) != (name in arrays[VAL]):
            raise ValueError(f"train.npz and val.npz: {name!r} is in one alone, expected in both")
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
            found = {key: file[key] for key in file if key in (*ARRAYS, *FURTHER)}
            names = sorted(file)
    except (*_DAMAGE, OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not a readable npz file ({error})") from error
    for key in ARRAYS:
        if key not in found:
            raise ValueError(f"{path.name}: no array {key!r}; found: {names}")
    for key in found:
        if found[key].dtype.kind not in "buif":
            dtype = found[key].dtype
            raise ValueError(f"{path.name}: array {key!r} has dtype {dtype}, expected numbers")
    image, mask, label = (found.pop(key) for key in ARRAYS)
    for key, array in found.items():
        if array.shape[:1] != label.shape[:1]:
            raise ValueError(f"{path.name}: {key!r} {array.shape} for {len(label)} labels")
        if key == "privileged":
            found[key] = _unit(array)
        elif array.dtype.kind == "f":
            found[key] = array.astype(np.float32)
    if "attention" in found and found["attention"].ndim == 3:
        found["attention"] = found["attention"][..., None]
    image = _unit(image)
    mask = mask[..., None] if mask.ndim == 3 else mask
    return {
        "image": image.astype(np.float32),
        "mask": mask.astype(np.float32),
        "label": label if label.dtype.kind not in "iu" else label.astype(np.int32),
        **found,
    }


def _check_further(part: Mapping[str, np.ndarray], num_classes: int, case: str) -> None:
    """What only some methods read must fit as well: they would misuse it in silence."""
    image = part["image"].shape
    for name, shape in (("privileged", image), ("attention", (*image[:3], 1))):
        if name in part:
            if part[name].shape != shape:
                raise ValueError(f"{case}: {name} of shape {part[name].shape}, expected {shape}")
            check_unit(case, name, part[name])
    given = [name for name in TARGETS if name in part]
    if not given:
        return
    if len(given) < len(TARGETS):
        raise ValueError(f"{case}: of a teacher's targets only {given}; expected {TARGETS}")
    for name in given:
        if name != "teacher_value" and part[name].ndim != 1:
            raise ValueError(f"{case}: {name} of shape {part[name].shape}, expected (n,)")
        if not np.isfinite(part[name]).all():
            raise ValueError(f"{case}: {name} has NaN or infinite values")
    check_labels(f"{case}: teacher_class", part["teacher_class"], num_classes)
    if not (part["teacher_epsilon"] > 0).all():
        raise ValueError(f"{case}: teacher_epsilon has values <= 0, expected > 0")


def _unit(image: np.ndarray) -> np.ndarray:
    return (image / np.float32(255) if image.dtype == np.uint8 else image).astype(np.float32)


DATASETS: dict[str, Callable[..., Splits]] = {
    **DIGITS,
    "npz_folder": npz_folder,
    "image_folder": image_folder,
    "csv_labels": csv_labels,
    "stanford_dogs": stanford_dogs,
    "celeba": celeba,
}
BIASES = {"marker": with_bias}


def load(source: str, bias: Mapping[str, Any] | None = None, **options: Any) -> Splits:
    """The dataset `source` with its options.

    Args:
      source: a key of `DATASETS`.
      bias: None, or options of `with_bias`: a synthetic background bias on top.
      **options: the dataset's own.

    Raises:
      ValueError: unknown dataset or option; names the nearest and the legal ones. And see there.
    """
    splits = call("dataset", source, DATASETS, options)
    return splits if bias is None else call("bias", "marker", BIASES, {"splits": splits, **bias})
