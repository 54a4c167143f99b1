"""The ISNets: a heatmap loss beside the cross-entropy, its cuts given or tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isnet_jax import isnet
from isnet_jax.legal import call
from isnet_jax.losses import HeatmapLoss, tune_cuts
from isnet_jax.lrp import create as create_composite
from isnet_jax.methods.fit import Batches, Fit
from isnet_jax.methods.network import Array, Network, State, maker, valid_means
from isnet_jax.methods.setting import Setting


class Explained:
    """An ISNet; see `isnet_jax.isnet`.

    Args:
        setting: data and model.
        variant: key of `isnet.VARIANTS`.
        composite: ``name`` and options of `isnet_jax.lrp.create`.
        loss: fields of `HeatmapLoss`.
        cuts: (C1, C2) of the foreground loss.
        tune_steps: steps of a throw-away plain classifier that tunes the cuts; 0: ``cuts``.
        tune_rate: its peak learning rate.
        options: further fields of `isnet.ISNet`.

    Raises:
        ValueError: an argument outside its legal values, a composite that leaves a layer of the
            model without a rule, data without masks, or deep supervision of a model that names no
            layers for it.
    """

    def __init__(
        self,
        setting: Setting,
        variant: str,
        *,
        composite: Mapping[str, Any],
        loss: Mapping[str, Any],
        cuts: Sequence[float],
        tune_steps: int,
        tune_rate: float,
        options: Mapping[str, Any],
    ) -> None:
        numbers = all(isinstance(cut, int | float) for cut in cuts)
        if len(cuts) != 2 or not numbers or not 0 < cuts[0] < cuts[1]:
            raise ValueError(f"cuts must be two numbers 0 < C1 < C2, got {tuple(cuts)}")
        if tune_steps < 0:
            raise ValueError(f"tune_steps={tune_steps}; must be 0 (off) or more")
        self._tune = Fit(tune_steps, tune_rate) if tune_steps else None
        settings = {
            "composite": create_composite(**composite),
            "loss": call("heatmap loss", "ISNet", {"ISNet": HeatmapLoss}, loss),
            **options,
        }
        self.isnet = isnet.ISNet(**(settings | isnet.VARIANTS[variant]))
        make = maker(setting.model, setting.num_classes, setting.channels, setting.compute)
        self.network = Network(make, *self.isnet.composites)
        supervised = self.network.graphs.supervised
        if self.isnet.deep and not supervised:
            name = setting.model["name"]
            raise ValueError(f"model {name!r} names no layers for deep supervision")
        layers = 1 + len(supervised) if self.isnet.deep else 1
        shape = (layers, len(self.isnet.parts), 2)
        self._cuts = np.broadcast_to(np.asarray(cuts, np.float32), shape)
        self.columns: tuple[str, ...] = ("mask",)

    def init(self, rngs: nnx.Rngs) -> State:
        """See `isnet_jax.methods.Method`; "cuts" (layers, parts, 2) too."""
        return {**self.network.init(rngs), "cuts": jnp.asarray(self._cuts)}

    def loss(
        self, params: Any, state: State, batch: dict[str, Array], rng: Array, *, training: bool
    ) -> tuple[Array, tuple[dict[str, Array], State]]:
        """See `isnet_jax.methods.Method`."""
        terms, rest = isnet.sample_terms(
            self.network.graphs,
            params,
            state["rest"],
            batch,
            self.isnet,
            state["cuts"],
            training=training,
            rng=rng if training else None,
        )
        values = valid_means(terms, batch)
        return values["loss"], (values, {"rest": rest})

    def prepare(self, state: State, batches: Batches) -> State:
        """Tunes the cuts on a throw-away plain classifier (`tune_cuts`), if asked to.

        The heatmaps of the last fifth of its steps count (the last of five epochs).
        """
        tune = self._tune
        if tune is None:
            return state
        graphs, totals = self.network.graphs, []
        # As replicated as the cuts are, so that every host can read all of it.
        total = jax.jit(
            lambda params, rest, x: isnet.map_totals(graphs, params, rest, x, self.isnet),
            out_shardings=state["cuts"].sharding,
        )

        def watched(params: Any, rest: Any, i: int, batch: dict[str, Array]) -> None:
            if i >= tune.steps * 4 // 5:
                totals.append(np.asarray(total(params, rest, batch["image"])))

        def plain(params: Any, rest: Any, batch: dict[str, Array], rng: Array) -> tuple:
            loss, (_, rest) = isnet.objective(graphs, params, rest, batch, None)
            return loss, rest

        tune.run(plain, state["params"], state["rest"], batches, seed=0, watch=watched)
        every = np.concatenate(totals, axis=-1)  # (layers, parts, samples)
        cuts = np.asarray([[tune_cuts(part) for part in layer] for layer in every], np.float32)
        return {**state, "cuts": jax.device_put(cuts, state["cuts"].sharding)}
