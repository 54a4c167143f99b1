"""What a prediction asks a promptable network for, from a file to arrays of each window.

A prompt file is JSON (or the same as a mapping)::

    {"organs": ["liver", "spleen"],
     "cases": {"case_1": {"liver": {"points": [[-60.0, 10.0, 85.0, 1], [20.0, 0.0, 85.0, 0]]},
                          "aorta": {"box": [-20.0, -40.0, 0.0, 15.0, -5.0, 160.0]}}}}

``organs`` are asked for by name in every case; without the key all are. A point is (x, y, z, sign):
1 inside of the organ, 0 outside. A box is two opposite corners. Places are mm of the CT's own
affine (RAS+: x to the patient's right, y to the front, z to the head), however it is stored. An
organ that a case asks for in no way is not predicted there. ``{"task": 3}`` is for networks whose
prompt is the number of a task.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from touchstone_jax.io.geometry import Geometry, canonical
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.legal import unknown

Arrays = dict[str, np.ndarray]
Given = str | Path | Mapping[str, Any]


class Prompts:
    """Prompts of a data set, checked.

    Args:
        given: file, or what it holds.
        kinds: kinds of prompts that the network takes -> the number of legal values, or None for
            any: its attribute ``prompts``.
        labels: what the organs are called.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything that is not as the module's text says, or that the network cannot take;
            the message names the file, the key, the value and what is legal.
    """

    def __init__(self, given: Given, kinds: Mapping[str, int | None], labels: Scheme) -> None:
        self._told = f"prompts {given}" if isinstance(given, str | Path) else "prompts"
        found = _read(given, self._told) if isinstance(given, str | Path) else given
        if not kinds:
            raise ValueError(f"{self._told}: the network takes no prompts")
        self._labels, self._kinds = labels, kinds
        places = {"points", "boxes"} & kinds.keys()
        legal = [*(kinds.keys() - {"points", "boxes"}), *(["cases"] if places else [])]
        for key in found:
            if key not in legal:
                raise unknown(f"key of {self._told}", key, sorted(legal))
        self._task = self._checked_task(found.get("task"))
        organs = found.get("organs", labels.classes)
        if isinstance(organs, str) or not isinstance(organs, Sequence):
            raise ValueError(f"{self._told}: organs={organs!r}; expected a list of names")
        self._organs = tuple(organs)
        self._cases = {
            case: {
                organ: self._checked(case, organ, asked)
                for organ, asked in _mapping(told, f"{self._told}: {case}").items()
            }
            for case, told in _mapping(found.get("cases", {}), f"{self._told}: cases").items()
        }
        for organ in self._organs:
            self._check_organ(organ)
        every = itertools.chain(*(organs.values() for organs in self._cases.values()))
        self._most = max((len(points) for points, _ in every), default=0)

    def check_cases(self, cases: Sequence[str]) -> None:
        """Refuse prompts of cases that are not there.

        Raises:
            ValueError: naming the first.
        """
        for case in self._cases:
            if case not in cases:
                raise unknown(f"case of {self._told}", case, cases)

    def of_windows(
        self, case: str, source: Geometry, shape: Sequence[int], window: Sequence[int]
    ) -> Callable[[Sequence[int], Sequence[bool]], Arrays]:
        """What `touchstone_jax.infer.SlidingWindow` tells the network of each window.

        Points outside of a window are left out, boxes are cut to it.

        Args:
            case: id.
            source: the stored grid of its CT.
            shape: voxels (x, y, z) of the prepared image.
            window: voxels (x, y, z).

        Raises:
            ValueError: a point outside of the CT, or a box that has no part of it.
        """
        if "task" in self._kinds:
            task = {"task": np.array(self._task, np.int32)}
            return lambda corner, flips: task
        organs = self._placed(self._cases.get(case, {}), source, shape)
        named = np.array([name in self._organs for name in self._labels.classes])
        self._refuse_outside(case, source)

        def told(corner: Sequence[int], flips: Sequence[bool]) -> Arrays:
            made = [_in_window(*one, self._most, corner, flips, window) for one in organs]
            points, signs, boxes, boxed = (np.stack(part) for part in zip(*made, strict=True))
            return {"named": named, "points": points, "signs": signs, "boxes": boxes,
                    "boxed": boxed}  # fmt: skip

        return told

    def _refuse_outside(self, case: str, source: Geometry) -> None:
        """Places in other coordinates (voxels, LPS) would else find nothing, in silence."""
        shape = source.reoriented(canonical(source)).shape
        for organ, (points, box) in self._cases.get(case, {}).items():
            places = _voxels(points[:, :3], source, shape)
            if (out := ~_overlap((places, places), shape)).any():
                given = f"point {points[out][0, :3].tolist()}"
            elif box is not None and not _overlap(_box_voxels(box, source, shape), shape):
                given = f"box {box.ravel().tolist()}"
            else:
                continue
            low, high = (end.round(1).tolist() for end in _ends_mm(source))
            raise ValueError(
                f"{self._told}: {case}, {organ}: {given} is outside of the CT, which reaches from "
                f"{low} to {high} mm"
            )

    def _placed(
        self, asked: Mapping[str, Any], source: Geometry, shape: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(points (n, 4), first and last voxel (2, 3) or None) of each organ, in voxels."""
        found = []
        for organ in self._labels.classes:
            points, box = asked.get(organ, (np.zeros((0, 4)), None))
            points = np.concatenate([_voxels(points[:, :3], source, shape), points[:, 3:]], axis=1)
            found.append((points, None if box is None else _box_voxels(box, source, shape)))
        return found

    def _checked(
        self, case: str, organ: str, asked: Mapping[str, Any]
    ) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "2 3"] | None]:
        self._check_organ(organ)
        where = f"{self._told}: {case}, {organ}"
        for key in _mapping(asked, where):
            if key not in ("points", "box"):
                raise unknown(f"key of {where}", key, ("points", "box"))
        points = asked.get("points", [])
        if not isinstance(points, Sequence) or not all(
            _numbers(p, 4) and p[3] in (0, 1) for p in points
        ):
            raise ValueError(f"{where}: points={points}; expected (x, y, z, 0 or 1) each, in mm")
        box = asked.get("box")
        if box is not None and not _numbers(box, 6):
            raise ValueError(f"{where}: box={box}; expected (x, y, z, x, y, z) in mm")
        points = np.array(points, np.float64).reshape(-1, 4)
        return points, None if box is None else np.array(box, np.float64).reshape(2, 3)

    def _checked_task(self, task: Any) -> int:
        most = self._kinds.get("task")
        if most is None:
            return 0
        if type(task) is not int or not 0 <= task < most:
            raise ValueError(f"{self._told}: task={task!r}; expected 0..{most - 1}")
        return task

    def _check_organ(self, organ: Any) -> None:
        if organ not in self._labels.indices:
            raise unknown(f"organ of {self._told}", organ, self._labels.classes)


