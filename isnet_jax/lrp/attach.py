"""LRP for models built from standard `flax.nnx` layers that were not written for us."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from isnet_jax.lrp import layers, maps, transformer
from isnet_jax.lrp.composite import Composite, create, foreign_layers

_OURS: dict[type, type] = {
    nnx.Conv: layers.Conv,
    nnx.ConvTranspose: layers.ConvTranspose,
    nnx.Linear: layers.Dense,
    nnx.BatchNorm: layers.BatchNorm,
    nnx.LayerNorm: transformer.LayerNorm,
    nnx.GroupNorm: transformer.GroupNorm,
    nnx.InstanceNorm: transformer.InstanceNorm,
}


def attach(model: nnx.Module, composite: Composite | str) -> nnx.Module:
    """A view of ``model`` whose standard layers carry the composite's rules; the model is kept.

    Conv, ConvTranspose, Linear, BatchNorm, LayerNorm, GroupNorm and InstanceNorm of `flax.nnx`
    become ours over copies of the same variables. Functions between them (nnx.relu, max pooling,
    means, sums, concatenations) keep their plain derivative, which is LRP for all that is
    homogeneous; `isnet_jax.lrp.flex` treats ReLUs that are functions. A convolution and the
    BatchNorm after it stay two layers: give the convolution `Pass` where only the pair should be
    stabilised.

    Use it as ``explain(attach(model, composite), x, composite=composite)``, or its graphdef in
    `relevance`. A z^B rule needs the model's attribute `input_layer` (a slash path).

    Args:
        model: of standard layers, ours, or both.
        composite: a `Composite` or a preset's name.

    Raises:
        ValueError: a layer that holds parameters and is none of the above (named); an option of a
            layer that ours has not (circular, causal or masked windows, norms over other axes or
            in other dtypes); or see `Composite.matches`.
    """
    composite = create(composite) if isinstance(composite, str) else composite
    graphdef, state = nnx.split(model)
    twin = nnx.merge(graphdef, nnx.to_pure_dict(state))
    for path, module in list(nnx.iter_modules(twin)):
        if type(module) in _OURS:
            _adopt(module, "/".join(map(str, path)) or "(the model itself)")
    foreign = foreign_layers(twin)
    if foreign:
        raise ValueError(
            f"no LRP layer for {', '.join(foreign)}; treated are "
            f"{', '.join(f'nnx.{kind.__name__}' for kind in _OURS)} and our own layers"
        )
    return composite.view(twin)


def _adopt(module: Any, name: str) -> None:
    """Turns a standard layer of the copy into ours: same variables, more static attributes."""
    convolution = isinstance(module, nnx.Conv | nnx.ConvTranspose)
    if convolution:
        _check_convolution(module, name)
    elif not isinstance(module, nnx.Linear):
        _check_norm(module, name)
    module.__class__ = _OURS[type(module)]
    module.rule = None
    if convolution or isinstance(module, layers.Dense):
        # What flax calls dtype: the one that operands are rounded to.
        module.rounding = module.dtype and maps.Rounding(jnp.dtype(module.dtype).name)
    if convolution:
        module.norm = None
        rank = len(module.kernel_size)
        module.kernel_size = tuple(module.kernel_size)
        module.strides = layers.sides(module.strides or 1, rank)
        module.kernel_dilation = layers.sides(module.kernel_dilation or 1, rank)
        module.padding = _padding(module)
    if isinstance(module, layers.BatchNorm):
        module.statistics = "detach"
    if isinstance(module, transformer.InstanceNorm):
        module.num_groups = vars(module)["num_features"]  # flax's own field


def _check_convolution(module: nnx.Conv | nnx.ConvTranspose, name: str) -> None:
    refused = []
    if module.padding in ("CIRCULAR", "CAUSAL", "REFLECT"):
        refused.append(f"padding {module.padding!r}")
    if module.mask is not None:
        refused.append("a mask")
    rank = len(module.kernel_size)
    if any(d != 1 for d in layers.sides(getattr(module, "input_dilation", 1) or 1, rank)):
        refused.append("a dilated input")
    if getattr(module, "transpose_kernel", False):
        refused.append("a transposed kernel")
    if refused:
        raise ValueError(f"convolution {name}: {', '.join(refused)} has no rule")


def _check_norm(module: Any, name: str) -> None:
    refused = []
    if module.dtype is not None:
        refused.append(f"dtype {jnp.dtype(module.dtype).name}")
    for option in ("axis_name", "axis_index_groups"):
        if getattr(module, option, None) is not None:
            refused.append(option)
    plain = {"axis": (-1,), "feature_axes": (-1, (-1,)), "reduction_axes": (-1, (-1,), None)}
    if isinstance(module, nnx.GroupNorm | nnx.InstanceNorm):
        plain["reduction_axes"] = (None,)
    for option, accepted in plain.items():
        value = getattr(module, option, accepted[0])
        if (tuple(value) if isinstance(value, list) else value) not in accepted:
            refused.append(f"{option} {value!r}")
    if refused:
        raise ValueError(f"norm {name}: {', '.join(refused)} has no rule")


def _padding(module: Any) -> str | tuple[tuple[int, int], ...]:
    """Flax's padding as pairs; a convolution's string stays, its pairs depend on the image."""
    rank, padding = len(module.kernel_size), module.padding
    if not isinstance(padding, str):
        each = layers.sides(padding, rank)
        return tuple((p, p) if isinstance(p, int) else tuple(p) for p in each)
    if isinstance(module, layers.Conv):
        return padding
    pairs = []
    for size, stride, dilation in zip(
        module.kernel_size, module.strides, module.kernel_dilation, strict=True
    ):
        # As `jax.lax.conv_transpose` pads the spread-out input.
        window = dilation * (size - 1) + 1
        total, before = window + stride - 2, window - 1
        if padding == "VALID":
            total += max(window - stride, 0)
        elif stride <= window - 1:
            before = -(-total // 2)
        pairs.append((before, total - before))
    return tuple(pairs)
