"""What the loop reads (typed, frozen) and what it asks of a task (a protocol).

Nothing heavy is imported here: a typing error in a card is told before JAX is loaded.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from launch.extras import advice

if TYPE_CHECKING:
    import grain
    import jax
    import numpy as np
    import optax


class SetupError(Exception):
    """Something the user can put right before training starts: told in one line, exit code 2."""


# What a task raises when it refuses its configuration or its data.
REFUSALS = (
    *(ValueError, TypeError, OSError, ImportError, NotImplementedError),
    *(KeyError, IndexError, ZeroDivisionError, OverflowError),
)


def told(error: BaseException) -> str:
    """The message of an error, with its type where the message alone says nothing.

    Of a module that is not installed, with the extra that brings it.
    """
    if isinstance(error, ModuleNotFoundError) and (how := advice(error.name)):
        return f"{error}: {how}"
    says = isinstance(error, ValueError | TypeError | OSError | ImportError) and str(error)
    return str(error) if says else f"{type(error).__name__}: {error}"


# ------------------------------------------------------------------------- what a card may say


@dataclass(frozen=True)
class Optimizer:
    """The optax chain: clip, add weight decay, update, follow the schedule."""

    name: str = "adamw"  # sgd | adam | adamw
    learning_rate: float = 1e-3  # the peak
    schedule: str = "constant"  # constant | cosine | poly | step, each after a linear warm-up
    warmup_steps: int = 0
    end_factor: float = 0.0  # cosine, poly: last learning rate / peak
    power: float = 0.9  # poly: peak · (1 - step / steps) ** power
    step_at: tuple = ()  # step: after these steps …
    step_factor: float = 0.1  # … the learning rate is multiplied by this
    momentum: float = 0.9  # sgd
    nesterov: bool = False  # sgd
    beta1: float = 0.9  # adam, adamw
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # adamw: decoupled; sgd, adam: L2 added to the gradient
    decay_all: bool = False  # False: only arrays of two or more dimensions decay
    clip_norm: float = 0.0  # global gradient norm; 0 = no clipping


@dataclass(frozen=True)
class Mesh:
    """Devices along the axes; data = -1 takes all that the others leave.

    Rows of a batch are split over data and fsdp, large arrays of the state over fsdp, the depth of
    volumes (height of images) over space.
    """

    data: int = -1
    fsdp: int = 1
    space: int = 1
    # (pattern, axes): arrays of the state in whose path the regular expression is found are split
    # along these axes, e.g. (("embed/kernel", (None, "fsdp")),); the first that matches counts.
    rules: tuple = ()


@dataclass(frozen=True)
class Checkpoint:
    """When to save and what to keep. The last step is always saved."""

    every: int = 0  # steps; 0 = only at the end (and at each evaluation if `best` is set)
    keep: int = 1  # the newest so many
    best: str = ""  # "val/accuracy": also keep the best by it; "" = none
    best_mode: str = "min"  # min | max
    keep_best: int = 1


@dataclass(frozen=True)
class Experiment:
    """Everything the loops read. `task` goes to the task's constructor, except its `name`.

    A card that has jobs and trains nothing leaves out `task`, `steps` and `batch_size`; they are
    then {}, 0 and 0.
    """

    task: Mapping  # name = "module:attribute", and the constructor's keywords
    steps: int
    batch_size: int  # global: over all devices and hosts
    seed: int = 0
    seeds: int = 1  # each run is repeated with seed, seed + 1, …
    optimizer: Optimizer = field(default_factory=Optimizer)
    mesh: Mesh = field(default_factory=Mesh)
    log_every: int = 20
    eval_every: int = 0  # steps between evaluations of the task's val_split; 0 = never
    eval_batch_size: int = 0  # global, rounded up to the devices; 0 = batch_size
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tensorboard: bool = False
    # Name -> keys of the card that it changes, nested or dotted. A ConfigDict forgets the order
    # of its keys unless made with sort_keys=False; the table has a row a run in this order.
    runs: Mapping = field(default_factory=dict)
    # Verb -> {"name": "module:attribute", the keywords of its constructor}; see launch/jobs.py.
    jobs: Mapping = field(default_factory=dict)
    workers: int = 1  # threads that run the cases of a job
    hang_minutes: float = 30.0  # without a step: every thread's stack is printed; 0 = never


MESH_AXES = ("data", "fsdp", "space")
TRAINING = {"task": {}, "steps": 0, "batch_size": 0}  # of a card that trains nothing
JOB_VERBS = ("explain", "verify", "prepare", "predict", "evaluate", "report", "benchmark")
LEGAL = {
    "optimizer.name": ("sgd", "adam", "adamw"),
    "optimizer.schedule": ("constant", "cosine", "poly", "step"),
    "checkpoint.best_mode": ("min", "max"),
}
AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "seed": 0,
    "seeds": 1,
    "log_every": 1,
    "eval_every": 0,
    "eval_batch_size": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "checkpoint.keep_best": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0,
    "optimizer.weight_decay": 0,
    "mesh.fsdp": 1,
    "mesh.space": 1,
    "mesh.data": -1,
    "workers": 1,
    "hang_minutes": 0,
    "optimizer.end_factor": 0,
    "optimizer.momentum": 0,
    "optimizer.beta1": 0,
    "optimizer.beta2": 0,
}
ABOVE_ZERO = (
    *("optimizer.learning_rate", "optimizer.step_factor", "optimizer.epsilon"),
    "optimizer.power",
)
BELOW = {
    "seed": 2**32,  # what grain's shuffle takes
    "seeds": 1001,  # each is a training of its own
    "batch_size": 2**31,
    "eval_batch_size": 2**31,
    "optimizer.warmup_steps": 2**31,
    "steps": 2**31,  # what optax counts
    "workers": 1025,
    "optimizer.momentum": 1,
    "optimizer.beta1": 1,
    "optimizer.beta2": 1,
}


# ------------------------------------------------------------------------- mapping -> dataclass


def unknown_key(key: str, legal: list[str], what: str = "key") -> SetupError:
    """The error for `key` (dotted) with the nearest of the dotted `legal` keys."""
    last = {name.rpartition(".")[2]: name for name in legal}
    others = [name for name in legal if not key.startswith(name + ".")]  # not what contains it
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.8)
    near = near or [
        last[n] for n in difflib.get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return SetupError(f"unknown {what} {key!r}: {hint}legal here: {', '.join(_near(key, legal))}")


def _near(key: str, legal: list[str]) -> list[str]:
    """The legal names directly below the longest part of `key` that exists."""
    above = key
    while above := above.rpartition(".")[0]:
        inside = [name.removeprefix(above + ".") for name in legal if name.startswith(above + ".")]
        if inside:
            return list(dict.fromkeys(f"{above}.{name.partition('.')[0]}" for name in inside))
    return legal


def fit(value: Any, kind: Any, key: str) -> Any:
    """`value` as `kind` (an int may serve as float, a list as tuple).

    Raises:
        SetupError: the value is of another type, or an integer that no machine word holds.
    """
    if type(value) is int and value.bit_length() > 63:
        raise SetupError(f"config.{key} is an integer of {value.bit_length()} bits; at most 63")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is Mapping and isinstance(value, Mapping):
        return types.MappingProxyType(dict(value))
    if type(value) is kind:
        return value
    raise SetupError(
        f"config.{key} = {value!r} must be {kind.__name__.lower()}, not {type(value).__name__}"
    )


def schema(cls: type = Experiment, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of all that the dataclass knows."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        found |= (
            schema(cast(type, kind), f"{prefix}{name}.")
            if is_dataclass(kind)
            else {prefix + name: kind}
        )
    return found


def defaults(cls: type = Experiment) -> dict[str, Any]:
    """The defaults as a nested dict; fields without one are left out."""
    found = {}
    for one, kind in zip(fields(cls), typing.get_type_hints(cls).values(), strict=True):
        if is_dataclass(kind):
            found[one.name] = defaults(cast(type, kind))
        elif one.default is not MISSING:
            found[one.name] = one.default
        elif one.default_factory is not MISSING:
            found[one.name] = one.default_factory()
    return found


def _build(cls: type, values: Mapping, prefix: str = "") -> Any:
    hints, made = typing.get_type_hints(cls), {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise unknown_key(f"config.{key}", [f"config.{k}" for k in schema()])
        if is_dataclass(hints[name]):
            made[name] = _build(hints[name], fit(value, Mapping, key), key + ".")
        else:
            made[name] = fit(value, hints[name], key)
    absent = [f.name for f in fields(cls) if f.default is f.default_factory and f.name not in made]
    if absent:
        raise SetupError(f"config.{prefix}{absent[0]} is missing from the card")
    return cls(**made)


def build(values: Mapping[str, Any]) -> Experiment:
    """The experiment that a nested mapping describes.

    Raises:
        SetupError: unknown or missing key, wrong type, value out of range; it names the key.
    """
    trains = not values.get("jobs") or values.get("task")
    made = _build(Experiment, values if trains else {**TRAINING, **values})
    for key in schema():
        if not trains and key in TRAINING:
            continue
        group, _, name = key.rpartition(".")
        value = getattr(getattr(made, group) if group else made, name)
        if key in LEGAL and value not in LEGAL[key]:
            raise SetupError(f"config.{key} = {value!r}: legal are {', '.join(LEGAL[key])}")
        if key in AT_LEAST and value < AT_LEAST[key]:
            raise SetupError(f"config.{key} = {value!r} must be at least {AT_LEAST[key]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise SetupError(f"config.{key} = {value!r} must be finite")
        if key in ABOVE_ZERO and value <= 0:
            raise SetupError(f"config.{key} = {value!r} must be greater than 0")
        if key in BELOW and value >= BELOW[key]:
            raise SetupError(f"config.{key} = {value!r} must be less than {BELOW[key]}")
    _check_together(made)
    return made


def _check_together(made: Experiment) -> None:
    """What one key's legal values owe to another's, and what is inside a value."""
    if made.seed + made.seeds > 2**32:
        raise SetupError(
            f"config.seeds = {made.seeds} must be less than 2**32 - config.seed ({made.seed})"
        )
    for at in made.optimizer.step_at:
        if type(at) is not int or at < 1:
            raise SetupError(f"config.optimizer.step_at holds {at!r}; legal are steps from 1")
    _check_jobs(made.jobs)
    _check_rules(made.mesh.rules)
    if made.task or not made.jobs:
        _check_name(made.task, "task")
    if made.mesh.data == 0:
        raise SetupError("config.mesh.data = 0 must be -1 (all devices) or at least 1")
    if made.checkpoint.best and not made.eval_every:
        raise SetupError(
            f"config.checkpoint.best = {made.checkpoint.best!r} needs "
            "config.eval_every of at least 1"
        )


def _check_rules(rules: tuple) -> None:
    for rule in rules:
        pair = isinstance(rule, list | tuple) and len(rule) == 2
        if not pair or not isinstance(rule[0], str) or not isinstance(rule[1], list | tuple):
            raise SetupError(f"config.mesh.rules holds {rule!r}; legal are (pattern, (axis, …))")
        try:
            re.compile(rule[0])
        except (re.error, OverflowError, RecursionError) as error:
            raise SetupError(f"config.mesh.rules: pattern {rule[0]!r}: {error}") from error
        for axis in rule[1]:
            if axis is not None and axis not in MESH_AXES:
                raise SetupError(
                    f"config.mesh.rules: {rule[0]!r} names the axis {axis!r}; legal are None, "
                    f"{', '.join(MESH_AXES)}"
                )


def _check_jobs(jobs: Mapping) -> None:
    for verb, section in jobs.items():
        if verb not in JOB_VERBS:
            raise unknown_key(f"config.jobs.{verb}", [f"config.jobs.{v}" for v in JOB_VERBS])
        if not isinstance(section, Mapping):
            raise SetupError(
                f"config.jobs.{verb} = {section!r} must be a mapping with a name and keywords"
            )
        _check_name(section, f"jobs.{verb}")


def _check_name(section: Mapping, key: str) -> None:
    name = section.get("name")
    if not isinstance(name, str) or name.count(":") != 1:
        raise SetupError(f"config.{key}.name = {name!r} must be 'module:attribute'")


# ------------------------------------------------------------------------- what a task offers

State = dict[str, Any]
Batch = dict[str, "jax.Array"]
Feed = Callable[["grain.MapDataset"], Iterator[Batch]]


class Task(Protocol):
    """The structure that launch asks of the class named by `config.task.name`; no base class.

    Optional, used when present:
        identity: keyword -> JSON value that tells what the data are which the keyword says where to
            find. Equal values are the same data, so that a work folder or its data may be moved.
        infers_from: names of keywords for which the constructor takes that value in place of the
            data, for a task that only predicts.
        prepare(state, batches) -> state: once, when a run starts from scratch (not on resume);
            `batches(step)` is the device batch of a training step.
        inference(state) -> what `export` writes: {"function": pure (weights, x) -> array,
            "weights": nested dict of arrays, "input": ShapeDtypeStruct of a batch of one, "about":
            {"what", "input", "output", "intended_use": sentences; optionally "tags", "classes":
            their names in order, "details": title -> JSON, "use": Markdown on more ways to use
            it}}
        explain(state, split, count) -> dict label -> uint8 (count, height, width, 3)
        draw(panels, path) -> None: writes `panels` (as `explain` returns) as one PNG.
    """

    test_splits: tuple[str, ...]  # what `evaluate` reports at the end
    val_split: str | None  # what is evaluated every eval_every steps

    def __init__(self, *, optimizer: optax.GradientTransformation, **kwargs: Any) -> None:
        """`kwargs` are all of `config.task` except `name`; raises on what it does not know."""

    def dataset(self, split: str) -> grain.MapDataset:
        """Unbatched items in file order, each a flat dict of numpy arrays or scalars.

        launch does `.shuffle(seed).repeat().batch(n)[step]`.
        """

    def init(self, rng: jax.Array) -> State:
        """A nested dict of arrays (parameters, statistics, optimizer state); pure, traceable."""

    def step(
        self, state: State, batch: Batch, rng: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """(state', scalars by name, "loss" among them); pure, traceable. `state` is donated."""

    def evaluate(self, state: State, split: str, feed: Feed) -> Iterator[tuple[str, float]]:
        """(metric, value) over a split.

        `feed(dataset)` yields device batches of one fixed size in file order, the last one filled
        up with repeated items; "valid", bool (batch,), tells the real ones.
        Reduce to scalars under jit: with several hosts no process holds a whole batch.
        """

    def explain(self, state: State, split: str, count: int) -> dict[str, np.ndarray]:
        """Optional: label -> uint8 (count, height, width, 3), in the order to draw them."""

    def draw(self, panels: dict[str, np.ndarray], path: Path) -> None:
        """Optional: one PNG, a row an item and a column a label."""
