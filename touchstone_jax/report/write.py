"""The text of a report: findings organ by organ, then the impression.

The layout is AbdomenAtlas 3.0's (see the project's docs/report.md). Every number comes from
`touchstone_jax.report.schema`; nothing is measured here. What is not known is said to be so, except
under "published", which leaves it out.
"""

from __future__ import annotations

from touchstone_jax.report.attenuation import (
    FATTY_LIVER_HU,
    FATTY_PANCREAS_INDEX,
    pancreatic_index,
)
from touchstone_jax.report.impression import impression, size_text
from touchstone_jax.report.schema import (
    NEIGHBOURS,
    VESSELS,
    Lesion,
    Organ,
    Report,
    Staging,
    location_name,
    tenth,
)
from touchstone_jax.report.sizes import size_words


def write_report(report: Report) -> str:
    """The whole text, lines separated by newlines, no newline at the end."""
    sections = [_header(report.phase) + "FINDINGS: "]
    published = report.rules == "published"
    spleen_hu = report.organ("spleen").mean_hu
    first = True
    for organ in report.organs:
        text = organ_text(organ, report.phase, spleen_hu, published=published)
        groups = [
            group_text(organ.name, k, x, published=published) for k, x in organ.kinds().items()
        ]
        if organ.name == "colon" and not groups:
            continue
        if groups:
            text += "\n\n" + "\n".join(groups)
        if first:
            sections[0] += "\n" + text
            first = False
        else:
            sections.append(text)
    sections.append("IMPRESSION:\n" + impression(report))
    return "\n\n".join(sections)


def _header(phase: str | None) -> str:
    if not phase:
        return ""
    return "Non-contrast CT \n" if phase == "Plain" else f"CT {phase} Phase \n\n"


def organ_text(
    organ: Organ, phase: str | None, spleen_hu: float | None, *, published: bool = False
) -> str:
    """An organ's section without its lesions: size, volume, attenuation.

    Args:
        organ: its numbers.
        phase: of the CT; fat is judged on "Plain" alone.
        spleen_hu: mean HU of the spleen, for the pancreatic index.
        published: see `touchstone_jax.report`.
    """
    if organ.name == "colon":
        return "Colon:"
    lines = [f"{organ.name.capitalize()}: "]
    words = size_words(organ, published=published)
    if words:
        lines.append(f"{words} ({_volumes(organ)}).")
    if not published and organ.volume_mm3 is None:
        lines += [f"Size not assessed: {reason}." for reason in _why_no_size(organ)]
    density = _density(organ, phase, spleen_hu, published)
    if organ.name == "kidney" and organ.volume_mm3 is not None and density:
        lines[-1] += f" {density}"
    elif density:
        lines.append(density)
    if not published and not organ.assessed and organ.name != "spleen":
        lines.append("Lesions not assessed: no lesion mask.")
    return "\n".join(lines)


def _why_no_size(organ: Organ) -> list[str]:
    told = list(organ.unknown)
    if organ.cut:
        told.append("the scan ends within the organ")
    return told


def _volumes(organ: Organ) -> str:
    if organ.name != "kidney":
        assert organ.volume_mm3 is not None  # its size has been told
        return f"volume: {_cm3(organ.volume_mm3)}"
    sides = [(s, organ.parts_mm3[s]) for s in ("right", "left")]
    parts = [f"{s} kidney volume: {_cm3(volume)}" for s, volume in sides if volume is not None]
    if organ.volume_mm3 is not None:
        parts.append(f"total kidney volume: {_cm3(organ.volume_mm3)}")
    return "; ".join(parts)


def _cm3(volume_mm3: float) -> str:
    return f"{tenth(volume_mm3 / 1000)} cm^3"


