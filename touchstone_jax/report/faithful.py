"""Does a text that a language model rewrote still say what the report says?

Three things are compared: every number, the terms on which a decision hangs (side, part,
attenuation, kind, stage, resectability), and which organs are said to have a tumor. It cannot prove
that two texts mean the same; it refuses those that visibly do not.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from touchstone_jax.report.extract import extract_labels

_NUMBER = re.compile(r"(?:(?<![\w.)-])-)?\d+(?:\.\d+)?")
_TERMS = {
    "hypoattenuating": r"hypo-?(?:attenuating|dense|enhancing)|low[- ](?:attenuation|density)",
    "isoattenuating": r"iso-?(?:attenuating|dense|enhancing)",
    "hyperattenuating": r"hyper-?(?:attenuating|dense|enhancing)|high[- ](?:attenuation|density)",
    "left": r"left",
    "right": r"right",
    "head": r"head",
    "body": r"body",
    "tail": r"tail",
    "cyst": r"cysts?|cystic",
    "PDAC": r"pdacs?",
    "PNET": r"pnets?",
    "malignant": r"malignan(?:t|cy)",
    "unresectable": r"(?:unresectable|irresectable|not resectable)",
    "borderline": r"borderline",
    "resectable": r"(?<!borderline )(?<!not )resectable",
    "encasement": r"encase(?:ment|s|d)",
    **{stage: stage.lower() for stage in ("T1", "T1a", "T1b", "T1c", "T2", "T3", "T4")},
}
_PATTERNS = {
    term: re.compile(rf"\b(?:{words})(?:n[x012]m[x01])?\b") for term, words in _TERMS.items()
}


class Unfaithful(ValueError):
    """The rewritten text says something else; the message tells what differs."""


def check_rewritten(before: str, after: str) -> None:
    """Nothing if the texts have the same numbers, each as often, terms, and organs with tumors.

    Raises:
        Unfaithful: they do not.
    """
    _refuse("numbers", _numbers(before) - _numbers(after), _numbers(after) - _numbers(before))
    _refuse("terms", _terms(before) - _terms(after), _terms(after) - _terms(before))
    old, new = _tumors(before), _tumors(after)
    differ = [f"{organ} {old[organ]} -> {new[organ]}" for organ in old if old[organ] != new[organ]]
    if differ:
        raise Unfaithful(f"changed which organs have a tumor: {', '.join(differ)}")


def check_merged(report: str, notes: str, merged: str) -> None:
    """Nothing if ``merged`` keeps the report's numbers and terms and adds only those of the notes.

    Raises:
        Unfaithful: it does not, or it takes away a tumor that the report has.
    """
    old, new, other = _numbers(report), _numbers(merged), _numbers(notes)
    _refuse("numbers", Counter(set(old)) - Counter(set(new)), Counter(set(new) - {*old, *other}))
    old, new, other = _terms(report), _terms(merged), _terms(notes)
    _refuse("terms", old - new, new - old - other)
    before, after = _tumors(report), _tumors(merged)
    gone = [organ for organ in before if before[organ] == "yes" != after[organ]]
    if gone:
        raise Unfaithful(f"changed which organs have a tumor: lost {', '.join(gone)}")


def _numbers(text: str) -> Counter[str]:
    return Counter(_NUMBER.findall(text.replace("+/-", " ")))  # a minus is a sign, "+/-" is none


def _terms(text: str) -> Counter[str]:
    lower = text.lower()
    return Counter(term for term, pattern in _PATTERNS.items() if pattern.search(lower))


def _tumors(text: str) -> dict[str, str]:
    def said(tumor: float) -> str:
        return "unknown" if math.isnan(tumor) else "yes" if tumor else "no"

    return {organ: said(label.tumor) for organ, label in extract_labels(text).items()}


def _refuse(what: str, lost: Counter[str], added: Counter[str]) -> None:
    if lost or added:
        told = "; ".join(
            f"{word} {', '.join(sorted(items.elements())[:8])}"
            for word, items in (("lost", lost), ("added", added))
            if items
        )
        raise Unfaithful(f"changed its {what}: {told}")
