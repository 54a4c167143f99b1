"""Networks: a table of those there are, and weights of an original as a card's first checkpoint.

What a network is stands elsewhere; here are only the names of who knows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.card import Leaf
from launch.experiment import REFUSALS, SetupError, told
from launch.workdir import claim, identity, lock

TABLE = "touchstone_jax.models.catalogue:table"
"""Of nothing -> text."""
WEIGHTS = "touchstone_jax.models.weights:into_state"
"""Of (state, the card's task.model, file, prefix, vectors of names or None) -> (state, what was
read in a line)."""
NAMES = "touchstone_jax.models.clip_text:name_vectors"
"""Of (the card's task.model, file, prefix, vocabulary, names, file to write) -> ``embeddings``, and
whether the file has nothing else, ``alone``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `list --models` and `convert`."""
    parser.add_argument("--models", action="store_true", help="list: the networks, not the cards")
    parser.add_argument("--weights", help="convert: .npz or .safetensors of the original's weights")
    parser.add_argument("--prefix", help="convert: what the keys of the weights begin with")
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="convert: CLIP's byte pairs; the weights' text tower makes the vectors of names",
    )


def show() -> None:
    """Print the table of networks."""
    print(_named(TABLE)())


def convert(leaves: Sequence[Leaf], options: argparse.Namespace) -> int:
    """Write checkpoint 0 of the card's one training, with the weights of --weights.

    With --vocabulary, embeddings.npz in the work folder too; alone, if the weights are only CLIP's.

    Raises:
        SetupError: several trainings, checkpoints that are there, or weights that do not fit.
    """
    if not options.weights:
        raise SetupError("convert needs --weights")
    if len(leaves) != 1:
        raise SetupError(
            f"convert writes one checkpoint, but the card has {len(leaves)} trainings: name one "
            "run after the card's colon (FILE.py:ARGUMENT)"
        )
    (leaf,) = leaves
    if (leaf.folder / "checkpoints").exists():
        raise SetupError(f"{leaf.folder} has checkpoints already; use another --workdir")
    model = leaf.config.get("task", {}).get("model")
    if not isinstance(model, dict) or "name" not in model:
        raise SetupError(f"{options.config} has no config.task.model with a name")
    # These load JAX, for which there is no need before the card is known to be sound.
    import jax

    from launch import mesh as meshes
    from launch.build import make_task
    from launch.checkpoint import Store
    from launch.train import INIT, abstract_state, rng_of

    mesh = meshes.make(leaf.experiment.mesh)
    task = make_task(leaf.experiment)
    vectors = None
    if options.vocabulary:
        vectors, alone = _name_vectors(model, getattr(task, "organs", ()), options)
        if alone:
            return 0
    shardings = meshes.shardings(abstract_state(task, mesh))
    fresh = jax.jit(task.init, out_shardings=shardings)(rng_of(leaf.seed, mesh)(INIT))
    try:
        prefix = options.prefix or ""
        state, said = _named(WEIGHTS)(fresh, model, options.weights, prefix, vectors)
    except REFUSALS as error:
        raise SetupError(told(error)) from error
    with lock(Path(options.workdir), "conversion"):
        claim(leaf, task)
        store = Store(leaf.folder, leaf.experiment.checkpoint, leaf.config, identity(task))
        with contextlib.closing(store) as to:
            to.save(0, jax.device_put(state, shardings), {})
    print(f"{said}; checkpoint 0 is in {leaf.folder / 'checkpoints'}")
    return 0


def _name_vectors(
    model: Mapping[str, Any], names: Sequence[str], options: argparse.Namespace
) -> tuple[Any, bool]:
    """Write embeddings.npz; (the vectors, whether the weights are of nothing else)."""
    target = Path(options.workdir) / "embeddings.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    files = (options.weights, options.prefix or "", options.vocabulary)
    try:
        found = _named(NAMES)(model, *files, names, target)
    except REFUSALS as error:
        raise SetupError(told(error)) from error
    print(f"vectors of {len(names)} names are in {target}", end="")
    print(f"; give them by --config.task.model.embeddings={target}" if found.alone else "")
    return found.embeddings, found.alone


def _named(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)
