"""Processes that save checkpoint after checkpoint until they are killed; see test_kill_saves.py.

`python saver.py FOLDER ROUNDS`: imports once, then forks for each round one process, or two that
share the arrays. Each tells what it found and whether that is what a run left alone has at that
step, then it saves every step, and is killed at a random moment of a save. It is told in
FOLDER/told.txt, as the collectives write to the standard output, too.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from launch import cluster
from launch.checkpoint import Store, silence_abandoned_writes
from launch.experiment import Checkpoint
from launch.rehearse import free_port

SHAPES = {"kernel": (64, 128), "bias": (128,), "moment": (64, 128)}
FEW = 3  # saves that may pass before the one that is cut off
SECONDS = 0.15  # about as long as a save takes


def tell(folder: Path, *words: object) -> None:
    """Append a line, whole even if two processes write at once."""
    with (folder / "told.txt").open("ab", buffering=0) as file:
        file.write((" ".join(map(str, words)) + "\n").encode())


def state_at(step: int) -> dict[str, np.ndarray]:
    """What a run has after `step` steps: no two steps share a value."""
    return {
        name: np.random.default_rng([step, i]).normal(size=shape).astype(np.float32)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def whole(found: dict[str, jax.Array], step: int) -> bool:
    """Whether this process' parts of the arrays are those of the step."""
    expected = state_at(step)
    return all(
        np.array_equal(part.data, expected[name][part.index])
        for name, array in found.items()
        for part in array.addressable_shards
    )


def save_until_killed(folder: Path, pipe: int) -> None:
    """Restore, tell, and save from there on."""
    silence_abandoned_writes()
    cluster.join()
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    split = NamedSharding(mesh, PartitionSpec("all"))
    placed = {k: jax.ShapeDtypeStruct(s, np.float32, sharding=split) for k, s in SHAPES.items()}

    def array_of(x: np.ndarray) -> Any:
        return jax.make_array_from_callback(x.shape, split, lambda index: x[index])

    store = Store(folder, Checkpoint(keep=2), {"a": 1})
    state, step = store.restore(placed) or ({}, 0)
    tell(folder, "restored", step, "whole" if whole(state, step) else "WRONG")
    while True:
        step += 1
        arrays = {name: array_of(x) for name, x in state_at(step).items()}
        os.write(pipe, b".")  # a save begins, perhaps while the one before goes on
        store.save(step, arrays, {})


def play(folder: Path, count: int) -> None:
    """One round of `count` processes."""
    reading, writing = os.pipe()
    port, children = free_port(), []
    for index in range(count):
        child = os.fork()
        if not child:
            if count > 1:
                os.environ |= {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                }
            save_until_killed(folder, os.open(os.devnull, os.O_WRONLY) if index else writing)
        children.append(child)
    os.close(writing)
    for _ in range(random.randint(1, FEW)):
        os.read(reading, 1)
    random.shuffle(children)
    for child in children:
        time.sleep(random.uniform(0, SECONDS))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(reading)
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    tell(folder, "killed", *left)


if __name__ == "__main__":
    random.seed(0)
    jax.config.update("jax_platforms", "cpu")
    for number in range(int(sys.argv[2])):
        play(Path(sys.argv[1]), 2 if number % 3 == 2 else 1)
