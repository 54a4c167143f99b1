"""Jobs: folder in, folder out, case by case. What a job is, and the verb that runs one.

A card names a job by `config.jobs.VERB` = {"name": "module:attribute", …its keywords}.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from launch import cluster
from launch import mesh as meshes
from launch.build import keep_compiled_programs, make_inferring, named
from launch.card import Leaf, plain
from launch.cases import DONE, FAILED, Record, Row, check_names, is_done, run_cases
from launch.checkpoint import choose
from launch.evaluate import chosen, preferred
from launch.experiment import REFUSALS, SetupError, State, Task, told
from launch.record import bar
from launch.workdir import (
    dotted,
    lock,
    no_space,
    read_json,
    refuse_changes,
    same,
    stored_identity,
    trained,
    write_json,
)


class Job(Protocol):
    """The structure that launch asks of the class named by `config.jobs.VERB.name`; no base class.

    What it refuses, it refuses in its constructor, by the errors of `launch.experiment.REFUSALS`
    and with the key or the file in the message: that is one line and exit code 2. Whatever `run`
    raises is the failure of that case alone (a full disk ends the job).

    Optional, used when present:
        fingerprint(case) -> str: a hash of what the case's result depends on besides the job's
            keywords, e.g. size and time of its files; a case whose hash has changed is run again.
        places: names of keywords that say where the files of `fingerprint` are. They may be others
            at the next start, as long as all cases that are done find the same there.
        restore(task, state): launch builds `config.task` (without its data if it can, see
            `launch.experiment.Task.infers_from`), restores the checkpoint from --workdir that
            `evaluate` would take and hands over both, before the first case. The state is on the
            first device of this process.
        finish(rows, folder): once, after all cases, on host 0: files about all of them.
    """

    def __init__(self, **kwargs: Any) -> None:
        """`kwargs` are all of `config.jobs.VERB` except `name`; raises on what it refuses."""

    def cases(self) -> Sequence[str]:
        """The ids, in order, each usable as a folder's name; cheap."""

    def run(self, case: str, folder: Path) -> Mapping[str, Any]:
        """Write the case's files into the empty `folder`; the case's flat, JSON-able row.

        The folder gets its name when `run` returns; its parent is the job's folder. With
        `config.workers` above 1 it is called from several threads at once.
        """

    def fingerprint(self, case: str) -> str:
        """Optional: see the class."""

    def restore(self, task: Task, state: State) -> None:
        """Optional: see the class."""

    def finish(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Optional: `rows` are {"case": id, **its row} of all cases done, in their order."""


def share(cases: Sequence[str], process: int, count: int) -> list[str]:
    """Those of `cases` that are the `process`-th of `count` processes' own."""
    return list(cases)[process::count]


# ------------------------------------------------------------------------- setting up


def _one_leaf(leaves: Sequence[Leaf], verb: str) -> Leaf:
    """The leaf whose job it is: all must ask for the same.

    Raises:
        SetupError: runs of the card describe different jobs.
    """
    if any(leaf.experiment.jobs.get(verb) != leaves[0].experiment.jobs[verb] for leaf in leaves):
        raise SetupError(
            f"the runs {', '.join(dict.fromkeys(x.run for x in leaves))} have different "
            f"config.jobs.{verb}: name one run after the card's colon (FILE.py:ARGUMENT)"
        )
    return leaves[0]


def _made(leaf: Leaf, verb: str) -> tuple[Any, list[str]]:
    cls, keywords = named(leaf.experiment.jobs[verb], f"jobs.{verb}", "cases")
    try:
        job = cls(**keywords)
        return job, check_names(job.cases(), cls.__name__)
    except REFUSALS as error:
        raise SetupError(f"{cls.__name__}: {told(error)}") from error


def _checkpoint(job: Any, leaves: Sequence[Leaf], verb: str) -> int | None:
    """The step of the checkpoint that the job wants to be given; None if it wants none.

    Raises:
        SetupError: it wants one, but the card has no task, several runs or another config.
    """
    if not hasattr(job, "restore"):
        return None
    if not leaves[0].experiment.task:
        raise SetupError(
            f"{type(job).__name__} ({verb}) restores a checkpoint: it needs config.task"
        )
    if len(leaves) > 1:
        raise SetupError(
            f"{verb} restores one checkpoint, but the card has {len(leaves)} trainings "
            f"({', '.join(leaf.label for leaf in leaves)}): name one run after the card's colon "
            "(FILE.py:ARGUMENT) and one seed by --config.seed=N --config.seeds=1"
        )
    refuse_changes(leaves[0])
    return choose(leaves[0].folder, preferred(leaves[0]))


def _restore(job: Any, leaf: Leaf) -> None:
    # One device: the loop has no collectives, and a replicated program would run on all of them.
    mesh = meshes.alone()
    step = choose(leaf.folder, preferred(leaf))
    reached, asked = trained(leaf.folder), leaf.experiment.steps
    if reached < asked and jax.process_index() == 0:
        print(
            f"{leaf.label}: trained to step {reached} of {asked}; checkpoint {step} is used",
            file=sys.stderr,
        )
    task = make_inferring(leaf.experiment, stored_identity(leaf.folder, step))
    state, _ = chosen(leaf, task, mesh)
    try:
        job.restore(task, state)
    except REFUSALS as error:
        raise SetupError(f"{type(job).__name__}: {told(error)}") from error


def _agree(
    job: Any, cases: Sequence[str], record: Record, asked: Mapping[str, Any], *, force: bool
) -> None:
    """Keep cases of another config out of the record's folder.

    Raises:
        SetupError: there are some, and no --force; the message names every key that differs.
    """
    if force:
        record.forget()
    file = record.folder / "job.json"
    old = read_json(file)
    if isinstance(old, dict) and any(row["status"] == DONE for row in record.rows.values()):
        before, after = dotted(old), dotted(asked)
        differ = {
            key: f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
            for key in sorted(before.keys() | after.keys())
            if not same(before.get(key, "absent"), after.get(key, "absent"))
        }
        places = {key for key in differ if _names_a_place(job, key)}
        other = _other_case(job, cases, record) if places else ""
        told = [text for key, text in differ.items() if other or key not in places]
        if told:
            raise SetupError(
                f"{record.folder} was made with another config ({'; '.join(told)}{other}): use "
                "another --workdir, or --force to do its cases again"
            )
    if jax.process_index() == 0:
        write_json(file, asked)


def _names_a_place(job: Any, key: str) -> bool:
    """Whether "jobs.VERB.KEY" is of the keywords in `Job.places`."""
    parts = key.split(".")
    return parts[0] == "jobs" and parts[2] in getattr(job, "places", ())


def _other_case(job: Any, cases: Sequence[str], record: Record) -> str:
    """Which case that is done is another one at the new place, or is not there; "" if none."""
    for case, row in record.rows.items():
        if row["status"] != DONE:
            continue
        if case not in cases:
            return f", where {case} is not"
        if not is_done(job, case, record):
            return f", where {case} is another"
    return ""


# ------------------------------------------------------------------------- what is shown


class _Meter:
    """How far the loop is: a bar where somebody watches, else a line every tenth of the way."""

    def __init__(self, verb: str, total: int, before: int) -> None:
        self.verb, self.total, self.count, self.failed = verb, total, before, 0
        self.active, self._told = jax.process_index() == 0, before * 10 // max(1, total)
        self._bar = bar() if self.active and sys.stderr.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(verb, total=total, completed=before, told="")

    def show(self, row: Row) -> None:
        self.count += 1
        failed = row["status"] == FAILED
        self.failed += failed
        if not self.active:
            return
        if self._bar is not None:
            said = row["case"] + (f"  {self.failed} failed" if self.failed else "")
            self._bar.update(self._task, completed=self.count, told=said)
            if failed:
                self._bar.console.print(f"{row['case']}: {row['error']}", markup=False)
        elif failed or self.count * 10 // self.total > self._told:
            self._told = self.count * 10 // self.total
            said = f"failed: {row['error']}" if failed else f"{row['seconds']:.1f} s"
            print(f"{self.verb} {self.count}/{self.total} {row['case']}: {said}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _summary(verb: str, cases: Sequence[str], record: Record, folder: Path) -> int:
    """Tell what was done and what failed; the exit code."""
    rows = [record.rows[case] for case in cases if case in record.rows]
    failed = [row for row in rows if row["status"] == FAILED]
    print(f"{verb}: {len(rows) - len(failed)} of {len(cases)} cases done: {folder}")
    if failed:
        first = "; ".join(
            f"{row['case']} ({row.get('error', 'no reason kept')})" for row in failed[:3]
        )
        more = "".join(f", {row['case']}" for row in failed[3:])
        print(
            f"error: {len(failed)} of {len(cases)} cases failed: {first}{more}; the same command "
            f"tries them again, {record.folder / 'cases.jsonl'} has the tracebacks",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _finish(job: Any, cases: Sequence[str], record: Record, folder: Path) -> int:
    rows = [record.rows[c] for c in cases if c in record.rows and record.rows[c]["status"] == DONE]
    if not rows or not hasattr(job, "finish"):
        return 0
    try:
        job.finish([{"case": row["case"], **row["row"]} for row in rows], folder)
    except Exception as error:
        if no_space(error):
            raise
        if not isinstance(error, REFUSALS):
            traceback.print_exc()
        print(f"error: {type(job).__name__}.finish: {told(error)}", file=sys.stderr)
        return 1
    return 0


# ------------------------------------------------------------------------- the verb


def run(leaves: Sequence[Leaf], workdir: Path, verb: str, *, force: bool = False) -> int:
    """Run the cases of the card's job that are not done yet; the exit code, 1 if any failed.

    Files come to `workdir`/`verb`/CASE, the record to `workdir`/`verb`/cases.jsonl. With several
    processes case i belongs to process i modulo their count.

    Raises:
        SetupError: whatever the user must put right first.
    """
    for name in ("absl", "asyncio"):  # orbax logs with pages of traceback what it raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    leaf, folder = _one_leaf(leaves, verb), workdir / verb
    cluster.join()
    keep_compiled_programs()
    job, cases = _made(leaf, verb)
    step = _checkpoint(job, leaves, verb)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, "job") if jax.process_index() == 0 else contextlib.nullcontext():
        record = Record(folder, process=jax.process_index(), count=jax.process_count())
        with contextlib.closing(record):
            asked = {"jobs": {verb: plain(leaf.experiment.jobs[verb])}, "checkpoint": step}
            _agree(job, cases, record, asked, force=force)
            return _run(job, cases, record, leaf, verb, restores=step is not None)


def _run(
    job: Any, cases: list[str], record: Record, leaf: Leaf, verb: str, *, restores: bool
) -> int:
    process, count = jax.process_index(), jax.process_count()
    own = share(cases, process, count)
    todo = [case for case in own if not is_done(job, case, record)]
    if count == 1:  # what a kill left; other processes may be writing theirs
        for part in record.folder.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)
    meter = _Meter(verb, len(own), len(own) - len(todo))
    try:
        if todo and restores:
            _restore(job, leaf)
        run_cases(job, todo, record, workers=leaf.experiment.workers, show=meter.show)
    finally:
        meter.close()
    if count > 1:  # the only moment at which processes wait for each other
        cluster.barrier(f"cases of {verb}")
    record.join(cases)
    if process:
        return int(meter.failed > 0)
    return max(
        _finish(job, cases, record, record.folder), _summary(verb, cases, record, record.folder)
    )
