"""Image files as arrays: PNG and JPEG of any kind to RGB in [0, 1], then to a model's input.

Pillow is imported where a file is opened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
SKIMAGE = "skimage"
# Of the photos in scikit-image's wheel those that show one of ImageNet's classes.
PHOTOS = ("coffee.png", "chelsea.png", "motorcycle_left.png", "camera.png")
_LARGEST = 100_000_000  # pixels; a file of a few bytes can claim any number
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


# ---------------------------------------------------------------- which files


def listing(place: str) -> dict[str, Path]:
    """The images of a place, id -> file: the file's name without its ending if that is unique.

    Args:
        place: a PNG or JPEG file, a folder of them (not below it), or "skimage", photos that come
            with scikit-image.

    Raises:
        FileNotFoundError: there is no such place, or no image in it.
        ImportError: "skimage" without scikit-image.
        ValueError: a file that is neither PNG nor JPEG by its name.
    """
    files = _files(place)
    if not files:
        raise FileNotFoundError(f"images = {place!r} has no file *{', *'.join(SUFFIXES)}")
    stems = [path.stem for path in files]
    return {p.stem if stems.count(p.stem) == 1 else p.name: p for p in files}


def _files(place: str) -> list[Path]:
    if place == SKIMAGE:
        spec = importlib.util.find_spec("skimage")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                "images = 'skimage' needs scikit-image: pip install 'isnet-touchstone-jax[photos]'"
            )
        folder = Path(spec.submodule_search_locations[0]) / "data"
        return [folder / name for name in PHOTOS if (folder / name).is_file()]
    path = Path(place)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
        return sorted(p for p in found if p.is_file() and not p.name.startswith("."))
    if not path.is_file():
        raise FileNotFoundError(f"images = {place!r} does not exist")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"images = {place!r} is not one of *{', *'.join(SUFFIXES)}")
    return [path]


# ---------------------------------------------------------------- one file


def read(path: Path) -> Float[np.ndarray, "h w 3"]:
    """An image file as RGB, float32 (h, w, 3) in [0, 1], upright as its EXIF entry says.

    Grey is repeated, 16-bit grey keeps its steps (other kinds of 16 bits the upper eight), a
    palette is resolved, and what is transparent is laid on white. Of an animation the first picture
    is taken.

    Raises:
        ValueError: it is damaged, no PNG or JPEG, of no pixels or of more than 100 million.
        OSError: it cannot be read.
    """
    from PIL import ImageOps

    with opened(path) as file:
        return _rgb(ImageOps.exif_transpose(file))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image]:
    """An image file, its pixels not yet read; whatever damage shows in the block is one error.

    Raises:
        ValueError: it is damaged, no PNG or JPEG, of no pixels or of more than 100 million.
        OSError: it cannot be read.
    """
    from PIL import Image

    path.stat()  # what is missing says so itself
    # Pillow tells of damage by almost any of these, PNG's chunks by SyntaxError.
    damage = (OSError, SyntaxError, ValueError, IndexError, struct.error)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            if file.width * file.height > _LARGEST:
                raise ValueError(f"{file.width} × {file.height} pixels are too many")
            _scale_transparent_colour(file)
            yield file
    except (*damage, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path.name}: not a readable PNG or JPEG image ({error})") from error


def _scale_transparent_colour(file: Image) -> None:
    """PNG's transparent colour in the steps of the pixels, which Pillow brings to 8 bits."""
    tiles = getattr(file, "tile", ())  # how the file packs its pixels
    key, form = file.info.get("transparency"), tiles[0][3] if tiles else ""
    if isinstance(key, int) and form in ("L;2", "L;4"):
        bits = int(form[-1])
        file.info["transparency"] = key % 2**bits * (255 // (2**bits - 1))
    elif isinstance(key, tuple) and form == "RGB;16B":
        file.info["transparency"] = tuple(value >> 8 for value in key)


def _rgb(image: Image) -> Float[np.ndarray, "h w 3"]:
    if image.mode.startswith("I"):  # 16-bit grey, which conversion to RGB would clip
        steps = np.asarray(image)
        grey = np.where(steps == image.info.get("transparency", -1), 1, steps / np.float32(65535))
        return np.repeat(grey.clip(0, 1)[..., None], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
        return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])
    return np.asarray(image.convert("RGB")).astype(np.float32) / 255


# ---------------------------------------------------------------- a model's input


@dataclass(frozen=True)
class Preprocessing:
    """From an image to a model's input: resize, crop the middle, (x - mean) / std.

    Attributes:
        size: sides of the input in pixels, one number or (height, width).
        resize: length of the image's shorter side before the crop, in pixels; 0 squeezes the
            whole image into `size` instead.
        mean: of the pixels in [0, 1], a number a channel; one number: the image becomes grey.
        std: likewise, > 0.

    Raises:
        ValueError: a value that is not legal; the message names it.
    """

    size: int | tuple[int, int] = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # a card may hold lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sides = self.sides
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 4096 for side in sides):
            raise ValueError(f"preprocessing size={self.size}; must be 1 to 4096 pixels")
        if type(self.resize) is not int or not (self.resize == 0 or self.resize >= max(sides)):
            raise ValueError(
                f"preprocessing resize={self.resize}; must be 0 (squeeze) or at least "
                f"size={self.size}, and at most 16384"
            )
        numbers = all(isinstance(v, int | float) and np.isfinite(v) for v in self.mean + self.std)
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or not numbers:
            raise ValueError(
                f"preprocessing mean={self.mean}, std={self.std}; must be 3 numbers each, or 1"
            )
        if min(self.std) <= 0:
            raise ValueError(f"preprocessing std={self.std}; must be greater than 0")

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        if isinstance(self.size, list | tuple):
            return cast(tuple[int, int], tuple(self.size))  # two: checked above
        return self.size, self.size

    def cut(self, image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "height width 3"]:
        """The part of an RGB image in [0, 1] that the model sees, at its size; float32."""
        height, width = self.sides
        if self.resize == 0:
            return resized(image, height, width)
        h, w = image.shape[:2]
        scale = self.resize / min(h, w)
        image = resized(image, max(height, round(h * scale)), max(width, round(w * scale)))
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]

    def normalised(
        self, image: Float[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "height width c"]:
        """What `cut` returned as the model's input; float32, c channels as in `mean`."""
        grey = len(self.mean) == 1
        values = (image @ _LUMA)[..., None].clip(0, 1) if grey else image
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (values - mean[None, None]) / std[None, None]

    def box(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high) of the input, a number a channel: where black and white come to lie."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        low, high = (np.float32(0) - mean) / std, (np.float32(1) - mean) / std
        return tuple(low.tolist()), tuple(high.tolist())


def resized(
    array: Float[np.ndarray, "h w c"], height: int, width: int
) -> Float[np.ndarray, "height width c"]:
    """An image resized bilinearly, smoothed where it becomes smaller; float32, range kept."""
    from PIL import Image

    channels = [
        Image.fromarray(np.ascontiguousarray(channel)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for channel in np.moveaxis(array.astype(np.float32), 2, 0)
    ]
    # Sums of weights round: a white image must stay within what it was.
    return np.stack([np.asarray(c) for c in channels], axis=2).clip(array.min(), array.max())
