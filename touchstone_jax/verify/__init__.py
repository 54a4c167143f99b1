"""What is wrong with a data set: one finding a problem."""

from touchstone_jax.verify.examine import (
    Examined,
    examine,
    verify,
)

__all__ = [
    "Examined",
    "examine",
    "verify",
]
