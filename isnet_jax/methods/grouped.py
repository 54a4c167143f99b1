"""IRM, GroupDRO and PGI with groups that a biased network's first epoch gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isnet_jax import isnet
from isnet_jax.baselines import group_dro, irm, pgi
from isnet_jax.baselines.group_inference import GroupInference, infer_groups
from isnet_jax.baselines.groups import balanced, ramped
from isnet_jax.data.splits import TRAIN
from isnet_jax.legal import call, number
from isnet_jax.lrp import taps
from isnet_jax.methods.fit import Batches, Fit
from isnet_jax.methods.network import Array, Network, State, maker, valid_means
from isnet_jax.methods.setting import Setting

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "irm": (irm.IRM, irm.objective),
    "group_dro": (group_dro.GroupDRO, group_dro.objective),
    "pgi": (pgi.PGI, pgi.objective),
}
_CHUNK = 256
_OWN = ("epoch", "ramp", "inference")


class Grouped:
    """One of `KINDS`.

    Args:
        setting: data and model.
        kind: key of `KINDS`.
        options: of the method's settings, and ``epoch``, steps after which the groups are inferred
            and before which there is no penalty (100); ``ramp``, epochs in which the penalty's
            weight grows (5); ``inference``, fields of `GroupInference`.

    Raises:
        ValueError: an unknown option or an illegal value, or a model without `average`.
    """

    def __init__(self, setting: Setting, kind: str, options: Mapping[str, Any]) -> None:
        settings, self._objective = KINDS[kind]
        own = {name: value for name, value in options.items() if name in _OWN}
        rest = {name: value for name, value in options.items() if name not in _OWN}
        self._method = call("method", kind, {kind: settings}, rest)
        self._epoch, self._ramp = own.get("epoch", 100), own.get("ramp", 5)
        whole = type(self._epoch) is int and self._epoch >= 1
        if not whole or not number(self._ramp) or not self._ramp >= 0:
            raise ValueError(
                f"{kind}: epoch={self._epoch!r}, ramp={self._ramp!r}; must be an integer >= 1 and "
                "a number >= 0"
            )
        if getattr(self._method, "groups", 2) != 2:
            raise ValueError(f"{kind}: groups={self._method.groups}; two are inferred of a class")
        inference = own.get("inference", {})
        if not isinstance(inference, Mapping):
            raise ValueError(f"{kind}: inference={inference!r}; must hold GroupInference's fields")
        self._inference = call("inference", kind, {kind: GroupInference}, inference)
        self._kind, self._setting = kind, setting
        make = maker(setting.model, setting.num_classes, setting.channels, setting.compute)
        self.network = Network(make)
        if not hasattr(self.network.abstract, "average"):
            raise ValueError(f"{kind}: model {setting.model['name']!r} has no layer `average`")
        self.columns: tuple[str, ...] = ("index",)

    def init(self, rngs: nnx.Rngs) -> State:
        """See `isnet_jax.methods.Method`; "groups" (n,), "step" and, of GroupDRO, "weights"."""
        state = self.network.init(rngs)
        if self._kind == "group_dro":
            state["weights"] = group_dro.with_weights(state["rest"], self._method)["weights"]
        # Until groups are known every sample counts as the minority, as in PGI's code.
        groups = jnp.ones(self._setting.items, jnp.int32)
        return {**state, "groups": groups, "step": jnp.zeros((), jnp.int32)}

    def loss(
        self, params: Any, state: State, batch: dict[str, Array], rng: Array, *, training: bool
    ) -> tuple[Array, tuple[dict[str, Array], State]]:
        """See `isnet_jax.methods.Method`; outside training the plain cross-entropy."""
        graphs, rest = self.network.graphs, state["rest"]
        if not training:
            terms, rest = isnet.sample_terms(graphs, params, rest, batch, None, training=False)
            values = valid_means(terms, batch)
            return values["loss"], (values, {"rest": rest})
        batch = {**batch, "group": state["groups"][batch["index"]]}
        after: State = {"step": state["step"] + 1}
        if self._kind == "group_dro":
            both = {"model": rest, "weights": state["weights"]}
            loss, (values, both) = self._objective(graphs, params, both, batch, self._method)
            return loss, (values, {**after, "rest": both["model"], "weights": both["weights"]})
        # The first epoch, without penalty, is spent in `prepare`.
        epoch = 1 + state["step"].astype(jnp.float32) / self._epoch
        weight = ramped(self._method.weight, epoch, self._ramp)
        loss, (values, rest) = self._objective(
            graphs, params, rest, batch, self._method, weight=weight
        )
        return loss, (values, {**after, "rest": rest})

    def prepare(self, state: State, batches: Batches) -> State:
        """An epoch of the halved cross-entropy, then the groups; the network goes on from there."""
        graphs = self.network.graphs

        def plain(params: Any, rest: Any, batch: dict[str, Array], rng: Array) -> tuple:
            logits, rest = isnet.bind(graphs.train, params, rest)(batch["image"])
            losses = isnet.cross_entropy(logits, batch["label"])
            return balanced(losses, jnp.ones(len(losses), jnp.int32)), rest

        fit = Fit(self._epoch)
        params, rest = fit.run(plain, state["params"], state["rest"], batches, seed=0)
        features, logits = self._features(params, rest)
        labels = np.asarray(self._setting.data.arrays[TRAIN]["label"])
        key = jax.random.key(0)
        groups = infer_groups(features, logits, labels, self._inference, key)
        groups = jax.device_put(groups, state["groups"].sharding)
        return {**state, "params": params, "rest": rest, "groups": groups}

    def _features(self, params: Any, rest: Any) -> tuple[np.ndarray, np.ndarray]:
        """(features (n, d) before the last layer, logits (n, k)) of all training images."""

        @jax.jit
        def both(params: Any, rest: Any, x: Array) -> tuple[Array, Array]:
            f = isnet.bind_tapped(self.network.graphs.infer, params, rest)
            logits, (_, kept) = f(x, taps.zero_outputs(f, x, ("average",)))
            return kept["average"].reshape(len(x), -1), logits

        # Every host makes all of them: they are the same everywhere and cheap.
        params, rest = jax.device_get((params, rest))
        images, found = self._setting.data.arrays[TRAIN]["image"], []
        for start in range(0, len(images), _CHUNK):
            found.append(jax.device_get(both(params, rest, images[start : start + _CHUNK])))
        features, logits = zip(*found, strict=True)
        return np.concatenate(features), np.concatenate(logits)
