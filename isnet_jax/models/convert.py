"""PyTorch state dicts to our models: every key used, or named in the error.

`from_torch` takes plain arrays (from an npz or safetensors file), never a pickle. What is special
to a family stands in its own file, as `Backbone.torch_names` and its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from isnet_jax.legal import check
from isnet_jax.models.backbone import Backbone
from isnet_jax.models.create import MODELS, create
from isnet_jax.models.dropout import RandomStream

_LINEAR = {"weight": "kernel", "bias": "bias"}
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_COUNTER = "num_batches_tracked"

Path = tuple[Any, ...]


class Place(NamedTuple):
    """Where an array of a state dict goes.

    Attributes:
        shape: there.
        path: here.
        grid: sides of the grid that a `Dense` kernel flattens, or None.
        kept: it stays in torch's layout.
    """

    shape: tuple[int, ...]
    path: Path
    grid: tuple[int, ...] | None
    kept: bool = False


class Fit(NamedTuple):
    """What `fit` found: nothing in it is allocated but the given arrays.

    Attributes:
        model: abstract.
        places: torchvision key -> place, for all arrays of the model.
        arrays: as given, under today's names.
        config: all arguments of `create` but ``rngs``.
    """

    model: Backbone
    places: dict[str, Place]
    arrays: Mapping[str, Any]
    config: dict[str, Any]


def from_torch(name: str, arrays: Mapping[str, np.ndarray], **config: Any) -> Backbone:
    """A model with the weights of a torchvision-named state dict.

    Args:
        name: a model of `MODELS` that torchvision has too.
        arrays: torchvision key -> array; convolutions (out, in, *window), linear (out, in).
        **config: arguments of `create` that the arrays do not tell, e.g. ``stem="small"``.

    Raises:
        ValueError: unknown name, or keys that are missing, unexpected or of the wrong shape; the
            message names them.
    """
    found = fit(name, arrays, **config)
    graphdef, state = nnx.split(found.model)
    values = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for key, place in found.places.items():
        value = np.asarray(found.arrays[key])
        value = value if place.kept else _ours(value, place.grid)
        # A copy: on a CPU jax may otherwise keep using the caller's memory.
        values[place.path] = jnp.array(value, values[place.path].dtype, copy=True)
    if len(values) > len(found.places):
        values |= _random_streams(name, found.config)
    return nnx.merge(graphdef, traverse_util.unflatten_dict(values))


def fit(name: str, arrays: Mapping[str, Any], **config: Any) -> Fit:
    """Where each key of a state dict goes; `from_torch` without the arrays.

    Args:
        name: as for `from_torch`.
        arrays: torchvision key -> anything with a shape, e.g. `jax.ShapeDtypeStruct`.
        **config: as for `from_torch`.

    Raises:
        ValueError: as `from_torch`.
    """
    family = _family(name)
    arrays = _renamed(name, arrays, family.torch_renamed)
    told = {
        size: np.shape(arrays[key])[axis]
        for size, (key, axis) in family.torch_sizes.items()
        if key in arrays and np.ndim(arrays[key]) > axis
    }
    # Where the key that tells a size is missing, the model's default lets all others be compared.
    config = {"num_classes": 1, **told, **config}
    model = nnx.eval_shape(lambda: create(name, **config, rngs=nnx.Rngs(0)))
    places, counters = torch_places(model)
    given = set(arrays) - counters
    problems = {
        "unexpected keys": sorted(given - set(places)),
        "missing keys": sorted(set(places) - given),
        "wrong shapes": [
            f"{key} {np.shape(arrays[key])} instead of {places[key].shape}"
            for key in sorted(given & set(places))
            if np.shape(arrays[key]) != places[key].shape
        ],
    }
    said = [f"{what}: {', '.join(items)}" for what, items in problems.items() if items]
    if said:
        raise ValueError(f"state dict does not fit model {name!r}: {'; '.join(said)}")
    return Fit(model, places, arrays, config)


def torch_places(model: Backbone) -> tuple[dict[str, Place], set[str]]:
    """Key -> place for every array of a `Backbone`, and the keys that carry nothing we need."""
    modules = {"/".join(map(str, path)): (path, m) for path, m in nnx.iter_modules(model)}
    places, counters = {}, set()
    for theirs, ours in model.torch_names().items():
        path, module = modules[ours]
        is_norm = isinstance(module, nnx.BatchNorm | nnx.LayerNorm)
        if isinstance(module, nnx.BatchNorm):
            counters.add(f"{theirs}.{_COUNTER}")
        for field, attribute in (_NORM if is_norm else _LINEAR).items():
            variable = getattr(module, attribute, None)
            if variable is None:
                continue
            *rest, out = variable.shape
            shape = (out, *rest[-1:], *rest[:-1])
            grid = model.torch_flattened.get(ours) if attribute == "kernel" else None
            places[f"{theirs}.{field}"] = Place(shape, (*path, attribute), grid)
    for theirs, ours in model.torch_arrays().items():
        path = tuple(ours.split("/"))
        shape = _at(model, path).shape
        places[theirs] = Place(shape, path, None, kept=True)
    return places, counters


def _family(name: str) -> Any:
    families = {n: getattr(model, "func", model) for n, model in MODELS.items()}
    families = {n: f for n, f in families.items() if getattr(f, "torch_sizes", None)}
    check("model with torch weights", name, families)
    return families[name]


def _at(model: Backbone, path: Path) -> Any:
    found: Any = model
    for name in path:
        found = getattr(found, name)
    return found


def _renamed(
    name: str, arrays: Mapping[str, Any], rename: tuple[str, str] | None
) -> Mapping[str, Any]:
    if rename is None:
        return arrays
    fresh: dict[str, Any] = {}
    for key, value in arrays.items():
        today = re.sub(*rename, key)
        if today in fresh:
            raise ValueError(f"state dict does not fit model {name!r}: {today} is there twice")
        fresh[today] = value
    return fresh


def _ours(value: np.ndarray, grid: tuple[int, ...] | None) -> np.ndarray:
    """Torch's (out, in, *window) as (*window, in, out); vectors stay.

    A linear layer over a flattened ``grid`` is a convolution with that window, flattened.
    """
    if value.ndim < 2:
        return value
    if grid is not None:
        return _ours(value.reshape(len(value), -1, *grid), None).reshape(-1, len(value))
    return np.transpose(value, (*range(2, value.ndim), 1, 0))


def _random_streams(name: str, config: Mapping[str, Any]) -> dict[Path, jax.Array]:
    """The state that no state dict holds: dropout's random streams, freshly seeded."""

    @jax.jit  # the compiler drops the parameters that nobody asked for
    def streams():
        model = create(name, **config, rngs=nnx.Rngs(0))
        return nnx.to_pure_dict(nnx.state(model, RandomStream))

    return traverse_util.flatten_dict(streams())
