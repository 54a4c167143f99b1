"""Run the network that lies in this folder; needs jax, numpy and safetensors, no more.

`launch export` puts this file beside the network as model.py: `model.load(folder)(x)`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from safetensors.numpy import load_file

_NEEDED = ("input", "output", "platforms", "calling_convention", "arguments", "global_constants")


def _weights(folder: Path) -> dict[str, Any]:
    path = folder / "weights.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is damaged: {error}") from error


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "export.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {name: about[name] for name in _NEEDED}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def program(folder: Path, weights: dict[str, Any]) -> jax.export.Exported:
    """The stored StableHLO as a function (weights, x) -> output of jax.

    Its shapes and types are those that export.json tells. JAX's own format for them needs a
    package more; here a function of the same shapes is made, and the stored program put into it.
    """
    about = _about(folder)
    scope = jax.export.SymbolicScope()

    def shaped(array: dict[str, Any]) -> jax.ShapeDtypeStruct:
        text = ", ".join(map(str, array["shape"]))  # "batch, 28, 28, 1"
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(text, scope=scope), array["type"])

    x, out = shaped(about["input"]), shaped(about["output"])
    named = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    same = jax.jit(lambda weights, x: jnp.zeros(out.shape, out.dtype))
    return dataclasses.replace(
        jax.export.export(same, platforms=about["platforms"])(named, x),
        mlir_module_serialized=(folder / "model.stablehlo").read_bytes(),
        calling_convention_version=about["calling_convention"],
        module_kept_var_idx=tuple(about["arguments"]),
        uses_global_constants=about["global_constants"],
    )


def load(folder: str | Path = ".") -> Callable[[Any], jax.Array]:
    """The network as a compiled function of its input; README.md and export.json say of what."""
    weights = _weights(Path(folder))
    run = jax.jit(program(Path(folder), weights).call)
    on_device = jax.device_put(weights)
    return lambda x: run(on_device, x)
