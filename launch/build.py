"""From the name in a card to a task that is known to accept its configuration and has its data."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import data
from launch.card import Leaf
from launch.experiment import REFUSALS, Experiment, SetupError, Task, told, unknown_key
from launch.keywords import check_types, parameters
from launch.optimize import optimizer
from launch.workdir import refuse_other_data


def named(section: Mapping[str, Any], key: str, offers: str) -> tuple[Any, dict[str, Any]]:
    """(the class that `found` gives, its keywords with "data:…" resolved).

    Raises:
        SetupError: as `found`; the constructor does not know a keyword, or a value's type is not
            its; or a "data:NAME" cannot be fetched.
    """
    cls = found(section, key, offers)
    keywords = {k: v for k, v in section.items() if k != "name"}
    _check_keywords(cls, keywords, key)
    return cls, data.resolved(keywords)


def found(section: Mapping[str, Any], key: str, offers: str) -> Any:
    """The class of `section["name"]` = "module:attribute".

    Args:
        section: config.task or one of config.jobs.
        key: what messages call it, e.g. "task".
        offers: the method by which classes of this kind are known.

    Raises:
        SetupError: there is no such module or attribute, it is no such class, or something it
            imports is missing.
    """
    module_name, attribute = section["name"].split(":")
    where, what = f"config.{key}.name = {section['name']!r}", "task" if key == "task" else "job"
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # '' or '.x' is no module's name
        raise SetupError(f"{where}: {told(error)}") from error
    cls = getattr(module, attribute, None)
    if not callable(cls) or (inspect.isclass(cls) and not hasattr(cls, offers)):
        legal = [n for n, v in vars(module).items() if inspect.isclass(v) and hasattr(v, offers)]
        there = hasattr(module, attribute)
        wrong = (
            f"{attribute!r}, which is no {what} (no {offers}())" if there else f"no {attribute!r}"
        )
        raise SetupError(
            f"{where}: {module_name} has {wrong}; {what}s there: {', '.join(legal) or 'none'}"
        )
    return cls


def _check_keywords(cls: Any, keywords: dict[str, Any], key: str) -> None:
    legal = parameters(cls)
    for name in keywords:
        if legal is not None and name not in legal:
            raise unknown_key(f"config.{key}.{name}", [f"config.{key}.{n}" for n in legal])
    check_types(cls, keywords, key)


def make_task(experiment: Experiment) -> Task:
    """The task of an experiment, with its data sets opened.

    Raises:
        SetupError: unknown name or keyword, or the task refuses (ValueError, TypeError, OSError,
            ImportError …) its keywords or its data.
    """
    cls, keywords = named(experiment.task, "task", "step")
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


def make_inferring(experiment: Experiment, identity: Mapping[str, Any]) -> Task:
    """The task that predicts from a checkpoint, which says the `identity` of its data.

    Without these data, if the task can do without them.

    Raises:
        SetupError: as `make_task`.
    """
    cls = found(experiment.task, "task", "step")
    instead = {k: v for k, v in identity.items() if k in getattr(cls, "infers_from", ())}
    if not instead:
        return make_task(experiment)
    rest = {k: v for k, v in experiment.task.items() if k not in instead}
    _, keywords = named(rest, "task", "step")
    try:
        updates = optimizer(experiment.optimizer, experiment.steps)
        return cls(optimizer=updates, **keywords, **instead)
    except REFUSALS as error:
        raise SetupError(f"{cls.__name__}: {told(error)}") from error


def make_tasks(leaves: Sequence[Leaf], *, force: bool = False) -> dict[str, Task]:
    """One task a run (its seeds share it), all of them before anything is trained.

    Raises:
        SetupError: as `make_task`; without `force` also of a leaf trained on other data.
    """
    tasks: dict[str, Task] = {}
    for leaf in leaves:
        if leaf.run not in tasks:
            tasks[leaf.run] = make_task(leaf.experiment)
        refuse_other_data(leaf, tasks[leaf.run], force=force)
    return tasks


def keep_compiled_programs() -> None:
    """Let a second start skip compilation: programs are kept in the user's cache folder."""
    import jax

    # Set already by JAX's own variable or by the caller: theirs.
    found = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # set by name only
    if found is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "isnet-touchstone-jax" / "xla"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
