"""Tables of many methods on the same test sets: scores over seeds, F1 intervals, DeLong's test.

Runs are named DATA-METHOD; those with one DATA share a table and are compared with its reference.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.metrics import delong, f1_intervals
from isnet_jax.predictions import Predictions

KEYS = ("data", "method", "seed", "split")
SCORES = ("accuracy", "macro_f1", "auc", "mass")
F1 = ("mean", "sd", "low", "high")
TESTED = ("auc", "reference_auc", "z", "log10_p")
_LEVEL = math.log10(0.05)

Found = Mapping[str, Mapping[int, Mapping[str, Predictions]]]  # run -> seed -> split


class MethodTables:
    """Writes scores.csv, summary.csv, f1.csv, delong.csv and tables.md, and prints the last.

    Args:
        reference: method of each table whose AUCs the others' are compared with.
        f1_samples: Monte-Carlo draws of `isnet_jax.metrics.f1_intervals`.
        gap: (split, split) whose difference in accuracy is a column, a data set; {}: T_biased and
            T_deceiving of the first test set T that has both, else the first and the last split.
            One split alone has no such column.

    Raises:
        ValueError: f1_samples below 1.
    """

    kind = Predictions

    def __init__(
        self,
        *,
        reference: str = "erm",
        f1_samples: int = 5000,
        gap: Mapping[str, Sequence[str]] = {},
    ) -> None:
        if f1_samples < 1:
            raise ValueError(f"f1_samples={f1_samples}; must be at least 1")
        self._reference, self._samples, self._gap = reference, f1_samples, dict(gap)

    def tables(self, found: Found, folder: Path) -> str:
        """Writes all files into ``folder``; the Markdown.

        Args:
            found: run -> seed -> split -> what was predicted.
            folder: exists.
        """
        scores = score_rows(found)
        _write(folder / "scores.csv", scores, (*KEYS, *SCORES))
        summary = summary_rows(scores)
        ends = (f"{name}_{end}" for name in SCORES for end in ("mean", "sd"))
        _write(folder / "summary.csv", summary, ("data", "method", "split", "seeds", *ends))
        _write(folder / "f1.csv", f1_rows(found, self._samples), (*KEYS, "class", *F1))
        compared = delong_rows(found, self._reference)
        _write(folder / "delong.csv", compared, (*KEYS, "class", *TESTED))
        text = self._markdown(scores, summary, compared)
        (folder / "tables.md").write_text(text, encoding="utf-8")
        return text

    def _markdown(self, scores: list[dict], summary: list[dict], compared: list[dict]) -> str:
        parts = []
        for data in dict.fromkeys(row["data"] for row in summary):
            own = [row for row in summary if row["data"] == data]
            splits = list(dict.fromkeys(row["split"] for row in own))
            pair = tuple(self._gap.get(data) or _pair(splits))
            parts.append(f"## {data}\n")
            for title, names in (
                ("Accuracy in %, mean ± sd; of the heatmap, % in the foreground", ("accuracy",)),
                ("Macro F1 and AUC in %, mean ± sd", ("macro_f1", "auc")),
            ):
                head = ["method", "seeds", *(f"{n} {s}" for n in names for s in splits)]
                if names == ("accuracy",):
                    head += [f"{pair[0]} - {pair[1]}"] if pair[0] != pair[1] else []
                    head += [f"mass {s}" for s in splits]
                rows = []
                for method in dict.fromkeys(row["method"] for row in own):
                    at = {row["split"]: row for row in own if row["method"] == method}
                    line = [method, str(max(row["seeds"] for row in at.values()))]
                    line += [_percent(at.get(s), n) for n in names for s in splits]
                    if names == ("accuracy",):
                        line += [_gap(scores, data, method, pair)] if pair[0] != pair[1] else []
                        line += [_percent(at.get(s), "mass") for s in splits]
                    rows.append(line)
                parts.append(f"{title}\n\n{grid(head, rows)}")
            parts.append(_told(compared, data, self._reference))
        return "\n".join(parts)


# ------------------------------------------------------------------------- rows


def _named(run: str) -> dict[str, str]:
    data, _, method = run.partition("-")
    return {"data": data, "method": method or data}


def _each(found: Found) -> Iterable[tuple[dict[str, Any], Predictions]]:
    for run, seeds in found.items():
        for seed, splits in seeds.items():
            for split, said in splits.items():
                yield {**_named(run), "seed": seed, "split": split}, said


def score_rows(found: Found) -> list[dict[str, Any]]:
    """A row a run, seed and split: the scores of `Predictions.scores`."""
    return [where | said.scores() for where, said in _each(found)]


def summary_rows(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a run and split: mean and sample standard deviation over seeds; what is NaN is out."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in scores:
        groups.setdefault((row["data"], row["method"], row["split"]), []).append(row)
    made = []
    for (data, method, split), rows in groups.items():
        one: dict[str, Any] = {"data": data, "method": method, "split": split, "seeds": len(rows)}
        for name in SCORES:
            values = [row[name] for row in rows if math.isfinite(row[name])]
            one[f"{name}_mean"] = statistics.fmean(values) if values else math.nan
            one[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else math.nan
        made.append(one)
    return made


def f1_rows(found: Found, samples: int = 5000) -> list[dict[str, Any]]:
    """A row a run, seed, split and class: posterior F1 with its 95 % interval; "macro" too.

    Of several findings the F1 of each finding's presence. Where a class has no image: no row.
    """
    made = []
    for where, said in _each(found):
        for index, confusion in enumerate(said.confusions()):
            if not (confusion.sum(1) > 0).all():
                continue
            of = f1_intervals(confusion, samples=samples)
            table = np.stack([of.mean, of.deviation, of.low, of.high], axis=1)
            rows = dict(enumerate(table)) | {"macro": of.macro}
            if said.multi_label:
                rows = {index: table[1]}
            for label, numbers in rows.items():
                told = zip(F1, map(float, numbers), strict=True)
                made.append(where | {"class": label} | dict(told))
    return made


def delong_rows(found: Found, reference: str) -> list[dict[str, Any]]:
    """A row a run, seed, split and class: AUC (one against the rest) beside the reference's.

    z and log10 p are those of DeLong's test for equal areas on the same images.
    """
    references = {
        (_named(run)["data"], seed): splits
        for run, seeds in found.items()
        if _named(run)["method"] == reference
        for seed, splits in seeds.items()
    }
    made = []
    for where, said in _each(found):
        other = references.get((where["data"], where["seed"]), {}).get(where["split"])
        if other is None or where["method"] == reference:
            continue
        if not np.array_equal(other.label, said.label):
            continue  # another split of the same name
        truth, ours = said.one_against_rest()
        _, theirs = other.one_against_rest()
        for label, kind in enumerate(truth):
            count = int(kind.sum())
            if min(count, len(kind) - count) < 2 or not np.isfinite(ours[label]).all():
                continue
            both = delong(kind, np.stack([ours[label], theirs[label]]))
            z, log10_p = both.compare(0, 1)
            areas = {"auc": float(both.auc[0]), "reference_auc": float(both.auc[1])}
            made.append(where | {"class": label} | areas | {"z": z, "log10_p": log10_p})
    return made


# ------------------------------------------------------------------------- text


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _percent(row: Mapping[str, Any] | None, name: str) -> str:
    if row is None or not math.isfinite(row[f"{name}_mean"]):
        return "–"
    sd = row[f"{name}_sd"]
    return f"{100 * row[f'{name}_mean']:.1f}" + (f" ± {100 * sd:.1f}" if sd == sd else "")


def _pair(splits: Sequence[str]) -> tuple[str, str]:
    """The splits compared: one test set with its bias and against it, where there are such."""
    of = (name.removesuffix("_biased") for name in splits if name.endswith("_biased"))
    both = ((f"{name}_biased", f"{name}_deceiving") for name in of)
    return next((pair for pair in both if pair[1] in splits), (splits[0], splits[-1]))


def _gap(scores: Sequence[Mapping], data: str, method: str, pair: tuple[str, ...]) -> str:
    """Mean ± sd over seeds of the accuracies' difference in points."""
    own = {
        (row["seed"], row["split"]): row["accuracy"]
        for row in scores
        if row["data"] == data and row["method"] == method
    }
    seeds = sorted({seed for seed, _ in own})
    values = [
        100 * (own[seed, pair[0]] - own[seed, pair[1]])
        for seed in seeds
        if (seed, pair[0]) in own and (seed, pair[1]) in own
    ]
    if not values:
        return "–"
    sd = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{sd}"


def _told(compared: Sequence[Mapping], data: str, reference: str) -> str:
    """How often DeLong's test tells each method's AUCs from the reference's."""
    own = [row for row in compared if row["data"] == data]
    if not own:
        return ""
    splits = list(dict.fromkeys(row["split"] for row in own))
    rows = []
    for method in dict.fromkeys(row["method"] for row in own):
        line = [method]
        for split in splits:
            here = [r for r in own if r["method"] == method and r["split"] == split]
            sure = [row for row in here if row["log10_p"] < _LEVEL]
            higher = sum(row["auc"] > row["reference_auc"] for row in sure)
            line.append(f"{higher} / {len(sure) - higher} / {len(here)}")
        rows.append(line)
    title = (
        f"AUC against {reference}'s by DeLong's test: higher / lower at p < 0.05 / tests (a class "
        "and seed each; not corrected for their number)"
    )
    return f"{title}\n\n{grid(['method', *splits], rows)}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown."""
    wide = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * w for w in wide], *rows]
    padded = (" | ".join(c.ljust(w) for c, w in zip(x, wide, strict=True)) for x in lines)
    return "\n".join(f"| {line} |" for line in padded) + "\n"
