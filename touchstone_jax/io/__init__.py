"""CTs and masks from files to arrays in one frame, and back to the files' own grid."""

from touchstone_jax.io.volumes import (
    SUFFIXES,
    Volume,
    read_ct,
    read_geometry,
    read_labels,
    read_mask,
    write,
)

__all__ = [
    "SUFFIXES",
    "Volume",
    "read_ct",
    "read_geometry",
    "read_labels",
    "read_mask",
    "write",
]
