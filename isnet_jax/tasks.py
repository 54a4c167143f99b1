"""Tasks of the launcher: what to train, on what data, and how it is scored.

A task is built from a config's keyword arguments and an optimizer; the launcher (or any library
user) calls ``dataset``, ``init``, ``step``, ``evaluate`` and, where present, ``prepare``,
``explain`` and ``draw``. Everything it can get wrong raises ValueError before any compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from isnet_jax import draw as pictures
from isnet_jax import isnet, metrics
from isnet_jax.data import TRAIN, VAL, as_dataset, load
from isnet_jax.legal import call, check
from isnet_jax.losses import HeatmapLoss, tune_cuts
from isnet_jax.lrp import Logit, compute_in, relevance
from isnet_jax.lrp import create as create_composite
from isnet_jax.models import create

if TYPE_CHECKING:
    import grain

Array = jax.Array
State = dict[str, Any]
Feed = Callable[["grain.MapDataset"], Iterable[dict[str, Array]]]

METHODS = ("plain", *isnet.VARIANTS)


class MaskedClassifier:
    """Classification of images with foreground masks, plainly or as an ISNet.

    Args:
        optimizer: optax transformation.
        data: ``source`` and options of `isnet_jax.data.load`.
        method: "plain" or a key of `isnet.VARIANTS`.
        model: ``name`` and arguments of `isnet_jax.models.create`; in_channels follows the data.
        composite: ``name`` and options of `isnet_jax.lrp.create`.
        loss: fields of `HeatmapLoss`.
        weight: P, share of the heatmap loss.
        cuts: (C1, C2) of the foreground loss.
        tune_steps: steps of a throw-away plain classifier that tunes the cuts; 0 uses ``cuts``.
        strategy: "loop" or "vmap" over maps.
        deep: LRP deep supervision (loss on hidden maps too).
        deep_decay: ranked pooling decay over its layers.
        remat: less memory for some more time; see `isnet_jax.isnet.ISNet`.
        compute: ``dtype`` and ``forward`` of `isnet_jax.lrp.compute_in`; {} is float32.

    Raises:
        ValueError: any argument outside its legal values; a composite that leaves a layer of the
            model without a rule; data that do not fit (the message starts with the split).
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
        composite: Mapping[str, Any] = {"name": "isnet_flex"},
        loss: Mapping[str, Any] = {},
        weight: float = 0.7,
        cuts: tuple[float, float] = (1.0, 25.0),
        tune_steps: int = 0,
        strategy: str = "loop",
        deep: bool = False,
        deep_decay: float = 1.0,
        remat: bool = False,
        compute: Mapping[str, Any] = {},
    ) -> None:
        check("method", method, METHODS)
        numbers = all(isinstance(cut, int | float) for cut in cuts)
        if len(cuts) != 2 or not numbers or not 0 < cuts[0] < cuts[1]:
            raise ValueError(f"cuts must be two numbers 0 < C1 < C2, got {tuple(cuts)}")
        if tune_steps < 0:
            raise ValueError(f"tune_steps={tune_steps}; must be 0 (off) or more")
        self._optimizer = optimizer
        self._tune_steps = tune_steps
        settings = {
            "composite": create_composite(**composite),
            "loss": call("heatmap loss", "ISNet", {"ISNet": HeatmapLoss}, loss),
            "weight": weight,
            "strategy": strategy,
            "deep": deep,
            "deep_decay": deep_decay,
            "remat": remat,
        }
        explainer = isnet.ISNet(**settings)
        self._isnet = None
        if method != "plain":
            explainer = self._isnet = isnet.ISNet(**(settings | isnet.VARIANTS[method]))
        self._data = load(**data)
        self.test_splits = self._data.test
        channels = self._data.arrays[TRAIN]["image"].shape[-1]
        self._model = {"in_channels": channels, **model, "num_classes": self._data.num_classes}
        self._compute = {"dtype": None, **compute}
        abstract = nnx.eval_shape(lambda: self._create(nnx.Rngs(0)))
        self._graphs = isnet.programs(abstract, *explainer.composites)
        if deep and not self._graphs.supervised:
            raise ValueError(f"model {self._model['name']!r} names no layers for deep supervision")
        layers = 1 + len(self._graphs.supervised) if deep else 1
        self._cuts = np.broadcast_to(
            np.asarray(cuts, np.float32), (layers, len(explainer.parts), 2)
        )

    def _create(self, rngs: nnx.Rngs) -> nnx.Module:
        model = create(**self._model, rngs=rngs)
        return call("compute", "model", {"model": partial(compute_in, model=model)}, self._compute)

    def dataset(self, split: str) -> grain.MapDataset:
        """Items {"image" (h, w, c), "mask" (h, w, 1), "label" ()} of a split, in order."""
        check("split", split, self._data.arrays)
        return as_dataset(dict(self._data.arrays[split]))

    def init(self, rng: Array) -> State:
        """Fresh parameters, BatchNorm statistics, optimizer state and cuts; traceable."""
        params, rest = isnet.variables(self._create(nnx.Rngs(rng)))
        return {
            "params": params,
            "rest": rest,
            "opt_state": self._optimizer.init(params),
            "cuts": jnp.asarray(self._cuts),
        }

    def step(self, state: State, batch: dict[str, Array], rng: Array) -> tuple[State, dict]:
        """One optimizer step; pure and traceable."""
        return self._step(self._isnet, state, batch, rng)

    def _step(
        self, method: isnet.ISNet | None, state: State, batch: dict[str, Array], rng: Array | None
    ) -> tuple[State, dict[str, Array]]:
        def loss(params):
            return isnet.objective(
                self._graphs, params, state["rest"], batch, method, state["cuts"], rng
            )

        (_, (values, rest)), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        updates, opt_state = self._optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        values["gradient_norm"] = optax.tree.norm(grads)
        return {**state, "params": params, "rest": rest, "opt_state": opt_state}, values

    def prepare(self, state: State, batches: Callable[[int], dict[str, Array]]) -> State:
        """Tunes the cuts on a throw-away plain classifier (`tune_cuts`), if asked to.

        The heatmaps of the last fifth of ``tune_steps`` count (the last of five epochs).
        """
        if self._isnet is None or self._tune_steps == 0:
            return state
        step = jax.jit(partial(self._step, None))
        # As replicated as the cuts are, so that every host can read all of it.
        total = jax.jit(
            lambda s, x: isnet.map_totals(self._graphs, s["params"], s["rest"], x, self._isnet),
            out_shardings=state["cuts"].sharding,
        )
        throw_away, totals = state, []
        for i in range(self._tune_steps):
            batch = batches(i)
            if i >= self._tune_steps * 4 // 5:
                totals.append(np.asarray(total(throw_away, batch["image"])))
            throw_away, _ = step(throw_away, batch, None)
        every = np.concatenate(totals, axis=-1)  # (layers, parts, samples)
        cuts = np.asarray([[tune_cuts(part) for part in layer] for layer in every], np.float32)
        return {**state, "cuts": jax.device_put(cuts, state["cuts"].sharding)}

    def evaluate(self, state: State, split: str, feed: Feed) -> Iterator[tuple[str, float]]:
        """Accuracy and macro-F1 of a split, in [0, 1]; on "val" the method's own loss too."""
        with_loss = split == self.val_split
        sums = None
        for batch in feed(self.dataset(split)):
            one = self._score(state, batch, with_loss)
            sums = one if sums is None else jax.tree.map(jnp.add, sums, one)
        if with_loss:
            yield "loss", float(sums["loss"]) / float(sums["count"])
        confusion = np.asarray(sums["confusion"])
        yield "accuracy", metrics.accuracy(confusion)
        yield "macro_f1", metrics.macro_f1(confusion)

    @partial(jax.jit, static_argnums=(0, 3))
    def _score(self, state: State, batch: dict[str, Array], with_loss: bool) -> dict[str, Array]:
        """Sums over the valid items; without the loss, the plain inference program."""
        # The maps cost a second compile and several forwards: only model selection pays for them.
        params, rest, valid = state["params"], state["rest"], batch["valid"]
        logits, _ = isnet.bind(self._graphs.infer, params, rest)(batch["image"])
        confusion = metrics.confusion_matrix(
            batch["label"], logits.argmax(-1), self._data.num_classes, valid
        )
        sums = {"confusion": confusion, "count": valid.sum()}
        if with_loss:
            terms, _ = isnet.sample_terms(
                self._graphs, params, rest, batch, self._isnet, state["cuts"], training=False
            )
            sums["loss"] = jnp.where(valid, terms["loss"], 0).sum()
        return sums

    def inference(self, state: State) -> dict[str, Any]:
        """The classifier alone, for launch's `export`; see `launch.experiment.Task`."""
        shape = self._data.arrays[TRAIN]["image"].shape[1:]
        return {
            "function": self._logits,
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

    def _logits(self, state: State, x: Array) -> Array:
        return isnet.bind(self._graphs.infer, state["params"], state["rest"])(x)[0]

    def explain(self, state: State, split: str, count: int) -> dict[str, np.ndarray]:
        """Panels (count, h, w, 3) uint8: image, mask and heatmap of the predicted class."""
        data = self._data.arrays[split]
        # One digit of every class before the second of any.
        order = np.argsort(_rank_in_class(data["label"]), kind="stable")[:count]
        image, mask = data["image"][order], data["mask"][order]
        heatmaps = np.asarray(self._heatmaps(state, image))
        return {
            "image": np.stack([pictures.image_rgb(x) for x in image]),
            "mask": np.stack([pictures.image_rgb(m.astype(np.float32)) for m in mask]),
            "heatmap": np.stack([pictures.heatmap_rgb(r) for r in heatmaps]),
        }

    @partial(jax.jit, static_argnums=0)
    def _heatmaps(self, state: State, x: Array) -> Array:
        """Relevance of the predicted class, shape of x."""
        view = self._graphs.views[0]
        f = isnet.bind(view.infer, state["params"], state["rest"])
        return relevance(f, x, Logit(), terminal=view.terminal).relevance[:, 0]

    def draw(self, panels: dict[str, np.ndarray], path: str) -> None:
        """Writes panels as one PNG grid, a column a label."""
        pictures.save_png(pictures.grid(panels), path)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        (where,) = np.nonzero(labels == label)
        rank[where] = np.arange(len(where))
    return rank
