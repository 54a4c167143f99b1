"""Weights of an original in the place of a training's fresh ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Float32

from touchstone_jax.models.clip_head import TextEmbedding
from touchstone_jax.models.convert import fit, from_torch, read_arrays
from touchstone_jax.models.create import MODELS

State = dict[str, Any]


def into_state(
    state: State,
    model: Mapping[str, Any],
    path: str | Path,
    prefix: str = "",
    vectors: Float32[np.ndarray, "n c"] | None = None,
) -> tuple[State, str]:
    """(the state with the weights of a file, what was read in a line).

    Optimizer and step stay as they are, and so does what the original does not store, such as
    vectors of organs' names; a running mean of the parameters starts at the weights.

    Args:
        state: "params" and "rest" as nested dicts of arrays, perhaps "ema"; it may be abstract.
        model: ``name`` and arguments of `touchstone_jax.models.create`. Kernels, strides and
            widths that follow from a plan are read from the weights.
        path: an .npz or .safetensors file with the original's keys.
        prefix: what its keys begin with, e.g. "network.".
        vectors: of the organs' names, instead of those of the state or of the weights; e.g. of
            `touchstone_jax.models.clip_text.name_vectors`.

    Raises:
        ValueError: no such network, weights that do not fit it, or a state of another network.
        FileNotFoundError: no such file.
    """
    family: Any = MODELS.get(model["name"])
    told = family.told_by_state(state) if hasattr(family, "told_by_state") else {}
    arguments = {**told, **{key: value for key, value in model.items() if key != "name"}}
    arrays = read_arrays(path, prefix)
    network = from_torch(model["name"], arrays, **arguments)
    found = fit(model["name"], arrays, **arguments)
    _, *states = nnx.split(network, nnx.Param, ...)
    params, rest = states
    made = {"params": nnx.to_pure_dict(params), "rest": nnx.to_pure_dict(rest)}
    for part, values in made.items():
        _same_shapes(Path(path), state.get(part), values)
    made["rest"] = _with_own(network, made["rest"], state["rest"])
    if vectors is not None:
        made["rest"] = _with_vectors(network, made["rest"], vectors)
    if "ema" in state:
        made["ema"] = {**state["ema"], "params": jax.tree.map(jnp.copy, made["params"])}
    said = f"{len(found.places)} arrays of {path} read"
    pattern = getattr(network, "torch_tower", "$^")
    tower = [key for key in found.ignored if re.search(pattern, key)]
    if len(found.ignored) > len(tower):
        said += f", {len(found.ignored) - len(tower)} that hold nothing of their own left out"
    if tower and vectors is None:
        said += f", {len(tower)} of a text tower left out: names keep the vectors that they had"
    return {**state, **made}, said


def _with_own(network: nnx.Module, made: State, before: State) -> State:
    """``made`` with the variables that the original does not store as they were."""
    kinds = getattr(network, "torch_absent", ())
    values, old = (traverse_util.flatten_dict(tree) for tree in (made, before))
    for path, _ in nnx.to_flat_state(nnx.state(network, nnx.Any(*kinds))) if kinds else ():
        values[path] = old[path]
    return traverse_util.unflatten_dict(values)


def _with_vectors(network: nnx.Module, rest: State, vectors: np.ndarray) -> State:
    """``rest`` with those vectors of the organs' names."""
    values = traverse_util.flatten_dict(rest)
    for path, old in nnx.to_flat_state(nnx.state(network, TextEmbedding)):
        if old.shape != vectors.shape:
            raise ValueError(f"vectors {vectors.shape} of names; the network reads {old.shape}")
        values[path] = jnp.asarray(vectors, jnp.float32)
    return traverse_util.unflatten_dict(values)


def _same_shapes(path: Path, ours: Any, theirs: Any) -> None:
    def flat(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="."): x.shape for p, x in leaves}

    here, there = flat(ours), flat(theirs)
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            raise ValueError(
                f"{path}: the weights are of another network than the card's: {key} has shape "
                f"{there.get(key)} instead of {here.get(key)}"
            )
