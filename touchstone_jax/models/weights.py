"""Weights of an original in the place of a training's fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from touchstone_jax.models.convert import fit, from_torch, read_arrays

State = dict[str, Any]


def into_state(
    state: State, model: Mapping[str, Any], path: str | Path, prefix: str = ""
) -> tuple[State, str]:
    """(the state with the weights of a file, what was read in a line).

    Optimizer and step stay as they are; a running mean of the parameters starts at the weights.

    Args:
        state: "params" and "rest" as nested dicts of arrays, perhaps "ema"; it may be abstract.
        model: ``name`` and arguments of `touchstone_jax.models.create`. Kernels, strides and
            widths that follow from a plan are read from the weights.
        path: an .npz or .safetensors file with the original's keys.
        prefix: what its keys begin with, e.g. "network.".

    Raises:
        ValueError: no such network, weights that do not fit it, or a state of another network.
        FileNotFoundError: no such file.
    """
    arguments = {key: value for key, value in model.items() if key != "name"}
    arrays = read_arrays(path, prefix)
    network = from_torch(model["name"], arrays, **arguments)
    found = fit(model["name"], arrays, **arguments)
    _, params, rest = nnx.split(network, nnx.Param, ...)
    made = {"params": nnx.to_pure_dict(params), "rest": nnx.to_pure_dict(rest)}
    for part, values in made.items():
        _same_shapes(Path(path), state.get(part), values)
    if "ema" in state:
        made["ema"] = {**state["ema"], "params": jax.tree.map(jnp.copy, made["params"])}
    said = f"{len(found.places)} arrays of {path} read"
    if found.ignored:
        said += f", {len(found.ignored)} that hold nothing of their own left out"
    return {**state, **made}, said


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
