"""Up-sampling and 3-D convolution of a U-Net against what flax and XLA offer for them.

``python benchmarks/upsampling.py [--rounds 15] [--out FILE.json]``

Two comparisons, each forward and backward in one compiled program, the two sides in turn in one
process, median of the ratios:

- the transposed convolution with kernel = stride (2 x 2 x 2) of `touchstone_jax.layers`, one
  matrix product and a reshape, against ``nnx.ConvTranspose``, a dilated convolution;
- the 3 x 3 x 3 convolution lowered as 2-D planes against XLA's own 3-D convolution (on CPUs the
  planes are what `touchstone_jax.layers.Conv` takes).

A ratio below 1 says that ours takes less time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from touchstone_jax.layers import convolve, upsample

# Coarse side of the cube, channels in, channels out: nnU-Net's decoder at a 64 cube, and a thin
# network's.
UPSAMPLINGS = ((4, 320, 256), (8, 256, 128), (16, 128, 64), (32, 64, 32), (32, 16, 8))
# Side of the cube, channels in and out.
CONVOLUTIONS = ((32, 8), (32, 32), (16, 64), (8, 256))
STRIDES = (2, 2, 2)


def both_ways(function: Callable) -> Callable:
    """Sum of squares of the result and its gradients, compiled."""
    return jax.jit(jax.value_and_grad(lambda x, w: jnp.square(function(x, w)).mean(), (0, 1)))


def flax_transposed(channels_in: int, channels_out: int) -> Callable:
    """``nnx.ConvTranspose`` as a function of input and kernel."""
    layer = nnx.ConvTranspose(
        channels_in,
        channels_out,
        STRIDES,
        STRIDES,
        padding="VALID",
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    graph, _ = nnx.split(layer)
    return lambda x, w: nnx.merge(graph, {"kernel": w})(x)


def seconds(function: Callable, *arguments: jax.Array) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def compare(ours: Callable, theirs: Callable, x: jax.Array, w: jax.Array, rounds: int) -> dict:
    """Median and range of the ratio ours / theirs, and both medians in ms."""
    sides = [both_ways(ours), both_ways(theirs)]
    for side in sides:
        seconds(side, x, w)  # compiles
    times = np.array([[seconds(side, x, w) for side in sides] for _ in range(rounds)])
    ratios = times[:, 0] / times[:, 1]
    return {
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_min": round(float(ratios.min()), 3),
        "ratio_max": round(float(ratios.max()), 3),
        "ours_ms": round(1e3 * float(np.median(times[:, 0])), 2),
        "theirs_ms": round(1e3 * float(np.median(times[:, 1])), 2),
    }


def measure(rounds: int) -> list[dict]:
    """A row a shape."""
    rng, rows = np.random.default_rng(0), []

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    for side, i, o in UPSAMPLINGS:
        x, w = drawn(1, side, side, side, i), drawn(*STRIDES, i, o)
        rows.append(
            {"what": "upsampling / nnx.ConvTranspose", "side": side, "channels": (i, o)}
            | compare(upsample, flax_transposed(i, o), x, w, rounds)
        )
        print(rows[-1], flush=True)
    for side, c in CONVOLUTIONS:
        x, w = drawn(1, side, side, side, c), drawn(3, 3, 3, c, c)
        planes, direct = (
            (lambda x, w, how=how: convolve(x, w, lowering=how)) for how in ("planes", "direct")
        )
        rows.append(
            {"what": "planes / direct 3-D convolution", "side": side, "channels": (c, c)}
            | compare(planes, direct, x, w, rounds)
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Runs both comparisons and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out")
    options = parser.parse_args()
    about = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rounds": options.rounds,
    }
    table = about | {"rows": measure(options.rounds)}
    if options.out:
        Path(options.out).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
