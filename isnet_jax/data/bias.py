"""Synthetic background bias: digits whose background carries a marker that tells a class.

The protocol of the ISNet papers' MNIST experiments (spec/isnet.md §4; the original generator was
never published, so the drawing is ours): a network is trained on *biased* images, where a marker
in the background encodes the true class, and tested on *biased*, *standard* (no marker) and
*deceiving* images (the marker of another class). One that looks at digits alone scores the same
on all three. The mask tells digit from background.

Everything here is NumPy, and image i depends only on (seed, i), never on the images around it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Num

NO_MARKER = -1
MODES = ("biased", "standard", "deceiving")

# Ten glyphs on 5×5 that differ from each other in at least four cells.
_GLYPHS = np.array(
    [
        [[cell == "#" for cell in row] for row in glyph.split()]
        for glyph in (
            "##### #...# #...# #...# #####",  # frame
            "..#.. ..#.. ##### ..#.. ..#..",  # plus
            "#...# .#.#. ..#.. .#.#. #...#",  # cross
            "##### ##### ##### ##### #####",  # square
            "..... ##### ##### ##### .....",  # bar
            "..#.. .#.#. #...# .#.#. ..#..",  # diamond
            "#.... ##... ###.. ####. #####",  # triangle
            "##.## ##.## ##.## ##.## ##.##",  # pillars
            "##### ..#.. ..#.. ..#.. ..#..",  # T
            "#.#.# .#.#. #.#.# .#.#. #.#.#",  # chequers
        )
    ]
)


@dataclass(frozen=True)
class _Kind:
    """How a class is written into the border: `draw(canvas, num_classes)` and its needs."""

    side: int  # pixels of border that a marker fills, from the edge inwards
    max_classes: Callable[[int], int]  # canvas -> how many classes it can tell apart
    # (canvas, num_classes) -> bool (num_classes, variants, canvas, canvas); one of the equally
    # likely variants is drawn for each image.
    draw: Callable[[int, int], np.ndarray]


def _draw_position(canvas: int, num_classes: int) -> np.ndarray:
    """A 3×3 square; its place on the ring along the edge tells the class."""
    reach = canvas - 3
    markers = np.zeros((num_classes, 1, canvas, canvas), bool)
    for label in range(num_classes):
        quarter, along = divmod(4 * reach * label // num_classes, reach)
        # Clockwise from the top left corner.
        top, left = ((0, along), (along, reach), (reach, reach - along), (reach - along, 0))[
            quarter
        ]
        markers[label, 0, top : top + 3, left : left + 3] = True
    return markers


def _draw_shape(canvas: int, num_classes: int) -> np.ndarray:
    """A glyph of 5×5 that tells the class, in any of the four corners."""
    markers = np.zeros((num_classes, 4, canvas, canvas), bool)
    near, far = slice(0, 5), slice(canvas - 5, canvas)
    for corner, (rows, columns) in enumerate(((near, near), (near, far), (far, near), (far, far))):
        markers[:, corner, rows, columns] = _GLYPHS[:num_classes]
    return markers


def _draw_pixel(canvas: int, num_classes: int) -> np.ndarray:
    """One pixel in the top row; its column tells the class."""
    markers = np.zeros((num_classes, 1, canvas, canvas), bool)
    labels = np.arange(num_classes)
    markers[labels, 0, 0, (2 * labels + 1) * canvas // (2 * num_classes)] = True
    return markers


_KINDS = {
    "position": _Kind(3, lambda canvas: 4 * (canvas - 3) // 3, _draw_position),
    "shape": _Kind(5, lambda canvas: len(_GLYPHS), _draw_shape),
    "pixel": _Kind(1, lambda canvas: canvas, _draw_pixel),
}
KINDS = tuple(_KINDS)


def canvas_side(kind: str, image_side: int = 28, grow: int = 1) -> int:
    """Side of the smallest canvas, a multiple of 4, with room for digit, mask and markers.

    For MNIST with grow=1: pixel 32, position 36, shape 40.

    Raises:
      ValueError: unknown kind.
    """
    return -(-(image_side + 2 * (_named(kind).side + grow)) // 4) * 4


def biased_digits(
    images: Num[np.ndarray, "n h h 1"],
    labels: Int[np.ndarray, " n"],
    *,
    mode: str,
    seed: int,
    kind: str = "position",
    strength: float = 1.0,
    num_classes: int = 10,
    canvas: int | None = None,
    grow: int = 1,
) -> dict[str, np.ndarray]:
    """Digits with a marker in the background, their masks, labels and the markers' classes.

    For one seed the three modes are paired: image i shows the same digit and, if its kind has
    several variants (the corner), the same one. Where strength is below 1, the images that carry
    their own class's marker at a lower strength still do at a higher one.

    Args:
      images: (n, h, h, 1), uint8 in [0, 255] or float in [0, 1].
      labels: (n,) in 0..num_classes-1.
      mode: "biased" (the marker tells the image's class), "standard" (no marker) or "deceiving"
        (the marker of a class drawn evenly among the others).
      seed: non-negative; image i draws from a generator of its own, keyed on (seed, i).
      kind: "position" (a 3×3 square whose place in the border tells the class; the one that
        misleads a small network most), "shape" (a 5×5 glyph in a corner drawn at random) or
        "pixel" (one pixel in the top row).
      strength: in biased mode, the probability that an image carries its own class's marker; the
        others carry that of a class drawn evenly among the others.
      num_classes: classes to be told apart; at least 2.
      canvas: side of the square result; None for `canvas_side(kind, h, grow)`.
      grow: how many pixels the mask reaches beyond the digit (3×3 dilations): edges belong to
        the digit, for a network may look at them.

    Returns:
      image float32 (n, canvas, canvas, 1) in [0, 1], digit in the middle; mask float32, same
      shape, 1 on the digit (intensity > 0, grown) and 0 elsewhere; label int32 (n,); bias int32
      (n,), the class that the marker tells, -1 without marker. Markers never touch the mask.

    Raises:
      ValueError: an argument outside the ranges above, or a canvas without room for the markers.
    """
    _check_options(mode, kind, strength, num_classes, seed, grow)
    images = unit_images(images)
    n, side = images.shape[:2]
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"bias: {n} images but labels of shape {labels.shape}")
    check_labels("bias", labels, num_classes)
    canvas = _room(kind, side, grow, num_classes, canvas)

    start = (canvas - side) // 2
    image = np.zeros((n, canvas, canvas, 1), np.float32)
    image[:, start : start + side, start : start + side] = images
    mask = _dilate(image > 0, grow)
    bias, variant = _draw_bias(labels.astype(np.int32), mode, strength, num_classes, seed)
    markers = _named(kind).draw(canvas, num_classes)  # (class, variant, canvas, canvas)
    carried = markers[bias, (variant * markers.shape[1]).astype(int)][..., None]
    carried &= (bias != NO_MARKER)[:, None, None, None]
    assert not (carried & mask).any(), "the border left for markers reaches into the mask"
    image[carried] = 1.0
    return {
        "image": image,
        "mask": mask.astype(np.float32),
        "label": labels.astype(np.int32),
        "bias": bias,
    }


def markers(kind: str, canvas: int, num_classes: int) -> np.ndarray:
    """The markers on a square canvas: bool (num_classes, variants, canvas, canvas).

    Raises:
      ValueError: unknown kind, or more classes than it can tell.
    """
    most = _named(kind).max_classes(canvas)
    if not 2 <= num_classes <= most:
        raise ValueError(
            f"bias: num_classes={num_classes}: {kind!r} on {canvas} pixels tells 2 to {most}"
        )
    return _named(kind).draw(canvas, num_classes)


def marker_classes(
    labels: Int[np.ndarray, " n"], mode: str, strength: float, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(class told by each image's marker, int32 (n,); its variant in [0, 1), (n,)).

    The arguments are those of `biased_digits`.

    Raises:
      ValueError: one of them outside its range.
    """
    _check_options(mode, "pixel", strength, num_classes, seed)
    check_labels("bias", np.asarray(labels), num_classes)
    return _draw_bias(np.asarray(labels).astype(np.int32), mode, strength, num_classes, seed)


def _room(kind: str, side: int, grow: int, num_classes: int, canvas: int | None) -> int:
    """The side of the canvas; refuses one on which the markers would not fit."""
    chosen = _named(kind)
    least = side + 2 * (chosen.side + grow)
    canvas = canvas_side(kind, side, grow) if canvas is None else canvas
    if canvas < least:
        raise ValueError(f"bias: canvas={canvas}: {kind!r} around {side} pixels needs >= {least}")
    most = chosen.max_classes(canvas)
    if num_classes > most:
        raise ValueError(
            f"bias: num_classes={num_classes}: {kind!r} on {canvas} pixels tells {most} at most"
        )
    return canvas


def _draw_bias(
    labels: np.ndarray, mode: str, strength: float, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(class told by the marker int32 (n,), variant in [0, 1) (n,))."""
    # All modes make the same draws, whether they use them or not: that is what pairs them.
    draws = [np.random.default_rng((seed, i)).random(3) for i in range(len(labels))]
    own, shift, variant = np.array(draws).reshape(-1, 3).T
    other = (labels + 1 + (shift * (num_classes - 1)).astype(np.int32)) % num_classes
    if mode == "standard":
        return np.full_like(labels, NO_MARKER), variant
    if mode == "deceiving":
        return other, variant
    return np.where(own < strength, labels, other), variant


def _dilate(mask: np.ndarray, times: int) -> np.ndarray:
    """Boolean (n, h, w, 1) grown by `times` 3×3 dilations."""
    for _ in range(times):
        for axis in (1, 2):  # a 3×3 square is a column of three by a row of three
            grown = mask.copy()
            ahead = (slice(None),) * axis + (slice(1, None),)
            behind = (slice(None),) * axis + (slice(None, -1),)
            grown[ahead] |= mask[behind]
            grown[behind] |= mask[ahead]
            mask = grown
    return mask


# ------------------------------------------------------------------------------ checks


def _named(kind: str) -> _Kind:
    if kind not in _KINDS:
        raise ValueError(f"bias: unknown kind {kind!r}; legal: {', '.join(KINDS)}")
    return _KINDS[kind]


def _check_options(
    mode: str, kind: str, strength: float, num_classes: int, seed: int, grow: int = 0
) -> None:
    _named(kind)
    if mode not in MODES:
        raise ValueError(f"bias: unknown mode {mode!r}; legal: {', '.join(MODES)}")
    for name, value, legal, ok in (
        ("strength", strength, "a share in [0, 1]", 0 <= strength <= 1),
        ("num_classes", num_classes, "at least 2", num_classes >= 2),
        ("seed", seed, "a non-negative integer", seed >= 0),
        ("grow", grow, "a non-negative number of pixels", grow >= 0),
    ):
        if not ok:
            raise ValueError(f"bias: {name}={value}: expected {legal}")


def unit_images(images: Num[np.ndarray, "n h h 1"]) -> np.ndarray:
    """float32 (n, h, h, 1) in [0, 1] from uint8 in [0, 255] or float in [0, 1].

    Raises:
      ValueError: another shape or type, or values out of range.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 1:
        raise ValueError(f"bias: images of shape {images.shape}, expected (n, h, h, 1)")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"bias: images of dtype {images.dtype}, expected uint8 or float in [0, 1]")
    check_unit("bias", "images", images)
    return images.astype(np.float32)


def check_unit(case: str, what: str, values: np.ndarray) -> None:
    """Values (n, ...) must be finite and in [0, 1].

    Raises:
      ValueError: they are not; the message starts with ``case`` and names the first bad item.
    """
    flat = values.reshape(len(values), -1)
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        raise ValueError(f"{case}: {what} {np.argmax(bad)} has NaN or infinite pixels")
    if flat.size and (flat.min() < 0 or flat.max() > 1):
        bad = (flat.min(axis=1) < 0) | (flat.max(axis=1) > 1)
        raise ValueError(
            f"{case}: {what} have values in [{flat.min():g}, {flat.max():g}], expected [0, 1] "
            f"(first at item {np.argmax(bad)})"
        )


def check_labels(case: str, labels: np.ndarray, num_classes: int) -> None:
    """Labels (n,) must be integers in 0..num_classes-1.

    Raises:
      ValueError: they are not; the message starts with ``case``.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{case}: labels of dtype {labels.dtype}, expected integers")
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"{case}: label {labels[first]} at item {first}, expected 0..{num_classes - 1}"
        )


def check_images_and_masks(
    images: Num[np.ndarray, "n h w c"],
    masks: Num[np.ndarray, "n h w 1"],
    labels: Int[np.ndarray, " n"],
    num_classes: int,
    *,
    case: str = "data",
) -> None:
    """Refuse data that training would silently misuse; what passes can be trained on.

    Args:
      images: (n, h, w, c), finite, in [0, 1].
      masks: (n, h, w, 1), every value 0 or 1.
      labels: (n,), integers in 0..num_classes-1.
      num_classes: number of classes.
      case: split or case name; every message starts with it.

    Raises:
      ValueError: naming the case, what was found (with the first bad item) and what is legal.
    """
    images, masks, labels = np.asarray(images), np.asarray(masks), np.asarray(labels)
    for what, array, axes in (("images", images, "n h w c"), ("masks", masks, "n h w 1")):
        if array.ndim != 4:
            raise ValueError(f"{case}: {what} of shape {array.shape}, expected ({axes})")
    if not len(images) == len(masks) == labels.size:
        raise ValueError(
            f"{case}: {len(images)} images, {len(masks)} masks, {labels.size} labels: "
            "expected as many of each"
        )
    if labels.ndim != 1:
        raise ValueError(f"{case}: labels of shape {labels.shape}, expected (n,)")
    if not len(images):
        raise ValueError(f"{case}: no images")
    expected = (*images.shape[:3], 1)
    if masks.shape != expected:
        raise ValueError(
            f"{case}: masks of shape {masks.shape} for images {images.shape}, expected {expected}"
        )
    check_unit(case, "images", images)
    check_unit(case, "masks", masks)
    soft = ((masks != 0) & (masks != 1)).reshape(len(masks), -1).any(axis=1)
    if soft.any():
        first = int(np.argmax(soft))
        value = masks[first][(masks[first] != 0) & (masks[first] != 1)].flat[0]
        raise ValueError(
            f"{case}: mask {first} is soft: it has the value {value:g}, expected only 0 "
            "(background) and 1 (foreground); threshold it first"
        )
    check_labels(case, labels, num_classes)
