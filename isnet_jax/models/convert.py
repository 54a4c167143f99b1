"""PyTorch state dicts to our models: every key used, or named in the error.

`from_torch` takes plain arrays (from an npz or safetensors file), never a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from isnet_jax.models.create import create

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_UNUSED = re.compile(r".*\.num_batches_tracked")


def from_torch(name: str, arrays: Mapping[str, np.ndarray], **config: object) -> nnx.Module:
    """A model with the weights of a torchvision-named state dict.

    Args:
        name: a model of `CONVERTERS`.
        arrays: torchvision key -> array; convolutions (out, in, *window), linear (out, in).
        **config: arguments of `create` that the arrays do not tell, e.g. ``stem="small"``.

    Raises:
        ValueError: unknown name, or keys that are missing, unexpected or of the wrong shape; the
            message names them.
    """
    if name not in CONVERTERS:
        raise ValueError(f"no torch converter for {name!r}; legal values: {', '.join(CONVERTERS)}")
    translate, infer = CONVERTERS[name]
    model = create(name, **{**infer(arrays), **config}, rngs=nnx.Rngs(0))
    variables = {
        "/".join(map(str, path)): variable
        for path, variable in nnx.iter_graph(model)
        if isinstance(variable, nnx.Variable)
    }
    unexpected, wrong, filled = [], [], set()
    for key, value in arrays.items():
        path = translate(key)
        if path is None or path not in variables:
            if not _UNUSED.fullmatch(key):
                unexpected.append(key)
            continue
        value, target = _layout(np.asarray(value)), variables[path]
        if value.shape != target[...].shape:
            wrong.append(f"{key} {value.shape} for {path} {target[...].shape}")
            continue
        target[...] = value.astype(target[...].dtype)
        filled.add(path)
    parameters = {path for path, v in variables.items() if isinstance(v, nnx.Param | nnx.BatchStat)}
    problems = {
        "unexpected keys": unexpected,
        "wrong shapes": wrong,
        "nothing for": sorted(
            parameters - filled - {w.split(" for ")[1].split()[0] for w in wrong}
        ),
    }
    said = [f"{what}: {', '.join(items)}" for what, items in problems.items() if items]
    if said:
        raise ValueError(f"state dict does not fit model {name!r}: {'; '.join(said)}")
    return model


def _layout(value: np.ndarray) -> np.ndarray:
    """Output-first torch kernel to output-last, (out, in, *window) to (*window, in, out)."""
    return value if value.ndim < 2 else np.transpose(value, (*range(2, value.ndim), 1, 0))


def _unit(path: str, part: str, field: str) -> str | None:
    """Path of a field of a convolution unit's conv or norm."""
    if part == "norm":
        return f"{path}/norm/{_NORM[field]}" if field in _NORM else None
    return {"weight": f"{path}/kernel", "bias": f"{path}/bias"}.get(field)


def _resnet(key: str) -> str | None:
    stem, _, field = key.rpartition(".")
    if stem in ("conv1", "bn1"):
        return _unit("stem", "norm" if stem == "bn1" else "conv", field)
    if stem == "fc":
        return {"weight": "classifier/kernel", "bias": "classifier/bias"}.get(field)
    found = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))", stem)
    if not found:
        return None
    stage, block, kind, number, side = found.groups()
    base = f"stages/{int(stage) - 1}/{block}"
    if side is not None:
        return _unit(f"{base}/shortcut", "norm" if side == "1" else "conv", field)
    return _unit(f"{base}/conv{number}", "norm" if kind == "bn" else "conv", field)


def _resnet_sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    for key in ("fc.weight", "conv1.weight"):
        if key not in arrays:
            raise ValueError(f"state dict does not fit a ResNet: key {key!r} is missing")
    width, channels = np.shape(arrays["conv1.weight"])[:2]
    return {
        "num_classes": np.shape(arrays["fc.weight"])[0],
        "width": width,
        "in_channels": channels,
    }


CONVERTERS: dict[str, tuple[Callable[[str], str | None], Callable[..., dict[str, int]]]] = {
    "resnet18": (_resnet, _resnet_sizes),
}
