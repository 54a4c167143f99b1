"""A trained network for people without this program: weights, StableHLO, a model card.

The files need jax, numpy and safetensors to be run, and nothing else; no pickle is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from launch import mesh as meshes
from launch.build import make_task
from launch.card import Leaf
from launch.checkpoint import load
from launch.evaluate import preferred
from launch.experiment import SetupError, Task
from launch.model_card import model_card
from launch.train import abstract_state
from launch.workdir import refuse_other_data, results, write_json

WEIGHTS, PROGRAM, ABOUT = "weights.safetensors", "model.stablehlo", "export.json"
CARD, LOADER = "README.md", "model.py"
PLATFORMS = ("cpu", "cuda", "tpu")
# The stored program and ours are the same sums; XLA may order them otherwise. Of the largest logit.
AGREEMENT = 1e-4
Arrays = Mapping[str, Any]


def export(leaves: Sequence[Leaf], card: Path, licence: str | None) -> int:
    """Write `export/` into the folder of every leaf; the exit code, 0.

    Args:
        leaves: trained ones; of each the checkpoint that is evaluated.
        card: the card's path, by whose name the models are called.
        licence: of the weights, as the model card says it.

    Raises:
        SetupError: no checkpoint, a task without `inference`, or safetensors is not installed.
    """
    if jax.process_index():
        return 0
    for leaf in leaves:
        mesh = meshes.alone()
        task = make_task(leaf.experiment)
        refuse_other_data(leaf, task)
        if not hasattr(task, "inference"):
            raise SetupError(
                f"config.task.name = {leaf.experiment.task['name']!r} has no inference: "
                "nothing to export"
            )
        state, step = load(leaf.folder, abstract_state(task, mesh), preferred(leaf))
        folder = leaf.folder / "export"
        folder.mkdir(exist_ok=True)
        print(write(leaf, task, task.inference(state), step, folder, card.stem, licence))
    return 0


def write(
    leaf: Leaf,
    task: Task,
    network: Mapping[str, Any],
    step: int,
    folder: Path,
    name: str,
    licence: str | None,
) -> Path:
    """Write the files about `network`, what `Task.inference` returns, into `folder`; the card.

    Raises:
        SetupError: safetensors is not installed.
        RuntimeError: the stored program computes something else than the network.
    """
    try:
        from safetensors.numpy import save_file

        from launch import exported  # imports safetensors, too
    except ImportError as error:
        raise SetupError(
            f"export needs the extra `weights` ({error}): "
            "pip install 'isnet-touchstone-jax[weights]'"
        ) from error
    run, weights = flat(network["function"], network["weights"], network["input"])
    program, batch = stored(run, weights, network["input"])
    with _replacing(folder / WEIGHTS) as part:
        save_file(weights, part, metadata={"format": "np", "name": name})
    with _replacing(folder / PROGRAM) as part:
        part.write_bytes(program.mlir_module_serialized)
    shutil.copyfile(exported.__file__, folder / LOADER)
    found = results(leaf, partial=True)
    about = {
        "name": name,
        "run": leaf.label,
        "checkpoint": step,
        **calling(program, network["input"], batch),
        "about": dict(network["about"]),
        "parameters": sum(math.prod(x.shape) for x in weights.values()),
        "jax": jax.__version__,
        "sha256": {file: _digest(folder / file) for file in (WEIGHTS, PROGRAM, LOADER)},
        "items": {split: len(task.dataset(split)) for split in _splits(task)},
        "metrics": found["metrics"] if found else {},
        "licence": licence,
        "config": leaf.config,
    }
    write_json(folder / ABOUT, about)
    apart = difference(run, weights, exported.load(folder), network["input"])
    write_json(folder / ABOUT, about | {"difference": apart})
    (folder / CARD).write_text(model_card(about, WEIGHTS), encoding="utf-8")
    return folder / CARD


def calling(
    program: jax.export.Exported, example: jax.ShapeDtypeStruct, batch: str | int
) -> dict[str, Any]:
    """How the stored program is called, as plain JSON values: what `launch/exported.py` reads."""
    (out,) = program.out_avals
    return {
        "input": {
            "shape": [batch, *example.shape[1:]],
            "type": np.dtype(example.dtype).name,
        },
        "output": {
            "shape": [n if isinstance(n, int) else str(n) for n in out.shape],
            "type": np.dtype(out.dtype).name,
        },
        "platforms": list(program.platforms),
        "calling_convention": program.calling_convention_version,
        "arguments": list(program.module_kept_var_idx),
        "global_constants": program.uses_global_constants,
    }


def _splits(task: Task) -> list[str]:
    return [s for s in dict.fromkeys(("train", task.val_split, *task.test_splits)) if s]


# ------------------------------------------------------------------------- the program


def flat(
    function: Callable[[Any, jax.Array], jax.Array], weights: Any, example: jax.ShapeDtypeStruct
) -> tuple[Callable[[Arrays, jax.Array], jax.Array], dict[str, np.ndarray]]:
    """(`run(named, x)`, named): `function(weights, x)` with its weights as a flat dict of arrays.

    Names are slash paths. Arrays that the function does not read (keys and counters of random
    numbers, say) are left out of the dict and do not reach the program.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(weights)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    values = [leaf for _, leaf in leaves]

    def positional(values: Sequence[Any], x: jax.Array) -> Any:
        return function(jax.tree_util.tree_unflatten(structure, values), x)

    program = jax.make_jaxpr(positional)(values, example).jaxpr
    read = {id(v) for equation in program.eqns for v in equation.invars}
    read |= {id(v) for v in program.outvars}
    used = [id(v) in read for v in program.invars[: len(values)]]
    fixed = [None if reads else value for value, reads in zip(values, used, strict=True)]

    def run(named: Arrays, x: jax.Array) -> Any:
        pairs = zip(names, fixed, strict=True)
        return positional([named.get(name, value) for name, value in pairs], x)

    kept = zip(names, values, used, strict=True)
    return run, {name: np.asarray(value) for name, value, reads in kept if reads}


