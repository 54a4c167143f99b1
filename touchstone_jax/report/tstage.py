"""T stages of pancreatic tumors (AJCC Cancer Staging Manual, 8th edition, as RadGPT reads it)."""

from __future__ import annotations

from collections.abc import Mapping

ARTERIES = ("SMA", "CA", "CHA")
"""Vessels whose encasement, from 180 degrees, makes a T4."""

_NEIGHBOURS_T4 = ("stomach", "spleen", "colon", "left adrenal gland", "left kidney")
_NEIGHBOURS_T3 = ("duodenum", "bile duct")


def t_stage(
    size_cm: float,
    angles_deg: Mapping[str, int | None],
    contacts: Mapping[str, bool | None],
    *,
    pnet: bool,
) -> tuple[str, tuple[str, ...]]:
    """The T stage, and what had to be unknown for it to be a least stage (empty: it is certain).

    PDAC and lesions of unknown kind: T4 with 180 degrees or more of SMA, CA or CHA; T3 above 4 cm;
    T2 above 2 cm; T1a to 0.5 cm, T1b to 1 cm, T1c to 2 cm. PNET: T4 also in contact with stomach,
    spleen, colon, left adrenal gland or left kidney; T3 above 4 cm or in contact with duodenum or
    bile duct; T2 from 2 cm; else T1.

    Args:
        size_cm: longest diameter in cm, not rounded.
        angles_deg: of `ARTERIES`, None where unknown.
        contacts: of the organs named above, None where unknown.
        pnet: a neuroendocrine tumor.
    """
    blind = [name for name in ARTERIES if angles_deg.get(name) is None]
    if any((angles_deg.get(name) or 0) >= 180 for name in ARTERIES):
        return "T4", ()
    if not pnet:
        return _by_size(size_cm), tuple(blind)
    if any(contacts.get(name) for name in _NEIGHBOURS_T4):
        return "T4", ()
    blind += [name for name in _NEIGHBOURS_T4 if contacts.get(name) is None]
    if size_cm > 4 or any(contacts.get(name) for name in _NEIGHBOURS_T3):
        return "T3", tuple(blind)
    blind += [name for name in _NEIGHBOURS_T3 if contacts.get(name) is None]
    return ("T2" if size_cm >= 2 else "T1"), tuple(blind)


def _by_size(size_cm: float) -> str:
    for limit, stage in ((0.5, "T1a"), (1, "T1b"), (2, "T1c"), (4, "T2")):
        if size_cm <= limit:
            return stage
    return "T3"


def published_t_stage(
    size_cm: float,
    angles_deg: Mapping[str, int],
    contacts: Mapping[str, bool | None],
    *,
    pnet: bool,
) -> str | None:
    """The released generator's stage; None where it fails.

    It fails on a PNET of exactly 2.0 cm, and on a PNET without masks of duodenum and bile duct.
    ``size_cm`` is the printed size, cut to whole millimetres.
    """
    if pnet and any(contacts.get(name) is None for name in _NEIGHBOURS_T3):
        return None
    known = {name: bool(contact) for name, contact in contacts.items()}
    stage, _ = t_stage(size_cm, angles_deg, known, pnet=pnet)
    return None if pnet and stage == "T2" and size_cm == 2 else stage
