"""Tasks of the launcher: a segmentation network trained on what `prepare` made.

The launcher (or any library user) calls ``dataset``, ``init``, ``step``, ``evaluate`` and, to
predict, ``predictor``. Everything a task can get wrong raises ValueError or FileNotFoundError
before any compute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.augment import augment_batch
from touchstone_jax.augment import settings as augmentations
from touchstone_jax.counts import counts, dice_by_organ, mean_dice_by_organ
from touchstone_jax.labels.scheme import Scheme
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.layers import triple
from touchstone_jax.losses import IGNORE, dice_cross_entropy, loss_for, segmentation_loss
from touchstone_jax.models import accepts, create, topology
from touchstone_jax.patches import random_patches, read_set, split_cases, tiles
from touchstone_jax.prepare.planning_rules import coarse_axis

if TYPE_CHECKING:
    import grain

State = dict[str, Any]
Batch = dict[str, Array]
Feed = Callable[["grain.MapDataset"], Iterable[Batch]]
Network = Callable[..., Float[Array, "b x y z k"]]
Prompts = Mapping[str, Array]
TRAIN, VAL, TILES = "train", "val", "tiles"


class Segmenter:
    """Training on random patches by a loss of Dice and cross-entropy, with deep supervision.

    A network with a method ``training_loss`` is trained by that instead, and parameters whose slash
    path its ``frozen`` matches are not: the optimizer keeps nothing of them. The kinds of prompts
    that it takes, its ``prompts``, are the task's, too, for `touchstone_jax.prompts`.

    Splits: "train", random patches of the training cases; "val", as many fixed ones of each
    validation case; "tiles", patches side by side that cover the validation cases.

    Args:
        optimizer: optax transformation.
        data: folder that `prepare` made; or an `identity`, for a task that only predicts.
        model: ``name`` and arguments of `touchstone_jax.models.create`. Kernels and strides that
            are not given follow from the plan's spacing and the patch, `touchstone_jax.models.
            topology`, and so do widths: 32, 64, … 320. Names of organs are those of the labels.
        patch: voxels (x, y, z); None for the plan's.
        margin: voxels read around the patch on each side, for rotations to turn into view; one
            number or three.
        augmentation: ``preset`` and fields of `touchstone_jax.augment.settings.Augmentation`.
        loss: of `touchstone_jax.losses.LOSSES`; None for nnU-Net's, with sigmoids "dice_bce".
        batch_dice: one Dice over the batch instead of one a sample.
        smooth: of `touchstone_jax.losses.soft_dice`.
        foreground: share of patches centred on an organ.
        zoom_out: share of training patches that are a whole case made as small as a patch, for
            `touchstone_jax.infer.Zoom`. They are augmented as if their spacing were the plan's.
        per_case: patches of each case in an epoch.
        validation: share of the cases; see `touchstone_jax.patches.split_cases`.
        validation_cases: ids instead of a share; all ids, to validate on what is trained on.
        val_patches: fixed patches of each validation case.
        ema: decay of a running mean of the parameters, which is then what is evaluated and
            predicts; 0 for none.
        seed: of the split and the draws of patches.

    Raises:
        ValueError: any argument outside its legal values, or a patch that the network cannot take.
        FileNotFoundError: the data folder or a case in it is missing.
    """

    infers_from = ("data",)

    def __init__(
        self,
        *,
        optimizer: optax.GradientTransformation,
        data: str | Mapping[str, Any],
        model: Mapping[str, Any] = {"name": "unet"},
        patch: int | Sequence[int] | None = None,
        margin: int | Sequence[int] = 0,
        augmentation: Mapping[str, Any] = {},
        loss: str | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
        foreground: float = 0.33,
        zoom_out: float = 0.0,
        per_case: int = 1,
        validation: float = 0.05,
        validation_cases: Sequence[str] = (),
        val_patches: int = 4,
        ema: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check(smooth=smooth, ema=ema, val_patches=val_patches, seed=seed)
        self._ema = ema
        self._set = read_set(data)
        self._plan, self._labels = self._set.plan, scheme(self._set.plan.labels)
        self._patch = triple(self._plan.patch if patch is None else patch, "patch")
        self._block = _block(self._patch, margin)
        self._augmentation = augmentations.create(
            **{"coarse_axis": coarse_axis(self._plan.spacing_mm), **augmentation}
        )
        self._loss: dict[str, Any] = {"loss": loss, "batch": batch_dice, "smooth": smooth}
        self._draws: dict[str, Any] = {"foreground": foreground, "seed": seed}
        if zoom_out and self._block != self._patch:
            raise ValueError(f"zoom_out={zoom_out} with margin={margin}; expected a margin of 0")
        self._zoom_out = {TRAIN: zoom_out, VAL: 0.0}
        cases, held = self._set.cases, tuple(validation_cases) or validation
        self._train, self._val = split_cases(cases, held, seed=seed) if cases else ((), ())
        self._per_case = {TRAIN: per_case, VAL: val_patches}
        self.val_split = VAL if self._val else None
        self.test_splits = (TILES,) if self._val else ()
        self._graphs = self._programs(model)
        every = all(jax.tree.leaves(self._trained))
        self._optimizer = optimizer if every else optax.masked(optimizer, self._trained)
        if cases:
            self.dataset(TRAIN)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """{"data": `PreparedSet.identity`}: what launch compares instead of where they lie."""
        return {"data": self._set.identity()}

    def _programs(self, model: Mapping[str, Any]) -> dict[str, nnx.GraphDef]:
        """Static halves of the network by mode: training, evaluation, evaluation to features."""
        self._model = _planned(model, self._plan.spacing_mm, self._patch)
        if accepts(self._model["name"], "organs"):
            self._model = {"organs": self._labels.classes, **self._model}
        abstract = nnx.eval_shape(lambda: self._create(nnx.Rngs(0)))
        self._activation = getattr(abstract, "activation", "softmax")
        self._loss["loss"] = loss_for(self._activation, self._loss["loss"])
        self._loss["weights"] = getattr(abstract, "scale_weights", None)
        x = jax.ShapeDtypeStruct((1, *self._patch, 1), jnp.float32)
        nnx.eval_shape(lambda m, x: m(x), abstract, x)  # refuses a patch that does not fit
        self._trained, self.prompts = trained(abstract), getattr(abstract, "prompts", {})
        graphdef, variables = nnx.split(abstract)
        twin = nnx.merge(graphdef, nnx.to_pure_dict(variables))
        found = {}
        modes = {"train": twin.train, "eval": twin.eval}
        if getattr(twin, "headless", None) is not None:
            modes["features"] = partial(twin.eval, headless=True)
        for mode, switch in modes.items():
            switch()
            found[mode] = nnx.split(twin, nnx.Param, ...)[0]
        return found

    @property
    def organs(self) -> tuple[str, ...]:
        """Names of the classes but the background, in the order of the network's outputs."""
        return tuple(self._labels.classes)

    def _create(self, rngs: nnx.Rngs) -> nnx.Module:
        return create(**self._model, num_classes=self._labels.num_classes, rngs=rngs)

    def dataset(self, split: str) -> grain.MapDataset:
        """Items {"image" (x, y, z, 1) float16, "labels" (x, y, z) uint8, "annotated" (k,) bool}.

        Of "train" the patch with its margin; of "tiles" also "case", its number.

        Raises:
            ValueError: another split, or a task that only predicts.
        """
        if not self._set.cases:
            raise ValueError(f"split {split!r}: the task was made without data, to predict alone")
        cases = {TRAIN: self._train, VAL: self._val, TILES: self._val}.get(split)
        if cases is None:
            raise ValueError(f"split {split!r}; legal: {TRAIN}, {VAL}, {TILES}")
        if split == TILES:
            return tiles(self._set, cases, self._patch)
        block = self._block if split == TRAIN else self._patch
        how = {**self._draws, "per_case": self._per_case[split], "zoom_out": self._zoom_out[split]}
        return random_patches(self._set, cases, block, **how)

    # --------------------------------------------------------------------- training

    def init(self, rng: Array) -> State:
        """Fresh parameters, other variables, optimizer state and running mean; traceable."""
        _, *states = nnx.split(self._create(nnx.Rngs(rng)), nnx.Param, ...)
        params, rest = map(nnx.to_pure_dict, states)
        state = {"params": params, "rest": rest, "opt_state": self._optimizer.init(params)}
        if self._ema:
            state["ema"] = {"params": jax.tree.map(jnp.copy, params), "steps": jnp.int32(0)}
        return state

    def step(self, state: State, batch: Batch, rng: Array) -> tuple[State, dict[str, Array]]:
        """One optimizer step; pure and traceable."""
        image, labels = augment_batch(
            rng,
            batch["image"],
            batch["labels"],
            self._augmentation,
            patch=self._patch,
            spacing_mm=self._plan.spacing_mm,
        )

        def loss(params: Any) -> tuple[Array, tuple[dict[str, Array], Any]]:
            network = nnx.merge(self._graphs["train"], params, state["rest"])
            terms = self._terms(network, image, labels, batch["annotated"], rng)
            return terms["loss"], (terms, nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param))))

        (_, (values, rest)), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        # Known to be zero, gradients of frozen parameters are not computed.
        grads = jax.tree.map(lambda g, t: g if t else jnp.zeros_like(g), grads, self._trained)
        updates, opt_state = self._optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        values["gradient_norm"] = optax.tree.norm(grads)
        after = {**state, "params": params, "rest": rest, "opt_state": opt_state}
        if self._ema:
            after["ema"] = running_mean(state["ema"], params, self._ema)
        return after, values

    def _terms(
        self, network: nnx.Module, image: Array, labels: Array, annotated: Array, rng: Array
    ) -> dict[str, Array]:
        """The loss and what it is the sum of: the network's own, or that of its logits."""

        def loss(logits: Sequence[Array]) -> dict[str, Array]:
            return segmentation_loss(logits, labels, annotated, **self._loss)

        if not hasattr(network, "training_loss"):
            return loss(network(image))
        return network.training_loss(image, labels, annotated, jax.random.fold_in(rng, 1), loss)

    # --------------------------------------------------------------------- evaluation

    def evaluate(self, state: State, split: str, feed: Feed) -> Iterator[tuple[str, float]]:
        """Dice of each organ and their mean, in [0, 1]; on "val" the loss too.

        On "val" the voxels of all patches count as one (nnU-Net's pseudo Dice). On "tiles" each
        case has its Dice, an organ's is the mean over the cases that hold it. Organs that no
        validation case holds are left out.
        """
        cases = len(self._val) if split == TILES else 1
        sums: Any = None
        for batch in feed(self.dataset(split)):
            one = self._score(state, batch, cases)
            sums = one if sums is None else jax.tree.map(jnp.add, sums, one)
        if split == VAL:
            yield "loss", float(sums["loss"]) / float(sums["samples"])
        found = np.asarray(sums["counts"], np.int64)
        dice = mean_dice_by_organ(found) if split == TILES else dice_by_organ(found.sum(0))
        named = dict(zip(self._labels.classes, dice[self._numbers()], strict=True))
        known = {name: float(value) for name, value in named.items() if not np.isnan(value)}
        yield "dice", float(np.mean(list(known.values()))) if known else 0.0
        yield from ((f"dice_{name}", value) for name, value in known.items())

    def _numbers(self) -> list[int]:
        return [self._labels.indices[name] for name in self._labels.classes]

    @partial(jax.jit, static_argnums=(0, 3))
    def _score(self, state: State, batch: Batch, cases: int) -> dict[str, Array]:
        """Sums over the valid items: counts (cases, k, 3), loss, samples."""
        valid = batch["valid"]
        labels = jnp.where(
            valid[:, None, None, None], batch["labels"], jnp.asarray(IGNORE, batch["labels"].dtype)
        )
        logits = self._part(self._logits, state)(batch["image"].astype(jnp.float32))

        def loss(logits: Array, labels: Array, annotated: Array) -> Array:
            how = {"loss": self._loss["loss"]}
            entropy, dice = dice_cross_entropy(logits[None], labels[None], annotated[None], **how)
            return entropy + dice

        each = jax.vmap(loss)(logits, labels, batch["annotated"])
        case = batch.get("case", jnp.zeros(len(valid), jnp.int32))
        return {
            "counts": counts(logits.argmax(-1), labels, case, cases, logits.shape[-1]),
            "loss": jnp.where(valid, each, 0).sum(),
            "samples": valid.sum(),
        }

    def _part(self, apply: Callable[..., Array], state: State) -> jax.tree_util.Partial:
        params = state["ema"]["params"] if self._ema else state["params"]
        return jax.tree_util.Partial(apply, params, state["rest"])

    def _logits(self, params: Any, rest: Any, x: Array, *prompts: Prompts) -> Array:
        return nnx.merge(self._graphs["eval"], params, rest)(x, *prompts)

    def _features(self, params: Any, rest: Any, x: Array, *prompts: Prompts) -> Array:
        return nnx.merge(self._graphs["features"], params, rest)(x, *prompts)

    def _scores(self, params: Any, rest: Any, features: Array) -> Array:
        return nnx.merge(self._graphs["features"], params, rest).score(features)

    def predictor(
        self, state: State
    ) -> tuple[Network | tuple[Network, Network], dict[str, Any], str]:
        """(network, plan, label scheme): what `touchstone_jax.jobs.Predict` needs.

        The network is a pure function of normalised float32 (b, x, y, z, 1) to float32 logits
        (b, x, y, z, k), or a pair: to features, and linearly from these to the logits. A promptable
        one takes arrays of its `prompts` as a second argument. Each is a pytree of its parameters.
        The plan is `Plan.to_json` with the patch that was trained on.
        """
        plan = {**self._plan.to_json(), "patch": list(self._patch)}
        if "features" not in self._graphs:
            return self._part(self._logits, state), plan, self._labels.name
        pair = self._part(self._features, state), self._part(self._scores, state)
        return pair, plan, self._labels.name

    def inference(self, state: State) -> dict[str, Any]:
        """The network alone, on one patch, for launch's `export`; see `launch.experiment.Task`."""
        params, rest = self._part(self._logits, state).args
        _, plan, _ = self.predictor(state)
        sizes = ", ".join(map(str, self._patch))
        return {
            "function": lambda weights, x: self._logits(weights["params"], weights["rest"], x),
            "weights": {"params": params, "rest": rest},
            "input": jax.ShapeDtypeStruct((1, *self._patch, 1), jnp.float32),
            "about": {
                "what": "Segmentation of organs in CT, patch by patch.",
                "tags": ["image-segmentation", "medical", "ct", "jax"],
                "input": (
                    "patches (batch, x, y, z, 1) of a CT on the plan's spacing: x to the right of "
                    "the patient, y to the front, z to the head; clipped in HU, minus the mean, "
                    "over the deviation"
                ),
                "output": (
                    f"logits (batch, {sizes}, {self._labels.num_classes}), a class a channel, "
                    f"before the {self._activation}"
                ),
                "classes": _in_order(self._labels),
                "details": {"Plan": plan},
                "use": _WHOLE,
                "intended_use": (
                    "Research on segmentation of CTs like those below. It is no medical device "
                    "and must not guide the care of a patient."
                ),
            },
        }


_WHOLE = """\
Whole CTs are resampled, cut into windows and put together by the package `isnet-touchstone-jax`, as
`predict` of the same checkpoint does it; of its networks and its training nothing is used:

```python
import model
from touchstone_jax.exported import Segment

