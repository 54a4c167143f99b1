"""Every method of the papers' tables behind one signature, for `isnet_jax.tasks`.

A method says how its variables begin, what is minimised, and what must be trained before. All of
its "state" is a nested dict of arrays: "params" are what the optimizer moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from flax import nnx

from isnet_jax.isnet import VARIANTS
from isnet_jax.legal import check
from isnet_jax.methods import grouped, plain
from isnet_jax.methods.attended import Attended
from isnet_jax.methods.distilled import Distilled
from isnet_jax.methods.explained import Explained
from isnet_jax.methods.fit import Batches
from isnet_jax.methods.grouped import Grouped
from isnet_jax.methods.network import OWN, Array, Network, State
from isnet_jax.methods.plain import Plain
from isnet_jax.methods.segmented import Segmented
from isnet_jax.methods.setting import Setting

__all__ = ["METHODS", "Method", "Setting", "create"]

PLAIN = ("plain", "erm")
METHODS = tuple(
    dict.fromkeys(
        (*PLAIN, *VARIANTS, *plain.KINDS, "ag_sononet", *grouped.KINDS, "pipeline", "distillation")
    )
)
# What else can name several findings in one image.
MULTI_LABEL = (
    *PLAIN,
    *("original", "dual", "grad_x_input", "ag_sononet", "multitask_unet"),
    *("pipeline", "ham", "gals"),
)


class Method(Protocol):
    """The structure of a method; no base class.

    Attributes:
        network: what predicts and is explained.
        columns: of the training data besides "image" and "label".
    """

    network: Network
    columns: tuple[str, ...]

    def init(self, rngs: nnx.Rngs) -> State:
        """Fresh state, with "params" and "rest"; traceable."""

    def prepare(self, state: State, batches: Batches) -> State:
        """The state after what must be trained or found before the first step."""

    def loss(
        self, params: Any, state: State, batch: dict[str, Array], rng: Array, *, training: bool
    ) -> tuple[Array, tuple[dict[str, Array], State]]:
        """(scalar, (metrics, entries of the state that change)); pure, differentiable in params."""


def create(
    method: str,
    setting: Setting,
    *,
    options: Mapping[str, Any],
    teacher: Mapping[str, Any],
    explained: Mapping[str, Any],
) -> Method:
    """The method of a name.

    Args:
        method: one of `METHODS`.
        setting: data and model.
        options: of the method's own settings (`isnet_jax.baselines`, `isnet_jax.distill`).
        teacher: fields of `TeacherSettings`; for distillation and GALS.
        explained: keywords of `Explained`, for the ISNets.

    Raises:
        ValueError: an unknown name, an option that the method does not know, or data that it
            cannot learn from.
    """
    check("method", method, METHODS)
    if setting.data.multi_label and method not in MULTI_LABEL:
        raise ValueError(
            f"method {method!r} needs one label an image; for several findings there are "
            f"{', '.join(MULTI_LABEL)}"
        )
    if teacher and method not in ("distillation", "gals"):
        raise ValueError(f"method {method!r} has no teacher; distillation and gals have")
    if method in VARIANTS:
        if options:
            raise ValueError(f"method {method!r} takes no options; got {sorted(options)}")
        return Explained(setting, method, **explained)
    if method in OWN:
        setting = Setting(setting.data, {**setting.model, "name": method}, setting.compute)
    if method in (*PLAIN, "ag_sononet"):
        return Plain(setting, "erm", options)
    if method == "gals":
        return Attended(setting, options, teacher)
    if method in plain.KINDS:
        return Plain(setting, method, options)
    if method in grouped.KINDS:
        return Grouped(setting, method, options)
    if method == "pipeline":
        return Segmented(setting, options)
    return Distilled(setting, options, teacher)
