"""Config -> optax chain."""

from __future__ import annotations

from typing import Any

import jax
import optax

from launch.experiment import Optimizer


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then constant, cosine, poly or steps."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, steps - warmup), settings.end_factor)
    elif settings.schedule == "poly":
        end, left = peak * settings.end_factor, max(1, steps - warmup)
        after = optax.polynomial_schedule(peak, end, settings.power, left)
    elif settings.schedule == "step":
        drops = {int(at) - warmup: settings.step_factor for at in settings.step_at}
        after = optax.piecewise_constant_schedule(peak, drops)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _decays(params: Any) -> Any:
    """Biases and the scales of normalisation layers (one dimension or none) do not decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clip by global norm -> weight decay -> sgd, adam or adamw with the schedule."""
    rate = schedule(settings, steps)
    mask = None if settings.decay_all else _decays
    chain = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    if settings.weight_decay and settings.name != "adamw":
        chain.append(optax.add_decayed_weights(settings.weight_decay, mask))
    if settings.name == "sgd":
        chain.append(optax.sgd(rate, settings.momentum or None, settings.nesterov))
    else:
        moments = {"b1": settings.beta1, "b2": settings.beta2, "eps": settings.epsilon}
        if settings.name == "adam":
            chain.append(optax.adam(rate, **moments))
        else:
            decay = settings.weight_decay
            chain.append(optax.adamw(rate, **moments, weight_decay=decay, mask=mask))
    return optax.chain(*chain)