def stored(
    run: Callable[[Arrays, jax.Array], jax.Array],
    weights: Mapping[str, np.ndarray],
    example: jax.ShapeDtypeStruct,
) -> tuple[jax.export.Exported, str | int]:
    """(the program for all `PLATFORMS`, its batch size: "batch", any, or the example's own).

    A network whose shapes depend on the size of a batch in ways that cannot be expressed is
    stored for the example's.
    """
    arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    make = jax.export.export(jax.jit(run), platforms=PLATFORMS)
    (size,) = jax.export.symbolic_shape("batch")
    many = jax.ShapeDtypeStruct((size, *example.shape[1:]), example.dtype)
    try:
        return make(arrays, many), "batch"
    except (TypeError, ValueError, NotImplementedError, IndexError):
        return make(arrays, example), example.shape[0]


def difference(
    run: Callable[[Arrays, jax.Array], jax.Array],
    weights: Arrays,
    again: Callable[[jax.Array], jax.Array],
    example: jax.ShapeDtypeStruct,
) -> float:
    """Largest difference, of the largest output, between `run` and `again` on random numbers.

    Raises:
        RuntimeError: it is above `AGREEMENT`, or not a number.
    """
    drawn = np.random.default_rng(0).random(example.shape, np.float32)
    x = jnp.asarray(drawn).astype(example.dtype)
    ours, theirs = (np.asarray(y, np.float64) for y in (jax.jit(run)(weights, x), again(x)))
    apart = float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-30))
    if not apart <= AGREEMENT:
        raise RuntimeError(f"the exported program differs from the network by {apart:.2g}")
    return apart


# ------------------------------------------------------------------------- files


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to; then it takes the place of `path`, whole."""
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
