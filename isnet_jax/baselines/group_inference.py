"""Two groups per class from a biased network's features: majority (0) and minority (1).

A small network per class looks for the split of its samples on which the cross-entropy disagrees
most: large losses and large IRM penalties in both halves.

Source: Ahmed et al. 2021, ICLR, section 3.2 and its code; the idea is EIIL's (Creager et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isnet_jax.baselines.irm import dummy_gradients
from isnet_jax.baselines.terms import Array
from isnet_jax.isnet import cross_entropy
from isnet_jax.legal import number

Tree = Any


@dataclass(frozen=True)
class GroupInference:
    """Settings.

    Attributes:
        widths: of the split network's hidden layers.
        steps: Adam steps for each class, >= 1.
        learning_rate: of Adam, > 0.
        batch: samples a step, >= 1; a smaller class is taken whole.
        penalty: weight of the dummies' gradients.
        temperature: softens the split, > 0.
    """

    widths: Sequence[int] = (64, 32, 21)
    steps: int = 100
    learning_rate: float = 1e-4
    batch: int = 512
    penalty: float = 10.0
    temperature: float = 10.0

    def __post_init__(self) -> None:
        widths = tuple(self.widths) if isinstance(self.widths, Sequence) else (0,)
        if not all(type(n) is int and n >= 1 for n in (self.steps, self.batch, *widths)):
            raise ValueError(
                f"group inference needs steps, batch and widths >= 1, got {self.steps!r}, "
                f"{self.batch!r} and {self.widths!r}"
            )
        rates = (self.learning_rate, self.temperature, self.penalty)
        if not all(map(number, rates)) or not min(rates[:2]) > 0 or not self.penalty >= 0:
            raise ValueError(
                "group inference needs learning_rate and temperature > 0 and penalty >= 0, got "
                f"{self.learning_rate!r}, {self.temperature!r} and {self.penalty!r}"
            )


def _initial(rng: Array, features: int, settings: GroupInference, dtype: Any) -> list[Tree]:
    layers, inputs = [], features
    glorot = jax.nn.initializers.glorot_uniform()
    for width in (*settings.widths, 1):
        rng, here = jax.random.split(rng)
        layers.append({"kernel": glorot(here, (inputs, width), dtype)})
        if len(layers) <= len(settings.widths):
            layers[-1]["bias"] = jnp.zeros((1, width), dtype)
        inputs = width
    return layers


def spectral_norm(kernel: Array) -> Array:
    """Largest singular value of a matrix (n, m), > 0, differentiable; exact, no power iteration."""
    # From the smaller Gram matrix: its largest eigenvalue loses nothing, and a decomposition of
    # the kernel itself is nearly all the time that a split takes.
    gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
    largest = jnp.linalg.eigvalsh(gram)[-1]
    return jnp.sqrt(jnp.maximum(largest, jnp.finfo(kernel.dtype).tiny))


def minority_shares(layers: list[Tree], features: Array, temperature: float = 10.0) -> Array:
    """Soft split alpha (n,) in (0, 1) of features (n, d): ``(1 + tanh(logit / T)) / 2``.

    Hidden layers are linear with spectral norm 1, LayerNorm (no affine) and ReLU.
    """
    h = features
    for layer in layers[:-1]:
        h = h @ (layer["kernel"] / spectral_norm(layer["kernel"])) + layer["bias"]
        centred = h - h.mean(-1, keepdims=True)
        h = jax.nn.relu(centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5))
    return (1 + jnp.tanh((h @ layers[-1]["kernel"])[:, 0] / temperature)) / 2


def disagreement(alpha: Array, logits: Array, labels: Array, penalty: float = 10.0) -> Array:
    """``(R1 + R2 + penalty (G1 + G2)) / 2``, a scalar: what the split maximises.

    R are the cross-entropies weighted by alpha and 1 - alpha, G the squared norms of their
    gradients in the logits' dummies.

    Args:
        alpha: (n,) in [0, 1].
        logits: (n, k).
        labels: (n,) int.
        penalty: weight of G.
    """
    losses, slopes = cross_entropy(logits, labels), dummy_gradients(logits, labels)
    total = jnp.zeros((), logits.dtype)
    for weights in (alpha, 1 - alpha):
        risk = (weights * losses).mean()
        gradient = (weights[:, None] * slopes).mean(0)
        total = total + risk + penalty * jnp.square(gradient).sum()
    return total / 2


@partial(jax.jit, static_argnums=0)
def _split(
    settings: GroupInference, rng: Array, features: Array, logits: Array, labels: Array
) -> Array:
    """Soft split (n,) of one class."""
    first, draws = jax.random.split(rng)
    layers = _initial(first, features.shape[-1], settings, features.dtype)
    optimizer = optax.adam(settings.learning_rate)
    count = min(settings.batch, len(features))

    def loss(layers: list[Tree], rows: Array) -> Array:
        alpha = minority_shares(layers, features[rows], settings.temperature)
        return -disagreement(alpha, logits[rows], labels[rows], settings.penalty)

    def step(carry: Tree, key: Array) -> tuple[Tree, None]:
        layers, state = carry
        rows = jax.random.choice(key, len(features), (count,), replace=False)
        grads = jax.grad(loss)(layers, rows)
        # optax raises a float to an integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, layers)
        return (optax.apply_updates(layers, updates), state), None

    keys = jax.random.split(draws, settings.steps)
    (layers, _), _ = jax.lax.scan(step, (layers, optimizer.init(layers)), keys)
    return minority_shares(layers, features, settings.temperature)


def infer_groups(
    features: np.ndarray | Array,
    logits: np.ndarray | Array,
    labels: np.ndarray | Array,
    settings: GroupInference,
    rng: Array,
) -> np.ndarray:
    """Groups (n,) int32 of a training set: 1 is the half of each class with the higher mean loss.

    A class whose samples all fall into one half is all group 0 (no minority was found).

    Args:
        features: (n, d) float, the frozen network's input to its last linear layer.
        logits: (n, k) of the same network.
        labels: (n,) int in 0..k-1.
        settings: of the split.
        rng: key; equal keys give equal groups.

    Raises:
        ValueError: shapes that differ, labels outside the logits, or non-finite numbers.
    """
    features, logits, labels = (np.asarray(a) for a in (features, logits, labels))
    if features.ndim != 2 or logits.ndim != 2 or not len(features) == len(logits) == len(labels):
        raise ValueError(
            f"infer_groups: features {features.shape}, logits {logits.shape} and labels "
            f"{labels.shape}; expected (n, d), (n, k) and (n,)"
        )
    if not (np.isfinite(features).all() and np.isfinite(logits).all()):
        raise ValueError("infer_groups: features or logits have non-finite values")
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"infer_groups: labels outside 0..{logits.shape[1] - 1}")
    losses = np.asarray(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)))
    groups = np.zeros(len(labels), np.int32)
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        own = jax.random.fold_in(rng, int(label))
        alpha = _split(settings, own, features[rows], logits[rows], labels[rows])
        half = np.asarray(alpha) >= 0.5
        if half.all() or not half.any():
            continue
        higher = losses[rows][half].mean() > losses[rows][~half].mean()
        groups[rows] = half if higher else ~half
    return groups
