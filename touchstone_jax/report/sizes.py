"""Size words of organs, from their volumes alone: no sex, age or body size is known."""

from __future__ import annotations

from collections.abc import Mapping

from touchstone_jax.report.schema import Organ

ENLARGED_CM3: Mapping[str, float] = {
    "spleen": 314.5,
    "liver": 3000.0,
    "pancreas": 83.0,
    "kidney": 415.2 / 2,
}
"""An organ (for kidneys: one of them) above this volume in cm³ is enlarged."""

MASSIVE_SPLEEN_CM3 = 430.8
"""A spleen above this volume in cm³ is massively enlarged."""


def size_words(organ: Organ, *, published: bool = False) -> str:
    """What the text says of an organ's size, such as "Liver is enlarged"; "" if it is not known.

    "published" calls both kidneys enlarged where one of them is, and speaks of none where one is
    not known.

    Raises:
        KeyError: an organ without limits.
    """
    limit = ENLARGED_CM3[organ.name]
    name = organ.name.capitalize()
    if organ.name == "kidney" and not (published and organ.volume_mm3 is None):
        return _kidneys(organ.parts_mm3, limit, published)
    if organ.volume_mm3 is None:
        return ""
    if organ.name == "spleen" and organ.volume_mm3 / 1000 > MASSIVE_SPLEEN_CM3:
        return f"{name} is massively enlarged"
    return f"{name} is enlarged" if organ.volume_mm3 / 1000 > limit else "Normal size"


def _kidneys(parts_mm3: Mapping[str, float | None], limit_cm3: float, published: bool) -> str:
    known = {side: volume for side, volume in parts_mm3.items() if volume is not None}
    large = [side for side, volume in known.items() if volume / 1000 > limit_cm3]
    if large and (published or len(large) == 2):
        return "Bilateral kidneys are enlarged"
    if large:
        return f"{large[0].capitalize()} kidney is enlarged"
    if len(known) == 1:
        return f"{next(iter(known)).capitalize()} kidney is of normal size"
    return "Normal size" if known else ""


def enlargement(words: str) -> str:
    """The same for the impression, such as "Enlarged liver."; "" for a normal or unknown size."""
    for side in ("Right", "Left"):
        if words == f"{side} kidney is enlarged":
            return f"Enlarged {side.lower()} kidney."
    if words == "Bilateral kidneys are enlarged":
        return "Enlarged kidneys."
    name, _, rest = words.partition(" is ")
    if not rest.endswith("enlarged"):
        return ""
    return f"{rest.capitalize()} {name.lower()}."
