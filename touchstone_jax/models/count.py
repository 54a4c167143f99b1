"""Parameters and multiply-adds of networks, from shapes alone: nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from touchstone_jax.models.catalogue import CATALOGUE
from touchstone_jax.models.create import accepts, create
from touchstone_jax.models.graph import FixedTable


def size_of(model: nnx.Module, *kinds: type[nnx.Variable]) -> int:
    """Numbers in the variables of those kinds (default: parameters), also of an abstract model."""
    leaves = jax.tree.leaves(nnx.state(model, kinds or nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def count_parameters(name: str, *, num_classes: int | None = None, **config: Any) -> int:
    """Numbers that a network of that name stores as weights, tables that are not trained included.

    Args:
        name: a key of `touchstone_jax.models.MODELS`.
        num_classes: logits; None for those of the published number.
        **config: arguments of the network; none at all for those of the published number.

    Raises:
        ValueError: as `create`.
    """
    published = CATALOGUE.get(name)
    if published is not None:
        config = config or dict(published.config)
        num_classes = published.num_classes if num_classes is None else num_classes
    return size_of(_abstract(name, num_classes or 10, config), nnx.Param, FixedTable)


def count_operations(name: str, patch: Sequence[int], **config: Any) -> int:
    """Floating-point operations of one forward pass: two for each multiply-add.

    Convolutions and matrix products only, as PyTorch's counter counts; norms, sampling and
    resizing are left out.

    Args:
        name: a key of `touchstone_jax.models.MODELS`.
        patch: voxels (x, y, z).
        **config: arguments of `create` but ``rngs``.
    """
    lowering = {"mednext_l": "grouped"}.get(name, "direct")
    if accepts(name, "lowering"):
        config = {"lowering": lowering, **config}
    if accepts(name, "patch"):
        config = {"patch": tuple(patch), **config}
    model = _abstract(name, config.pop("num_classes", 10), config)
    x = jax.ShapeDtypeStruct((1, *patch, config.get("in_channels", 1)), jnp.float32)
    graphdef, state = nnx.split(model)
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    return _operations(program.jaxpr)


def _abstract(name: str, num_classes: int, config: dict[str, Any]) -> nnx.Module:
    return nnx.eval_shape(lambda: create(name, num_classes=num_classes, rngs=nnx.Rngs(0), **config))


def _operations(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        made = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * made * math.prod(kernel) // outputs
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * made * math.prod(shape[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _operations(inner)
    return total
