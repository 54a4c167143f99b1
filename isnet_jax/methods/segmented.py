"""Segment, then classify: the classifier never sees what a U-Net takes for background."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from isnet_jax.baselines import pipeline
from isnet_jax.legal import call
from isnet_jax.methods.fit import Batches, Fit
from isnet_jax.methods.network import Array, Network, State, maker
from isnet_jax.methods.setting import Setting
from isnet_jax.methods.teacher import Segmenter

_OWN = ("segmenter", "segmenter_steps", "segmenter_rate")


class Segmented:
    """The pipeline; see `isnet_jax.baselines.pipeline`.

    Args:
        setting: data and the classifier's model.
        options: fields of `Pipeline`, and ``segmenter``, arguments of `UNet2D`, with
            ``segmenter_steps`` (300) and ``segmenter_rate`` (3e-3) of its training.

    Raises:
        ValueError: an illegal option; a fill that draws noise, which a frozen pipeline cannot.
    """

    def __init__(self, setting: Setting, options: Mapping[str, Any]) -> None:
        own = {name: value for name, value in options.items() if name in _OWN}
        rest = {name: value for name, value in options.items() if name not in _OWN}
        self._method = call("method", "pipeline", {"pipeline": pipeline.Pipeline}, rest)
        if self._method.fill not in ("zero", "white"):
            raise ValueError(f"pipeline fill={self._method.fill!r}: a task takes zero or white")
        fit = Fit(own.get("segmenter_steps", 300), own.get("segmenter_rate", 3e-3))
        self._segmenter = Segmenter(setting, own.get("segmenter", {}), fit)
        make = maker(setting.model, setting.num_classes, setting.channels, setting.compute)
        self.network = Network(make, seen=self._seen)
        self.columns: tuple[str, ...] = ("mask",)

    def _seen(self, state: State, x: Array) -> Array:
        mask = self._segmenter.mask(state["segmenter"], x, self._method.threshold)
        return pipeline.masked(x, mask, self._method.fill)

    def init(self, rngs: nnx.Rngs) -> State:
        """See `isnet_jax.methods.Method`; the U-Net's state is "segmenter"."""
        return {**self.network.init(rngs), "segmenter": self._segmenter.init(rngs)}

    def prepare(self, state: State, batches: Batches) -> State:
        """Trains the U-Net."""
        return {**state, "segmenter": self._segmenter.prepare(state["segmenter"], batches)}

    def loss(
        self, params: Any, state: State, batch: dict[str, Array], rng: Array, *, training: bool
    ) -> tuple[Array, tuple[dict[str, Array], State]]:
        """See `isnet_jax.methods.Method`."""
        frozen = state["segmenter"]
        loss, (values, rest) = pipeline.objective(
            self.network.graphs,
            params,
            state["rest"],
            batch,
            self._method,
            rng,
            training=training,
            segmenter=(self._segmenter.network.graphs, (frozen["params"], frozen["rest"])),
        )
        return loss, (values, {"rest": rest})
