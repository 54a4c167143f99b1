"""How fast a card trains here: step time with and without its input, items a second, MFU."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from launch import cluster, costs, peaks
from launch import mesh as meshes
from launch.build import make_task
from launch.card import Leaf
from launch.experiment import Batch, State, Task
from launch.profile import Profile
from launch.stream import Stream
from launch.train import INIT, abstract_state, rng_of, trace_step

STEPS = 30  # timed with and as many without input, unless told otherwise
# With and without in turn, so that whatever else the machine does falls on both alike.
ROUNDS = 3
# Steps of each turn that are not timed: batches that were read ahead while nobody took them.
WARM_UP = 6
_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHED = "/jax/compilation_cache/cache_hits"


class Compilations:
    """Counts the programs that are compiled, and those read from the cache, while it is open."""

    def __init__(self) -> None:
        self.count = self.cached = 0

    def __enter__(self) -> Compilations:
        """Begins to listen to what JAX reports of itself."""
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        """Listens no more."""
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == _COMPILED

    def _on_event(self, event: str, **_: Any) -> None:
        self.cached += event == _CACHED


class _Steps:
    """The training loop's step, timed: the program, the state that it carries on, the rng."""

    def __init__(self, update: Callable, state: State, rng_at: Callable[[int], jax.Array]) -> None:
        self.update, self.state, self.rng_at, self.done = update, state, rng_at, 0
        self.cpu = 0.0  # CPU seconds of the newest step, of all threads

    def __call__(self, batch: Batch) -> float:
        """Seconds of one step, until its results are there."""
        start, cpu = time.perf_counter(), time.process_time()
        rng = self.rng_at(self.done)
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.update(self.state, batch, rng)
        jax.block_until_ready((self.state, metrics))
        self.done += 1
        self.cpu = time.process_time() - cpu
        return time.perf_counter() - start


def measure(
    leaf: Leaf, task: Task, mesh: jax.sharding.Mesh, *, steps: int = STEPS, profile: int = 0
) -> dict[str, Any]:
    """One row about a leaf: its own step, compiled and run on the mesh, from fresh parameters.

    Seconds are medians over `steps` steps. "input_wait" is the share of a step's time in which
    the loop waits for its batch; "input_share" also has what reading takes from computing where
    both use the same cores: 1 - (step without input) / (step with it), at least 0.
    CPU seconds are of all threads, and the same on a machine that is busy with other things.

    Args:
        leaf: what to train.
        task: its task.
        mesh: the devices.
        steps: how many are timed.
        profile: steps more that are recorded in the leaf's folder/profile; 0 for none.

    Raises:
        SetupError: the task refuses its configuration, or the batch does not fit the devices.
    """
    size = leaf.experiment.batch_size
    stream = Stream(task.dataset("train"), leaf.seed, size, mesh)
    placed = abstract_state(task, mesh, leaf.experiment.mesh.rules)
    start = time.perf_counter()
    traced = trace_step(task, placed, stream, mesh)
    lowered, tracing = traced.lower(), time.perf_counter() - start
    with Compilations() as of_the_step:
        start = time.perf_counter()
        update = lowered.compile()
        compiling = time.perf_counter() - start
    rng_at = rng_of(leaf.seed, mesh)
    state = jax.jit(task.init, out_shardings=meshes.shardings(placed))(rng_at(INIT))
    run = _Steps(update, state, rng_at)
    first = [run(stream[0]) for _ in range(2)]
    with Compilations() as later:
        alone, fed, waits, cpu = _turns(run, stream, -(-steps // ROUNDS))
        if profile:
            _record(run, stream[0], leaf.folder, profile)
    work = costs.operations(traced.jaxpr)
    peak = peaks.peak(mesh.local_devices[0], work)
    step, with_input = statistics.median(alone), statistics.median(fed)
    return {
        **about(leaf, mesh),
        "step_seconds": step,
        "step_seconds_min": min(alone),
        "step_seconds_with_input": with_input,
        "step_cpu_seconds": statistics.median(cpu),
        "input_cpu_seconds": _reading(stream, len(alone)),
        "input_wait": sum(waits) / sum(fed),
        "input_share": max(0.0, 1 - step / with_input),
        "items_per_second": size / with_input,
        "operations": work.total(),
        "mfu": costs.seconds_of_operations(work, peak, mesh.size) / step,
        "peak": dict(peak.operations),
        "peak_source": peak.source,
        "trace_seconds": tracing,
        "compile_seconds": compiling,
        "compile_from_cache": of_the_step.cached > 0,
        "first_step_seconds": first[0],
        "recompiles": later.count,
        "steps_timed": len(alone),
        "parameters": costs.parameters(placed),
        "memory": costs.memory(update),
    }


def about(leaf: Leaf, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What a row is about: which training, on what, when."""
    return {
        "run": leaf.run,
        "task": leaf.experiment.task["name"],
        "batch_size": leaf.experiment.batch_size,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "devices": mesh.size,
        "device": mesh.local_devices[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _turns(run: _Steps, stream: Stream, each: int) -> tuple[list[float], ...]:
    """Seconds of `ROUNDS` turns of `each` steps: without input, with it, and of it the waiting.

    The last: CPU seconds of the steps without input.
    """
    alone, fed, waits, cpu = [], [], [], []
    batch = stream[0]
    for _ in range(ROUNDS):
        for _ in range(each):
            alone.append(run(batch))
            cpu.append(run.cpu)
        first = run.done
        with contextlib.closing(stream.batches(first, first + WARM_UP + each)) as batches:
            for waited, one in _timed(batches):
                seconds = run(one)
                if run.done > first + WARM_UP:
                    waits.append(waited)
                    fed.append(waited + seconds)
    return alone, fed, waits, cpu


def _reading(stream: Stream, count: int) -> float:
    """CPU seconds of reading a batch, of all threads, while nothing else is done."""
    start = time.process_time()
    for step in range(count):
        jax.block_until_ready(stream[step])
    return (time.process_time() - start) / count


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[float, Batch]]:
    """(seconds until the batch was there, the batch)."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        jax.block_until_ready(batch)
        yield time.perf_counter() - start, batch


def _record(run: _Steps, batch: Batch, folder: Path, steps: int) -> None:
    with contextlib.closing(Profile(folder, steps, skip=0)) as profile:
        for _ in range(steps):
            with profile.step():
                run(batch)


def bench(
    leaves: Sequence[Leaf], card: str, workdir: Path | None, *, steps: int, profile: int
) -> int:
    """Print a JSON row for every run's first seed, and add it to workdir/bench.jsonl; exit code 0.

    `card` is how the rows name the card; see `measure` for the rest.

    Raises:
        SetupError: whatever the user must put right first.
    """
    cluster.join()
    seen = set()
    for leaf in leaves:
        if leaf.run in seen:
            continue
        seen.add(leaf.run)
        mesh = meshes.make(leaf.experiment.mesh)
        task = make_task(leaf.experiment)
        found = measure(leaf, task, mesh, steps=steps, profile=profile)
        row = json.dumps({"card": card, **found})
        if jax.process_index() == 0:
            print(row, flush=True)
            if workdir is not None:
                with (workdir / "bench.jsonl").open("a", encoding="utf-8") as file:
                    file.write(row + "\n")
    return 0
