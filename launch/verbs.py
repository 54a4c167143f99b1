"""What the verbs do once the card is known to be sound. Importing this loads JAX."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from launch import cluster
from launch import evaluate as evaluation
from launch import mesh as meshes
from launch.build import keep_compiled_programs, make_tasks
from launch.card import Leaf
from launch.checkpoint import silence_abandoned_writes
from launch.cluster import Preempted, Preemption
from launch.experiment import SetupError, Task
from launch.record import check_extras
from launch.train import NotFinite
from launch.train import train as train_leaf
from launch.workdir import claim, complete, lock, no_space, results, write_json

COUNT = 6  # items in the grid of heatmaps


def _prepare(
    leaves: Sequence[Leaf], *, trains: bool = False, force: bool = False
) -> tuple[dict[str, Task], jax.sharding.Mesh]:
    # orbax warns of its own defaults, and logs with pages of traceback what it raises as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    silence_abandoned_writes()
    for leaf in leaves:
        check_extras(leaf.experiment.tensorboard)
    cluster.join(preemptible=trains)
    keep_compiled_programs()
    mesh = meshes.make(leaves[0].experiment.mesh)
    for leaf in leaves:
        if leaf.experiment.batch_size % meshes.row_parts(mesh):
            raise SetupError(
                f"config.batch_size = {leaf.experiment.batch_size} must be a multiple of the "
                f"{meshes.row_parts(mesh)} devices along config.mesh data and fsdp"
            )
    return make_tasks(leaves, force=force), mesh


def show_table(
    leaves: Sequence[Leaf], workdir: Path, complete: Sequence[str] = (), *, partial: bool = False
) -> None:
    """Print the one table and write it to table.json and table.md.

    `complete` names the leaves with which `train` had nothing left to do. With `partial` a table
    of trainings that are not at their end is printed alone: the files say that all have ended.
    """
    table = evaluation.tabulate(leaves, partial=partial)
    text = evaluation.markdown(table)
    if jax.process_index() == 0 and partial and any(results(leaf) is None for leaf in leaves):
        print(text, end="", flush=True)
    elif jax.process_index() == 0:
        write_json(workdir / "table.json", table | {"complete": list(complete)})
        (workdir / "table.md").write_text(text, encoding="utf-8")
        print(text, end="", flush=True)


class _Failures:
    """Keeps what went wrong in one leaf from ending the others."""

    def __init__(self) -> None:
        self.code, self.succeeded = 0, False

    def note(self, leaf: Leaf, error: Exception) -> None:
        """Record `error` in the leaf's error.txt; a refusal before any success is raised."""
        refusal = isinstance(error, SetupError)
        if refusal and not self.succeeded and not self.code:
            raise error
        # The other leaves would have neither space nor hosts.
        if no_space(error) or cluster.lost(error):
            raise error
        cluster.fail_together(error)
        self.code = 1
        expected = refusal or isinstance(error, NotFinite)
        told = f"error: {error}\n" if expected else "".join(traceback.format_exception(error))
        print(f"{leaf.label} failed:\n{told}", end="", file=sys.stderr)
        with contextlib.suppress(OSError):  # it has been told above
            leaf.folder.mkdir(parents=True, exist_ok=True)
            (leaf.folder / "error.txt").write_text(told, encoding="utf-8")


def train(leaves: Sequence[Leaf], workdir: Path, profile: int = 0, *, force: bool = False) -> int:
    """Train and evaluate every leaf, print the table, draw the heatmaps; the exit code.

    `profile` steps of every training are recorded. `force` goes on with other data.

    Raises:
        SetupError: whatever the user must put right first.
    """
    tasks, mesh = _prepare(leaves, trains=True, force=force)
    with lock(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        try:
            with Preemption() as preemption:
                return _train(leaves, workdir, tasks, mesh, preemption, profile)
        except Preempted as stop:
            if jax.process_index() == 0:
                print(f"{stop}, as SIGTERM asked; the same command goes on", file=sys.stderr)
            return 0


def _train(
    leaves: Sequence[Leaf],
    workdir: Path,
    tasks: Mapping[str, Task],
    mesh: jax.sharding.Mesh,
    preemption: Preemption,
    profile: int,
) -> int:
    failures = _Failures()
    if jax.process_index() == 0:
        (workdir / "table.md").unlink(missing_ok=True)  # of fewer steps, runs or seeds
    for leaf in leaves:
        try:
            if jax.process_index() == 0:
                claim(leaf, tasks[leaf.run])
            train_leaf(leaf, tasks[leaf.run], mesh, preemption, profile)
            preemption.stop(f"{leaf.label}: stopped after its last step")
            if cluster.first_says(results(leaf) is None):
                evaluation.evaluate(leaf, tasks[leaf.run], mesh, preemption)
            failures.succeeded = True
            (leaf.folder / "error.txt").unlink(missing_ok=True)
        except Preempted:
            raise
        except Exception as error:
            failures.note(leaf, error)
    done = [leaf for leaf in leaves if cluster.first_says(results(leaf) is not None)]
    if done:
        show_table(done, workdir)
    if done and all(evaluation.explains(task) for task in tasks.values()):
        try:
            evaluation.heatmaps(done, tasks, mesh, workdir / "heatmaps.png", count=COUNT)
        except SetupError as error:  # a missing extra costs the picture, not the run
            print(f"no heatmaps.png: {error}", file=sys.stderr)
        except Exception as error:
            if no_space(error):
                raise
            traceback.print_exc()
            failures.code = 1
    if not failures.code and jax.process_index() == 0:
        table = evaluation.tabulate(leaves)
        write_json(workdir / "table.json", table | {"complete": sorted(x.label for x in leaves)})
    return failures.code


def evaluate(leaves: Sequence[Leaf], workdir: Path) -> int:
    """Evaluate the checkpoints of every leaf anew and print the table."""
    tasks, mesh = _prepare(leaves)
    for leaf in leaves:
        evaluation.evaluate(leaf, tasks[leaf.run], mesh)
    show_table(leaves, workdir, complete(workdir), partial=True)
    return 0


def explain(leaves: Sequence[Leaf], workdir: Path, *, count: int, split: str | None) -> int:
    """Draw heatmaps.png from the checkpoints of every run."""
    tasks, mesh = _prepare(leaves)
    target = workdir / "heatmaps.png"
    evaluation.heatmaps(leaves, tasks, mesh, target, count=count, split=split)
    if jax.process_index() == 0:
        print(target)
    return 0
