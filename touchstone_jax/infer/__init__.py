"""Sliding windows over whole volumes."""

from touchstone_jax.infer.sliding import (
    Block,
    Box,
    Finish,
    SlidingWindow,
    Sums,
    check_options,
)

__all__ = [
    "Block",
    "Box",
    "Finish",
    "SlidingWindow",
    "Sums",
    "check_options",
]
