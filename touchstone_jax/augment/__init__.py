"""Random changes of training patches, on the device."""

from touchstone_jax.augment.program import (
    Image,
    augment,
    augment_batch,
)

__all__ = [
    "Image",
    "augment",
    "augment_batch",
]
