"""Tasks of the launcher: what to train, on what data, and how it is scored.

A task is built from a config's keyword arguments and an optimizer; the launcher (or any library
user) calls ``dataset``, ``init``, ``step``, ``evaluate`` and, where present, ``prepare``,
``explain`` and ``draw``. Everything it can get wrong raises ValueError before any compute.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental.multihost_utils import process_allgather

from isnet_jax import draw as pictures
from isnet_jax.data import TRAIN, VAL, Splits, as_dataset, load
from isnet_jax.data.identity import identity
from isnet_jax.legal import check
from isnet_jax.methods import METHODS, Setting, create
from isnet_jax.predictions import Predictions
from isnet_jax.scores import mass_in_mask

if TYPE_CHECKING:
    import grain

__all__ = ["METHODS", "MaskedClassifier"]

Array = jax.Array
State = dict[str, Any]
Feed = Callable[["grain.MapDataset"], Iterable[dict[str, Array]]]


class MaskedClassifier:
    """Classification of images, with foreground masks or without, by any method.

    Args:
        optimizer: optax transformation.
        data: ``source`` and options of `isnet_jax.data.load`.
        method: one of `METHODS`; "plain" is "erm".
        model: ``name`` and arguments of `isnet_jax.models.create`; in_channels follows the data.
            Of "ag_sononet", "ham" and "multitask_unet" the arguments of their own network.
        options: of the method's own settings: of distillation `isnet_jax.distill.Distillation`,
            of the others see `isnet_jax.methods`; the ISNets have the following instead.
        teacher: of distillation and GALS, see `isnet_jax.methods.teacher.TeacherSettings`.
        composite: ``name`` and options of `isnet_jax.lrp.create`.
        loss: fields of `HeatmapLoss`.
        weight: P, share of the heatmap loss.
        cuts: (C1, C2) of the foreground loss.
        tune_steps: steps of a throw-away plain classifier that tunes the cuts; 0 uses ``cuts``.
        tune_rate: its peak learning rate.
        strategy: "loop" or "vmap" over maps.
        deep: LRP deep supervision (loss on hidden maps too).
        deep_decay: ranked pooling decay over its layers.
        remat: less memory for some more time; see `isnet_jax.isnet.ISNet`.
        compute: ``dtype`` and ``forward`` of `isnet_jax.lrp.compute_in`; {} is float32.

    Raises:
        ValueError: any argument outside its legal values; a composite that leaves a layer of the
            model without a rule; data that do not fit (the message starts with the split), or
            lack what the method needs.
        FileNotFoundError: the data folder or a file in it is missing.
    """

    val_split = VAL

    def __init__(
        self,
        *,
        optimizer: optax.GradientTransformation,
        data: Mapping[str, Any] = {"source": "mnist_bias"},
        method: str = "selective",
        model: Mapping[str, Any] = {"name": "simple_cnn"},
        options: Mapping[str, Any] = {},
        teacher: Mapping[str, Any] = {},
        composite: Mapping[str, Any] = {"name": "isnet_flex"},
        loss: Mapping[str, Any] = {},
        weight: float = 0.7,
        cuts: Sequence[float] = (1.0, 25.0),
        tune_steps: int = 0,
        tune_rate: float = 3e-3,
        strategy: str = "loop",
        deep: bool = False,
        deep_decay: float = 1.0,
        remat: bool = False,
        compute: Mapping[str, Any] = {},
    ) -> None:
        check("method", method, METHODS)
        self._optimizer = optimizer
        self._data, self._asked = _loaded(data), data
        self.test_splits = self._data.test
        fields = {"weight": weight, "strategy": strategy, "deep": deep, "deep_decay": deep_decay}
        self._method = create(
            method,
            Setting(self._data, model, compute),
            options=options,
            teacher=teacher,
            explained={
                "composite": composite,
                "loss": loss,
                "cuts": cuts,
                "tune_steps": tune_steps,
                "tune_rate": tune_rate,
                "options": {**fields, "remat": remat},
            },
        )
        train = self._data.arrays[TRAIN]
        for name in self._method.columns:
            if name != "index" and name not in train:
                raise ValueError(
                    f"method {method!r} needs {name!r}, which {data.get('source')!r} does not "
                    f"give; it has {sorted(train)}"
                )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """{"data": what it is, wherever it lies}, by `isnet_jax.data.identity`."""
        return {"data": identity(self._asked, self._data)}

    def dataset(self, split: str) -> grain.MapDataset:
        """Items {"image" (h, w, c), "label" () or (k,), maybe "mask" (h, w, 1)}, in order.

        Of "train" and "val" also what the method needs.
        """
        check("split", split, self._data.arrays)
        arrays = self._data.arrays[split]
        wanted = {"image", "mask", "label"}
        wanted |= set(self._method.columns) if split in (TRAIN, VAL) else set()
        columns = {name: array for name, array in arrays.items() if name in wanted}
        if "index" in wanted:
            columns["index"] = np.arange(len(arrays["label"]), dtype=np.int32)
        return as_dataset(columns)

    def init(self, rng: Array) -> State:
        """Fresh variables of the method and optimizer state; traceable."""
        state = self._method.init(nnx.Rngs(rng))
        return {**state, "opt_state": self._optimizer.init(state["params"])}

    def step(self, state: State, batch: dict[str, Array], rng: Array) -> tuple[State, dict]:
        """One optimizer step; pure and traceable."""
        loss = partial(self._method.loss, state=state, batch=batch, rng=rng, training=True)
        found = jax.value_and_grad(loss, has_aux=True)(state["params"])
        (_, (values, changed)), gradients = found
        updates, opt_state = self._optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        if hasattr(self._method, "keep"):
            params = self._method.keep(params, state["params"])
        values["gradient_norm"] = optax.tree.norm(gradients)
        return {**state, **changed, "params": params, "opt_state": opt_state}, values

    def prepare(self, state: State, batches: Callable[[int], dict[str, Array]]) -> State:
        """What the method trains or finds before the first step: a teacher, cuts, groups …"""
        return self._method.prepare(state, batches)

    def evaluate(self, state: State, split: str, feed: Feed) -> Iterator[tuple[str, float]]:
        """Scores of a split in [0, 1], see `Predictions.scores`; on "val" the method's own loss.

        Maps are not made for "val": there is no mass.
        """
        if split == self.val_split:
            yield "loss", self._own_loss(state, feed)
            found = self.predictions(state, split, feed, maps=False).scores()
            yield from ((name, value) for name, value in found.items() if name != "mass")
        else:
            yield from self.predictions(state, split, feed).scores().items()

    def _own_loss(self, state: State, feed: Feed) -> float:
        total, count = 0.0, 0
        for batch in feed(self.dataset(self.val_split)):
            loss, valid = self._score(state, batch)
            total, count = total + float(loss) * int(valid), count + int(valid)
        return total / count

    @partial(jax.jit, static_argnums=0)
    def _score(self, state: State, batch: dict[str, Array]) -> tuple[Array, Array]:
        """(loss of a batch, its valid items); where a loss is a mean, filled-up items count too."""
        loss, _ = self._method.loss(
            state["params"], state, batch, jax.random.key(0), training=False
        )
        return loss, batch["valid"].sum()

    def predictions(
        self, state: State, split: str, feed: Feed, *, maps: bool = True
    ) -> Predictions:
        """What the network says of a split, and how much of its heatmaps lies in the masks.

        The heatmap is that of the predicted class: LRP-epsilon at the ReLUs, epsilon 0.01, the
        same for every method; Gradient*Input of a network without ReLUs, and of HAM's.
        """
        maps = maps and "mask" in self._data.arrays[split]
        parts: list[list[np.ndarray]] = []
        for batch in feed(self.dataset(split)):
            every = self._predict(state, batch, maps)
            if jax.process_count() > 1:  # no process holds all rows
                every = process_allgather(every, tiled=True)
            every = jax.device_get(every)
            valid = every[-1]
            parts.append([values[valid] for values in every[:-1]])
        return Predictions(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    @partial(jax.jit, static_argnums=(0, 3))
    def _predict(
        self, state: State, batch: dict[str, Array], maps: bool
    ) -> tuple[Array, Array, Array, Array]:
        network, x = self._method.network, batch["image"]
        if maps:
            heatmaps, logits = network.explain(state, x)
            mass = mass_in_mask(heatmaps, batch["mask"])
        else:
            logits = network.predict(state, x)
            mass = jnp.full(len(x), jnp.nan, x.dtype)
        return logits, batch["label"], mass, batch["valid"]

    def inference(self, state: State) -> dict[str, Any]:
        """The classifier alone, for launch's `export`; see `launch.experiment.Task`."""
        shape = self._data.arrays[TRAIN]["image"].shape[1:]
        return {
            "function": self._method.network.predict,
            "weights": {name: part for name, part in state.items() if name != "opt_state"},
            "input": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
            "about": {
                "what": "Classifier of images.",
                "tags": ["image-classification", "jax"],
                "input": "images (batch, height, width, channels) in [0, 1]",
                "output": f"logits (batch, {self._data.num_classes}), a class a column",
                "intended_use": (
                    "Research on what classifiers look at. Its scores are those on the data below "
                    "and tell of no others; it is no medical device."
                ),
            },
        }

    def explain(self, state: State, split: str, count: int) -> dict[str, np.ndarray]:
        """Panels (count, h, w, 3) uint8: image, mask if any, heatmap of the predicted class."""
        data = self._data.arrays[split]
        labels = np.asarray(data["label"])
        first = labels.argmax(1) if labels.ndim == 2 else labels
        # One digit of every class before the second of any.
        order = np.argsort(_rank_in_class(first), kind="stable")[:count]
        image = data["image"][order]
        heatmaps = np.asarray(self._heatmaps(state, image))
        panels = {"image": np.stack([pictures.image_rgb(x) for x in image])}
        if "mask" in data:
            masks = data["mask"][order].astype(np.float32)
            panels["mask"] = np.stack([pictures.image_rgb(m) for m in masks])
        panels["heatmap"] = np.stack([pictures.heatmap_rgb(r) for r in heatmaps])
        return panels

    @partial(jax.jit, static_argnums=0)
    def _heatmaps(self, state: State, x: Array) -> Array:
        """Relevance of the predicted class, shape of x."""
        return self._method.network.explain(state, x)[0]

    def draw(self, panels: dict[str, np.ndarray], path: str) -> None:
        """Writes panels as one PNG grid, a column a label."""
        pictures.save_png(pictures.grid(panels), path)


_in_use: weakref.WeakValueDictionary[str, Splits] = weakref.WeakValueDictionary()


def _loaded(data: Mapping[str, Any]) -> Splits:
    """`load`, once for all tasks of the same data that live: a table's many methods share them."""
    key = repr(sorted(data.items()))
    splits = _in_use.get(key)
    if splits is None:
        splits = _in_use[key] = load(**data)
    return splits


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        (where,) = np.nonzero(labels == label)
        rank[where] = np.arange(len(where))
    return rank
