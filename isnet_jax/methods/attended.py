"""GALS with attention from the masks or from a teacher's Grad-CAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.baselines import gain, gals
from isnet_jax.legal import check
from isnet_jax.methods.fit import Batches
from isnet_jax.methods.network import Array, State
from isnet_jax.methods.plain import Plain
from isnet_jax.methods.setting import Setting
from isnet_jax.methods.teacher import Teacher

SOURCES = ("mask", "teacher")


class Attended(Plain):
    """GALS; see `isnet_jax.baselines.gals`.

    Args:
        setting: data and model. A column "attention" (n, h, w, 1) in the data, from CLIP say,
            is taken before anything else.
        options: of `gals.GALS`, and ``attention``, one of `SOURCES`: the foreground's mask, or the
            Grad-CAM of the label by a teacher.
        teacher: fields of `TeacherSettings`.
    """

    def __init__(
        self, setting: Setting, options: Mapping[str, Any], teacher: Mapping[str, Any]
    ) -> None:
        rest = {name: value for name, value in options.items() if name != "attention"}
        super().__init__(setting, "gals", rest)
        self._source = options.get("attention", "mask")
        check("GALS attention", self._source, SOURCES)
        self._teacher = Teacher(setting, teacher) if self._source == "teacher" else None
        self.columns = ("mask",) if self._teacher is None else self._teacher.columns
        if "attention" in setting.data.arrays["train"]:
            self._teacher, self.columns = None, ("attention",)

    def init(self, rngs: nnx.Rngs) -> State:
        """See `isnet_jax.methods.Method`; with a teacher its state is "teacher"."""
        state = super().init(rngs)
        return state | ({} if self._teacher is None else {"teacher": self._teacher.init(rngs)})

    def prepare(self, state: State, batches: Batches) -> State:
        """Trains the teacher, if there is one."""
        if self._teacher is None:
            return state
        return {**state, "teacher": self._teacher.prepare(state["teacher"], batches)}

    def _batch(self, state: State, batch: dict[str, Array]) -> dict[str, Array]:
        if "attention" in batch:
            return batch
        if self._teacher is None:
            return {**batch, "attention": batch["mask"]}
        teacher = state["teacher"]
        graphs, x = self._teacher.network.graphs, self._teacher.sees(teacher, batch)
        both = (teacher["params"], teacher["rest"])
        cam, _, _ = gain.grad_cam(graphs, *both, x, batch["label"], gain.GAIN(), training=False)
        attention = jnp.moveaxis(gals.normalised(jnp.moveaxis(cam, -1, 1)), 1, -1)
        return {**batch, "attention": jax.lax.stop_gradient(attention)}
