"""The impression: one paragraph for each kind of lesion in each organ, and enlarged organs."""

from __future__ import annotations

from collections.abc import Sequence

from touchstone_jax.report.schema import Lesion, Organ, Report, location_name, tenth
from touchstone_jax.report.sizes import enlargement, size_words

LARGE_CM = 5.0
"""A lesion whose printed longest diameter is above this is large."""

_LOOKS = {
    "malignant tumor": " of malignant appearance",
    "cyst": " of cystic appearance",
    "lesion": "",
}
_EXAMINED = {"liver": "liver", "pancreas": "pancreas", "kidney": "kidneys"}
_ARTICLES = {"iso": "An"}


def impression(report: Report) -> str:
    """The text below "IMPRESSION:".

    An organ's size comes before its lesions. Without anything to tell it says that no tumor was
    seen, in the organs that were looked at ("published": in all three, whatever was given).
    """
    published = report.rules == "published"
    told: list[str] = []
    for organ in report.organs:
        if organ.name != "colon":
            words = size_words(organ, published=published)
            if sentence := enlargement(words):
                told.append(sentence)
        told += [
            group_impression(organ.name, kind, lesions, published=published)
            for kind, lesions in organ.kinds().items()
        ]
    if published:
        return _lines(told) or "No tumor observed in the liver, pancreas or kidneys."
    if not any(organ.lesions for organ in report.organs):
        told += _nothing_seen(report.organs)
    return _lines([*told, *_not_looked_at(report.organs)])


def _lines(told: Sequence[str]) -> str:
    """Sizes go before what follows them on one line, as in the released reports."""
    text = ""
    for part in told:
        text += part + (" " if part.startswith(("Enlarged", "Massively")) else "\n")
    return text.rstrip("\n ")


def _nothing_seen(organs: Sequence[Organ]) -> list[str]:
    seen = [_EXAMINED[o.name] for o in organs if o.assessed and o.name in _EXAMINED]
    return [f"No tumor observed in the {_or(seen)}."] if seen else []


def _not_looked_at(organs: Sequence[Organ]) -> list[str]:
    blind = [_EXAMINED[o.name] for o in organs if not o.assessed and o.name in _EXAMINED]
    return [f"Not assessed for lesions: {', '.join(blind)}."] if blind else []


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def group_impression(
    organ: str, kind: str, lesions: Sequence[Lesion], *, published: bool = False
) -> str:
    """One kind of lesion in one organ: what there is, the stage, the total volume.

    Args:
        organ: of `touchstone_jax.report.schema.ORGANS`.
        kind: of `touchstone_jax.report.schema.KINDS`.
        lesions: at least one, the largest volume first.
        published: keeps the comma and the article that the released texts have.
    """
    large = [x for x in lesions if x.size_cm > LARGE_CM]
    small = [x for x in lesions if x.size_cm <= LARGE_CM]
    text = _masses(organ, kind, large or small, bool(large), published)
    if stage := _stage(lesions):
        text += "\n" + stage
    if large and small:
        joint = "\n" if stage else " "
        text += joint + _smaller(organ, kind, small)
    if len(lesions) > 1:
        total = tenth(sum(x.volume_mm3 for x in lesions) / 1000)
        what = f"{kind}s" if kind not in _LOOKS else f"masses{_LOOKS[kind]}"
        text += f"\nTotal volume of all {organ} {what}: {total} cm^3."
    return text


def _masses(organ: str, kind: str, lesions: Sequence[Lesion], large: bool, published: bool) -> str:
    first, count = lesions[0], len(lesions)
    place = location_name(organ, first.location)
    if first.outside and not (place or published):
        place = "outside the organ's mask"
    proven = "" if kind in _LOOKS else f"consistent with biopsy-proven {kind}"
    looks = _LOOKS.get(kind, "")
    words = [w for w in ("large" if large else "", _uniform(lesions)) if w]
    if count == 1:
        article = "A" if large or published else _ARTICLES.get(first.attenuation or "", "A")
        where = f" ({place})" if place else ""
        size = size_text(first)
        if proven and large and published:
            size = size.replace(" cm", ", cm")
        head = " ".join([article, *words, organ])
        return f"{head}{where} mass{looks} ({size}){f', {proven}' if proven else ''}."
    comma = "," if large and proven else ""
    proven = f"{comma} {proven}" if proven else ""
    where = f"({place}) " if place else ""
    head = " ".join([f"Multiple ({count})", *words, organ])
    return f"{head} masses{looks}{proven}. Largest one {where}measures {size_text(first)}."


def _smaller(organ: str, kind: str, lesions: Sequence[Lesion]) -> str:
    words = [w for w in ("smaller", _uniform(lesions), organ) if w]
    if len(lesions) == 1:
        return f"Additionally, a {' '.join(words)} {kind} present."
    return f"Additionally, {len(lesions)} {' '.join(words)} {kind}s present."


def _uniform(lesions: Sequence[Lesion]) -> str:
    """The attenuation that all share; "" if they differ or it is not known."""
    found = {x.attenuation for x in lesions}
    only = next(iter(found))
    return f"{only}attenuating" if len(found) == 1 and only else ""


def _stage(lesions: Sequence[Lesion]) -> str:
    """Highest T stage of the group, with the resectability of the lesion that has it."""
    staged = [
        x.staging for x in lesions if x.staging and x.staging.summarised and x.staging.t_stage
    ]
    if not staged:
        return ""
    worst = max(staged, key=lambda s: s.t_stage or "")
    text = f"Clinical stage: {worst.t_stage}NxMx."
    if worst.resectability:
        text += f"\nSurgical resectability: {worst.resectability}."
    return text


def size_text(lesion: Lesion) -> str:
    """Both diameters in cm, such as "3.1 x 2.9 cm"."""
    return f"{lesion.size_cm} x {tenth(lesion.perpendicular_mm / 10)} cm"
