"""The one loss of a distillation, its teacher online or its targets kept beside the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from isnet_jax.distill.distances import geometric_l1, output_distance, pyramid_distance
from isnet_jax.distill.heads import freeze
from isnet_jax.distill.settings import INPUT_MAPS, Distillation
from isnet_jax.distill.targets import (
    Array,
    Side,
    Tree,
    Variables,
    draw_epsilon,
    explained,
    explained_classes,
)


def teacher_targets(
    teacher: Side,
    variables: Variables,
    batch: dict[str, Array],
    method: Distillation,
    *,
    training: bool,
    rng: Array | None = None,
) -> dict[str, Array]:
    """The teacher's share of a batch: compute it in the step, or once and keep it beside the data.

    Args:
        teacher: see `side`.
        variables: the teacher's.
        batch: "image" (b, h, w, c), or "teacher_image" where the teacher sees another one (the
            masked image, say).
        method: settings.
        training: together with ``teacher_bn="batch"`` batch statistics. A cache made with them
            depends on which samples shared a batch.
        rng: key for classes and epsilons; None: arg-max and the middle epsilon.

    Returns:
        "teacher_value" (map, features or logits), "teacher_class" (b,) int32 and
        "teacher_epsilon" (b,), free of derivatives.
    """
    x = batch.get("teacher_image", batch["image"])
    of_class, of_epsilon = (None, None) if rng is None else jax.random.split(rng)
    epsilon = draw_epsilon(method, x.shape[0], of_epsilon, x.dtype)
    seen = explained(
        teacher,
        variables,
        x,
        method,
        training=training and method.teacher_bn == "batch",
        epsilon=epsilon,
        rng=of_class,
    )
    made = {
        "teacher_value": seen.value,
        "teacher_class": explained_classes(seen.logits, of_class),
        "teacher_epsilon": epsilon,
    }
    return jax.tree.map(jax.lax.stop_gradient, made)


def sample_terms(
    student: Side,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: Distillation,
    teacher: tuple[Side, Variables] | None = None,
    *,
    training: bool,
    rng: Array | None = None,
) -> tuple[dict[str, Array], Tree]:
    """Loss per sample (b,), with accuracy where labels are known, and the student's updated rest.

    Args:
        student: see `side`.
        params: the student's parameters.
        rest: the student's BatchNorm statistics.
        batch: "image"; optionally "label" (b,) int; for a cached teacher `teacher_targets` too.
        method: settings.
        teacher: (side, variables) of an online teacher; None: its targets are in the batch.
        training: BatchNorm on batch statistics.
        rng: key for classes and epsilons of an online teacher.

    Raises:
        ValueError: neither teacher nor targets, or shapes that differ.
    """
    if teacher is not None:
        targets = teacher_targets(*teacher, batch, method, training=training, rng=rng)
    else:
        names = ("teacher_value", "teacher_class", "teacher_epsilon")
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(f"no teacher given and the batch lacks {', '.join(missing)}")
        targets = {name: jax.lax.stop_gradient(batch[name]) for name in names}
    if method.frozen_head:
        params = freeze(params, student.head)
    seen = explained(
        student,
        (params, rest),
        batch["image"],
        method,
        training=training,
        classes=targets["teacher_class"],
        epsilon=targets["teacher_epsilon"],
    )
    other = targets["teacher_value"]
    if method.target == "output":
        loss = output_distance(seen.value, other, method.temperature)
    elif method.target in INPUT_MAPS:
        loss = pyramid_distance(seen.value, other)
    else:
        loss = geometric_l1(seen.value, other)
    terms = {"loss": loss}
    if "label" in batch:
        right = seen.logits.argmax(-1).astype(batch["label"].dtype) == batch["label"]
        terms["accuracy"] = right.astype(jnp.float32)
    return terms, seen.rest


def objective(
    student: Side,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: Distillation,
    teacher: tuple[Side, Variables] | None = None,
    rng: Array | None = None,
) -> tuple[Array, tuple[dict[str, Array], Tree]]:
    """Training loss of a batch, and (metrics, updated rest): the means of `sample_terms`."""
    terms, rest = sample_terms(
        student, params, rest, batch, method, teacher, training=True, rng=rng
    )
    values = {name: term.mean() for name, term in terms.items()}
    return values["loss"], (values, rest)
