"""Distillation of a frozen teacher into a student: of its explanations, features or outputs.

Explanation distillation trains on ONE loss, the distance between the student's and the teacher's
heatmap of one logit a sample; labels are not used. The student's last linear layer is the
teacher's, frozen (`with_teacher_head`), because relevance says nothing about its bias.

Source: Bassi, Cavalli, Decherchi 2024, arXiv 2407.09788 ("Explanation is All You Need in
Distillation"); Hinton et al. 2015 (output); Zagoruyko & Komodakis 2017 (activation attention);
Selvaraju et al. 2017 (Grad-CAM).
"""

from isnet_jax.distill.distances import (
    geometric_l1,
    output_distance,
    pyramid_distance,
    pyramid_scales,
)
from isnet_jax.distill.heads import AdaptedPool, freeze, with_teacher_head
from isnet_jax.distill.objective import objective, sample_terms, teacher_targets
from isnet_jax.distill.settings import (
    INPUT_MAPS,
    LAYER_MAPS,
    RECIPES,
    TARGETS,
    TEACHER_BN,
    Distillation,
)
from isnet_jax.distill.targets import (
    Explained,
    Side,
    draw_epsilon,
    explained,
    explained_classes,
    side,
)

__all__ = [
    "INPUT_MAPS",
    "LAYER_MAPS",
    "RECIPES",
    "TARGETS",
    "TEACHER_BN",
    "AdaptedPool",
    "Distillation",
    "Explained",
    "Side",
    "draw_epsilon",
    "explained",
    "explained_classes",
    "freeze",
    "geometric_l1",
    "objective",
    "output_distance",
    "pyramid_distance",
    "pyramid_scales",
    "sample_terms",
    "side",
    "teacher_targets",
    "with_teacher_head",
]