def _density(organ: Organ, phase: str | None, spleen_hu: float | None, published: bool) -> str:
    if organ.mean_hu is None:
        return ""
    value = f"{organ.mean_hu} +/- {organ.sd_hu}"
    if published and spleen_hu is not None and spleen_hu < 0:
        spleen_hu = None  # its text is parsed by a pattern without a minus
    if phase != "Plain" or organ.name not in ("liver", "pancreas") or spleen_hu is None:
        if phase == "Plain" and organ.name == "liver" and not published:
            return f"{_fat(organ.mean_hu <= FATTY_LIVER_HU)} (Mean HU value: {value})."
        return f"Mean HU value: {value}."
    known = organ.volume_mm3 is not None or not published
    if organ.name == "liver":
        return f"{_fat(known and organ.mean_hu <= FATTY_LIVER_HU)} (Mean HU value: {value})."
    index = pancreatic_index(organ.mean_hu, spleen_hu)
    if not published and spleen_hu <= 0:  # a ratio to less than water says nothing of fat
        return f"Mean HU value: {value}."
    return (
        f"{_fat(known and index <= FATTY_PANCREAS_INDEX)}, mean HU value: {value}, "
        f"pancreatic index (P/S): {tenth(index, 2)}."
    )


def _fat(fatty: bool) -> str:
    return "Fatty infiltration" if fatty else "Normal attenuation"


def group_text(organ: str, kind: str, lesions: list[Lesion], *, published: bool = False) -> str:
    """The lesions of one kind: a heading, then one block each."""
    blocks = [_block(organ, lesion, published) for lesion in lesions]
    return f"{organ.capitalize()} {kind}s:\n" + "\n\n".join(blocks)


def _block(organ: str, lesion: Lesion, published: bool) -> str:
    known = "" if lesion.kind == "lesion" else f"appearance consistent with {lesion.kind}."
    lines = [f"{organ.capitalize()} lesion {lesion.number}: {known}"]
    if place := location_name(organ, lesion.location):
        lines.append(f"Location: {'pancreas ' if organ == 'pancreas' else ''}{place}.")
    elif lesion.outside and not published:
        lines.append("Location: outside the organ's mask.")
    least = " The scan ends within the lesion." if lesion.cut and not published else ""
    lines.append(
        f"Size: {size_text(lesion)} (image {lesion.slice_index}). "
        f"Volume: {_cm3(lesion.volume_mm3)}.{least}"
    )
    value = f"(HU value is {lesion.mean_hu}+/-{lesion.sd_hu})"
    how = f"{lesion.attenuation.capitalize()}attenuating" if lesion.attenuation else "not assessed"
    lines.append(f"Enhancement relative to {organ}: {how} {value}.")
    if lesion.staging is not None:
        lines += staging_lines(lesion.staging, lesion.kind, published=published)
    return "\n".join(lines)


def staging_lines(staging: Staging, kind: str, *, published: bool = False) -> list[str]:
    """Contacts, T stage and resectability of a pancreatic tumor, a sentence a line.

    "published" says no contact where no neighbour has a mask.
    """
    touched = [name for name in NEIGHBOURS if staging.contacts.get(name)]
    seen = published or any(contact is not None for contact in staging.contacts.values())
    near = f"{_join(touched)}." if touched else "No. " if seen else "not assessed."
    lines = [f"Contact with adjacent organs: {near}"]
    lines += vessel_lines(staging, kind)
    if staging.unknown:
        lines.append(f"Not assessed: {'; '.join(staging.unknown)}.")
    if staging.resectability:
        lines.append(f"Surgical resectability: {staging.resectability}.")
    return lines


def vessel_lines(staging: Staging, kind: str) -> list[str]:
    """From "Vascular Involvement:" to the T stage; PNETs list contacts with organs as well."""
    lines, free = ["Vascular Involvement:"], []
    for name in VESSELS:
        angle = staging.angles_deg.get(name)
        if angle:
            what = "encasement" if angle >= 180 else "contact but not encasement"
            title = name[0].upper() + name[1:]
            lines.append(f"{title}: tumor {what} ({angle} degree contact with the tumor). ")
        elif angle is not None:
            free.append(name)
    if free:
        lines.append(f"Tumor does not contact: {_join(free)}. ")
    if kind == "PNET":
        told = {name: staging.contacts.get(name) for name in NEIGHBOURS}
        if touched := [name for name, contact in told.items() if contact]:
            lines.append(f"Contact with adjacent organs: {_join(touched)}. ")
        if free := [name for name, contact in told.items() if contact is False]:
            lines.append(f"Tumor does not contact: {_join(free)}. ")
    if staging.t_stage:
        lines.append(f"Tumor Stage (T stage): {staging.t_stage}. ")
    return lines


def _join(names: list[str]) -> str:
    return ", ".join(names)
