"""CTs resampled and normalised by a plan, and the way back to their own grid."""

from touchstone_jax.prepare.cases import (
    VERSION,
    prepare_case,
    prepare_image,
    sample_foreground,
    target_shape,
    to_source_grid,
)

__all__ = [
    "VERSION",
    "prepare_case",
    "prepare_image",
    "sample_foreground",
    "target_shape",
    "to_source_grid",
]
