"""PyTorch state dicts to our networks: every key used, known to hold nothing, or in the error.

`from_torch` takes plain arrays (from an npz or safetensors file), never a pickle. What is special
to a family stands in its own class: ``torch_name``, ``torch_ignored``, ``torch_sizes``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from touchstone_jax.layers import Conv, InstanceNorm, UpConv
from touchstone_jax.layers.depthwise import DepthwiseConv, DepthwiseUp
from touchstone_jax.layers.dropout import RandomStream
from touchstone_jax.layers.slices import FrozenNorm, SliceUp
from touchstone_jax.layers.transposed import TransposedConv
from touchstone_jax.layers.windows import PatchConv
from touchstone_jax.legal import unknown
from touchstone_jax.models.create import MODELS, create
from touchstone_jax.models.graph import GroupedDense
from touchstone_jax.models.segvol import VolumeNorm

# Layer -> our variable -> (torch's name, our axis for each of torch's).
Layout = dict[str, tuple[str, tuple[int, ...]]]
_CONV: Layout = {"kernel": ("weight", (4, 3, 0, 1, 2)), "bias": ("bias", (0,))}
_NORM: Layout = {"scale": ("weight", (0,)), "bias": ("bias", (0,))}
_BATCH: Layout = {"mean": ("running_mean", (0,)), "var": ("running_var", (0,))}
LAYOUTS: dict[type, Layout] = {
    Conv: _CONV,
    # Input channels first; no tap is reversed, for `upsample` counts as torch does.
    UpConv: {**_CONV, "kernel": ("weight", (3, 4, 0, 1, 2))},
    TransposedConv: {**_CONV, "kernel": ("weight", (3, 4, 0, 1, 2))},
    PatchConv: _CONV,
    GroupedDense: _CONV,
    DepthwiseConv: _CONV,
    DepthwiseUp: _CONV,
    InstanceNorm: _NORM,
    nnx.BatchNorm: {**_NORM, **_BATCH},
    nnx.LayerNorm: _NORM,
    FrozenNorm: {**_NORM, **_BATCH},
    SliceUp: {"kernel": ("weight", (2, 3, 0, 1)), "bias": ("bias", (0,))},
    nnx.Conv: {"kernel": ("weight", (3, 2, 0, 1)), "bias": ("bias", (0,))},
    VolumeNorm: {"scale": ("weight", (3, 0, 1, 2)), "bias": ("bias", (3, 0, 1, 2))},
    nnx.GroupNorm: _NORM,
    nnx.Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))},
}


class Place(NamedTuple):
    """Where an array of a state dict goes.

    Attributes:
        path: here.
        shape: there.
        axes: our axis for each of theirs.
    """

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]


class Fit(NamedTuple):
    """What `fit` found; nothing in it is allocated.

    Attributes:
        model: abstract.
        places: key -> place, for all arrays of the model that the original has.
        ignored: keys that hold nothing of their own, e.g. copies and counters.
        config: all arguments of `create` but ``rngs``.
    """

    model: nnx.Module
    places: dict[str, Place]
    ignored: tuple[str, ...]
    config: dict[str, Any]


def from_torch(name: str, arrays: Mapping[str, np.ndarray], **config: Any) -> nnx.Module:
    """A network with the weights of its original's state dict, array by array.

    Args:
        name: a key of `touchstone_jax.models.MODELS`.
        arrays: the original's key -> array.
        **config: arguments of `create` that the arrays do not tell. They tell in_channels and
            num_classes, and of nnU-Net's networks all that follows from a plan.

    Raises:
        ValueError: unknown name, or keys that are missing, unexpected or of the wrong shape, or
            arrays with NaN or infinity; the message names them.
    """
    found = fit(name, arrays, **config)
    streams = {
        path: _stream(number) for number, path in enumerate(sorted(_streams(found.model), key=str))
    }
    more = {**streams, **_own(name, found)}
    return filled(f"model {name!r}", found.model, found.places, arrays, found.ignored, more)


def filled(
    what: str,
    model: nnx.Module,
    places: Mapping[str, Place],
    arrays: Mapping[str, np.ndarray],
    ignored: Collection[str] = (),
    more: Mapping[tuple[Any, ...], jax.Array] = {},
) -> Any:
    """An abstract network with arrays in their places.

    Args:
        what: of the network, for messages.
        model: abstract.
        places: key -> place, as of `torch_places`.
        arrays: key -> array.
        ignored: keys that are not read.
        more: path -> array of variables without a place.

    Raises:
        ValueError: keys that are missing, unexpected or of the wrong shape, or arrays with NaN or
            infinity; the message names them.
    """
    _refuse_misfits(what, places, arrays, ignored)
    graphdef, state = nnx.split(model)
    values = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for key, place in places.items():
        value = np.asarray(arrays[key])
        if not np.isfinite(value).all():
            raise ValueError(f"state dict for {what}: {key} has NaN or infinite values")
        ours = values[place.path]
        value = value.transpose(np.argsort(place.axes)).reshape(ours.shape)
        # A copy: on a CPU jax may otherwise keep using the caller's memory.
        values[place.path] = jnp.array(value, ours.dtype, copy=True)
    return nnx.merge(graphdef, traverse_util.unflatten_dict({**values, **more}))


def fit(name: str, arrays: Mapping[str, Any], **config: Any) -> Fit:
    """Where each key of a state dict goes; `from_torch` without the arrays.

    Args:
        name: as for `from_torch`.
        arrays: the original's key -> anything with a shape, e.g. `jax.ShapeDtypeStruct`.
        **config: as for `from_torch`.

    Raises:
        ValueError: as `from_torch`, but for NaN.
    """
    config = {**_told(name, arrays, config), **config}
    model: Any = nnx.eval_shape(lambda: create(name, **config, rngs=nnx.Rngs(0)))
    places = torch_places(model)
    ignored = {k for k in arrays if k not in places and re.search(model.torch_ignored, k)}
    _refuse_misfits(f"model {name!r}", places, arrays, ignored)
    return Fit(model, places, tuple(sorted(ignored)), config)


def _refuse_misfits(
    what: str, places: Mapping[str, Place], arrays: Mapping[str, Any], ignored: Collection[str]
) -> None:
    given = set(arrays) - set(ignored)
    problems = {
        "unexpected keys": sorted(given - set(places)),
        "missing keys": sorted(set(places) - given),
        "wrong shapes": [
            f"{key} {np.shape(arrays[key])} instead of {places[key].shape}"
            for key in sorted(given & set(places))
            if np.shape(arrays[key]) != places[key].shape
        ],
    }
    said = [f"{what}: {_some(items)}" for what, items in problems.items() if items]
    if said:
        raise ValueError(f"state dict does not fit {what}: {'; '.join(said)}")


def torch_places(model: nnx.Module) -> dict[str, Place]:
    """Key of the original -> place, for every variable of the network that the original stores.

    A variable of a layer without an entry in `LAYOUTS` has its name and layout there too.
    """
    modules = dict(nnx.iter_modules(model))
    network: Any = model
    places = {}
    own = (RandomStream, *getattr(model, "torch_absent", ()))
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Any(*own)))):
        *above, attribute = path
        layout = _layout(modules[tuple(above)])
        shape = tuple(variable.shape)
        field, axes = layout.get(str(attribute), (str(attribute), tuple(range(len(shape)))))
        module = network.torch_name("/".join(map(str, above))) if above else ""
        key = f"{module}.{field}" if module else field
        places[key] = Place(path, tuple(shape[a] for a in axes), axes)
    return places


def read_arrays(path: str | Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Key -> array of a file, without the prefix; keys that do not start with it are left out.

    Args:
        path: an .npz or .safetensors file.
        prefix: e.g. "network.".

    Raises:
        ValueError: another kind of file (a pickle above all), or one without such keys.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path}: weights must be an .npz or .safetensors file; pickles (.pth, .pt, .model) "
            "are not opened: write one with safetensors.torch.save_file where torch is installed"
        )
    try:
        arrays = _READERS[path.suffix](path)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: cannot be read: {error}") from error
    found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    if not found:
        raise ValueError(f"{path}: no key starts with {prefix!r}; it has {_some(sorted(arrays))}")
    return found


def _npz(path: Path) -> dict[str, np.ndarray]:
    # By a file of ours: np.load would leave a damaged one open.
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


_READERS = {".npz": _npz, ".safetensors": _safetensors}


def _layout(module: nnx.Module) -> Layout:
    return next((LAYOUTS[t] for t in type(module).__mro__ if t in LAYOUTS), {})


def _told(name: str, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the network that shapes of arrays tell."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    family: Any = getattr(MODELS[name], "func", MODELS[name])
    told = dict(family.torch_stages(arrays))
    for argument, (key, axis) in family.torch_sizes.items():
        if argument in config:
            continue
        if key not in arrays:
            longer = next((other for other in arrays if other.endswith(key)), "")
            hint = f"; is {longer.removesuffix(key)!r} the prefix of all?" if longer else ""
            raise ValueError(
                f"state dict does not fit model {name!r}: key {key!r} is missing{hint}"
            )
        told[argument] = np.shape(arrays[key])[axis]
    return told


def _some(items: list[str], most: int = 8) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def _streams(model: nnx.Module) -> list[tuple[Any, ...]]:
    """Paths of the streams of random numbers, which no state dict holds."""
    return [path for path, _ in nnx.to_flat_state(nnx.state(model, RandomStream))]


def _own(name: str, found: Fit) -> dict[tuple[Any, ...], jax.Array]:
    """Variables of the kinds ``torch_absent``, which follow from the network's arguments."""
    kinds = getattr(found.model, "torch_absent", ())
    if not kinds:
        return {}

    def make() -> dict[str, Any]:
        network = create(name, **found.config, rngs=nnx.Rngs(0))
        return nnx.to_pure_dict(nnx.state(network, nnx.Any(*kinds)))

    return traverse_util.flatten_dict(jax.jit(make)())


def _stream(number: int) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.key(0), number))
