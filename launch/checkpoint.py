"""Orbax checkpoints of one leaf: arrays, the step, the config; newest, best, damaged ones.

A folder gets its name when all in it is written, so a kill leaves nothing half. What a disk then
does to it is seen by the checksums of the arrays that are stored beside them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from launch import cluster, experiment
from launch.checksum import checksums
from launch.experiment import SetupError, State

_NAMED = ("jax", "flax", "optax", "orbax-checkpoint")


def _options(settings: experiment.Checkpoint) -> ocp.CheckpointManagerOptions:
    def worth(metrics: Mapping[str, float]) -> float:
        value = metrics[settings.best]
        worst = math.inf if settings.best_mode == "min" else -math.inf
        return worst if value is None or math.isnan(value) else value

    keep: list[policies.PreservationPolicy] = [policies.LatestN(settings.keep)]
    common = {"create": True, "cleanup_tmp_directories": True}
    if not settings.best:
        return ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), **common
        )
    best = policies.BestN(
        get_metric_fn=worth,
        reverse=settings.best_mode == "min",
        n=settings.keep_best,
        keep_checkpoints_without_metrics=False,
    )
    # best_fn makes orbax store the metric beside the arrays, so that it survives a restart.
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([*keep, best]),
        best_fn=worth,
        best_mode=settings.best_mode,
        **common,
    )


class Store:
    """The checkpoints of a leaf folder. Saving is asynchronous; `close` waits for it."""

    def __init__(
        self,
        folder: Path,
        settings: experiment.Checkpoint,
        config: Mapping[str, Any],
        identity: Mapping[str, Any] = {},
    ) -> None:
        """`config` and the `identity` of the data are stored with each checkpoint."""
        self.folder, self.settings, self.config = folder, settings, config
        self.identity = dict(identity)
        place = (folder / "checkpoints").absolute()
        _tell_unfinished(place)
        steps, unsound = _steps(place), _unsound(place)
        cluster.barrier("checkpoints are looked through")  # before the first host moves any
        if unsound and len(unsound) == len(steps):
            raise self._none_sound(steps, unsound)
        self._move(unsound)  # orbax reads them all when it opens the folder
        cluster.barrier("unsound checkpoints are moved")
        self._manager = ocp.CheckpointManager(place, options=_options(settings))

    def newest(self) -> int:
        """The step of the newest complete checkpoint, sound or not; -1 if there is none."""
        step = self._manager.latest_step()
        return -1 if step is None else step

    def save(self, step: int, state: State, scores: Mapping[str, float]) -> None:
        """Save `state` after `step` updates; `scores` ("val/loss" -> value) may rank it.

        Raises:
            SetupError: config.checkpoint.best is not among the scores of an evaluated step.
        """
        best = self.settings.best
        if best and scores and best not in scores:
            raise SetupError(f"config.checkpoint.best = {best!r}: legal are {', '.join(scores)}")
        ranked = {best: float(scores[best])} if best and scores else None
        versions = {name: version(name) for name in _NAMED}
        meta = {"step": step, "metrics": ranked, "config": self.config, "versions": versions}
        meta["identity"] = self.identity
        meta["checksums"] = checksums(state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, metrics=ranked, force=True)

    def restore(self, placed: Any) -> tuple[State, int] | None:
        """(state on the shardings of `placed`, step) of the newest sound checkpoint, if any.

        Damaged newer ones are named on stderr and moved to `folder`/damaged.

        Raises:
            SetupError: there are checkpoints, but none can be restored.
        """
        steps: list[int] = sorted(self._manager.all_steps(), reverse=True)
        skipped: dict[int, str] = {}
        for step in steps:
            state, error = _read(self.folder / "checkpoints" / str(step), placed)
            if state is not None:
                self._set_aside(skipped)
                return state, step
            skipped[step] = error
        if not steps:
            return None
        raise self._none_sound(steps, skipped)

    def _none_sound(self, steps: list[int], why: Mapping[int, str]) -> SetupError:
        return SetupError(
            f"none of the checkpoints in {self.folder / 'checkpoints'} (steps "
            f"{', '.join(map(str, steps))}) can be restored ({why[steps[0]]}); "
            "use another --workdir or move this one away to start anew"
        )

    def _set_aside(self, skipped: Mapping[int, str]) -> None:
        self._move(skipped)
        if skipped:
            cluster.barrier("damaged checkpoints are moved")
            self._manager.reload()

    def _move(self, skipped: Mapping[int, str]) -> None:
        for step, error in skipped.items():
            if jax.process_index() == 0:
                print(
                    f"checkpoint of step {step} in {self.folder} is damaged and was skipped "
                    f"(moved to damaged/{step}): {error}",
                    file=sys.stderr,
                )
                aside = self.folder / "damaged" / str(step)
                aside.parent.mkdir(exist_ok=True)
                if not aside.exists():
                    (self.folder / "checkpoints" / str(step)).rename(aside)

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
        # So that no host looks into the folder while the first still deletes old ones.
        cluster.barrier("checkpoints are written")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if cluster.lost(error):  # without one of the hosts no save will ever be whole
            return
        if error is not None and jax.process_count() > 1:
            if not isinstance(error, Exception):  # Ctrl-C may have come to this host alone
                return
            if not isinstance(error, cluster.Preempted):
                cluster.fail_together(error)
        self.close()


def _steps(place: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, newest first."""
    found = place.iterdir() if place.is_dir() else ()
    return sorted((int(p.name) for p in found if p.name.isdigit()), reverse=True)


