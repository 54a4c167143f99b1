"""LRP for models built from standard `flax.nnx` layers that were not written for us."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from isnet_jax.lrp import layers, maps, transformer
from isnet_jax.lrp.composite import Composite

_OURS: dict[type, type] = {
    nnx.Conv: layers.Conv,
    nnx.ConvTranspose: layers.ConvTranspose,
    nnx.Linear: layers.Dense,
    nnx.BatchNorm: layers.BatchNorm,
    nnx.LayerNorm: transformer.LayerNorm,
    nnx.GroupNorm: transformer.GroupNorm,
}


def attach(model: nnx.Module, composite: Composite) -> nnx.Module:
    """A view of ``model`` whose standard layers carry the composite's rules; the model is kept.

    Conv, ConvTranspose, Linear, BatchNorm, LayerNorm and GroupNorm of `flax.nnx` become ours over
    copies of the same variables. Functions between them (nnx.relu, max pooling, means, sums,
    concatenations) keep their plain derivative, which is LRP for all that is homogeneous;
    `isnet_jax.lrp.flex` treats ReLUs that are functions. A convolution and the BatchNorm after it
    stay two layers: give the convolution `Pass` where only the pair should be stabilised.

    Use it as ``explain(attach(model, composite), x, composite=composite)``, or its graphdef in
    `relevance`. A z^B rule needs the model's attribute `input_layer` (a slash path).

    Raises:
        ValueError: a layer that holds parameters and is none of the above (named), a convolution
            with circular, causal or masked windows, or see `Composite.matches`.
    """
    graphdef, state = nnx.split(model)
    twin = nnx.merge(graphdef, nnx.to_pure_dict(state))
    foreign = []
    for path, module in list(nnx.iter_modules(twin)):
        name = "/".join(map(str, path)) or "(the model itself)"
        if type(module) in _OURS:
            _adopt(module, name)
        elif not hasattr(module, "rule") and any(
            isinstance(v, nnx.Param) for v in vars(module).values()
        ):
            foreign.append(f"{name} ({type(module).__name__})")
    if foreign:
        raise ValueError(
            f"no LRP layer for {', '.join(foreign)}; treated are "
            f"{', '.join(f'nnx.{kind.__name__}' for kind in _OURS)} and our own layers"
        )
    return composite.view(twin)


def _adopt(module: nnx.Module, name: str) -> None:
    """Turns a standard layer of the copy into ours: same variables, one static attribute more."""
    if isinstance(module, nnx.Conv):
        if module.padding in ("CIRCULAR", "CAUSAL", "REFLECT") or module.mask is not None:
            raise ValueError(
                f"convolution {name}: padding {module.padding!r} or a mask has no rule"
            )
        if any(d != 1 for d in layers.sides(module.input_dilation, len(module.kernel_size))):
            raise ValueError(f"convolution {name}: a dilated input has no rule")
    if isinstance(module, nnx.ConvTranspose) and (
        isinstance(module.padding, str) or module.mask is not None or module.transpose_kernel
    ):
        raise ValueError(
            f"transposed convolution {name}: padding {module.padding!r} (needs one pair an "
            "axis), a mask or a transposed kernel has no rule"
        )
    module.__class__ = _OURS[type(module)]
    module.rule = None
    if isinstance(module, layers.Conv | layers.ConvTranspose | layers.Dense):
        # What flax calls dtype: the one that operands are rounded to.
        module.rounding = module.dtype and maps.Rounding(jnp.dtype(module.dtype).name)
    if isinstance(module, layers.Conv | layers.ConvTranspose):
        module.norm = None
        for name in ("kernel_size", "strides", "padding", "kernel_dilation"):
            setattr(module, name, _hashable(getattr(module, name)))
    if isinstance(module, layers.BatchNorm):
        module.statistics = "detach"


def _hashable(value: Any) -> Any:
    """Lists, which flax takes too, as tuples: a graph is a static argument of `jax.jit`."""
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value
