"""The plan: to which spacing, window and patch a data set is prepared; printed and kept as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from touchstone_jax.labels.schemes import scheme


@dataclass(frozen=True)
class Plan:
    """Everything that preparing a case depends on besides the case.

    Attributes:
        labels: name of the label scheme.
        spacing_mm: target spacing along the canonical axes (x, y, z), in mm.
        clip_hu: intensities are clipped to these two, in HU ...
        mean_hu: ... then this is subtracted ...
        std_hu: ... and the difference divided by this.
        patch: patch (x, y, z) in voxels proposed for training.
        antialias: smooth axes that get fewer voxels.
        overlap: policy for voxels of several masks, see `touchstone_jax.labels.painting`.
        cases: how many cases the spacing, and how many the intensities come from.
    """

    labels: str
    spacing_mm: tuple[float, float, float]
    clip_hu: tuple[float, float]
    mean_hu: float
    std_hu: float
    patch: tuple[int, int, int]
    antialias: bool = True
    overlap: str = "smallest"
    cases: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Raises ValueError on what cannot be a plan."""
        scheme(self.labels)
        low, high = self.clip_hu
        for name, value, legal in (
            ("spacing_mm", self.spacing_mm, len(self.spacing_mm) == 3 and min(self.spacing_mm) > 0),
            ("clip_hu", self.clip_hu, np.isfinite([low, high]).all() and low < high),
            ("mean_hu", self.mean_hu, np.isfinite(self.mean_hu)),
            # Normalised values are kept as float16, whose steps grow with them.
            ("std_hu", self.std_hu, np.isfinite(self.std_hu) and self.std_hu > (high - low) / 1e3),
            ("patch", self.patch, len(self.patch) == 3 and min(self.patch) > 0),
        ):
            if not legal:
                raise ValueError(f"plan: {name}={value!r} is out of range")

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(stored: Any, source: str = "plan") -> Plan:
        """The inverse of `to_json`.

        Raises:
            ValueError: keys that are missing or unknown, or values that cannot be; ``source`` is
                told.
        """
        names = {f.name for f in fields(Plan)}
        if not isinstance(stored, dict) or stored.keys() != names:
            got = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
            raise ValueError(f"{source}: expected the keys {sorted(names)}, got {got}")
        listed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        try:
            return Plan(**listed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error

    def digest(self) -> str:
        """Short hash of the plan."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        low, high = self.clip_hu
        return (
            f"plan of {self.cases[0]} cases: {self.labels}, spacing {_by(self.spacing_mm)} mm, HU "
            f"clipped to [{low:g}, {high:g}], then (HU - {self.mean_hu:.4g}) / {self.std_hu:.4g}, "
            f"patch {_by(self.patch)}"
        )


def read_plan(path: str | Path) -> Plan:
    """A plan that `write_plan` stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plan.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"plan {path}: no such file")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    return Plan.from_json(stored, str(path))


def write_plan(path: str | Path, plan: Plan) -> None:
    """Store a plan as JSON, in one step."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(plan.to_json(), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{v:g}" for v in values)
