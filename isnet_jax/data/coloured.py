"""Coloured digits: the colour of the digit itself tells its class, on black.

The palette and the recipe are those of the PGI paper's generator (Ahmed et al. 2021, ICLR), which
the explanation distillation's Coloured MNIST shares (arXiv 2407.09788); digit 0, which PGI leaves
out, gets an orange of our choice. Image i depends only on (seed, i).
"""

import numpy as np
from jaxtyping import Float, Int, Num

from isnet_jax.data.bias import check_labels, unit_images

MODES = ("iid", "ood", "shift", "grey")
# sRGB in 0..255, a row a digit.
PALETTE = np.array(
    [
        *((255, 127, 0), (0, 100, 0), (188, 143, 143), (255, 0, 0), (255, 215, 0)),
        *((0, 255, 0), (65, 105, 225), (0, 225, 225), (0, 0, 255), (255, 20, 147)),
    ],
    np.float32,
)
_DISTANCE = 2500  # squared, in 0..255: nearer colours count as the same
_NUM_CLASSES = len(PALETTE)


def unseen_colours(sets: int, seed: int) -> Float[np.ndarray, "sets 10 3"]:
    """`sets` times ten colours in [0, 1], far from the palette's and from each other's sets."""
    rng = np.random.default_rng((seed, 3))
    known, found = PALETTE.copy(), []
    for _ in range(sets):
        fresh: list[np.ndarray] = []
        while len(fresh) < _NUM_CLASSES:
            colour = rng.integers(0, 255, 3).astype(np.float32)
            if (np.square(known - colour).sum(axis=1) > _DISTANCE).all():
                fresh.append(colour)
        known = np.concatenate([known, fresh])
        found.append(np.stack(fresh))
    return np.stack(found) / np.float32(255)


def coloured_digits(
    images: Num[np.ndarray, "n h h 1"],
    labels: Int[np.ndarray, " n"],
    *,
    mode: str,
    seed: int,
    strength: float = 1.0,
    threshold: float = 0.5,
) -> dict[str, np.ndarray]:
    """Binary digits in a colour, their masks, labels and the class that the colour tells.

    For one seed image i shows the same digit in every mode.

    Args:
      images: (n, h, h, 1), uint8 in [0, 255] or float in [0, 1].
      labels: (n,) in 0..9.
      mode: "iid" (the colour of the class), "ood" (one of ten colours that no class has, drawn
        evenly), "shift" (that of a class drawn evenly among the others) or "grey" (white).
      seed: non-negative.
      strength: in iid mode, the share of images in their class's colour; the others get one of
        ten further colours that neither a class nor the ood mode has.
      threshold: pixels above it belong to the digit, in [0, 1).

    Returns:
      image float32 (n, h, h, 3) in [0, 1]; mask float32 (n, h, h, 1), the digit; label int32
      (n,); bias int32 (n,), -1 where the colour is no class's.

    Raises:
      ValueError: an argument outside the ranges above.
    """
    if mode not in MODES:
        raise ValueError(f"colours: unknown mode {mode!r}; legal: {', '.join(MODES)}")
    for name, value, legal, ok in (
        ("strength", strength, "a share in [0, 1]", 0 <= strength <= 1),
        ("threshold", threshold, "in [0, 1)", 0 <= threshold < 1),
        ("seed", seed, "a non-negative integer", seed >= 0),
    ):
        if not ok:
            raise ValueError(f"colours: {name}={value}: expected {legal}")
    mask = (unit_images(images) > threshold).astype(np.float32)
    labels = np.asarray(labels)
    check_labels("colours", labels, _NUM_CLASSES)
    labels = labels.astype(np.int32)
    colour, bias = _colours(labels, mode, strength, seed)
    return {"image": mask * colour[:, None, None], "mask": mask, "label": labels, "bias": bias}


def _colours(
    labels: np.ndarray, mode: str, strength: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(colours (n, 3) in [0, 1], class told (n,) or -1)."""
    minority, unseen = unseen_colours(2, seed)
    palette, none = PALETTE / np.float32(255), np.full_like(labels, -1)
    draws = [np.random.default_rng((seed, i)).random(3) for i in range(len(labels))]
    own, which, shift = np.array(draws).reshape(-1, 3).T
    which = (which * _NUM_CLASSES).astype(int)
    if mode == "grey":
        return np.ones((len(labels), 3), np.float32), none
    if mode == "ood":
        return unseen[which], none
    if mode == "shift":
        other = (labels + 1 + (shift * (_NUM_CLASSES - 1)).astype(np.int32)) % _NUM_CLASSES
        return palette[other], other
    biased = own < strength
    colour = np.where(biased[:, None], palette[labels], minority[which])
    return colour, np.where(biased, labels, none)
