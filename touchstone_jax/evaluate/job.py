"""Score a folder of predictions against a folder of references, in the form the launcher runs.

Scores are Touchstone's by default (Bassi et al. 2024, and its published script): DSC with the 1 in
its denominator, NSD of voxel edges at 1.5 mm, organs of which an erosion leaves over 10 voxels.
Unlike there, geometry is compared (a prediction stored in other axes is turned, one on another grid
is refused with numbers), and no case is dropped: a prediction that is missing or cannot be used is
scored as an empty one, or listed, by the policy ``missing``, and always counted.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from touchstone_jax.evaluate.organs import Organs, as_label_map, discover_predictions, label_files
from touchstone_jax.evaluate.score_tables import (
    Score,
    averages,
    read_scores,
    tabulated,
    told,
    write_scores,
    write_touchstone,
)
from touchstone_jax.findings import VolumeError
from touchstone_jax.io.geometry import canonical
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.metrics import arguments
from touchstone_jax.metrics.host import Scores, evaluate_labels, evaluate_mask
from touchstone_jax.metrics.overlap import CONVENTIONS
from touchstone_jax.verify.fingerprints import OverCases, hash_of

MISSING = ("zero", "list")
SKIPS = ("erosion", "empty", "none")
FLAGS = {
    "not_annotated": "the reference says nothing about the organ: not scored",
    "skipped": "the reference is too small by the rule ``skip``: not scored",
    "missing": "there is no prediction of the case",
    "failed": "the prediction of the case cannot be used",
    "no_mask": "the prediction has no mask of the organ",
    "empty_prediction": "not a voxel predicted",
    "empty_reference": "not a voxel in the reference",
    "reoriented": "stored in other axes than the reference, and turned",
}
"""Words of the tidy table."""


class Evaluate(OverCases):
    """Scores of each case and organ; ``dsc.csv``, ``nsd.csv``, ``scores.csv``, ``summary.json``.

    Args:
        predictions: folder of the predictions: ``<case>/predictions/<organ>.nii.gz``,
            ``<case>/segmentations/``, label maps in a case's folder, or ``<case>.nii.gz``.
        references: folder of the references in a layout of `touchstone_jax.layouts`; "flat" is
            one label map a case.
        labels: scheme of the organs that are scored.
        layout: of the references.
        prediction_layout: of the predictions; "flat" is one label map a case.
        source_labels: scheme of the references; None for the layout's, ``labels`` if flat.
        prediction_labels: scheme of the predictions; None for the layout's, ``labels`` if flat.
        convention: of `touchstone_jax.metrics`: "touchstone", "monai" or "deepmind".
        tolerance_mm: of the NSD.
        skip: what is not scored: organs that "erosion" by 3x3x3 leaves 10 voxels or fewer of
            (Touchstone's rule), "empty" references, or "none".
        missing: score predictions that are missing or cannot be used as empty ones ("zero"), or
            leave their cells empty and "list" them.
        distances: also HD95 and ASSD, in mm.
        fingerprints: tell a changed case by the "content" of its files, or by "stat".

    Raises:
        FileNotFoundError: no such folder, or no case in it.
        ValueError: an unknown or illegal value, an ambiguous data set, or no prediction that has
            a reference.
    """

    places = ("predictions", "references")

    def __init__(
        self,
        predictions: str,
        references: str,
        *,
        labels: str = "abdomenatlas_1.0",
        layout: str = "auto",
        prediction_layout: str = "auto",
        source_labels: str | None = None,
        prediction_labels: str | None = None,
        convention: str = "touchstone",
        tolerance_mm: float = 1.5,
        skip: str = "erosion",
        missing: str = "zero",
        distances: bool = False,
        fingerprints: str = "content",
    ) -> None:
        arguments.known("convention", convention, CONVENTIONS)
        arguments.known("skip", skip, SKIPS)
        arguments.known("missing", missing, MISSING)
        (tolerance,) = arguments.tolerances(tolerance_mm, None)
        self._target = scheme(labels)
        self._skip, self._missing = skip, missing
        self._how: dict[str, Any] = {
            "convention": convention,
            "tolerance_mm": tolerance,
            "distances": distances,
        }
        super().__init__(references, layout, source_labels, fingerprints)
        alone = source_labels or labels
        self._cases = {name: as_label_map(case, alone) for name, case in self._cases.items()}
        found = discover_predictions(predictions, prediction_layout, prediction_labels, labels)
        self._predictions = {case.id: case for case in found}
        if not self._predictions.keys() & self._cases.keys():
            raise ValueError(
                f"no prediction in {predictions} has a reference in {references}: cases "
                f"{_some(self._predictions)} and {_some(self._cases)}"
            )

    def fingerprint(self, case: str) -> str:
        """Hash of the files of the reference's labels and of the prediction's."""
        hashes = []
        for whose, found in (("ref", self._cases[case]), ("pred", self._predictions.get(case))):
            paths = () if found is None else label_files(found)
            if paths:
                rest = tuple((path.name, path) for path in paths[1:])
                hashes.append(self.hash_files(Case(f"{whose} {case}", paths[0], rest)))
            else:
                hashes.append("missing")
        return hash_of(hashes)

    def run(self, case: str, folder: Path) -> dict[str, Any]:
        """Score one case, write its ``scores.csv``; means over its organs and what was wrong.

        Raises:
            VolumeError: the reference cannot be used.
        """
        reference = Organs(self._cases[case], self._target)
        state, problem, scores = "ok", "", []
        try:
            if case in self._predictions:
                found = Organs(self._predictions[case], self._target, reference.grid)
                scores = self._scores(case, reference, found)
            else:
                state, problem = "missing", f"{case}: there is no prediction"
        except VolumeError as error:
            state, problem = "failed", str(error)
        if state != "ok":
            scores = self._scores(case, reference, None, state)
        write_scores(folder / "scores.csv", scores)
        means = {}
        for metric in self._metrics:
            values = [s.value for s in scores if s.metric == metric and math.isfinite(s.value)]
            means[metric] = float(np.mean(values)) if values else None
        organs = sum(s.metric == "dsc" and not math.isnan(s.value) for s in scores)
        return {**means, "organs": organs, "prediction": state, "problem": problem}

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write the tables and the summary of all cases, and print the averages.

        Raises:
            ValueError: after that, if predictions could not be used: how many, and the first.
        """
        cases, organs = [row["case"] for row in rows], self._target.classes
        scores = [s for case in cases for s in read_scores(folder / case / "scores.csv")]
        write_scores(folder / "scores.csv", scores)
        tables = {m: tabulated(scores, m, cases, organs) for m in self._metrics}
        for metric in ("dsc", "nsd"):
            write_touchstone(folder / f"{metric}.csv", cases, organs, tables[metric])
        summary = {
            "how": {**self._how, "labels": self._target.name, "skip": self._skip,
                    "missing": self._missing},
            "cases": self._cases_told(rows),
            "flags": dict(Counter(f for s in scores if s.metric == "dsc" for f in s.flags)),
            **{metric: averages(table, organs) for metric, table in tables.items()},
        }  # fmt: skip
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        self._say(summary)
        if failed := summary["cases"]["failed"]:
            raise ValueError(
                f"{len(failed)} of {len(cases)} predictions cannot be used, their organs are "
                f"{_POLICY[self._missing]}: {next(iter(failed.values()))}"
            )

    # ------------------------------------------------------------------ one case

    @property
    def _metrics(self) -> tuple[str, ...]:
        return ("dsc", "nsd", *(("hd95_mm", "assd_mm") if self._how["distances"] else ()))

    def _scores(
        self, case: str, reference: Organs, found: Organs | None, state: str = "ok"
    ) -> list[Score]:
        """The tidy rows of a case; without a prediction those of an empty one."""
        # In float32, as the header has it: 1.5 mm must not become 1.5000001.
        stored = reference.grid.reoriented(canonical(reference.grid)).spacing_mm
        spacing = tuple(float(np.float32(s)) for s in reversed(stored))
        whole: Mapping[str, Scores] = {}
        if found is not None and found.labels is not None and reference.labels is not None:
            # Transposed, volumes lie in C order (`touchstone_jax.io`), which NumPy is fast at.
            whole = evaluate_labels(found.labels.T, reference.labels.T, spacing,
                                    self._target.indices, **self._how)  # fmt: skip
        rows = []
        for organ in self._target.classes:
            if organ not in reference.known:
                rows += self._rows(case, organ, None, ("not_annotated",))
                continue
            flags: tuple[str, ...] = () if state == "ok" else (state,)
            if found is not None and organ not in found.known:
                flags = ("no_mask",)
            if organ in whole:
                score = whole[organ]
            else:
                ref = reference.mask(organ).T
                pred = np.zeros_like(ref) if flags or found is None else found.mask(organ).T
                score = evaluate_mask(pred, ref, spacing, **self._how)
            turned = ("reoriented",) if found is not None and found.reoriented else ()
            rows += self._rows(case, organ, score, (*flags, *turned))
        return rows

    def _rows(
        self, case: str, organ: str, score: Scores | None, flags: tuple[str, ...]
    ) -> list[Score]:
        if score is None:
            return [Score(case, organ, m, math.nan, None, None, flags) for m in self._metrics]
        absent = bool({"missing", "failed", "no_mask"} & set(flags))
        skipped = (self._skip == "erosion" and not score.evaluable) or (
            self._skip == "empty" and not score.ref_voxels
        )
        flags += ("skipped",) if skipped else ()
        flags += () if score.pred_voxels or absent else ("empty_prediction",)
        flags += () if score.ref_voxels else ("empty_reference",)
        hidden = skipped or (absent and self._missing == "list")
        voxels = (None if absent else score.pred_voxels, score.ref_voxels)
        return [
            Score(case, organ, m, math.nan if hidden else getattr(score, m), *voxels, flags)
            for m in self._metrics
        ]

    # ------------------------------------------------------------------ all cases

    def _cases_told(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Which cases there are, and which are not what one would think."""
        done = {row["case"] for row in rows}
        return {
            "references": len(self._cases),
            "scored": len(rows),
            "missing": [row["case"] for row in rows if row["prediction"] == "missing"],
            "failed": {r["case"]: r["problem"] for r in rows if r["prediction"] == "failed"},
            "reference_failed": [case for case in self._cases if case not in done],
            "without_organ": [row["case"] for row in rows if not row["organs"]],
            "without_reference": sorted(self._predictions.keys() - self._cases.keys()),
        }

    def _say(self, summary: Mapping[str, Any]) -> None:
        for metric in self._metrics:
            means = (f"{name.replace('_', ' ')} {told(summary[metric][name])}"
                     for name in ("per_case", "macro"))  # fmt: skip
            print(f"{metric}: {', '.join(means)}")
        for name in ("missing", "reference_failed"):
            if listed := summary["cases"][name]:
                policy = f", {_POLICY[self._missing]}" if name == "missing" else ", in no average"
                print(f"{name.replace('_', ' ')}: {len(listed)} of {len(self._cases)} cases "
                      f"({_some(listed)}){policy}", file=sys.stderr)  # fmt: skip


_POLICY = {"zero": "scored as empty ones", "list": "left out of the averages"}


def _some(cases: Sequence[str] | Mapping[str, Any]) -> str:
    first = list(cases)[:3]
    return ", ".join(first) + (" …" if len(cases) > 3 else "")
