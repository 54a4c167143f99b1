"""A report as running text, from a template: the same findings and numbers, in sentences."""

from __future__ import annotations

from touchstone_jax.report.impression import impression, size_text
from touchstone_jax.report.schema import VESSELS, Lesion, Organ, Report, location_name, tenth
from touchstone_jax.report.sizes import size_words

_WORDS = {1: "A", 2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


def narrative(report: Report) -> str:
    """A paragraph for each organ, then the impression."""
    paragraphs = [_technique(report)]
    for organ in report.organs:
        if text := _paragraph(organ, report):
            paragraphs.append(text)
    paragraphs.append("Impression: " + " ".join(impression(report).split()))
    return "\n\n".join(paragraphs)


def _technique(report: Report) -> str:
    if not report.phase:
        return "CT of the abdomen; the contrast phase is not known."
    if report.phase == "Plain":
        return "CT of the abdomen without contrast."
    return f"CT of the abdomen in the {report.phase.lower()} phase."


def _paragraph(organ: Organ, report: Report) -> str:
    told = []
    if organ.name != "colon":
        words = size_words(organ, published=report.rules == "published")
        told.append(_size(organ, words))
    for kind, lesions in organ.kinds().items():
        told += [_lesion(organ.name, kind, lesion) for lesion in lesions]
    if not organ.lesions and organ.name != "colon" and organ.assessed:
        told.append(f"No lesion of the {organ.name} is seen.")
    if not organ.lesions and organ.name not in ("colon", "spleen") and not organ.assessed:
        told.append(f"The {organ.name} was not examined for lesions.")
    return " ".join(told)


def _size(organ: Organ, words: str) -> str:
    name = "kidneys" if organ.name == "kidney" else organ.name
    verb = "are" if organ.name == "kidney" else "is"
    if not words:
        return f"The size of the {name} cannot be told."
    volumes = organ.parts_mm3 or {"": organ.volume_mm3}
    told = [(s, v) for s, v in volumes.items() if v is not None]
    volume = ", ".join(f"{side} {tenth(v / 1000)} cm^3".strip() for side, v in told)
    if words == "Normal size":
        return f"The {name} {verb} of normal size ({volume})."
    return f"{words} ({volume})."


def _lesion(organ: str, kind: str, lesion: Lesion) -> str:
    place = location_name(organ, lesion.location)
    where = f" in the {place}" if place and organ != "liver" else f" in {place}" if place else ""
    if organ == "pancreas" and place:
        where += " of the pancreas"
    attenuation = f"{lesion.attenuation}attenuating " if lesion.attenuation else ""
    article = "An" if attenuation.startswith("iso") else "A"
    text = (
        f"{article} {attenuation}{organ} {kind}{where} measures {size_text(lesion)} "
        f"(image {lesion.slice_index}), {tenth(lesion.volume_mm3 / 1000)} cm^3, "
        f"with {lesion.mean_hu} HU."
    )
    staging = lesion.staging
    if staging is None:
        return text
    angles = [(name, staging.angles_deg.get(name)) for name in VESSELS]
    touched = [f"{name} ({angle} degrees)" for name, angle in angles if angle]
    text += f" It touches {', '.join(touched)}." if touched else " It touches no vessel examined."
    if staging.t_stage:
        text += f" Stage {staging.t_stage}."
    if staging.resectability:
        text += f" It is {staging.resectability}."
    if staging.unknown:
        text += f" Not assessed: {'; '.join(staging.unknown)}."
    return text
