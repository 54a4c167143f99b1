"""What a classifier tells about itself: to composites, to deep supervision, to the converter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from flax import nnx


class Backbone(nnx.Module):
    """Base of the classifiers here: declarations and their defaults, no behaviour.

    All paths are slash paths as in `isnet_jax.lrp.rule_layers`.

    Attributes:
        input_layer: path of the layer that reads the image.
        input_relu: path of the ReLU right after it.
        output_layer: path of the layer that makes the logits.
        before_norm: regular expression over the paths of layers whose output goes straight into a
            BatchNorm that is not folded into them, or None.
        rectified: regular expression over the paths of convolutions and dense layers whose input
            is never negative, whatever the image; z+ and its like then cost half. None: no promise.
        supervised: paths of the layers whose output LRP deep supervision looks at, in the order
            of the forward pass.
        torch_sizes: argument of the model -> (torchvision key, axis) that tells its value.
        torch_flattened: path of a `Dense` that reads a flattened grid -> the grid's sides; torch
            flattens channels first, we channels last.
        torch_renamed: (regular expression, replacement) that turns keys of old state dicts into
            today's, or None.
    """

    input_layer: str
    input_relu: str
    output_layer: str = "classifier"
    before_norm: str | None = None
    rectified: str | None = None
    torch_sizes: ClassVar[Mapping[str, tuple[str, int]]] = {}
    torch_renamed: ClassVar[tuple[str, str] | None] = None

    @property
    def supervised(self) -> tuple[str, ...]:
        """See the class."""
        return ()

    @property
    def torch_flattened(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        return {}

    def torch_arrays(self) -> dict[str, str]:
        """Torchvision key -> path of a parameter that we keep in torch's own layout."""
        return {}

    def torch_names(self) -> dict[str, str]:
        """Torchvision module name -> path of our layer with the same arrays."""
        return {}


def unit_names(conv: str, norm: str, path: str) -> dict[str, str]:
    """`Backbone.torch_names` of a convolution that holds its norm, at ``path``."""
    return {conv: path, norm: f"{path}/norm"}
