"""DSC and NSD of one CT with nine organs: ours against the libraries of the published path.

``python benchmarks/metrics.py [--rounds 5] [--shape 512 512 200] [--out FILE.json]``

A synthetic 512x512x200 case (0.8 x 0.8 x 2.5 mm, ellipsoids of 17 thousand to 1.3 million voxels,
predicted with smooth errors) is scored by every method in turn, in one process; the first round
warms up and compiles, the median of the ratios of the others is printed. A ratio is how many
times faster ours is. Scores are compared before: a fast wrong one is refused.

The rivals are no dependencies; without them their columns are missing, said aloud. In an
environment of its own: ``pip install torch monai surface-distance``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import jax
import numpy as np

from touchstone_jax import metrics

SPACING_MM, TOLERANCE_MM = (0.8, 0.8, 2.5), 1.5
# Centre and semi-axes in mm, in a field of 409.6 x 409.6 x 500 mm.
ORGANS = {
    "liver": ((120, 190, 330), (95, 70, 75)),
    "stomach": ((290, 170, 340), (50, 60, 55)),
    "spleen": ((340, 280, 350), (30, 45, 50)),
    "kidney_left": ((280, 300, 250), (28, 28, 55)),
    "kidney_right": ((130, 310, 240), (28, 28, 55)),
    "pancreas": ((220, 215, 265), (45, 15, 16)),
    "aorta": ((215, 300, 250), (11, 11, 150)),
    "postcava": ((180, 290, 250), (12, 11, 130)),
    "gall_bladder": ((140, 130, 235), (18, 16, 22)),
}
CLASSES = range(1, len(ORGANS) + 1)
Scores = dict[str, np.ndarray]


def case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Label maps of prediction and reference, uint8; errors of about 3 mm, smooth over 20 mm."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    # A smaller shape is the same body in coarser voxels' number, for trying the script.
    scale = np.array(shape) / np.array([512, 512, 200])
    pred, ref = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for label, (centre, axes) in enumerate(ORGANS.values(), start=1):
        middle = np.array(centre) / SPACING_MM * scale
        radius = np.array(axes) / SPACING_MM * scale
        low = np.maximum(0, np.floor(middle - 1.3 * radius).astype(int))
        high = np.minimum(shape, np.ceil(middle + 1.3 * radius).astype(int) + 1)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[box]
        depth = np.sqrt(
            sum(((g - m) / r) ** 2 for g, m, r in zip(grid, middle, radius, strict=True))
        )
        knots = rng.standard_normal([max(2, int(n * s / 20)) for n, s in
                                     zip(depth.shape, SPACING_MM, strict=True)])  # fmt: skip
        noise = ndimage.zoom(knots, np.array(depth.shape) / knots.shape, order=1)
        ref[box][depth < 1] = label
        pred[box][depth + noise * 3 / np.mean(axes) < 1] = label
    return pred, ref


def monai(pred: np.ndarray, ref: np.ndarray) -> Scores:
    """As the benchmark's own script: organ by organ, MONAI's surface dice on whole masks."""
    import torch
    from monai.metrics import compute_surface_dice

    dsc, nsd = [], []
    for label in CLASSES:
        p, r = pred == label, ref == label
        dsc.append(np.float32(2 * (p & r).sum()) / np.float32(p.sum() + r.sum() + 1))
        p, r = (torch.from_numpy(x)[None, None] for x in (p, r))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = compute_surface_dice(
                p, r, class_thresholds=[TOLERANCE_MM], spacing=SPACING_MM, include_background=True
            )
        nsd.append(float(score))
    return {"dsc": np.array(dsc), "nsd": np.array(nsd)}


def surface_distance(pred: np.ndarray, ref: np.ndarray) -> Scores:
    """PyPI's surface-distance, organ by organ; it crops to the organ itself."""
    import surface_distance as library

    dsc, nsd = [], []
    for label in CLASSES:
        p, r = pred == label, ref == label
        dsc.append(library.compute_dice_coefficient(r, p))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls names that scipy is about to drop
            distances = library.compute_surface_distances(r, p, SPACING_MM)
        nsd.append(library.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM))
    return {"dsc": np.array(dsc), "nsd": np.array(nsd)}


def labels(convention: str) -> Callable[[np.ndarray, np.ndarray], Scores]:
    """Our route on label maps, numpy."""

    def run(pred: np.ndarray, ref: np.ndarray) -> Scores:
        scores = metrics.evaluate_labels(
            pred, ref, SPACING_MM, CLASSES, TOLERANCE_MM, convention=convention
        ).values()
        return {"dsc": np.array([s.dsc for s in scores]), "nsd": np.array([s.nsd for s in scores])}

    return run


