"""All families: parameters, training mode, recomputation, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from touchstone_jax.models import convert, create

ANISOTROPIC = {"kernels": ((1, 3, 3), *[3] * 5), "strides": (1, (1, 2, 2), *[2] * 4)}

COUNTS = [
    ("unet", 10, ANISOTROPIC, 31_119_538),
    ("resenc_l", 10, {}, 102_356_210),
    ("resenc_l", 10, ANISOTROPIC, 102_273_714),
    ("mednext_l", 10, {}, 61_789_170),
    ("stunet_b", 105, {}, 58_262_669),
    ("stunet_l", 105, {}, 440_302_605),
    ("stunet_h", 105, {}, 1_457_326_221),
]

TINY = {
    "unet": {"widths": (4, 6, 8)},
    "resenc_l": {"widths": (4, 6, 8), "blocks": (1, 2, 1)},
    "stunet": {"widths": (4, 6, 8), "depth": (1, 2, 1)},
    "mednext_l": {"channels": 4, "blocks": (1, 1, 1), "expansions": (2, 2, 2)},
}
SIDE = 8


@pytest.mark.parametrize(("name", "classes", "config", "count"), COUNTS)
def test_parameters_are_as_many_as_the_originals(name, classes, config, count):
    model = nnx.eval_shape(lambda: create(name, num_classes=classes, rngs=nnx.Rngs(0), **config))
    assert convert.size_of(model) == count
