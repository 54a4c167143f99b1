"""The loop, one file read top to bottom. Nothing here knows what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from launch import cluster
from launch import mesh as meshes
from launch.card import Leaf
from launch.checkpoint import Store
from launch.cluster import Preempted, Preemption
from launch.experiment import REFUSALS, Batch, Experiment, SetupError, State, Task, told
from launch.profile import Profile
from launch.record import Recorder
from launch.spatial import refuse_small_maps
from launch.stream import Stream, feeder
from launch.watchdog import Watchdog
from launch.workdir import identity, write_json

# Initialisation draws from a step that is never reached.
INIT = 2**32 - 1


class NotFinite(FloatingPointError):
    """The loss or the state became NaN or infinite; what led there is stored in `nan/`."""


def abstract_state(task: Task, mesh: jax.sharding.Mesh, rules: meshes.Rules = ()) -> Any:
    """Shapes, types and shardings of the task's state; nothing is computed.

    Raises:
        SetupError: the task refuses its configuration while building the state, or one of the
            `rules` (config.mesh.rules) fits none of its arrays.
    """
    try:
        abstract = jax.eval_shape(task.init, jax.random.key(0))
    except REFUSALS as error:
        raise SetupError(f"{type(task).__name__}.init: {told(error)}") from error
    return meshes.place(abstract, mesh, rules)


def trace_step(
    task: Task, placed: Any, stream: Stream, mesh: jax.sharding.Mesh
) -> jax.stages.Traced:
    """`step(state, batch, rng) -> (state, metrics)` traced: what it computes, not yet a program.

    Raises:
        SetupError: the task refuses its configuration, does not return what was agreed, or cannot
            be split over `space`.
    """
    same = meshes.replicated(mesh)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    shardings, batch = meshes.shardings(placed), stream.abstract()
    step = jax.jit(
        task.step,
        donate_argnums=0,
        in_shardings=(shardings, meshes.shardings(batch), same),
        out_shardings=(shardings, same),
    )
    try:
        traced = step.trace(placed, batch, rng)
    except REFUSALS as error:
        raise SetupError(f"{type(task).__name__}.step: {told(error)}") from error
    state, metrics = traced.out_info
    _same_structure(task, "step", placed, state)
    if "loss" not in metrics or any(m.shape for m in metrics.values()):
        raise SetupError(
            f"{type(task).__name__}.step must return scalars with 'loss' among them, "
            f"not { {k: m.shape for k, m in metrics.items()} }"
        )
    refuse_small_maps(traced.jaxpr, mesh)
    return traced


def compile_step(task: Task, placed: Any, stream: Stream, mesh: jax.sharding.Mesh) -> Any:
    """The step compiled ahead: it can never recompile.

    Raises:
        SetupError: as `trace_step`.
    """
    return trace_step(task, placed, stream, mesh).lower().compile()


def _same_structure(task: Task, where: str, expected: Any, got: Any) -> None:
    def flat(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p): (tuple(x.shape), np.dtype(x.dtype)) for p, x in leaves}

    before, after = flat(expected), flat(got)
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            raise SetupError(
                f"{type(task).__name__}.{where} changes the state at {path}: "
                f"{before.get(path)} -> {after.get(path)}"
            )


# ------------------------------------------------------------------------- start or resume


def start(
    task: Task, leaf: Leaf, placed: Any, stream: Stream, mesh: jax.sharding.Mesh, store: Store
) -> tuple[State, int]:
    """(state, step): the newest sound checkpoint, or a new state that the task has prepared."""
    restored = store.restore(placed)
    if restored is not None:
        return restored
    shardings = meshes.shardings(placed)
    # Each process makes only its own shards, and no array is ever there twice.
    state = jax.jit(task.init, out_shardings=shardings)(rng_of(leaf.seed, mesh)(INIT))
    if hasattr(task, "prepare"):
        state = task.prepare(state, stream.__getitem__)
        _same_structure(task, "prepare", placed, state)
        # A copy: what prepare returns may share buffers with what it keeps, and we donate.
        state = jax.jit(lambda s: jax.tree.map(jnp.copy, s), out_shardings=shardings)(state)
    return state, 0


def rng_of(seed: int, mesh: jax.sharding.Mesh) -> Callable[[int], jax.Array]:
    """`rng(step)` -> the step's key, the same on all devices; pure in seed and step."""
    same = meshes.replicated(mesh)
    fold = jax.jit(lambda i: jax.random.fold_in(jax.random.key(seed), i), out_shardings=same)
    return lambda step: fold(np.uint32(step))


# ------------------------------------------------------------------------- stop on NaN


def _all_finite(state: State) -> jax.Array:
    checks = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack(checks).all() if checks else jnp.bool_(True)


