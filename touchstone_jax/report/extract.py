"""Labels from the text of a report: which organs have tumors, how large they are. Rules, no model.

It reads reports of this package and free text of radiologists as far as plain words go: a sentence
names an organ and a lesion, and is not negated. What cannot be told stays NaN, so that it can be
left out of an evaluation. Benign findings that are no tumor (stones, abscesses, …) do not count;
cysts do, as in RadGPT's labels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ORGANS = ("liver", "kidney", "pancreas")
_NAMES = {
    "liver": r"liver|hepatic|hepatocellular|segment [iv1-8]+\b",
    "kidney": r"kidneys?|renal",
    "pancreas": r"pancreas|pancreatic|uncinate",
}
_TUMOR = re.compile(
    r"\b(?:mass(?:es)?|lesions?|tumou?rs?|cysts?|nodules?|metastas[ei]s|carcinomas?|adenocarcinomas?"
    r"|neoplasms?|malignan(?:t|cy|cies)|pdacs?|pnets?|hccs?|rccs?|ipmns?|hemangiomas?"
    r"|hypodensit(?:y|ies)|hypoattenuating foc(?:us|i))\b"
)
_NEGATED = re.compile(
    r"\b(?:no|without|negative for|free of|absence of|not? (?:evidence|sign)s? of|unremarkable)\b"
)
_UNCERTAIN = re.compile(
    r"\b(?:not (?:assessed|examined|evaluated)|cannot be (?:assessed|told|excluded))\b"
)
_SIZE = re.compile(
    r"(\d+(?:\.\d+)?)(?:\s*x\s*(\d+(?:\.\d+)?))?(?:\s*x\s*(\d+(?:\.\d+)?))?\s*(mm|cm)\b(?!\^)"
)
_ANSWER = {
    "liver": r"liver tumor presence\s*[=:]\s*(\w+)",
    "kidney": r"kidney tumor presence\s*[=:]\s*(\w+)",
    "pancreas": r"pancreas tumor presence\s*[=:]\s*(\w+)",
}


@dataclass(frozen=True)
class Label:
    """What a report says of one organ.

    Attributes:
        tumor: 1.0 yes, 0.0 no, NaN unknown.
        size_mm: the largest size told of a tumor there; NaN if none.
    """

    tumor: float
    size_mm: float


def extract_labels(text: str) -> dict[str, Label]:
    """Label of each of `ORGANS` from a report.

    An organ that no sentence speaks of has no tumor; one that a sentence calls not assessed is
    unknown, unless another sentence finds a tumor there.
    """
    found: dict[str, float] = {}
    sizes: dict[str, list[float]] = {organ: [] for organ in ORGANS}
    section = ""
    for line in _sentences(text.lower()):
        section = next((o for o in ORGANS if re.match(rf"{o}s?:\s*$", line)), section)
        if re.match(r"(?:spleen|colon|impression|findings):?\s*", line) and line.endswith(":"):
            section = ""
        organs = [o for o in ORGANS if re.search(rf"\b(?:{_NAMES[o]})", line)] or (
            [section] if section else []
        )
        for organ in organs:
            _judge(line, organ, found, sizes)
    return {
        organ: Label(found.get(organ, 0.0), max(sizes[organ], default=math.nan)) for organ in ORGANS
    }


def _sentences(text: str) -> list[str]:
    """Pieces at ends of sentences and lines; a point inside a number ends nothing."""
    pieces = re.split(r"\n|(?<=[^\d])\.(?:\s|$)|(?<=\d)\.(?=\s|$)|;\s", text)
    return [piece.strip() for piece in pieces if piece.strip()]


def _judge(line: str, organ: str, found: dict[str, float], sizes: dict[str, list[float]]) -> None:
    if _UNCERTAIN.search(line):
        found.setdefault(organ, math.nan)
        return
    mentioned = _TUMOR.search(line)
    if mentioned and not _NEGATED.search(line[: mentioned.start()]):
        found[organ] = 1.0
    if found.get(organ) == 1.0:
        sizes[organ] += [max(measured) for measured in sizes_mm(line)]


def sizes_mm(text: str) -> list[tuple[float, ...]]:
    """Every size in a text as its one to three numbers in mm; volumes are left out."""
    found = []
    for match in _SIZE.finditer(text.lower()):
        factor = 10 if match[4] == "cm" else 1
        found.append(tuple(float(x) * factor for x in match.groups()[:3] if x))
    return found


def parse_answer(answer: str) -> dict[str, float]:
    """The answer of a language model in RadGPT's form "liver tumor presence=yes; …".

    1.0 for an answer that begins with yes, 0.0 for no, NaN for all else or where it is missing.
    """
    labels = {}
    for organ, pattern in _ANSWER.items():
        match = re.search(pattern, answer.lower())
        word = match[1] if match else ""
        labels[organ] = (
            1.0 if word.startswith("yes") else 0.0 if word.startswith("no") else math.nan
        )
    return labels


def parse_malignancy(answer: str, organ: str) -> float:
    """RadGPT's second answer, "malignant tumor in kidney=yes"; values as for `parse_answer`."""
    match = re.search(rf"malignant tumor in {re.escape(organ)}\s*[=:]\s*(\w+)", answer.lower())
    word = match[1] if match else ""
    return 1.0 if word.startswith("yes") else 0.0 if word.startswith("no") else math.nan


def parse_size_mm(answer: str, organ: str) -> float:
    """RadGPT's third answer, "liver malignant tumor size = 2.1 x 1.5 cm; …": the largest, in mm."""
    pattern = rf"{re.escape(organ)} malignant tumor size\s*[=:]\s*([^;]*)"
    told = [m for part in re.findall(pattern, answer.lower()) for m in sizes_mm(part)]
    return max((max(numbers) for numbers in told), default=math.nan)


@dataclass(frozen=True)
class Rewritten:
    """RadGPT's answer to a change of style or a fusion with notes.

    Attributes:
        text: the report.
        justification: what the model says about it.
    """

    text: str
    justification: str


def parse_rewritten(answer: str) -> Rewritten:
    """The answer of RadGPT's prompts for style and fusion: a report between #start and #end.

    The first pair of marks counts, in any case of letters; what follows is the justification.

    Raises:
        ValueError: a mark is missing, or nothing stands between them.
    """
    found = re.search(r"#\s*start\b(.*?)#\s*end\b(.*)", answer, re.DOTALL | re.IGNORECASE)
    if found is None or not found[1].strip():
        raise ValueError("the answer has no report between #start and #end")
    return Rewritten(found[1].strip(), found[2].strip())
