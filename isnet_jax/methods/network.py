"""A network as every method sees it: built, called, explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax import isnet
from isnet_jax.baselines.ag_sononet import AGSononet
from isnet_jax.baselines.ham_network import HAMNet
from isnet_jax.baselines.multitask_unet import MultiTaskUNet
from isnet_jax.baselines.unet2d import UNet2D
from isnet_jax.legal import call
from isnet_jax.lrp import Composite, Logit, compute_in, relevance
from isnet_jax.lrp.composite import isnet_flex
from isnet_jax.models import create
from isnet_jax.models.create import MODELS

Array = jax.Array
State = dict[str, Any]
Make = Callable[[nnx.Rngs], nnx.Module]

# Networks that belong to one method.
OWN = {"ag_sononet": AGSononet, "ham": HAMNet, "multitask_unet": MultiTaskUNet, "unet2d": UNet2D}
_LRP = isnet_flex()


def maker(
    model: Mapping[str, Any], num_classes: int, channels: int, compute: Mapping[str, Any] = {}
) -> Make:
    """``rngs -> model`` of a card's section; in_channels follows the data unless it says so.

    Args:
        model: ``name``, of `isnet_jax.models.create` or `OWN`, and the model's arguments.
        num_classes: logits.
        channels: of the images.
        compute: ``dtype`` and ``forward`` of `isnet_jax.lrp.compute_in`.

    Raises:
        ValueError: when called: an unknown name or argument.
    """
    told = {"in_channels": channels, **model, "num_classes": num_classes}
    if "name" not in told:
        raise ValueError(f"model {dict(model)} has no name; legal: {', '.join((*MODELS, *OWN))}")
    rounding = {"dtype": None, **compute}

    def make(rngs: nnx.Rngs) -> nnx.Module:
        if told["name"] in OWN:
            options = {key: value for key, value in told.items() if key != "name"}
            return call("model", told["name"], OWN, options | {"rngs": rngs})
        made = create(**told, rngs=rngs)
        return call("compute", "model", {"model": partial(compute_in, model=made)}, rounding)

    return make


def plain_logits(output: Any) -> Array:
    """The logits (b, k) of a network that returns them, alone or as `logits` beside others."""
    return getattr(output, "logits", output)


def valid_means(terms: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
    """Means of terms (b,) over the rows that "valid" of the batch tells, over all without it."""
    valid = batch.get("valid", jnp.ones(len(batch["image"]), bool))
    count = jnp.maximum(valid.sum(), 1)
    totals = {name: jnp.where(valid, term, 0).sum() for name, term in terms.items()}
    return {name: total / count.astype(total.dtype) for name, total in totals.items()}


class Network:
    """A model's programs, and what they give for a state's "params" and "rest".

    Args:
        make: see `maker`.
        composites: views that the method's loss needs.
        logits: from the model's output to logits (b, k).
        seen: from (state, image) to the image that the model looks at.
    """

    def __init__(
        self,
        make: Make,
        *composites: Composite,
        logits: Callable[[Any], Array] = plain_logits,
        seen: Callable[[State, Array], Array] = lambda state, x: x,
    ) -> None:
        self.make, self._logits, self._seen = make, logits, seen
        self.abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self.graphs = isnet.programs(self.abstract, *composites)
        self._shown = self._explained_by()

    def _explained_by(self) -> isnet.View:
        """One explanation for all rows of a table: LRP-epsilon at the ReLUs, where there are any.

        A network with weights outside of our layers (HAM's gates) has its plain derivative.
        """
        try:
            _LRP.matches(self.abstract)
        except ValueError:
            return isnet.View(self.graphs.train, self.graphs.infer, terminal=False)
        return isnet.programs(self.abstract, _LRP).views[0]

    def init(self, rngs: nnx.Rngs) -> State:
        """Fresh "params" and "rest"."""
        params, rest = isnet.variables(self.make(rngs))
        return {"params": params, "rest": rest}

    def predict(self, state: State, x: Array) -> Array:
        """Logits (b, k) of images (b, h, w, c), on running averages."""
        x = self._seen(state, x)
        output, _ = isnet.bind(self.graphs.infer, state["params"], state["rest"])(x)
        return self._logits(output)

    def explain(self, state: State, x: Array) -> tuple[Array, Array]:
        """(relevance (b, h, w, c) of the predicted class, logits (b, k)); x as in `predict`."""
        f = isnet.bind(self._shown.infer, state["params"], state["rest"])

        def logits(x: Array) -> tuple[Array, Any]:
            output, rest = f(x)
            return self._logits(output), rest

        maps = relevance(logits, self._seen(state, x), Logit(), terminal=self._shown.terminal)
        return maps.relevance[:, 0], maps.logits
