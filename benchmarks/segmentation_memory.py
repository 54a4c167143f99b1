"""Memory that training each segmentation network takes at the least, from shapes alone.

``python benchmarks/segmentation_memory.py [--models …] [--side N] [--dtype bfloat16]
[--out FILE.json]``

Batch 1, the patch of the catalogue or ``--side`` voxels along each axis, 10 classes. "Kept" is
what the backward pass reads of the forward pass beside the weights, with and without recomputation
of blocks (``remat``); nothing is allocated or compiled. What XLA needs on top while it computes is
not in it, and fusion may save some of it. Weights are float32; training keeps their gradients
and, with momentum, as many numbers again, but for those of frozen weights.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from touchstone_jax.models import accepts, count, create
from touchstone_jax.models.catalogue import CATALOGUE
from touchstone_jax.tasks import trained


def kept_mib(name: str, patch: tuple[int, ...], dtype: str, remat: bool) -> float:
    """MiB that the backward pass needs from the forward pass, without the weights."""
    how = {"dtype": dtype, "remat": remat}
    if accepts(name, "patch"):
        how["patch"] = patch
    # The program as accelerators get it, where three dimensions are convolved at once.
    if accepts(name, "lowering") and name != "mednext_l":
        how["lowering"] = "direct"
    made = nnx.eval_shape(lambda: create(name, num_classes=10, rngs=nnx.Rngs(0), **how))
    made.train()
    moves = trained(made)
    graphdef, params, rest = nnx.split(made, nnx.Param, ...)
    pure = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def pull(params: dict, rest: dict, x: jax.Array) -> object:
        def loss(params: dict) -> jax.Array:
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, moves)
            return loss_of(nnx.merge(graphdef, params, rest), x)

        return jax.vjp(loss, params)[1]

    x = jax.ShapeDtypeStruct((1, *patch, 1), jnp.float32)
    saved = jax.tree.leaves(jax.eval_shape(pull, *pure, x))
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in saved)
    # Weights are among what is saved, one by one.
    shapes = Counter((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(pure))
    found = Counter((leaf.shape, str(leaf.dtype)) for leaf in saved)
    for (shape, kind), number in (shapes & found).items():
        total -= number * math.prod(shape) * jnp.dtype(kind).itemsize
    return total / 2**20


def loss_of(network: nnx.Module, x: jax.Array) -> jax.Array:
    """The squares of all scales' logits, by the way of the network's own loss if it has one."""

    def squares(logits: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        return {"loss": sum(jnp.square(scale).mean() for scale in logits)}

    if not hasattr(network, "training_loss"):
        return squares(network(x))["loss"]
    labels, annotated = jnp.zeros(x.shape[:4], jnp.uint8), jnp.ones((len(x), 10), bool)
    return network.training_loss(x, labels, annotated, jax.random.key(0), squares)["loss"]


def main() -> None:
    """Measure what was asked for; one line of JSON a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(CATALOGUE))
    parser.add_argument("--side", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.models:
        patch = (options.side,) * 3 if options.side else CATALOGUE[name].patch
        row = {"model": name, "patch": patch, "dtype": options.dtype}
        weights = 4 * count.count_parameters(name, num_classes=10) / 2**20
        row["weights_mib"] = round(weights)
        for remat in (False, True):
            key = "kept_remat_mib" if remat else "kept_mib"
            row[key] = round(kept_mib(name, patch, options.dtype, remat))
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.out:
        about = {
            "date": datetime.date.today().isoformat(),
            "jax": jax.__version__,
        }
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
