"""Whether a pancreatic tumor can be resected, from the angles at which it touches vessels.

The words follow the NCCN's criteria for pancreatic adenocarcinoma as RadGPT reads them (its
published rules), and as the criteria stand (NCCN, version 2.2021; "corrected").
"""

from __future__ import annotations

from collections.abc import Mapping

RESECTABLE = "resectable (no abutment of SMA, CHA, or portal vein or SMV)"
RESECTABLE_WITH_VEIN = "resectable (no arterial contact, portal vein or SMV abutment)"


def resectability(angles_deg: Mapping[str, int], *, head: bool) -> str:
    """Resectability from contact angles; an encasement is more than 180 degrees.

    Unresectable: encasement of the SMA or the CA; for tumors of the head that touch any vessel of
    the list also any contact with the CA or the IVC (RadGPT's rule for the head, which the released
    generator never reaches). Borderline: contact with SMA, CA, CHA or IVC, encasement of portal
    vein and SMV (NCCN). Resectable: none of these.

    Args:
        angles_deg: of "SMA", "CA", "CHA", "portal vein and SMV" and "IVC", 0..360.
        head: the tumor lies, in part, in the head of the pancreas.

    Raises:
        KeyError: an angle is missing.
    """
    touched = any(angles_deg[name] for name in _CONTACTS)
    limits = _HEAD_LIMITS if head and touched else _LIMITS
    if out := _above(angles_deg, limits):
        return f"unresectable ({', '.join(_words(name, angles_deg[name]) for name in out)})"
    if near := _above(angles_deg, _BORDERLINE):
        return f"borderline resectable ({', '.join(_words(n, angles_deg[n]) for n in near)})"
    return RESECTABLE_WITH_VEIN if angles_deg["portal vein and SMV"] else RESECTABLE


_CONTACTS = ("SMA", "CHA", "CA", "portal vein and SMV")
_LIMITS = {"SMA": 180, "CA": 180}
_HEAD_LIMITS = {"SMA": 180, "CA": 0, "IVC": 0}
_BORDERLINE = {"SMA": 0, "CA": 0, "CHA": 0, "portal vein and SMV": 180, "IVC": 0}


def _above(angles_deg: Mapping[str, int], limits: Mapping[str, int]) -> list[str]:
    """Vessels above their limits."""
    return [name for name, limit in limits.items() if angles_deg[name] > limit]


def _words(name: str, angle: int) -> str:
    return f"{name} {'encasement' if angle > 180 else 'abutment'}"


def published_resectability(angles_deg: Mapping[str, int], *, head: bool = False) -> str | None:
    """The released generator's rules; None where its text says nothing.

    Any contact with portal vein or SMV silences it, unless an artery is encased; a CHA of exactly
    180 degrees gives a malformed text. ``head`` is the rule for tumors of the head, which its code
    never reaches. The first match counts (spec/report.md 4.7).

    Args:
        angles_deg: of "SMA", "CA", "CHA", "portal vein and SMV" and "IVC", 0..360.
        head: apply that rule.

    Raises:
        KeyError: an angle is missing.
    """
    sma, ca, cha, vein = (angles_deg[name] for name in ("SMA", "CA", "CHA", "portal vein and SMV"))
    if not (sma or ca or cha or vein):
        return RESECTABLE
    if out := _above(angles_deg, _HEAD_LIMITS if head else _LIMITS):
        # The rule for the head calls every contact with CA and IVC an abutment.
        words = {name: "abutment" if head and name != "SMA" else "encasement" for name in out}
        return f"unresectable ({', '.join(f'{name} {word}' for name, word in words.items())})"
    if vein or ca or sma >= 180:
        return None
    near = [_words("CHA", cha)] if cha and cha != 180 else []
    near += ["SMA abutment"] if sma else []
    return f"borderline resectable ({', '.join(near)})" if near else "borderline resectable)"
