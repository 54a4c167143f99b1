"""Methods that are one network and one loss: ERM and what adds a penalty to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flax import nnx

from isnet_jax.baselines import erm, gain, gals, ham, multitask_unet, rrr
from isnet_jax.legal import call
from isnet_jax.methods.fit import Batches
from isnet_jax.methods.network import Array, Network, State, maker, plain_logits
from isnet_jax.methods.setting import Setting

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "erm": (erm.ERM, erm.objective),
    "rrr": (rrr.RRR, rrr.objective),
    "gain": (partial(gain.GAIN, extended=False), gain.objective),
    "extended_gain": (partial(gain.GAIN, extended=True), gain.objective),
    "gals": (gals.GALS, gals.objective),
    "ham": (ham.HAM, ham.objective),
    "multitask_unet": (multitask_unet.MultiTask, multitask_unet.objective),
}
"""Name -> (settings, objective)."""


class Plain:
    """One of `KINDS`.

    Args:
        setting: data, model and options.
        kind: key of `KINDS`.
        options: of the method's settings.

    Raises:
        ValueError: an unknown option, or a value that is not legal.
    """

    def __init__(self, setting: Setting, kind: str, options: Mapping[str, Any]) -> None:
        settings, self._objective = KINDS[kind]
        self._method = call("method", kind, {kind: settings}, options)
        classes = setting.num_classes
        logits: Callable[[Any], Array] = plain_logits
        if kind == "ham":
            # The normal class has no logit of its own.
            classes -= _has_normal(self._method.normal, setting)
            logits = lambda out: ham.all_logits(out, self._method)  # noqa: E731
        make = maker(setting.model, classes, setting.channels, setting.compute)
        self.network = Network(make, logits=logits)
        self.columns: tuple[str, ...] = ()

    def init(self, rngs: nnx.Rngs) -> State:
        """See `isnet_jax.methods.Method`."""
        return self.network.init(rngs)

    def loss(
        self, params: Any, state: State, batch: dict[str, Array], rng: Array, *, training: bool
    ) -> tuple[Array, tuple[dict[str, Array], State]]:
        """See `isnet_jax.methods.Method`."""
        loss, (values, rest) = self._objective(
            self.network.graphs,
            params,
            state["rest"],
            self._batch(state, batch),
            self._method,
            rng,
            training=training,
        )
        return loss, (values, {"rest": rest})

    def _batch(self, state: State, batch: dict[str, Array]) -> dict[str, Array]:
        return batch

    def prepare(self, state: State, batches: Batches) -> State:
        """See `isnet_jax.methods.Method`."""
        return state


def _has_normal(normal: int | None, setting: Setting) -> bool:
    """Whether HAM's labels include one without a finding; raises if it can be none of them."""
    if normal is None:
        return False
    if setting.data.multi_label:
        raise ValueError(f"HAM normal={normal}: of several findings none is normal; give None")
    if normal >= setting.num_classes:
        raise ValueError(
            f"HAM normal={normal}; legal: 0..{setting.num_classes - 1}, or None: every label is a "
            "finding"
        )
    return True