def compiled(convention: str, crop: bool) -> Callable[[np.ndarray, np.ndarray], Scores]:
    """Our compiled scores, with the transfer to the device and the crop."""

    @jax.jit
    def both(pred: jax.Array, ref: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = {"num_classes": len(ORGANS) + 1, "convention": convention}
        nsd = metrics.nsd(pred, ref, SPACING_MM, TOLERANCE_MM, **options)
        return metrics.dice(pred, ref, **options), nsd

    def run(pred: np.ndarray, ref: np.ndarray) -> Scores:
        pair = metrics.crop_to_foreground(pred, ref) if crop else (pred, ref)
        dsc, nsd = (np.asarray(x)[1:] for x in both(*pair))
        return {"dsc": dsc, "nsd": nsd}

    return run


def methods() -> tuple[dict[str, Callable], dict[str, Callable]]:
    """(rivals that are installed, ours); says which are missing."""
    rivals = {"MONAI": monai, "surface-distance": surface_distance}
    needs = {"MONAI": ("monai", "torch"), "surface-distance": ("surface_distance",)}
    for name, modules in needs.items():
        if any(importlib.util.find_spec(module) is None for module in modules):
            print(f"ABSENT: {name}, not compared (pip install torch monai surface-distance)")
            del rivals[name]
    ours = {
        "label map, numpy": labels("touchstone"),
        "jit, cropped": compiled("touchstone", crop=True),
        "jit, whole volume": compiled("touchstone", crop=False),
        "label map, numpy, deepmind": labels("deepmind"),
        "jit, cropped, deepmind": compiled("deepmind", crop=True),
    }
    return rivals, ours


def agree(scores: dict[str, Scores]) -> dict[str, float]:
    """Largest difference to the rival of the same convention.

    Raises:
        AssertionError: a difference above 1e-5.
    """
    differences = {}
    for name, values in scores.items():
        rival = scores.get("surface-distance" if "deepmind" in name else "MONAI")
        if rival is not None and name != "surface-distance":
            apart = max(float(np.abs(values[k] - rival[k]).max()) for k in ("dsc", "nsd"))
            differences[name] = apart
            assert apart <= 1e-5, f"{name}: scores differ by {apart}"
    return differences


def measure(pred: np.ndarray, ref: np.ndarray, rounds: int) -> list[dict]:
    """A row a method: seconds and how many times faster than each rival, medians of rounds."""
    rivals, ours = methods()
    every = {**rivals, **ours}
    wall: dict[str, list[float]] = {name: [] for name in every}
    cpu: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(rounds + 1):
        scores = {}
        for name, run in every.items():
            start = time.perf_counter(), time.process_time()
            scores[name] = run(pred, ref)
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            if turn:  # the first round warms up
                wall[name].append(taken[0])
                cpu[name].append(taken[1])
        differences = agree(scores)
    rows = []
    for name in every:
        row = {
            "method": name,
            "seconds": round(statistics.median(wall[name]), 3),
            "cpu_seconds": round(statistics.median(cpu[name]), 3),
            "largest_difference": differences.get(name),
        }
        for rival in rivals if name in ours else ():
            ratios = [a / b for a, b in zip(wall[rival], wall[name], strict=True)]
            row[f"times_faster_than_{rival}"] = round(statistics.median(ratios), 2)
            row[f"range_{rival}"] = [round(min(ratios), 2), round(max(ratios), 2)]
            spent = [a / b for a, b in zip(cpu[rival], cpu[name], strict=True)]
            row[f"times_less_cpu_than_{rival}"] = round(statistics.median(spent), 2)
        rows.append(row)
    return rows


def main() -> None:
    """Runs the comparison and prints it; ``--out`` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 200])
    parser.add_argument("--out")
    options = parser.parse_args()
    pred, ref = case(tuple(options.shape))
    device = jax.devices()[0]
    packages = ("jax", "numpy", "scipy", "torch", "monai", "surface-distance")
    spec = {name: importlib.util.find_spec(name.replace("-", "_")) for name in packages}
    about = {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} {device.device_kind}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages if spec[name] is not None},
        "shape": options.shape,
        "spacing_mm": SPACING_MM,
        "tolerance_mm": TOLERANCE_MM,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "voxels": [int((ref == c).sum()) for c in CLASSES],
    }
    print(about)
    rows = measure(pred, ref, options.rounds)
    for row in rows:
        faster = [
            f"{row[key]:6.1f}x {rival} {row[f'range_{rival}']} "
            f"(cpu {row[f'times_less_cpu_than_{rival}']:.1f}x)"
            for rival in ("MONAI", "surface-distance")
            if (key := f"times_faster_than_{rival}") in row
        ]
        print(f"{row['method']:27s} {row['seconds']:7.3f} s  cpu {row['cpu_seconds']:7.3f} s  "
              + "  ".join(faster))  # fmt: skip
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"about": about, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
