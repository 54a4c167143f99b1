"""What a data set of reports holds: cases, lesions, small ones, stages, words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

SMALL_MM = 20.0
"""Lesions below this longest diameter are small (RadGPT counts tumors under 2 cm)."""


def statistics(
    measurements: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Counts over a data set.

    Args:
        measurements: case to `touchstone_jax.report.schema.Report.to_json`.
        texts: case to its report.

    Returns:
        cases, reports, cases_with_lesions, lesions, small_lesions (below 20 mm), by_kind ("liver
        cyst": count), stages (of pancreatic tumors), tokens (words and signs between blanks).
    """
    kinds: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    small = with_lesions = 0
    for measured in measurements.values():
        lesions = [(o["name"], x) for o in measured["organs"] for x in o["lesions"]]
        with_lesions += bool(lesions)
        for organ, lesion in lesions:
            kinds[f"{organ} {lesion['kind']}"] += 1
            small += lesion["longest_mm"] < SMALL_MM
            staging = lesion["staging"]
            if staging and staging["t_stage"]:
                stages[staging["t_stage"]] += 1
    return {
        "cases": len(texts),
        "reports": len(measurements),
        "cases_with_lesions": with_lesions,
        "lesions": sum(kinds.values()),
        "small_lesions": small,
        "by_kind": dict(sorted(kinds.items())),
        "stages": dict(sorted(stages.items())),
        "tokens": sum(len(text.split()) for text in texts.values()),
    }
