"""What is distilled of the teacher, and the published recipes (arXiv 2407.09788)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isnet_jax.legal import check, number

INPUT_MAPS = ("lrp", "gradient_x_input", "gradient")
LAYER_MAPS = ("grad_cam", "attention", "features")
TARGETS = (*INPUT_MAPS, *LAYER_MAPS, "output")
TEACHER_BN = ("batch", "running")

RECIPES: dict[str, dict[str, float]] = {
    "lrp": {"epochs": 100, "learning_rate": 1e-2, "momentum": 0.99},
    "gradient_x_input": {"epochs": 200, "learning_rate": 1e-3, "momentum": 0.95},
    "gradient": {"epochs": 200, "learning_rate": 1e-3, "momentum": 0.95},
    "features": {"epochs": 100, "learning_rate": 1e-2, "momentum": 0.99},
    "output": {"epochs": 100, "learning_rate": 1e-2, "momentum": 0.99},
}
"""Published SGD settings (Coloured MNIST; batch 128, clip 1, no decay, no schedule)."""


@dataclass(frozen=True)
class Distillation:
    """What of the teacher is distilled, and how the two are compared.

    Attributes:
        target: one of `TARGETS`.
        log10_epsilon: (low, high), LRP's epsilon is 10^U(low, high), one a sample and step, the
            same for teacher and student; without a key 10^((low + high) / 2).
        selective: explain the class-selective quantity (epsilon 0.01) instead of the logit.
        teacher_bn: "batch" runs the teacher on batch statistics in training, as the released code
            does, "running" always on its running averages.
        statistics: "through" lets heatmaps differentiate the batch statistics, as the released
            code does; "detach" holds them constant (proper LRP).
        freeze_head: no gradient reaches the student's output layer; None: all targets but output.
        temperature: of the output distillation, > 0.
        rectified: Grad-CAM with its ReLU, as published. A student's map of zeros has no gradient,
            and next to a teacher's map of zeros any other is infinitely far; of ten classes most
            maps are. False compares what the ReLU is applied to.

    Raises:
        ValueError: a value outside the above.
    """

    target: str = "lrp"
    log10_epsilon: tuple[float, float] = (-2.0, -1.0)
    selective: bool = False
    teacher_bn: str = "batch"
    statistics: str = "through"
    freeze_head: bool | None = None
    temperature: float = 3.0
    rectified: bool = True

    def __post_init__(self) -> None:
        check("distillation target", self.target, TARGETS)
        check("teacher_bn", self.teacher_bn, TEACHER_BN)
        check("statistics", self.statistics, ("through", "detach"))
        for name in ("selective", "freeze_head", "rectified"):
            given, unset = getattr(self, name), (None,) if name == "freeze_head" else ()
            if given not in (True, False, *unset):
                raise ValueError(f"{name}={given!r}; legal: {(True, False, *unset)}")
        given = self.log10_epsilon
        pair = isinstance(given, Sequence) and len(given) == 2 and all(map(number, given))
        if not pair or not -30 <= given[0] <= given[1] <= 30:
            raise ValueError(f"log10_epsilon={given!r}; expected -30 <= low <= high <= 30")
        if not number(self.temperature) or not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}; must be positive and finite")

    @property
    def frozen_head(self) -> bool:
        """Whether the student's output layer gets no gradient."""
        return self.target != "output" if self.freeze_head is None else self.freeze_head
