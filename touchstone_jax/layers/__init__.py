"""Layers of the networks: 3-D convolutions that are fast in XLA, norms, what is built of them."""

from touchstone_jax.layers.blocks import (
    LOWERINGS,
    SLOPE,
    BatchNorm,
    Conv,
    ConvNormAct,
    InstanceNorm,
    Triple,
    UpConv,
    add_bias,
    convolve,
    he_normal,
    standardise,
    triple,
    upsample,
)

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvNormAct",
    "InstanceNorm",
    "LOWERINGS",
    "SLOPE",
    "Triple",
    "UpConv",
    "add_bias",
    "convolve",
    "he_normal",
    "standardise",
    "triple",
    "upsample",
]
