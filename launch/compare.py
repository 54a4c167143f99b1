"""The benchmark of a card: every run trained, scored and kept, then one set of tables of all.

A run is done when its seeds' predictions are there, so what is stopped goes on with the next run.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import mesh as meshes
from launch import verbs
from launch.build import make_task, named
from launch.card import Leaf
from launch.evaluate import chosen
from launch.experiment import REFUSALS, SetupError, told
from launch.stream import feeder
from launch.workdir import as_trained, refuse_changes, results

PREDICTIONS = "predictions.npz"
VERB = "benchmark"


def compare(leaves: Sequence[Leaf], workdir: Path) -> int:
    """Train and score what is missing of every run, write and print the tables; the exit code.

    `config.jobs.benchmark` names a class whose method `tables(found, folder)` gets run -> seed ->
    split -> what the task's `predictions(state, split, feed)` returned, a named tuple of arrays of
    the class's type `kind`.

    Raises:
        SetupError: the card has no such section, the class or a task refuses its keywords, or a
            folder holds a run of another config.
    """
    job = _made(leaves)
    for leaf in leaves:
        refuse_changes(leaf, resume=True)
    runs: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        runs.setdefault(leaf.run, []).append(leaf)
    missing = {run: own for run, own in runs.items() if not all(map(_is_scored, own))}
    # What a task refuses, it refuses before the first of them trains.
    tasks = {run: make_task(own[0].experiment) for run, own in missing.items()}
    failed: list[str] = []
    for number, (run, own) in enumerate(missing.items(), start=1):
        print(f"{VERB} {number}/{len(missing)} {run}", file=sys.stderr, flush=True)
        (workdir / run).mkdir(exist_ok=True)
        code = verbs.train(own, workdir / run)
        if all(results(leaf) is not None for leaf in own):
            _score(own, tasks[run])
        elif not code:  # told to stop
            return 0
        else:
            failed.append(run)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for leaf in leaves:
        if _is_scored(leaf):
            found.setdefault(leaf.run, {})[leaf.seed] = _read(leaf, job)
    if found:
        print(job.tables(found, workdir), end="", flush=True)
    if failed:
        print(f"error: {len(failed)} of {len(runs)} runs failed: {failed}", file=sys.stderr)
    return int(bool(failed))


def _made(leaves: Sequence[Leaf]) -> Any:
    section = leaves[0].experiment.jobs.get(VERB)
    if section is None:
        raise SetupError(f"the card has no config.jobs.{VERB}, which says what the tables are")
    if any(leaf.experiment.jobs != leaves[0].experiment.jobs for leaf in leaves):
        raise SetupError(f"the runs have different config.jobs.{VERB}; the tables are of all runs")
    cls, keywords = named(section, f"jobs.{VERB}", "tables")
    try:
        return cls(**keywords)
    except REFUSALS as error:
        raise SetupError(f"{cls.__name__}: {told(error)}") from error


def _score(leaves: Sequence[Leaf], task: Any) -> None:
    """Keep what every seed of a run predicts of the test splits."""
    mesh = meshes.alone()
    for leaf in leaves:
        state, _ = chosen(leaf, task, mesh)
        feed = feeder(leaf.experiment.eval_batch_size or leaf.experiment.batch_size, mesh)
        arrays: dict[str, np.ndarray] = {}
        for split in task.test_splits:
            said = task.predictions(state, split, feed)._asdict()
            arrays |= {f"{split}/{name}": np.asarray(array) for name, array in said.items()}
        part = leaf.folder / f"part-{PREDICTIONS}"
        np.savez_compressed(part, allow_pickle=False, **arrays)
        part.replace(leaf.folder / PREDICTIONS)


def _is_scored(leaf: Leaf) -> bool:
    """Whether there are predictions of the training that the card asks for."""
    if results(leaf) is None or not as_trained(leaf):
        return False
    try:
        with zipfile.ZipFile(leaf.folder / PREDICTIONS) as file:
            return file.testzip() is None
    except Exception:  # none, or a damaged one, which can raise anything: they are made again
        return False


def _read(leaf: Leaf, job: Any) -> dict[str, Any]:
    """Of each split a `job.kind` of arrays."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(leaf.folder / PREDICTIONS, allow_pickle=False) as file:
        for key in file.files:
            split, _, name = key.rpartition("/")
            found.setdefault(split, {})[name] = file[key]
    return {split: job.kind(**arrays) for split, arrays in found.items()}