def places_asked(told: Arrays, organ: int) -> tuple[bool, bool]:
    """Whether a window is told points, and a box, of an organ (0 is the first)."""
    return bool((told["signs"][organ] >= 0).any()), bool(told["boxed"][organ])


def of_organ(told: Arrays, organ: int) -> Arrays:
    """What a window is told, as far as it asks for one organ (0 is the first)."""
    only = np.arange(len(told["named"])) == organ
    return {
        **told,
        "named": told["named"] & only,
        "signs": np.where(only[:, None], told["signs"], np.int32(-1)),
        "boxed": told["boxed"] & only,
    }


def with_box(told: Arrays, organ: int, box: Float32[np.ndarray, " 6"] | None) -> Arrays:
    """What a window is told, with another box of an organ (0 is the first), or with none."""
    only = np.arange(len(told["boxed"])) == organ
    boxes = told["boxes"] if box is None else np.where(only[:, None], box, told["boxes"])
    boxed = np.where(only, box is not None, told["boxed"])
    return {**told, "boxes": boxes, "boxed": boxed}


def _read(path: str | Path, told: str) -> Mapping[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{told}: no such file")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{told}: no JSON: {error}") from error
    return _mapping(found, told)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {value!r}; expected names with what belongs to each")
    return value


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == count
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )


def _voxels(
    places: Float64[np.ndarray, "n 3"], source: Geometry, shape: Sequence[int]
) -> Float64[np.ndarray, "n 3"]:
    """Voxels of the prepared image, which fills the CT's box, from mm."""
    grid = source.reoriented(canonical(source))
    inverse = np.linalg.inv(grid.affine)
    found = places @ inverse[:3, :3].T + inverse[:3, 3]
    return (found + 0.5) * np.divide(shape, grid.shape) - 0.5


def _box_voxels(
    box: Float64[np.ndarray, "2 3"], source: Geometry, shape: Sequence[int]
) -> Float64[np.ndarray, "2 3"]:
    """First and last voxel of a box in mm; of an oblique CT those around it."""
    corners = _voxels(np.array(list(itertools.product(*box.T))), source, shape)
    return np.stack([corners.min(0), corners.max(0)])


def _ends_mm(source: Geometry) -> Float64[np.ndarray, "2 3"]:
    """The lowest and the highest x, y and z of a CT's voxels, outermost borders included."""
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in source.shape))))
    corners = corners @ source.affine[:3, :3].T + source.affine[:3, 3]
    return np.stack([corners.min(0), corners.max(0)])


def _overlap(
    ends: Iterable[Float64[np.ndarray, "*n 3"]], size: Sequence[int]
) -> Bool[np.ndarray, "*n"]:
    """Whether a part of what lies between two voxels is in a volume of that size."""
    first, last = ends
    return np.asarray(((last > -0.5) & (first < np.array(size) - 0.5)).all(-1))


def _in_window(
    points: Float64[np.ndarray, "n 4"],
    box: Float64[np.ndarray, "2 3"] | None,
    most: int,
    corner: Sequence[int],
    flips: Sequence[bool],
    window: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.bool_]:
    """(points, signs, box, whether there is one) of an organ as the window's network sees it."""
    places, signs = np.zeros((most, 3), np.float32), np.full(most, -1, np.int32)
    last = np.array(window) - 1
    at = points[:, :3] - corner
    at = np.where(flips, last - at, at)
    inside = _overlap((at, at), window)
    places[: inside.sum()], signs[: inside.sum()] = at[inside], points[inside, 3]
    if box is None:
        return places, signs, np.zeros(6, np.float32), np.bool_(False)
    ends = box - corner
    ends = np.sort(np.where(flips, last - ends, ends), axis=0)
    seen = np.bool_(_overlap(ends, window))
    return places, signs, np.clip(ends, 0, last).reshape(6).astype(np.float32), seen