def _stop(leaf: Leaf, step: int, what: str, batch: Batch, rng: jax.Array) -> None:
    """Store what the `step`-th update was made from, then raise."""
    folder = leaf.folder / "nan"
    arrays = multihost_utils.process_allgather(batch, tiled=True)
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        np.savez(folder / "batch.npz", **arrays)
        np.save(folder / "rng.npy", np.asarray(jax.random.key_data(rng)))
        write_json(folder / "step.json", {"step": step, "batch": step - 1, "what": what})
    raise NotFinite(
        f"{leaf.label}: {what} at step {step}; its batch (index {step - 1}) and rng are in "
        f"{folder}, the last finite checkpoint is kept in {leaf.folder / 'checkpoints'}"
    )


# ------------------------------------------------------------------------- the loop


def train(
    leaf: Leaf,
    task: Task,
    mesh: jax.sharding.Mesh,
    preemption: Preemption | None = None,
    profile: int = 0,
) -> State:
    """Train one leaf to its last step, from its newest checkpoint if it has one.

    Of its first steps `profile` are recorded, see `launch.profile`.

    Raises:
        Preempted: `preemption` was asked for; the state has been saved.
        SetupError: the task refuses its configuration, the batch does not fit the devices, or no
            checkpoint can be restored.
        NotFinite: the loss or the state is NaN or infinite.
    """
    experiment, steps = leaf.experiment, leaf.experiment.steps
    with ExitStack() as stack:
        # What the task can refuse, it refuses before anything is computed.
        stream = Stream(task.dataset("train"), leaf.seed, experiment.batch_size, mesh)
        placed = abstract_state(task, mesh, experiment.mesh.rules)
        store = stack.enter_context(
            Store(leaf.folder, experiment.checkpoint, leaf.config, identity(task))
        )
        update = compile_step(task, placed, stream, mesh) if store.newest() < steps else None
        state, first = start(task, leaf, placed, stream, mesh, store)
        if first >= steps:
            return state
        update = update or compile_step(task, placed, stream, mesh)
        update = stack.enter_context(closing(Profile(leaf.folder, profile))).wrap(update)
        record = Recorder(leaf, first, host=jax.process_index())
        stack.callback(record.close)
        cluster.barrier("compiled")  # hosts take different time for it, and devices do not wait
        watch = stack.enter_context(Watchdog(experiment.hang_minutes, leaf.label))
        stops = preemption or Preemption()
        return _loop(leaf, task, mesh, update, state, first, stream, store, record, watch, stops)


def _loop(
    leaf: Leaf,
    task: Task,
    mesh: jax.sharding.Mesh,
    update: Any,
    state: State,
    first: int,
    stream: Stream,
    store: Store,
    record: Recorder,
    watch: Watchdog,
    preemption: Preemption,
) -> State:
    experiment, split, rng_at = leaf.experiment, task.val_split, rng_of(leaf.seed, mesh)
    feed = feeder(experiment.eval_batch_size or experiment.batch_size, mesh)
    finite = jax.jit(_all_finite, out_shardings=meshes.replicated(mesh))
    window: list[dict[str, jax.Array]] = []  # of the steps since the last row; on the device

    with closing(stream.batches(first, experiment.steps)) as batches:
        for step, batch in enumerate(batches, start=first + 1):
            rng = rng_at(step - 1)
            with jax.transfer_guard("disallow"):
                state, metrics = update(state, batch, rng)
            window.append(metrics)
            evaluates, saves, reports = _due(experiment, split, step)
            stops = preemption.asked()
            watch.beat(f"after step {step} was begun")
            if not (reports or stops):
                continue

            # Only here does the host wait for the device.
            known = jax.device_get(window)
            for at, one in enumerate(known, start=step - len(known) + 1):
                if not np.isfinite(one["loss"]):
                    _stop(leaf, at, f"loss is {one['loss']}", stream[at - 1], rng_at(at - 1))
            if (saves or stops) and not finite(state):
                _stop(leaf, step, "state is not finite", batch, rng)
            record.write(step, "train", _mean(known))
            window.clear()

            scores = {}
            if evaluates and split is not None:
                watch.beat(f"evaluating after step {step}")
                scores = {name: float(value) for name, value in task.evaluate(state, split, feed)}
                record.write(step, split, scores)
                record.plot()
            if saves or stops:
                watch.beat(f"saving after step {step}")
                store.save(step, state, {f"{split}/{name}": v for name, v in scores.items()})
            if stops:
                raise Preempted(f"{leaf.label}: stopped and saved after step {step}")
    record.plot(last=True)
    return state


def _due(experiment: Experiment, split: str | None, step: int) -> tuple[bool, bool, bool]:
    """Whether after `step` updates one evaluates, saves, writes a row."""
    every, last = experiment.checkpoint.every, step == experiment.steps
    evaluates = bool(split and experiment.eval_every) and (
        last or step % experiment.eval_every == 0
    )
    saves = last or bool(every and step % every == 0)
    saves = saves or bool(experiment.checkpoint.best and evaluates)
    # A row ends at every checkpoint too, so that a resumed run writes the same rows.
    return evaluates, saves, evaluates or saves or step % experiment.log_every == 0


def _mean(window: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    return {k: float(np.mean([one[k] for one in window], dtype=np.float64)) for k in window[0]}
