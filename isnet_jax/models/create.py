"""Models by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flax import nnx

from isnet_jax.legal import call
from isnet_jax.models.resnet import ResNet
from isnet_jax.models.simple_cnn import SimpleCNN

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "simple_cnn": SimpleCNN,
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2)),
}


def create(name: str, *, num_classes: int, rngs: nnx.Rngs, **config: object) -> nnx.Module:
    """A freshly initialised classifier: (b, h, w, c) to logits (b, num_classes).

    Args:
        name: a key of `MODELS`.
        num_classes: logits, >= 1.
        rngs: initialisation, e.g. ``nnx.Rngs(0)``.
        **config: the model's own arguments.

    Raises:
        ValueError: unknown name, or an argument the model does not take.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}; must be at least 1")
    return call("model", name, MODELS, {"num_classes": num_classes, "rngs": rngs, **config})
