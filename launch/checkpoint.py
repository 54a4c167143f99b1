"""Orbax checkpoints of one leaf: arrays, the step, the config; newest, best, damaged ones."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from launch import experiment
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
        self, folder: Path, settings: experiment.Checkpoint, config: Mapping[str, Any]
    ) -> None:
        self.folder, self.settings, self.config = folder, settings, config
        place = (folder / "checkpoints").absolute()
        steps, unsound = _steps(place), _unsound(place)
        if unsound and len(unsound) == len(steps):
            raise self._none_sound(steps, unsound)
        self._move(unsound)  # orbax reads them all when it opens the folder
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
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, metrics=ranked, force=True)

    def restore(self, placed: Any) -> tuple[State, int] | None:
        """(state on the shardings of `placed`, step) of the newest sound checkpoint, if any.

        Damaged newer ones are named on stderr and moved to `folder`/damaged.

        Raises:
            SetupError: there are checkpoints, but none can be restored.
        """
        steps, skipped = sorted(self._manager.all_steps(), reverse=True), {}
        for step in steps:
            try:
                with _orphans_silent():
                    state = _restore(self._manager, step, placed)
            except Exception as error:  # a damaged file can raise anything
                skipped[step] = error
                continue
            self._set_aside(skipped)
            return state, step
        if not steps:
            return None
        raise self._none_sound(steps, skipped)

    def _none_sound(self, steps: list[int], why: Mapping[int, Exception]) -> SetupError:
        return SetupError(
            f"none of the checkpoints in {self.folder / 'checkpoints'} (steps "
            f"{', '.join(map(str, steps))}) can be restored ({_line(why[steps[0]])}); "
            "use another --workdir or move this one away to start anew"
        )

    def _set_aside(self, skipped: Mapping[int, Exception]) -> None:
        self._move(skipped)
        if skipped:
            self._manager.reload()

    def _move(self, skipped: Mapping[int, Exception]) -> None:
        for step, error in skipped.items():
            print(
                f"checkpoint of step {step} in {self.folder} is damaged and was skipped "
                f"(moved to damaged/{step}): {_line(error)}",
                file=sys.stderr,
            )
            if jax.process_index() == 0:
                aside = self.folder / "damaged" / str(step)
                aside.parent.mkdir(exist_ok=True)
                if not aside.exists():
                    (self.folder / "checkpoints" / str(step)).rename(aside)

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _steps(place: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, newest first."""
    found = place.iterdir() if place.is_dir() else ()
    return sorted((int(p.name) for p in found if p.name.isdigit()), reverse=True)


def _unsound(place: Path) -> dict[int, Exception]:
    """Step -> what is wrong with its small files; the arrays are tried when they are restored."""
    found: dict[int, Exception] = {}
    for step in _steps(place):
        for name in ("meta/metadata", "metrics/metrics"):
            file = place / str(step) / name
            try:
                if name.startswith("meta/") or file.parent.is_dir():
                    json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                found[step] = ValueError(f"{name}: {error}")
    return found


@contextlib.contextmanager
def _orphans_silent() -> Iterator[None]:
    """Keep pages of tracebacks off the terminal when one file of a checkpoint is damaged.

    orbax reads many arrays at once and abandons the other reads when one fails; they then report
    to an event loop that is gone, each through sys.unraisablehook. The error itself is raised.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except Exception:
        gc.collect()  # so that those coroutines end here, not at some later moment
        raise
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


def _restore(manager: ocp.CheckpointManager, step: int, placed: Any) -> State:
    args = ocp.args.Composite(state=ocp.args.StandardRestore(placed))
    return manager.restore(step, args=args)["state"]


def load(leaf: Path, placed: Any, which: str = "last") -> tuple[State, int]:
    """(state, step) of the "last" or the "best" checkpoint of a leaf folder.

    `placed` is the abstract state with shardings (any mesh). Best is by the metric of the card
    that the run was trained with.

    Raises:
        SetupError: there is no checkpoint, none has the metric, or it cannot be restored.
    """
    step, place = choose(leaf, which), (leaf / "checkpoints").absolute()
    # Not by a manager: that reads the metrics of every step, and one damaged file stops it.
    try:
        with _orphans_silent(), ocp.StandardCheckpointer() as reader:
            return reader.restore(place / str(step) / "state", placed), step
    except Exception as error:
        raise SetupError(f"checkpoint {place / str(step)}: {_line(error)}") from error


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
        print(f"checkpoint of step {step} in {leaf} is damaged: {_line(error)}", file=sys.stderr)
    for step in (s for s in steps if s not in unsound):
        meta = json.loads((place / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))
        if meta["metrics"]:
            (value,) = meta["metrics"].values()
            sign = -1.0 if meta["config"]["checkpoint"]["best_mode"] == "min" else 1.0
            ranked.append((-math.inf if math.isnan(value) else sign * value, step))
    if not ranked:
        raise SetupError(f"no checkpoint below {str(leaf)!r} has a metric to rank it by")
    return max(ranked)[1]
