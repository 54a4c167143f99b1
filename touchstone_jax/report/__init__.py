"""Structured radiology reports from a CT with organ and lesion masks (AbdomenAtlas 3.0, RadGPT).

Bassi et al., "RadGPT: Constructing 3D Image-Text Tumor Datasets" (arXiv 2501.04678). Two rule sets
share one pipeline: "published" gives what the released generator gives, its quirks included, and
"corrected" (the default) mends them. `docs/report.md` of the project lists every difference.

`case.report_case` turns one case into measurements and text; `job.Report` is the same for a folder.
"""

RULES = ("corrected", "published")
"""Names of the rule sets."""


def check_rules(rules: str) -> None:
    """Refuse a rule set that does not exist.

    Raises:
        ValueError: an unknown name.
    """
    if rules not in RULES:
        raise ValueError(f"rules={rules!r}; legal values: {', '.join(RULES)}")
