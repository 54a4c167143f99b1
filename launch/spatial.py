"""Whether the convolutions of a step can be split over the mesh axis `space`."""

from __future__ import annotations

from typing import Any

import jax

from launch.costs import inner
from launch.experiment import SetupError
from launch.mesh import row_parts

LARGEST_KERNEL = 7  # what is longer is an image of a weight's gradient, not a kernel


def refuse_small_maps(jaxpr: Any, mesh: jax.sharding.Mesh) -> None:
    """Of a traced step whose volumes are split over `space`, and its rows over other axes.

    XLA (of jax 0.10) then gets the gradients of a convolution wrong whose image is smaller than its
    kernel, by as many times as rows have parts, without any error.

    Raises:
        SetupError: there is such a convolution.
    """
    if mesh.shape["space"] == 1 or row_parts(mesh) == 1:
        return
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "conv_general_dilated":
            _check(equation)
        for program in inner(equation.params):
            refuse_small_maps(program, mesh)


def _check(equation: Any) -> None:
    image, kernel, _ = equation.params["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    if len(left) < 3:
        return
    depth, size = left[image[2]], right[kernel[2]]
    if depth < size <= LARGEST_KERNEL:
        raise SetupError(
            f"config.mesh.space: the step has feature maps of {depth} along the split axis under "
            f"kernels of {size}, which XLA miscompiles when rows are split too; use larger images "
            "or patches, fewer stages, or config.mesh.data = 1"
        )
