"""What a method is given: the shape of the data and the card's sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isnet_jax.data import Splits
from isnet_jax.data.splits import TRAIN


@dataclass(frozen=True)
class Setting:
    """Data and model of a training.

    Attributes:
        data: the splits.
        model: the card's ``name`` and arguments.
        compute: of `isnet_jax.lrp.compute_in`.
    """

    data: Splits
    model: Mapping[str, Any]
    compute: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Logits."""
        return self.data.num_classes

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.data.arrays[TRAIN]["image"].shape[-1]

    @property
    def items(self) -> int:
        """Training images."""
        return len(self.data.arrays[TRAIN]["label"])
