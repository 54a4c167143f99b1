"""Sliding windows over whole volumes."""

from touchstone_jax.infer.sliding import (
    Block,
    Box,
    Finish,
    SlidingWindow,
    Sums,
    check_options,
)
from touchstone_jax.infer.zoom import Zoom

__all__ = [
    "Block",
    "Box",
    "Finish",
    "SlidingWindow",
    "Sums",
    "Zoom",
    "check_options",
]
