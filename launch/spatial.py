"""Whether the convolutions of a step can be split over the mesh axis `space`."""

from __future__ import annotations

from typing import Any

import jax

from launch.costs import inner
from launch.experiment import SetupError


def refuse_small_maps(jaxpr: Any, mesh: jax.sharding.Mesh) -> None:
    """Of a traced step whose volumes are split over `space`.

    XLA (of jax 0.10) gets gradients of convolutions wrong, without any error, where a feature map
    has no equal part for each device or is smaller than the kernel over it.

    Raises:
        SetupError: there is such a convolution.
    """
    space = mesh.shape["space"]
    if space == 1:
        return
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "conv_general_dilated":
            _check(equation, space)
        for program in inner(equation.params):
            refuse_small_maps(program, mesh)


def _check(equation: Any, space: int) -> None:
    image, kernel, made = equation.params["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    out = equation.outvars[0].aval.shape
    # In the gradient of a kernel channels stand where the rows of a batch are else.
    if len(left) < 3 or image[0] != 0:
        return
    depths, size = (left[image[2]], out[made[2]]), right[kernel[2]]
    if min(depths) < size or any(depth % space for depth in depths):
        raise SetupError(
            f"config.mesh.space = {space}: the step has a convolution from {depths[0]} to "
            f"{depths[1]} along the split axis under a kernel of {size}; XLA is wrong where space "
            "does not divide both, or one is smaller than the kernel: use larger images or "
            "patches, fewer stages, or a smaller space"
        )
