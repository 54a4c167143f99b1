"""A short training inside a preparation: of a teacher, a segmenter, a network to be thrown away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from isnet_jax.legal import number

Array = jax.Array
Tree = Any
Batches = Callable[[int], dict[str, Array]]


@dataclass(frozen=True)
class Fit:
    """How a helper is trained: Adam with a cosine schedule, clipped at norm 1.

    Attributes:
        steps: >= 1.
        learning_rate: the peak, > 0.
    """

    steps: int = 1000
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        whole = type(self.steps) is int and self.steps >= 1
        if not whole or not number(self.learning_rate) or not self.learning_rate > 0:
            raise ValueError(
                f"fit: steps={self.steps!r}, learning_rate={self.learning_rate!r}; expected an "
                "integer >= 1 and a number > 0"
            )

    def run(
        self,
        loss: Callable[[Tree, Tree, dict[str, Array], Array], tuple[Array, Tree]],
        params: Tree,
        rest: Tree,
        batches: Batches,
        seed: int,
        watch: Callable[[Tree, Tree, int, dict[str, Array]], None] | None = None,
    ) -> tuple[Tree, Tree]:
        """The trained (params, rest).

        Args:
            loss: ``(params, rest, batch, key) -> (scalar, updated rest)``, traceable.
            params: to be trained.
            rest: updated by the loss.
            batches: ``batches(i)`` is the batch of step i.
            seed: of the keys.
            watch: called before every step with (params, rest, i, batch).
        """
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

        @jax.jit
        def step(params: Tree, rest: Tree, opt_state: Tree, batch: dict, i: Array) -> tuple:
            key = jax.random.fold_in(jax.random.key(seed), i)
            found = jax.value_and_grad(loss, has_aux=True)(params, rest, batch, key)
            (_, rest), gradients = found
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), rest, opt_state

        opt_state = optimizer.init(params)
        for i in range(self.steps):
            batch = batches(i)
            if watch is not None:
                watch(params, rest, i, batch)
            params, rest, opt_state = step(params, rest, opt_state, batch, np.uint32(i))
        return params, rest
