"""From the name in a card to a task that is known to accept its configuration and has its data."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.card import Leaf
from launch.experiment import REFUSALS, Experiment, SetupError, Task, told, unknown_key
from launch.optimize import optimizer


def task_class(name: str) -> Any:
    """The attribute that "module:attribute" names.

    Raises:
        SetupError: there is no such module or attribute, or something it imports is missing.
    """
    module_name, attribute = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SetupError(f"config.task.name = {name!r}: {error}") from error
    if not hasattr(module, attribute):
        legal = [n for n, v in vars(module).items() if inspect.isclass(v) and hasattr(v, "step")]
        raise SetupError(
            f"config.task.name = {name!r}: {module_name} has no {attribute!r}; "
            f"tasks there: {', '.join(legal) or 'none'}"
        )
    return getattr(module, attribute)


def _check_keywords(cls: Any, keywords: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    legal = [p.name for p in parameters if p.name != "optimizer"]
    for key in keywords:
        if key not in legal:
            raise unknown_key(f"config.task.{key}", [f"config.task.{n}" for n in legal])


def make_task(experiment: Experiment) -> Task:
    """The task of an experiment, with its data sets opened.

    Raises:
        SetupError: unknown name or keyword, or the task refuses (ValueError, TypeError, OSError,
            ImportError …) its keywords or its data.
    """
    cls = task_class(experiment.task["name"])
    keywords = {k: v for k, v in experiment.task.items() if k != "name"}
    _check_keywords(cls, keywords)
    try:
        task = cls(optimizer=optimizer(experiment.optimizer, experiment.steps), **keywords)
        for split in dict.fromkeys(("train", task.val_split, *task.test_splits)):
            if split and not len(task.dataset(split)):
                raise SetupError(f"{cls.__name__}: the data set {split!r} is empty")
    except REFUSALS as error:
        raise SetupError(f"{cls.__name__}: {told(error)}") from error
    best = experiment.checkpoint.best
    if best and best.partition("/")[0] != task.val_split:
        raise SetupError(
            f"config.checkpoint.best = {best!r} must be a metric of the task's "
            f"val_split, which is {task.val_split!r}: '{task.val_split}/…'"
        )
    return task


def make_tasks(leaves: Sequence[Leaf]) -> dict[str, Task]:
    """One task a run (its seeds share it), all of them before anything is trained."""
    tasks: dict[str, Task] = {}
    for leaf in leaves:
        if leaf.run not in tasks:
            tasks[leaf.run] = make_task(leaf.experiment)
    return tasks


def keep_compiled_programs() -> None:
    """Let a second start skip compilation: programs are kept in the user's cache folder."""
    import jax

    # Set already by JAX's own variable or by the caller: theirs.
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "isnet-touchstone-jax" / "xla"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
