"""One case: from a CT and its masks to measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from touchstone_jax.findings import Finding, VolumeError, refusal
from touchstone_jax.io import Volume
from touchstone_jax.report import check_rules
from touchstone_jax.report.grid import native_grid, report_grid
from touchstone_jax.report.masks import Masks, lesion_names
from touchstone_jax.report.measure import Found, Scan, measure_organ
from touchstone_jax.report.plausible import judge_masks
from touchstone_jax.report.regions import Region
from touchstone_jax.report.schema import KINDS, ORGANS, PARTS, Report
from touchstone_jax.report.stage import published_stage, stage
from touchstone_jax.report.subsegments import pancreas_parts

_SIDES = {"kidney": {"right": "kidney_right", "left": "kidney_left"}}
_FIX = "add the mask, or segment the organ first"
_PUBLISHED_NEEDS = (
    "it needs superior_mesenteric_artery, aorta, celiac_aa, veins and postcava, beside a PDAC mask "
    "that of PNETs, and for PNETs duodenum and common_bile_duct; or take the corrected rules"
)


def report_case(
    ct: Volume,
    masks: Masks,
    *,
    case: str,
    rules: str = "corrected",
    min_component_mm3: float = 10.0,
    phase: str | None = None,
) -> Report:
    """Measure a case.

    What is missing is told in ``masks.findings`` and stays unknown in the report. Under "published"
    a missing organ ends the case instead, as in the released generator.

    Args:
        ct: in HU.
        masks: of the case; their findings are added to.
        case: id.
        rules: "corrected" or "published".
        min_component_mm3: smallest lesion, in mm³; 0 keeps every voxel.
        phase: of the contrast agent, such as "Venous"; "Plain" for none, None if unknown.

    Raises:
        ValueError: unknown rules, or a negative smallest volume.
        VolumeError: under "published", a mask that it cannot do without.
    """
    check_rules(rules)
    if min_component_mm3 < 0:
        raise ValueError(f"min_component_mm3={min_component_mm3}; expected a number from 0")
    published, shape = rules == "published", ct.array.shape
    grid = (report_grid if published else native_grid)(shape, ct.spacing_mm)
    scan = Scan(ct.array, ct.spacing_mm, grid, published, min_component_mm3)
    if published:
        _refuse_incomplete(masks, case)
    found, segmented = [], False
    for name in ORGANS:
        parts = _parts(masks, name, published)
        if name == "pancreas" and not parts and not published:
            parts = _computed_parts(masks, ct.spacing_mm)
            segmented = bool(parts)
        found.append(_organ(scan, masks, case, name, parts))
    staged = [_staged(x, masks, scan) if x.organ.name == "pancreas" else x for x in found]
    organs = tuple(x.organ for x in staged)
    masks.findings += [*judge_masks(case, masks, organs), *_warnings(case, organs, published)]
    masks.findings += masks.not_read()
    return Report(case, rules, phase or None, ct.spacing_mm, shape, organs, segmented)


def _refuse_incomplete(masks: Masks, case: str) -> None:
    organs = [n for name in ORGANS for n in _SIDES.get(name, {name: name}).values()]
    for name in organs:
        if not masks.has(name):
            raise refusal(case, "missing_mask", f"no mask {name}.nii.gz", _FIX)
        if masks.get(name) is None:  # it is there and cannot be used: the first finding tells
            raise VolumeError(masks.findings[-1])
    if not masks.has(*(f"liver_segment_{k}" for k in range(1, 9))):
        raise refusal(case, "missing_mask", "no mask liver_segment_1 to _8; expected one", _FIX)


def _organ(scan: Scan, masks: Masks, case: str, name: str, parts: Mapping[int, Region]) -> Found:
    files = _SIDES.get(name, {name: name})
    lesions: dict[str, Region] = {}
    for kind in KINDS:
        names = lesion_names(name, kind, published=scan.published)
        region = masks.get(*names) if names else None
        if region is not None:
            lesions[kind] = region
    sides, unknown = {}, []
    for side, file in files.items():
        region = masks.get(file)
        if region is None:
            unknown.append(f"no usable mask of the {_spoken(name, side)}")
            if not masks.has(file) and (name != "colon" or lesions):
                told = f"no mask {file}.nii.gz: its size and attenuation are unknown"
                masks.findings.append(Finding(case, "missing_mask", "error", told, _FIX))
        elif not region.mask.size:
            unknown.append(f"the mask of the {_spoken(name, side)} is empty")
            if name != "colon" or lesions:
                told = f"{file} has no voxel: its size and attenuation are unknown"
                masks.findings.append(Finding(case, "empty_mask", "warning", told, _FIX))
            region = None
        sides[side] = region
    return measure_organ(scan, name, sides, lesions, parts, unknown=unknown)


def _spoken(name: str, side: str) -> str:
    return name if side == name else f"{side} {name}"


def _parts(masks: Masks, name: str, published: bool) -> dict[int, Region]:
    """Sub-segments by number, those that have a usable mask."""
    if name == "liver":
        files = [(k, f"liver_segment_{k}") for k in range(1, 9) if masks.has(f"liver_segment_{k}")]
        if published and files:  # the first file of the folder is taken for segment 1
            files[0] = (1, files[0][1])
    elif name == "pancreas":
        files = [(k, f"pancreas_{part}") for k, part in enumerate(PARTS[name], 1)]
    elif name == "kidney":
        files = [(1, "kidney_left"), (2, "kidney_right")]
    else:
        return {}
    regions = {k: masks.get(file) for k, file in files}
    return {k: region for k, region in regions.items() if region is not None}


def _computed_parts(masks: Masks, spacing_mm) -> dict[int, Region]:
    pancreas, sma = masks.get("pancreas"), masks.called("SMA")
    if pancreas is None or sma is None:
        return {}
    return pancreas_parts(pancreas, sma, spacing_mm) or {}


def _staged(found: Found, masks: Masks, scan: Scan) -> Found:
    """The pancreas with its tumors staged."""
    lesions = found.organ.lesions
    if not lesions:
        return found
    if scan.published:
        stagings = published_stage(lesions, masks, scan.ct.shape, scan.spacing_mm)
    else:
        stagings = stage(lesions, found.regions, masks, scan.spacing_mm)
    pairs = zip(lesions, stagings, strict=True)
    with_stage = tuple(replace(lesion, staging=staging) for lesion, staging in pairs)
    return replace(found, organ=replace(found.organ, lesions=with_stage))


def _warnings(case: str, organs, published: bool) -> list[Finding]:
    """Findings about lesions, and vessels that staging lacks."""
    told = []
    for organ in organs:
        for lesion in organ.lesions:
            name = f"{organ.name} {lesion.kind} {lesion.number}"
            if lesion.outside:
                what = f"{name} has no voxel in the mask of the {organ.name}"
                fix = "look at both masks: one of them is wrong, or the lesion is another organ's"
                told.append(Finding(case, "lesion_outside", "warning", what, fix))
            if lesion.staging and lesion.staging.unknown:
                what = f"{name} not staged: {'; '.join(lesion.staging.unknown)}"
                told.append(Finding(case, "missing_mask", "warning", what, _FIX))
            silent = published and organ.name == "pancreas" and lesion.kind != "cyst"
            if silent and lesion.staging is None:
                what = f"{name} not staged, as in the released generator"
                told.append(Finding(case, "missing_mask", "warning", what, _PUBLISHED_NEEDS))
    assessed = [organ for organ in organs if organ.assessed]
    if not assessed:
        what = "no lesion mask of any organ: the report speaks of organs alone"
        fix = "add masks such as liver_lesion.nii.gz; an empty mask says that there is none"
        told.append(Finding(case, "missing_mask", "warning", what, fix))
    return told
