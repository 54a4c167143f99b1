"""Checkpoints -> metrics of the test splits, one table over runs × seeds, one grid of heatmaps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch import mesh as meshes
from launch.card import Leaf
from launch.checkpoint import load
from launch.cluster import Preemption
from launch.experiment import SetupError, State, Task
from launch.stream import feeder
from launch.train import abstract_state
from launch.workdir import results, trained, write_json


def preferred(leaf: Leaf) -> str:
    """Which checkpoint: "best" if the leaf's card names a metric to choose by, else "last"."""
    return "best" if leaf.experiment.checkpoint.best else "last"


def chosen(leaf: Leaf, task: Task, mesh: jax.sharding.Mesh) -> tuple[State, int]:
    """(state, step) of the leaf's best checkpoint if its card names a metric, else of the last."""
    placed = abstract_state(task, mesh, leaf.experiment.mesh.rules)
    return load(leaf.folder, placed, preferred(leaf))


def evaluate(
    leaf: Leaf, task: Task, mesh: jax.sharding.Mesh, preemption: Preemption | None = None
) -> dict[str, float]:
    """Map `split/metric` to its value over the task's test splits; kept in the leaf's results.json.

    Raises:
        SetupError: the leaf has no checkpoint that can be restored.
        Preempted: `preemption` was asked for; nothing is kept.
    """
    state, step = chosen(leaf, task, mesh)
    size = leaf.experiment.eval_batch_size or leaf.experiment.batch_size
    why = f"{leaf.label}: stopped in the evaluation of step {step}"
    feed = feeder(size, mesh, partial(preemption.stop, why)) if preemption else feeder(size, mesh)
    found = {}
    for split in task.test_splits:
        for name, value in task.evaluate(state, split, feed):
            found[f"{split}/{name}"] = float(value)
    told = {k: v if math.isfinite(v) else None for k, v in found.items()}
    if jax.process_index() == 0:
        # What has been done, not what the card asks for: an interrupted run must not look finished.
        result = {"steps": trained(leaf.folder), "checkpoint": step, "metrics": told}
        write_json(leaf.folder / "results.json", result)
    return found


# ------------------------------------------------------------------------- the table


def tabulate(leaves: Sequence[Leaf], *, partial: bool = False) -> dict[str, Any]:
    """A row a run: mean and sample standard deviation over those seeds that have results.

    With `partial` also over seeds that are not at their last step yet.
    """
    grouped: dict[str, dict[int, dict[str, float | None]]] = {}
    for leaf in leaves:
        result = results(leaf, partial=partial)
        if result is not None:
            grouped.setdefault(leaf.run, {})[leaf.seed] = result["metrics"]
    columns = list(dict.fromkeys(k for s in grouped.values() for m in s.values() for k in m))
    rows = []
    for run, seeds in grouped.items():
        scores = {c: [m.get(c) for m in seeds.values()] for c in columns}
        values = {c: [v for v in scores[c] if v is not None] for c in columns}
        rows.append(
            {
                "run": run,
                "seeds": list(seeds),
                "values": values,
                "mean": {c: statistics.fmean(v) if v else None for c, v in values.items()},
                "sd": {c: statistics.stdev(v) if len(v) > 1 else None for c, v in values.items()},
            }
        )
    return {"columns": columns, "rows": rows}


def _cell(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "–"
    form = ".4f" if 1e-3 <= abs(mean) < 1e4 or mean == 0 else ".3e"
    return f"{mean:{form}}" + ("" if sd is None else f" ± {sd:{form}}")


def markdown(table: Mapping[str, Any]) -> str:
    """The table as aligned Markdown, which is also what the terminal shows."""
    head = ["run", "seeds", *table["columns"]]
    body = [
        [
            row["run"] or "–",
            str(len(row["seeds"])),
            *(_cell(row["mean"][c], row["sd"][c]) for c in table["columns"]),
        ]
        for row in table["rows"]
    ]
    wide = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [head, ["-" * w for w in wide], *body]
    return (
        "\n".join(
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)) + " |"
            for line in lines
        )
        + "\n"
    )


# ------------------------------------------------------------------------- heatmaps


def merge_panels(panels: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Run -> label -> (count, H, W, 3) as one dict: what all runs share once, the rest by run."""
    if len(panels) == 1:
        return dict(next(iter(panels.values())))
    first = next(iter(panels.values()))
    shared = {
        label: array
        for label, array in first.items()
        if all(np.array_equal(array, p.get(label, ())) for p in panels.values())
    }
    merged = dict(shared)
    for run, labelled in panels.items():
        merged |= {f"{run} {k}": v for k, v in labelled.items() if k not in shared}
    return merged


def explains(task: Task) -> bool:
    """Whether the task offers pictures."""
    return hasattr(task, "explain") and hasattr(task, "draw")


def heatmaps(
    leaves: Sequence[Leaf],
    tasks: Mapping[str, Task],
    mesh: jax.sharding.Mesh,
    target: Path,
    *,
    count: int,
    split: str | None = None,
) -> None:
    """Draw the explanations of every run (its first seed) for `count` items of a test split.

    Of several hosts the first does it alone: a task reads whole heatmaps off its devices.

    Raises:
        SetupError: the task offers none, has no such split, or an extra is not installed.
    """
    if jax.process_index() > 0:
        return
    panels, mesh = {}, mesh if jax.process_count() == 1 else meshes.alone()
    for leaf in leaves:
        task = tasks[leaf.run]
        if not explains(task):
            raise SetupError(
                f"config.task.name = {leaf.experiment.task['name']!r} has no explain and draw"
            )
        if leaf.run not in panels:
            where = split or task.test_splits[0]
            legal = [s for s in (*task.test_splits, task.val_split, "train") if s]
            if where not in legal:
                raise SetupError(f"--split {where!r}: legal are {', '.join(legal)}")
            state, _ = chosen(leaf, task, mesh)
            panels[leaf.run] = task.explain(state, where, count)
    try:
        next(iter(tasks.values())).draw(merge_panels(panels), target)
    except ImportError as error:
        raise SetupError(
            f"{target.name} needs the extra `plot` ({error}): "
            "pip install 'isnet-touchstone-jax[plot]'"
        ) from error
