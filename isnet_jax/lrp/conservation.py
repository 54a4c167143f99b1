"""Where relevance is lost: what every layer absorbs of what arrives at it.

LRP conserves relevance up to biases and stabilisers. Per layer, absorbed = relevance at its output
minus relevance at its inputs; summed over the layers, and with the map's own sum, that is the
explained quantity again (Bach et al. 2015, eq. 2, with its absorbing terms kept in the books).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def absorbed(
    f: Callable[[Array, Mapping[str, Array]], Array],
    x: Array,
    quantities: Callable[[Array], Array],
    paths: Sequence[str],
    terminal: str | None,
) -> dict[str, Array]:
    """What the layers at ``paths`` absorb, path -> (b, m); pure.

    Args:
        f: (x, meters) -> logits (b, k); `isnet_jax.lrp.taps.flows` of a composite's view.
        x: (b, *space, c).
        quantities: logits -> (m, b), what each of the m maps decomposes.
        paths: slash paths of layers. A layer inside another one of them counts for itself only.
        terminal: path of the input layer if its rule returns relevance instead of multipliers.
    """
    zeros = jnp.zeros((len(paths), x.shape[0]), x.dtype)
    logits, pull = jax.vjp(f, x, {"into": zeros, "out": zeros})
    explained, pull_quantities = jax.vjp(quantities, logits)

    def one(index: int) -> Array:
        selector = jnp.zeros_like(explained).at[index].set(1)
        pixels, sums = pull(*pull_quantities(selector))
        if terminal is not None:
            whole = pixels.reshape(len(pixels), -1).sum(1)
            sums["into"] = sums["into"].at[paths.index(terminal)].set(whole)
        return sums["out"] - sums["into"]

    lost = jnp.stack([one(i) for i in range(len(explained))], axis=-1)  # (paths, b, m)
    return _without_inner(paths, lost)


def _without_inner(paths: Sequence[str], lost: Array) -> dict[str, Any]:
    """Takes from an outer layer's loss what layers inside it, also listed, have lost."""
    inside: dict[str, list[int]] = {path: [] for path in paths}
    for i, path in enumerate(paths):
        above = [other for other in paths if path.startswith(other + "/")]
        if above:
            inside[max(above, key=len)].append(i)
    return {path: lost[i] - sum(lost[j] for j in inside[path]) for i, path in enumerate(paths)}