segment = Segment(model.load("."), ".")
labels = segment("ct.nii.gz")  # uint8 (x, y, z); or segment(array_in_hu, spacing_mm=(1, 1, 2))
```"""


def _in_order(labels: Scheme) -> list[str]:
    """Names of the classes by their number, background first."""
    names = {number: name for name, number in labels.indices.items()}
    return [names.get(number, "background") for number in range(labels.num_classes)]


def running_mean(mean: Any, params: Any, decay: float) -> Any:
    """{"params", "steps"}: the exponential mean after one more step.

    The decay rises as (1 + n) / (10 + n) to its value, so that the first steps do not linger.
    """
    n = mean["steps"].astype(jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1 + n) / (10 + n))
    # In this form the mean of what never changes stays exactly that.
    mixed = jax.tree.map(lambda m, p: m + (1 - keep) * (p - m), mean["params"], params)
    return {"params": mixed, "steps": mean["steps"] + 1}


def trained(network: nnx.Module) -> dict[str, Any]:
    """Whether each parameter is trained: not where its slash path matches ``network.frozen``."""
    frozen = getattr(network, "frozen", None)

    def is_trained(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return frozen is None or re.search(frozen, name) is None

    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    return jax.tree_util.tree_map_with_path(is_trained, params)


def _planned(
    model: Mapping[str, Any], spacing_mm: Sequence[float], patch: Sequence[int]
) -> dict[str, Any]:
    """The network's arguments with the stages that follow from spacing and patch."""
    if "name" not in model:
        raise ValueError("model: the key 'name' is missing")
    made = dict(model)
    if not accepts(made["name"], "strides") or {"kernels", "strides"} & made.keys():
        return made
    widths = made.get("widths")
    plan = topology(spacing_mm, patch, None if widths is None else len(widths))
    stages = len(plan.strides)
    if widths is None:
        widths = [min(32 * 2**level, 320) for level in range(stages)]
    elif stages < len(widths):
        raise ValueError(
            f"model: a patch of {tuple(patch)} voxels has room for {stages} stages, "
            f"widths={tuple(widths)} asks for {len(widths)}"
        )
    return {**made, "widths": tuple(widths), **plan._asdict()}


def _block(patch: Sequence[int], margin: int | Sequence[int]) -> tuple[int, int, int]:
    margins = (margin,) * 3 if isinstance(margin, int) else tuple(margin)
    if len(margins) != 3 or not all(type(m) is int and m >= 0 for m in margins):
        raise ValueError(f"margin={margin!r}; expected an integer from 0, or three")
    x, y, z = (p + 2 * m for p, m in zip(patch, margins, strict=True))
    return x, y, z


def _check(*, smooth: float, ema: float, val_patches: int, seed: int) -> None:
    for name, value, legal, told in (
        ("smooth", smooth, 0 < smooth < math.inf, "above 0"),
        ("ema", ema, 0 <= ema < 1, "a decay in [0, 1)"),
        ("val_patches", val_patches, val_patches >= 1, "at least 1"),
        ("seed", seed, 0 <= seed < 2**32, "0..2**32 - 1"),
    ):
        if not legal:
            raise ValueError(f"{name}={value}; expected {told}")