def _tell_unfinished(place: Path) -> None:
    """Name what a kill left half written; orbax deletes it when it opens the folder."""
    found = place.iterdir() if place.is_dir() and jax.process_index() == 0 else ()
    for path in sorted(p for p in found if not p.name.isdigit() and p.is_dir()):
        print(
            f"checkpoint of step {path.name.partition('.')[0]} in {place.parent} was not finished "
            f"and was skipped ({path.name} is deleted)",
            file=sys.stderr,
        )


def _unsound(place: Path) -> dict[int, str]:
    """Step -> what is wrong with its small files; the arrays are tried when they are restored."""
    found: dict[int, str] = {}
    for step in _steps(place):
        for name in ("meta/metadata", "metrics/metrics"):
            file = place / str(step) / name
            try:
                if name.startswith("meta/") or file.parent.is_dir():
                    _check_small(json.loads(file.read_text(encoding="utf-8")), name)
            except (OSError, ValueError, RecursionError) as error:
                found[step] = f"{name}: {_line(error)}"
    return found


def _check_small(content: Any, name: str) -> None:
    """Raises ValueError unless a small file of a checkpoint holds the kinds of what is written."""
    scores = content
    if isinstance(content, dict) and name.startswith("meta/"):
        scores = content.get("metrics") or {}
        if not all(isinstance(content.get(part), dict) for part in ("config", "checksums")):
            raise ValueError("not what was written")
    numbers = (int, float, type(None))
    if not isinstance(scores, dict) or not all(type(v) in numbers for v in scores.values()):
        raise ValueError("not what was written")


@contextlib.contextmanager
def _orphans_silent() -> Iterator[None]:
    """Keep pages of tracebacks off the terminal when one file of a checkpoint is damaged.

    orbax reads many arrays at once and abandons the other reads when one fails; they then report
    to an event loop that is gone, each through sys.unraisablehook. The error itself is raised.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _orphan(error: Any) -> bool:
    return isinstance(error, RuntimeError) and "Event loop is closed" in str(error)


def silence_abandoned_writes() -> None:
    """The same for writes, whose threads live on: on a full disk the error itself is raised."""
    if sys.excepthook is not _told_unless_orphan:
        _hooks["thread"], sys.excepthook = sys.excepthook, _told_unless_orphan


_hooks: dict[str, Any] = {}


def _told_unless_orphan(kind: Any, error: Any, trace: Any) -> None:
    if not _orphan(error):
        _hooks["thread"](kind, error, trace)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _read(checkpoint: Path, placed: Any) -> tuple[State | None, str]:
    """(state, ""), or (None, what is wrong), the same on all hosts.

    Each host reads its own part without waiting for the others, who may have met a damaged file.
    """
    state, error, expected, me = None, "", {}, jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
    )
    with _orphans_silent():
        try:
            meta = json.loads((checkpoint / "meta" / "metadata").read_text(encoding="utf-8"))
            expected = dict(meta["checksums"])
            with ocp.StandardCheckpointer(multiprocessing_options=alone) as reader:
                state = reader.restore(checkpoint.absolute() / "state", placed)
        except Exception as raised:  # a damaged file can raise anything
            error = _line(raised)  # the error itself would keep abandoned reads alive
        for pause in (0.0, 0.1, 0.3) if error else ():  # so that those end here, not later on
            time.sleep(pause)  # some are held by threads that have not given up yet
            gc.collect()
    one = jax.tree.leaves(placed)[0].sharding.is_fully_addressable  # work that this host does alone
    if not (not error if one else cluster.all_say(not error)):
        return None, error or "another host cannot read its part"
    found = checksums(state)
    wrong = sorted(name for name in found if found[name] != expected.get(name))
    if wrong:
        told = ", ".join(wrong[:3]) + " …" * (len(wrong) > 3)
        return None, f"not what was written: checksums differ of {told}"
    return state, ""


def load(leaf: Path, placed: Any, which: str = "last") -> tuple[State, int]:
    """(state, step) of the "last" or the "best" checkpoint of a leaf folder.

    `placed` is the abstract state with shardings (any mesh). Best is by the metric of the card
    that the run was trained with.

    Raises:
        SetupError: there is no checkpoint, none has the metric, or it cannot be restored.
    """
    step, place = choose(leaf, which), (leaf / "checkpoints").absolute()
    # Not by a manager: that reads the metrics of every step, and one damaged file stops it.
    state, error = _read(place / str(step), placed)
    if state is None:
        raise SetupError(f"checkpoint {place / str(step)}: {error}")
    return state, step


def choose(leaf: Path, which: str = "last") -> int:
    """The step of the "last" or the "best" complete checkpoint of a leaf folder.

    Raises:
        SetupError: there is no checkpoint, or none has a metric to rank it by.
    """
    place = (leaf / "checkpoints").absolute()
    if not place.is_dir():
        raise SetupError(f"no checkpoint below {str(leaf)!r}: train it first")
    steps = _steps(place)
    if not steps:
        raise SetupError(f"no complete checkpoint below {str(leaf)!r}: train it first")
    return steps[0] if which == "last" else _best(steps, leaf)


def _best(steps: list[int], leaf: Path) -> int:
    place, ranked = leaf / "checkpoints", []
    unsound = _unsound(place)
    for step, error in unsound.items():
        print(f"checkpoint of step {step} in {leaf} is damaged: {error}", file=sys.stderr)
    for step in (s for s in steps if s not in unsound):
        meta = json.loads((place / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))
        if meta["metrics"]:
            (value,) = meta["metrics"].values()
            sign = -1.0 if meta["config"]["checkpoint"]["best_mode"] == "min" else 1.0
            known = value is not None and not math.isnan(value)
            ranked.append((sign * value if known else -math.inf, step))
    if not ranked:
        raise SetupError(f"no checkpoint below {str(leaf)!r} has a metric to rank it by")
    return max(ranked)[1]
