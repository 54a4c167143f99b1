"""The shared scores. Those of masks and label maps are pure functions, for jit, vmap and any
device; `evaluate_labels` and `evaluate_mask` give the same numbers fast on a CPU.
"""

from touchstone_jax.metrics.aggregate import INFINITE, Mean, Summary, aggregate, common_cases
from touchstone_jax.metrics.boxes import crop_to_foreground
from touchstone_jax.metrics.distance import distance_transform
from touchstone_jax.metrics.evaluable import eroded_voxels, evaluable
from touchstone_jax.metrics.hausdorff import DIRECTIONS, DISTANCE_EMPTY, assd, hd95
from touchstone_jax.metrics.host import (
    Scores,
    evaluate_labels,
    evaluate_mask,
)
from touchstone_jax.metrics.overlap import CONVENTIONS, EMPTY, dice, iou, joint_histogram
from touchstone_jax.metrics.surface import nsd

__all__ = [
    "CONVENTIONS",
    "DIRECTIONS",
    "DISTANCE_EMPTY",
    "EMPTY",
    "INFINITE",
    "Mean",
    "Scores",
    "Summary",
    "aggregate",
    "assd",
    "common_cases",
    "crop_to_foreground",
    "dice",
    "distance_transform",
    "eroded_voxels",
    "evaluable",
    "evaluate_labels",
    "evaluate_mask",
    "hd95",
    "iou",
    "joint_histogram",
    "nsd",
]
