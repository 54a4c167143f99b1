"""The shared scores: pure functions of masks and label maps, for jit, vmap and any device."""

from touchstone_jax.metrics.overlap import CONVENTIONS, EMPTY, dice, iou, joint_histogram

__all__ = ["CONVENTIONS", "EMPTY", "dice", "iou", "joint_histogram"]
