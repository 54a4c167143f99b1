"""Teachers: networks that never learnt the bias, for distillation and for GALS' attention.

An unbiased network is trained on privileged images, one that sees the foreground alone on masked
ones; a pipeline finds the foreground itself; or a trained network is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax import isnet
from isnet_jax.baselines import pipeline
from isnet_jax.legal import call, check
from isnet_jax.methods.fit import Batches, Fit
from isnet_jax.methods.network import Array, Network, State, maker
from isnet_jax.methods.setting import Setting
from isnet_jax.stored import load_model

KINDS = ("privileged", "masked", "pipeline", "stored")
_SEED = 1


@dataclass(frozen=True)
class TeacherSettings:
    """A card's ``teacher``.

    Attributes:
        kind: "privileged" learns from the images without their bias and then sees the student's;
            "masked" sees image * mask throughout; "pipeline" image * a U-Net's mask; "stored" is
            loaded and sees the student's images.
        model: ``name`` and arguments; {}: the student's.
        steps: of its training.
        learning_rate: its peak.
        gains: multiply each channel of the images that it learns from by U(0, 1), drawn anew each
            time, so that colour tells nothing.
        segmenter: arguments of the pipeline's `UNet2D`.
        segmenter_steps: of its training.
        fill: of the background, see `isnet_jax.baselines.pipeline.FILLS`; no noise.
        weights: of "stored": file or folder, see `isnet_jax.stored.load_model`.
    """

    kind: str = "privileged"
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1000
    learning_rate: float = 3e-3
    gains: bool = False
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    segmenter_steps: int = 300
    fill: str = "zero"
    weights: str = ""

    def __post_init__(self) -> None:
        check("teacher kind", self.kind, KINDS)
        check("teacher fill", self.fill, ("zero", "white"))
        if not isinstance(self.gains, bool):
            raise ValueError(f"teacher gains={self.gains!r}; must be True or False")
        if (self.kind == "stored") != bool(self.weights):
            raise ValueError(f"teacher kind={self.kind!r}, weights={self.weights!r}: give both")


class Segmenter:
    """A U-Net that learns the masks, then tells the foreground.

    Args:
        setting: the data.
        model: arguments of `UNet2D`.
        fit: its training.
    """

    def __init__(self, setting: Setting, model: Mapping[str, Any], fit: Fit) -> None:
        self.network = Network(maker({"name": "unet2d", **model}, 2, setting.channels))
        self._fit = fit

    def init(self, rngs: nnx.Rngs) -> State:
        """Fresh "params" and "rest"."""
        return self.network.init(rngs)

    def prepare(self, state: State, batches: Batches) -> State:
        """The trained state."""
        graphs, method = self.network.graphs, pipeline.Pipeline()

        def loss(params: Any, rest: Any, batch: dict[str, Array], rng: Array) -> tuple:
            value, (_, rest) = pipeline.segmentation_objective(graphs, params, rest, batch, method)
            return value, rest

        params, rest = self._fit.run(loss, state["params"], state["rest"], batches, _SEED)
        return {"params": params, "rest": rest}

    def mask(self, state: State, x: Array, threshold: float = 0.5) -> Array:
        """Foreground (b, h, w, 1), 0 or 1, of images x."""
        graphs = self.network.graphs
        return pipeline.predicted_mask(graphs, state["params"], state["rest"], x, threshold)


class Teacher:
    """A network that is trained before its student and stays as it is.

    Args:
        setting: the data and the student's model.
        options: fields of `TeacherSettings`.

    Raises:
        ValueError: an illegal option, or data without what the kind needs.
    """

    def __init__(self, setting: Setting, options: Mapping[str, Any]) -> None:
        self.settings = call("teacher", "teacher", {"teacher": TeacherSettings}, options)
        kind, model = self.settings.kind, self.settings.model or setting.model
        self._stored = None
        if kind == "stored":
            told = {"num_classes": setting.num_classes, "in_channels": setting.channels}
            stored = load_model(**{**model, **told, "weights": self.settings.weights})
            self._stored, make = stored, lambda rngs: stored
        else:
            make = maker(model, setting.num_classes, setting.channels)
        self.network = Network(make)
        self._fit = Fit(self.settings.steps, self.settings.learning_rate)
        self._segmenter = None
        if kind == "pipeline":
            fit = Fit(self.settings.segmenter_steps, self.settings.learning_rate)
            self._segmenter = Segmenter(setting, self.settings.segmenter, fit)
        needs = {"privileged": "privileged", "masked": "mask", "pipeline": "mask"}
        self.columns: tuple[str, ...] = (needs[kind],) if kind in needs else ()

    def init(self, rngs: nnx.Rngs) -> State:
        """Fresh "params", "rest" and, of a pipeline, "segmenter"."""
        state = self.network.init(rngs)
        if self._segmenter is not None:
            state["segmenter"] = self._segmenter.init(rngs)
        return state

    def prepare(self, state: State, batches: Batches) -> State:
        """The trained state."""
        if self._stored is not None:
            params, rest = isnet.variables(self._stored)
            return {"params": params, "rest": rest}
        if self._segmenter is not None:
            state = {**state, "segmenter": self._segmenter.prepare(state["segmenter"], batches)}

        def loss(params: Any, rest: Any, batch: dict[str, Array], rng: Array) -> tuple:
            x = self._lesson(state, batch, rng)
            logits, rest = isnet.bind(self.network.graphs.train, params, rest)(x)
            return isnet.cross_entropy(logits, batch["label"]).mean(), rest

        params, rest = self._fit.run(loss, state["params"], state["rest"], batches, _SEED)
        return {**state, "params": params, "rest": rest}

    def _lesson(self, state: State, batch: dict[str, Array], rng: Array) -> Array:
        """The images that it learns from."""
        privileged = self.settings.kind == "privileged"
        x = batch["privileged"] if privileged else self.sees(state, batch)
        if not self.settings.gains:
            return x
        shape = (x.shape[0], 1, 1, x.shape[-1])
        return x * jnp.broadcast_to(jax.random.uniform(rng, shape, x.dtype), x.shape)

    def sees(self, state: State, batch: dict[str, Array]) -> Array:
        """What it looks at (b, h, w, c) while it teaches."""
        x, kind = batch["image"], self.settings.kind
        if kind in ("privileged", "stored"):
            return x
        if self._segmenter is None:
            mask = batch["mask"]
        else:
            mask = self._segmenter.mask(state["segmenter"], x)
        return pipeline.masked(x, mask, self.settings.fill)
