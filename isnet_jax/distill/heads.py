"""The student's output layer: the teacher's, copied and frozen, behind an adapter of its width."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from isnet_jax.lrp.layers import Conv

Array = jax.Array
Tree = Any


def freeze(params: Tree, path: str) -> Tree:
    """Nested parameters whose entries under the slash ``path`` get no gradient.

    Raises:
        ValueError: nothing lies at ``path``.
    """
    name, _, below = path.partition("/")
    # Lists of layers are dicts with integer keys.
    key = int(name) if name.isdigit() and int(name) in params else name
    if key not in params:
        raise ValueError(f"no parameters at {name!r}; there are {sorted(map(str, params))}")
    inner = params[key]
    return {**params, key: freeze(inner, below) if below else jax.lax.stop_gradient(inner)}


class AdaptedPool(nnx.Module):
    """A 1x1 convolution to the teacher's width before a pool, (b, h, w, c) to (b, features)."""

    def __init__(self, adapter: Conv, pool: nnx.Module) -> None:
        self.adapter = adapter
        self.pool = pool

    def __call__(self, x: Array) -> Array:
        """Adapts and pools x (b, h, w, c)."""
        return self.pool(self.adapter(x))


def with_teacher_head(
    student: nnx.Module, teacher: nnx.Module, *, rngs: nnx.Rngs | None = None
) -> nnx.Module:
    """A student with a copy of the teacher's output layer; neither given model is changed.

    Where the widths differ, a 1x1 convolution with bias before the student's average pool makes
    the student's last features as wide as the teacher's (arXiv 2407.09788, released code).

    Args:
        student: a model whose logits are ``classifier(average(features))``: SimpleCNN, ResNet,
            DenseNet.
        teacher: likewise.
        rngs: initialises the convolution; only needed where the widths differ.

    Raises:
        ValueError: a model of another form, pools of different grids, or rngs missing.
    """
    for what, model in (("student", student), ("teacher", teacher)):
        if not hasattr(model, "average") or not hasattr(model, "classifier"):
            raise ValueError(f"{what} {type(model).__name__} has no `average` and `classifier`")
    ours: Any = nnx.clone(student)
    theirs: Any = teacher
    head = nnx.clone(theirs.classifier)
    have, want = ours.classifier.in_features, head.in_features
    cells = ours.average.size**2
    if ours.average.size != theirs.average.size:
        raise ValueError(
            f"student pools to {ours.average.size}, teacher to {theirs.average.size} cells "
            "a side: their heads read different grids"
        )
    ours.classifier = head
    if have != want:
        if rngs is None:
            raise ValueError(f"student features {have}, teacher's {want}: the adapter needs rngs")
        adapter = Conv(have // cells, want // cells, (1, 1), rngs=rngs)
        ours.average = AdaptedPool(adapter, ours.average)
        # The classifier now reads what the adapter makes, of either sign.
        ours.rectified = None
    return ours
