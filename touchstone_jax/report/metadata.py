"""The table of a data set: one row a case, made from the measurements and not from the text.

Columns and units are AbdomenAtlas 3.0's, with those of PNETs, which it lacks, added: volumes in
cm³, diameters in cm. Where the released table parses texts it loses PNETs and sub-stages and sums
rounded volumes; this one does not. A number or size of lesions is 0 where lesions were looked for
and none was found, and empty where nobody looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from touchstone_jax.report.schema import Lesion, Organ, Report, location_name, tenth
from touchstone_jax.report.tables import write_table

_KINDS = {
    "liver": {"lesion": "lesion", "tumor": "malignant tumor", "cyst": "cyst"},
    "pancreatic": {
        "lesion": "lesion",
        "tumor": "malignant tumor",
        "PDAC": "PDAC",
        "PNET": "PNET",
        "cyst": "cyst",
    },
    "kidney": {"lesion": "lesion", "cyst": "cyst", "tumor": "malignant tumor"},
    "colon": {"lesion": "lesion"},
}
_ORGAN = {"liver": "liver", "pancreatic": "pancreas", "kidney": "kidney", "colon": "colon"}
_PLACES = {"liver": "(1-8)", "pancreatic": "(head, body, tail)", "kidney": "(left, right)"}
_ATTENUATION = "attenuation (hyperattenuating, isoattenuating, hypoattenuating)"
_STAGE = "pancreatic tumor staging (T1-T4)"
_TEXT = "structured report"
_NEVER = tuple(
    name
    for organ in ("esophagus", "uterus")
    for name in (
        f"total {organ} lesion volume (cm^3)",
        f"number of {organ} lesion instances",
        f"largest {organ} lesion diameter (cm)",
    )
)
_NOT_OURS = (
    *("radiologist note", "narrative report", "fusion structured report"),
    "fusion narrative report",
)


def _columns() -> tuple[str, ...]:
    names = ["BDMAP ID", "spacing", "shape", "sex", "age", "scanner", "contrast"]
    for organ, kinds in _KINDS.items():
        if organ == "kidney":
            names += [f"{side} volume (cm^3)" for side in ("left kidney", "right kidney", "kidney")]
        elif organ == "colon":
            names.append("spleen volume (cm^3)")
        else:
            names.append(f"{_ORGAN[organ]} volume (cm^3)")
        names += [f"total {organ} {kind} volume (cm^3)" for kind in kinds]
        names += [f"number of {organ} {kind} instances" for kind in kinds]
        names += [f"largest {organ} {kind} diameter (cm)" for kind in kinds]
        if organ in _PLACES:
            names += [f"largest {organ} {kind} location {_PLACES[organ]}" for kind in kinds]
        names += [f"largest {organ} {kind} {_ATTENUATION}" for kind in kinds]
        if organ == "pancreatic":
            names.append(_STAGE)
    return (*names, *_NEVER, _NOT_OURS[0], _TEXT, *_NOT_OURS[1:])


COLUMNS = _columns()
"""Names of the columns, in order."""


def metadata_row(report: Report, text: str) -> dict[str, str]:
    """One case's row: column to value, "" for what is not known.

    Args:
        report: its measurements.
        text: its report; "cm^3" is written "cc", as in the released table.
    """
    row = empty_row(report.case, text.replace("cm^3", "cc"))
    row["spacing"] = " ".join(f"{s:g}" for s in report.spacing_mm)
    row["shape"] = " ".join(map(str, report.shape))
    row["contrast"] = report.phase or ""
    for name in ("liver", "pancreas", "kidney", "spleen"):
        row[f"{name} volume (cm^3)"] = _cm3(report.organ(name).volume_mm3)
    for side, volume in report.organ("kidney").parts_mm3.items():
        row[f"{side} kidney volume (cm^3)"] = _cm3(volume)
    for organ, kinds in _KINDS.items():
        section = report.organ(_ORGAN[organ])
        for kind, ours in kinds.items():
            row |= _lesions(organ, kind, section, ours)
    stages = [x.staging for x in report.organ("pancreas").lesions if x.staging]
    row[_STAGE] = max((s.t_stage or "" for s in stages), default="")
    return row


def _cm3(volume_mm3: float | None) -> str:
    return "" if volume_mm3 is None else str(tenth(volume_mm3 / 1000))


def _lesions(organ: str, kind: str, section: Organ, ours: str) -> dict[str, str]:
    if not section.assessed:
        return {}
    lesions = [x for x in section.lesions if x.kind == ours]
    row = {
        f"total {organ} {kind} volume (cm^3)": _cm3(sum(x.volume_mm3 for x in lesions)),
        f"number of {organ} {kind} instances": str(len(lesions)),
        f"largest {organ} {kind} diameter (cm)": str(lesions[0].size_cm if lesions else 0.0),
    }
    if lesions:
        row |= _largest(organ, kind, section.name, lesions[0])
    return row


def _largest(organ: str, kind: str, section: str, lesion: Lesion) -> dict[str, str]:
    row = {}
    if organ in _PLACES:
        place = location_name(section, lesion.location)
        place = place.removeprefix("hepatic segment ").replace(" kidney", "").replace("/", ",")
        row[f"largest {organ} {kind} location {_PLACES[organ]}"] = place
    if lesion.attenuation:
        row[f"largest {organ} {kind} {_ATTENUATION}"] = f"{lesion.attenuation}attenuating"
    return row


def write_metadata(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write the table as CSV."""
    write_table(path, COLUMNS, rows)


def empty_row(case: str, text: str) -> dict[str, str]:
    """The row of a case of which nothing was measured: its id and its report."""
    return {**dict.fromkeys(COLUMNS, ""), "BDMAP ID": case, _TEXT: text}
