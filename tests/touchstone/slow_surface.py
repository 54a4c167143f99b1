"""Scores of surfaces written again, slowly: voxel by voxel, all pairs, float64, no transform."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def edge_voxels(mask: np.ndarray) -> np.ndarray:
    """Indices (n, rank) of True voxels with a face to False or to the outside."""
    inside = set(map(tuple, np.argwhere(mask).tolist()))
    steps = [s * np.eye(mask.ndim, dtype=int)[a] for a in range(mask.ndim) for s in (-1, 1)]
    return np.array(
        [
            v
            for v in sorted(inside)
            if any(tuple(np.add(v, s).tolist()) not in inside for s in steps)
        ]
    ).reshape(-1, mask.ndim)


def directed(start: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Distance in mm of each point (n, rank) to the nearest of the others (m, rank)."""
    apart = (start[:, None] - target[None]) * np.array(spacing_mm)
    return np.sqrt((apart**2).sum(-1)).min(1, initial=np.inf)


def slow(pred: np.ndarray, ref: np.ndarray, spacing_mm: tuple, tolerance_mm: float) -> dict:
    """NSD, HD95 and ASSD of two masks that are not empty."""
    p, r = edge_voxels(pred), edge_voxels(ref)
    forth, back = directed(p, r, spacing_mm), directed(r, p, spacing_mm)
    both = np.concatenate([forth, back])
    return {
        "nsd": float((both.astype(np.float32) <= np.float32(tolerance_mm)).mean()),
        "hd95": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "hd100": both.max(),
        "assd": both.mean(),
    }


def pattern(mask: np.ndarray, corner: tuple[int, ...]) -> int:
    """Code of the voxels around a corner; corner 0 lies before voxel 0."""
    code = 0
    for bit, offset in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        voxel = tuple(c + o - 1 for c, o in zip(corner, offset, strict=True))
        within = all(0 <= v < n for v, n in zip(voxel, mask.shape, strict=True))
        code |= int(within and bool(mask[voxel])) << bit
    return code


def elements(mask: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, rank) with a surface element, and their areas (n,)."""
    codes = {c: pattern(mask, c) for c in np.ndindex(*(n + 1 for n in mask.shape))}
    corners = [c for c, code in codes.items() if 0 < code < len(areas) - 1]
    return np.array(corners), np.array([areas[codes[c]] for c in corners])


def slow_by_area(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: tuple,
    tolerance_mm: float,
    areas: np.ndarray,
    percentile: float = 95,
) -> dict:
    """The same in DeepMind's convention."""
    (p, area_p), (r, area_r) = elements(pred, areas), elements(ref, areas)
    ways = [(directed(p, r, spacing_mm), area_p), (directed(r, p, spacing_mm), area_r)]
    near = sum(a[d.astype(np.float32) <= np.float32(tolerance_mm)].sum() for d, a in ways)
    hd95 = 0.0
    for distance, area in ways:
        order = np.argsort(distance, kind="stable")
        reached = np.cumsum(area[order]) / area.sum()
        hd95 = max(hd95, distance[order][np.searchsorted(reached, percentile / 100)])
    whole = area_p.sum() + area_r.sum()
    return {
        "nsd": near / whole,
        "hd95": hd95,
        "assd": sum((d * a).sum() for d, a in ways) / whole,
    }


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that overlap in part: a box, and the box with noise, shifted."""
    rng = np.random.default_rng(seed)
    ref = np.zeros(shape, bool)
    ref[tuple(slice(n // 4, n - n // 4) for n in shape)] = True
    pred = np.roll(ref, 1, axis=0) ^ (rng.random(shape) < 0.03)
    return pred, ref


def golden_cases(golden: Path) -> Iterator[tuple[str, dict, np.ndarray, np.ndarray, tuple]]:
    """(name, reference values, pred, ref, spacing in mm) of the golden pairs.

    Background around both masks is cut off, then added up to one of two shapes, which changes no
    score: few programs serve all.
    """
    cases = json.loads((golden / "metrics" / "manifest.json").read_text())["cases"]
    assert len(cases) == 16
    for name, told in cases.items():
        with np.load(golden / "metrics" / f"{name}.npz") as arrays:
            pred, ref, spacing = arrays["pred"] > 0, arrays["gt"] > 0, arrays["spacing"]
        for axis in range(3):
            used = (pred | ref).any(tuple(a for a in range(3) if a != axis))
            pred, ref = (np.compress(np.maximum.accumulate(used), x, axis) for x in (pred, ref))
            used = (pred | ref).any(tuple(a for a in range(3) if a != axis))
            kept = np.maximum.accumulate(used[::-1])[::-1]
            pred, ref = (np.compress(kept, x, axis) for x in (pred, ref))
        shape = (30, 30, 30) if max(pred.shape) <= 30 else (72, 72, 40)
        more = [(0, n - m) for n, m in zip(shape, pred.shape, strict=True)]
        yield name, told, np.pad(pred, more), np.pad(ref, more), tuple(spacing.tolist())
