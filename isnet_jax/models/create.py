"""Models by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from isnet_jax.legal import call
from isnet_jax.models.backbone import Backbone
from isnet_jax.models.densenet import DenseNet
from isnet_jax.models.resnet import ResNet
from isnet_jax.models.simple_cnn import SimpleCNN
from isnet_jax.models.squeezenet import SqueezeNet
from isnet_jax.models.vgg import VGG
from isnet_jax.models.vit import ViT

_VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

# A family's own name leaves its depths to the caller.
MODELS: dict[str, Callable[..., Backbone]] = {
    "simple_cnn": SimpleCNN,
    "resnet": ResNet,
    "resnet18": partial(ResNet, block="basic", depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, block="basic", depths=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, block="bottleneck", depths=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, block="bottleneck", depths=(3, 4, 23, 3)),
    "densenet": DenseNet,
    "densenet121": partial(DenseNet, depths=(6, 12, 24, 16)),
    "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
    "vgg": VGG,
    **{name: partial(VGG, depths=depths, norm=False) for name, depths in _VGG.items()},
    **{f"{name}_bn": partial(VGG, depths=depths, norm=True) for name, depths in _VGG.items()},
    "squeezenet1_1": SqueezeNet,
    "vit": ViT,
    "vit_b_16": partial(ViT, depth=12, heads=12),
}


def create(name: str, *, num_classes: int, rngs: nnx.Rngs, **config: Any) -> Backbone:
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
