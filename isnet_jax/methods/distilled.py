"""A student that learns from a frozen teacher's explanations, features or outputs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from isnet_jax import distill
from isnet_jax.data.splits import TRAIN
from isnet_jax.legal import call
from isnet_jax.methods.fit import Batches
from isnet_jax.methods.network import Array, Network, State, maker, valid_means
from isnet_jax.methods.setting import Setting
from isnet_jax.methods.teacher import Teacher

KEPT = ("teacher_value", "teacher_class", "teacher_epsilon")


class Distilled:
    """Distillation; see `isnet_jax.distill`.

    Args:
        setting: data and the student's model.
        options: fields of `distill.Distillation`.
        teacher: fields of `TeacherSettings`.

    A teacher's targets that are kept beside the data ("teacher_value" …, see
    `distill.teacher_targets`) are taken instead of asking the teacher again; it must then be a
    stored one, whose output layer is known (for outputs: none).

    Raises:
        ValueError: an illegal option, or student and teacher that do not go together.
    """

    def __init__(
        self, setting: Setting, options: Mapping[str, Any], teacher: Mapping[str, Any]
    ) -> None:
        known = {"distillation": distill.Distillation}
        self._method = call("method", "distillation", known, options)
        self.teacher = Teacher(setting, teacher)
        self._kept = set(KEPT) <= set(setting.data.arrays[TRAIN])
        if self._kept and self._method.frozen_head and self.teacher.settings.kind != "stored":
            raise ValueError(
                "the data hold a teacher's targets: give the teacher itself, kind='stored', for "
                "its output layer"
            )
        own = maker(setting.model, setting.num_classes, setting.channels, setting.compute)
        make = own
        if self._method.frozen_head:
            other = self.teacher.network.make

            def make(rngs: nnx.Rngs) -> nnx.Module:
                # Its head's numbers come in `prepare`, when the teacher has learnt them.
                return distill.with_teacher_head(own(rngs), other(nnx.Rngs(0)), rngs=rngs)

        self.network = Network(make)
        self._student = distill.side(self.network.abstract, self._method)
        self._teacher = distill.side(self.teacher.network.abstract, self._method)
        self.columns: tuple[str, ...] = KEPT if self._kept else self.teacher.columns

    def init(self, rngs: nnx.Rngs) -> State:
        """See `isnet_jax.methods.Method`; the teacher's state is "teacher"."""
        return {**self.network.init(rngs), "teacher": self.teacher.init(rngs)}

    def prepare(self, state: State, batches: Batches) -> State:
        """Trains the teacher and gives its output layer to the student."""
        if self._kept and not self._method.frozen_head:
            return state
        teacher = self.teacher.prepare(state["teacher"], batches)
        params = state["params"]
        if self._method.frozen_head:
            params = {**params, "classifier": teacher["params"]["classifier"]}
        return {**state, "params": params, "teacher": teacher}

    def loss(
        self, params: Any, state: State, batch: dict[str, Array], rng: Array, *, training: bool
    ) -> tuple[Array, tuple[dict[str, Array], State]]:
        """See `isnet_jax.methods.Method`."""
        teacher, seen, online = state["teacher"], batch, None
        if not self._kept:
            seen = {**batch, "teacher_image": self.teacher.sees(teacher, batch)}
            online = (self._teacher, (teacher["params"], teacher["rest"]))
        terms, rest = distill.sample_terms(
            self._student,
            params,
            state["rest"],
            seen,
            self._method,
            online,
            training=training,
            rng=rng,
        )
        values = valid_means(terms, batch)
        return values["loss"], (values, {"rest": rest})

    def keep(self, params: Any, before: Any) -> Any:
        """The parameters after an update, those that are frozen as before it (weight decay)."""
        if not self._method.frozen_head:
            return params
        return {**params, "classifier": before["classifier"]}
