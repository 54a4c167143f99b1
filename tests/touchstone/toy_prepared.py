"""Prepared data sets written straight to disk: voxels that tell where they come from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from touchstone_jax.io.geometry import Geometry
from touchstone_jax.prepare import sample_foreground
from touchstone_jax.prepare.plan import Plan
from touchstone_jax.prepare.prepared import write_prepared

SHAPE = (20, 17, 40)


def plan(**changes) -> Plan:
    told = {
        "labels": "abdomenatlas_1.0",
        "spacing_mm": (3.0, 3.0, 3.0),
        "clip_hu": (-1000.0, 1000.0),
        "mean_hu": 0.0,
        "std_hu": 500.0,
        "patch": (16, 16, 16),
    }
    return Plan(**{**told, **changes})


def volume(seed: int, shape: Sequence[int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """float16 image and uint8 labels: a ball of each of two organs, 1.5 and -1.5 in noise."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    labels = np.zeros(shape, np.uint8)
    for label, share in ((1, 0.3), (5, 0.65)):
        centre = share * np.array(shape) + rng.uniform(-1, 1, 3)
        labels[np.square(at - centre).sum(-1) < 25] = label
    image = rng.normal(0, 0.3, shape) + 1.5 * (labels == 5) - 1.5 * (labels == 1)
    return image.astype(np.float16), labels


def write_case(folder: Path, name: str, image, labels, made_by: Plan, missing=()) -> None:
    (folder / name).mkdir(parents=True)
    meta = {
        "case": name,
        "shape": list(image.shape),
        "spacing_mm": list(made_by.spacing_mm),
        "geometry": Geometry(image.shape, np.diag([*made_by.spacing_mm, 1.0])).to_json(),
        "plan": made_by.digest(),
        "missing": list(missing),
    }
    foreground = sample_foreground(labels, name, 50)
    write_prepared(folder / name, image, labels, foreground, meta)


def write_set(folder: Path, count: int = 3, made_by: Plan | None = None, shape=SHAPE) -> Path:
    """A data set of ``count`` volumes, case_0, case_1, …"""
    made_by = made_by or plan()
    names = [f"case_{i}" for i in range(count)]
    for i, name in enumerate(names):
        write_case(folder, name, *volume(i, shape), made_by)
    summary = {"plan": made_by.to_json(), "cases": names}
    (folder / "dataset.json").write_text(json.dumps(summary))
    return folder
